"""Commands to many computers at once: in a few statements, and each for itself."""

import pytest
from sqlalchemy import event

from keibi.contract.commands import CommandKind
from keibi.errors import AccessError, InputError
from keibi.manager.agents.commands import CommandService
from keibi.manager.agents.model import SentCommand
from keibi.manager.agents.signals import Signals
from keibi.manager.computers import chosen as choosing
from keibi.manager.computers.chosen import chosen_computers
from keibi.manager.computers.service import ComputerService
from tests.unit.manager.policies.world import make_world


@pytest.fixture
def sent_by(database):
    world = make_world(database)
    return world, CommandService(database, world.audit, Signals(database)), ComputerService(database, world.audit)


def statements_of(database, work):
    counted = []

    def count(*told):
        counted.append(told[2])

    event.listen(database.engine, "before_cursor_execute", count)
    try:
        work()
    finally:
        event.remove(database.engine, "before_cursor_execute", count)
    return len(counted)


def test_what_is_wrong_with_one_computer_keeps_no_other_from_its_command(sent_by):
    world, commands, _ = sent_by
    first, second = world.computer("web-1"), world.computer("web-2")
    asked = [(first, {"a": 1}), ("nobody", {}), (second, {"a": 2})]
    answers = commands.send_each(world.alice, asked, CommandKind.SCAN)
    assert [one.computer_id for one in answers if isinstance(one, SentCommand)] == [first, second]
    assert [one.arguments for one in answers if isinstance(one, SentCommand)] == [{"a": 1}, {"a": 2}]
    assert isinstance(answers[1], InputError)
    foreign = commands.send_each(world.eve, asked, CommandKind.SCAN)
    assert all(isinstance(one, InputError | AccessError) for one in foreign)
    with pytest.raises(InputError):
        commands.send_all(world.alice, [first, "nobody"], CommandKind.SCAN)
    assert commands.list(world.alice, limit=100).total == 2


def test_the_statements_for_a_computer_more_are_few(sent_by):
    world, commands, computers = sent_by
    ids = [world.computer(f"web-{number}") for number in range(40)]

    def choose(count):
        assert len(chosen_computers(computers, world.alice, ids[:count], [])) == count

    few, many = (statements_of(world.database, lambda count=count: choose(count)) for count in (2, 40))
    assert many == few
    few, many = (
        statements_of(
            world.database,
            lambda count=count: commands.send_each(world.alice, [(one, {}) for one in ids[:count]], CommandKind.SCAN),
        )
        for count in (2, 40)
    )
    assert (many - few) / 38 <= 4  # the command, and its record in the audit trail


def test_more_computers_than_may_be_named_are_told(sent_by, monkeypatch):
    world, _, computers = sent_by
    ids = [world.computer(f"web-{number}") for number in range(3)]
    monkeypatch.setattr(choosing, "MAX_COMPUTERS", 2)
    with pytest.raises(InputError) as refused:
        chosen_computers(computers, world.alice, ids, [])
    assert refused.value.code == "too_many_computers"
    with pytest.raises(InputError) as refused:
        chosen_computers(computers, world.alice, [], [])
    assert refused.value.code == "nothing_chosen"
