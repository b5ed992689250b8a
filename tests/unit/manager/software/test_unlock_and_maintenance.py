"""Codes that work without a network, and maintenance of many computers."""

import pytest

from keibi.contract.commands import CommandKind
from keibi.contract.unlock import is_code, new_challenge
from keibi.errors import AccessError, InputError
from keibi.manager.database import Scope
from keibi.manager.keys import UnlockSecrets
from keibi.manager.policies.service import PolicyService
from tests.unit.manager.policies.world import principal
from tests.unit.manager.software.conftest import SECRETS


def test_the_code_fits_the_secret_that_came_with_the_policy(world):
    computer, other = world.world.computer("web-1"), world.world.computer("web-2")
    policies = PolicyService(world.world.database, world.world.audit, world.world.rules, unlock_secrets=SECRETS)
    with world.world.database.session(Scope.system("test")) as session:
        secret = policies.effective(session, computer).unlock_secret
        generation = policies.effective(session, computer).generation
    challenge = new_challenge()
    code = world.software.unlock_code(world.alice, computer, challenge.lower())
    assert is_code(secret, challenge, code)
    assert not is_code(SECRETS.of(other), challenge, code)
    assert len(secret) == 32
    # Another key is no reason for every computer to apply its policy anew.
    policies = PolicyService(world.world.database, world.world.audit, world.world.rules, unlock_secrets=UnlockSecrets(bytes(32)))
    with world.world.database.session(Scope.system("test")) as session:
        assert policies.effective(session, computer).generation == generation
    assert world.world.actions()[0] == "unlock.make"


def test_codes_are_for_those_who_may_and_for_challenges(world):
    computer = world.world.computer("web-1")
    for who, given, family in (
        (world.alice, "not one", InputError),
        (world.alice, "K7QX-M2N0", InputError),
        (world.alice, "", InputError),
        (world.world.eve, "K7QX-M2NV", InputError),
        (principal(world.tenant_id, permissions=frozenset({"computers.view"})), "K7QX-M2NV", AccessError),
    ):
        with pytest.raises(family):
            world.software.unlock_code(who, computer, given)
    assert "unlock.make" not in world.world.actions()


def test_maintenance_is_previewed_and_sent_to_each_computer(world):
    group = world.world.group("Tokyo")
    first, second = world.world.computer("a"), world.world.computer("b", group_id=group)
    world.world.computer("c")
    preview = world.software.maintenance.preview(world.alice, [first], [group], 60)
    assert (preview.computer_count, preview.computer_names) == (2, ("a", "b"))
    assert preview.offline_names == preview.without_names == ("a", "b")
    sent = world.software.maintenance.start(world.alice, [first, second], [], 60)
    assert [command.computer_id for command in sent] == [first, second]
    assert {(command.kind, command.arguments["minutes"]) for command in sent} == {(CommandKind.SET_MAINTENANCE, 60)}
    assert world.commands.list(world.alice).total == 2


def test_maintenance_that_cannot_be_is_sent_to_nobody(world):
    group = world.world.group("Tokyo")
    first, inside = world.world.computer("a"), world.world.computer("b", group_id=group)
    local = principal(world.tenant_id, group=group)
    for who, computers, minutes, family in (
        (world.alice, [first, "f" * 32], 60, InputError),
        (world.alice, [], 60, InputError),
        (world.alice, [first], 100_000, InputError),
        (world.alice, [first], -1, InputError),
        (local, [inside, first], 60, InputError),
        (principal(world.tenant_id, permissions=frozenset({"computers.view"})), [first], 60, AccessError),
    ):
        with pytest.raises(family):
            world.software.maintenance.start(who, computers, [], minutes)
    assert world.commands.list(world.alice).total == 0
    assert len(world.software.maintenance.start(local, [inside], [], 0)) == 1
