"""Computers and groups: lists, filters, pages, edits, and who may see which."""

import msgspec
import pytest

from keibi.contract.names import new_id
from keibi.errors import AccessError, InputError
from keibi.manager.agents.reports import keep_facts, keep_status
from keibi.manager.computers.model import ComputerChange, ComputerFilter, ComputerState
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.database import Scope
from tests.manager_running import facts, status


@pytest.fixture
def acme(world):
    return world.tenant("Acme")


@pytest.fixture
def anna(world, acme):
    return world.person(acme, "anna", "administrator")


def add(world, tenant_id, name, *, group_id=None, seen_ago=None, tags="", enabled=True, os_name="debian", said=None):
    """Make a computer as enrolment and heartbeats would."""
    computer_id = new_id()
    with world.database.session(Scope.system("test")) as session:
        session.add(
            ComputerRecord(
                id=computer_id,
                tenant_id=tenant_id,
                display_name=name,
                group_id=group_id,
                importance="normal",
                tags=tags,
                note="",
                is_enabled=enabled,
                public_key=bytes.fromhex(new_id() * 2),
                machine_id=new_id(),
                enrolled_at=world.clock.now,
                enrolment_token_id="",
                version=1,
            )
        )
        session.flush()
        report = ReportRecord(id=computer_id, tenant_id=tenant_id, hostname="", heartbeat_seconds=60)
        keep_facts(report, facts(name.lower(), os_name=os_name), "f")
        if seen_ago is not None:
            report.last_heartbeat_at = world.clock.now - seen_ago
        if said is not None:
            keep_status(report, said, "s", world.clock.now)
        session.add(report)
    return computer_id


def names(world, principal, **filters):
    return [computer.display_name for computer in world.computers.list(principal, ComputerFilter(**filters)).items]


def test_lists_filter_sort_and_count_truly(world, acme, anna):
    add(world, acme, "Web1", seen_ago=10, tags="|web|prod|")
    add(world, acme, "web2", seen_ago=1000, tags="|web|")
    add(world, acme, "DB_1", os_name="rhel", enabled=False, tags="|prod|")
    add(world, acme, "new%", os_name="rhel")
    assert names(world, anna) == ["DB_1", "new%", "Web1", "web2"]
    assert names(world, anna, text="WEB") == ["Web1", "web2"]
    assert names(world, anna, text="%") == ["new%"]
    assert names(world, anna, text="_") == ["DB_1"]
    assert names(world, anna, text="192.0.2.10") == ["DB_1", "new%", "Web1", "web2"]
    assert names(world, anna, tags=("web", "prod")) == ["Web1"]
    assert names(world, anna, tags=("we",)) == []
    assert names(world, anna, os_name="rhel") == ["DB_1", "new%"]
    for state, expected in (("online", "Web1"), ("offline", "web2"), ("disabled", "DB_1"), ("never", "new%")):
        assert names(world, anna, states=(ComputerState(state),)) == [expected]
    assert names(world, anna, states=(ComputerState.ONLINE, ComputerState.NEVER)) == ["new%", "Web1"]
    assert names(world, anna, sort="hostname", is_descending=True) == ["web2", "Web1", "new%", "DB_1"]
    assert names(world, anna, sort="last_heartbeat_at", is_descending=True)[:2] == ["Web1", "web2"]
    assert world.computers.tags(anna) == {"prod": 2, "web": 2}
    overview = world.computers.overview(anna)
    assert overview.states == {"online": 1, "offline": 1, "never": 1, "disabled": 1}
    assert overview.problem_counts == {"agent_offline": 1, "agent_never": 1}
    assert overview.unprotected_count == 2


@pytest.mark.parametrize("sort", ["name", "hostname", "last_heartbeat_at", "enrolled_at", "problems"])
@pytest.mark.parametrize("is_descending", [False, True])
def test_pages_meet_without_gap_or_repeat_in_every_order(world, acme, anna, sort, is_descending):
    for number in range(23):
        add(world, acme, f"web{number % 5}", seen_ago=number % 3 if number % 4 else None)
    filters = ComputerFilter(sort=sort, is_descending=is_descending)
    seen, cursor = [], None
    while True:
        page = world.computers.list(anna, filters, cursor, 4)
        assert page.total == 23
        seen += [computer.computer_id for computer in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == 23
    assert len(set(seen)) == 23


def test_a_cursor_of_another_order_or_made_up_is_refused(world, acme, anna):
    for cursor in ("x", "W10", "bm9wZQ", "W251bGwsMV0", "A" * 5000):
        with pytest.raises(InputError) as caught:
            world.computers.list(anna, ComputerFilter(), cursor)
        assert caught.value.code == "cursor_invalid"


def test_edits_are_checked_kept_and_in_the_audit_trail(world, acme, anna):
    group = world.computers.groups.create(anna, "Web").group_id
    computer = add(world, acme, "web1", seen_ago=1)
    change = ComputerChange(display_name=" Web one ", group_id=group, tags=("prod", "web", "web"), importance="high", note="n")
    changed = world.computers.change(anna, computer, change)
    assert (changed.display_name, changed.group_id, changed.tags) == ("Web one", group, ("prod", "web"))
    assert world.audit.list(anna).items[
        0
    ].summary == "Changed the computer web1: display_name, group_id, importance, tags, note." or (
        "Changed the computer Web one" in world.audit.list(anna).items[0].summary
    )
    assert world.computers.change(anna, computer, ComputerChange(group_id=None)).group_id is None
    with pytest.raises(InputError) as caught:
        world.computers.change(anna, computer, ComputerChange(note="late"), expected_version=changed.version)
    assert caught.value.code == "changed_meanwhile"
    for bad in (
        ComputerChange(display_name=""),
        ComputerChange(display_name="a\nb"),
        ComputerChange(importance="huge"),
        ComputerChange(tags=("a|b",)),
        ComputerChange(tags=tuple(str(number) for number in range(40))),
        ComputerChange(group_id=new_id()),
    ):
        with pytest.raises(InputError):
            world.computers.change(anna, computer, bad)


def test_problems_say_why_gravest_first(world, acme, anna):
    module = msgspec.structs.replace(status().modules[0], message="broken")
    said = status(
        is_safe_mode=True, safe_mode_reason="three crashes", policy_error="bad rule", modules=[module, *status().modules[1:]]
    )
    computer = add(world, acme, "web1", seen_ago=1000, said=said)
    codes = [problem.code for problem in world.computers.get(anna, computer).problems]
    assert codes == ["agent_offline", "safe_mode", "policy_refused"]
    with world.database.session(Scope.system("test")) as session:
        report = session.get(ReportRecord, computer)
        report.generation_wanted, report.generation_wanted_at = 7, world.clock.now - 600
    assert "policy_pending" in [problem.code for problem in world.computers.get(anna, computer).problems]
    assert world.computers.overview(anna).policy_pending_count == 1
    assert {problem.code for _, problem in world.computers.unprotected(anna)} == {*codes, "policy_pending"}


def test_a_right_over_a_group_shows_its_computers_and_those_below_only(world, acme, anna):
    tokyo = world.computers.groups.create(anna, "Tokyo").group_id
    web = world.computers.groups.create(anna, "Web", tokyo).group_id
    osaka = world.computers.groups.create(anna, "Osaka").group_id
    inside, below = add(world, acme, "inside", group_id=tokyo), add(world, acme, "below", group_id=web)
    outside, loose = add(world, acme, "outside", group_id=osaka), add(world, acme, "loose")
    gina = world.person(acme, "gina", "operator", group_id=tokyo)
    assert names(world, gina) == ["below", "inside"]
    assert names(world, gina, group_id=web) == ["below"]
    assert world.computers.overview(gina).computer_count == 2
    for hidden in (outside, loose):
        with pytest.raises(InputError):
            world.computers.get(gina, hidden)
        with pytest.raises(InputError):
            world.computers.remove(gina, hidden)
    world.computers.change(gina, inside, ComputerChange(group_id=web))
    with pytest.raises(AccessError):
        world.computers.change(gina, below, ComputerChange(group_id=osaka))
    with pytest.raises(AccessError):
        world.computers.change(gina, below, ComputerChange(group_id=None))
    with pytest.raises(AccessError):
        world.computers.groups.remove(gina, osaka)


def test_groups_form_a_tree_without_loops(world, anna):
    groups = world.computers.groups
    top = groups.create(anna, "Top").group_id
    middle = groups.create(anna, "Middle", top).group_id
    low = groups.create(anna, "Low", middle)
    assert low.path == "Top / Middle / Low"
    for parent in (top, middle, low.group_id):
        with pytest.raises(InputError) as caught:
            groups.change(anna, top, parent_id=parent, move=True)
        assert caught.value.code == "group_loop"
    with pytest.raises(InputError, match="already"):
        groups.create(anna, "MIDDLE", top)
    with pytest.raises(InputError, match="holds 0 computers and 1 groups"):
        groups.remove(anna, middle)
    assert groups.change(anna, low.group_id, parent_id=None, move=True, name="High").path == "High"
    groups.remove(anna, middle)
    assert [group.path for group in groups.tree(anna)] == ["High", "Top"]
    parent = None
    for number in range(16):
        parent = groups.create(anna, f"level {number}", parent).group_id
    with pytest.raises(InputError, match="deep"):
        groups.create(anna, "one more", parent)


def test_tenants_are_listed_to_those_who_have_rights_there(world, acme, anna):
    other = world.tenant("Other")
    assert [tenant.name for tenant in world.tenants.list(anna)] == ["Acme"]
    assert [tenant.name for tenant in world.tenants.list(world.provider)] == ["Acme", "Default", "Other"]
    with pytest.raises(InputError):
        world.tenants.get(anna, other)
    for attempt in (
        lambda: world.tenants.create(anna, "Mine"),
        lambda: world.tenants.rename(anna, acme, "Mine"),
        lambda: world.tenants.set_enabled(anna, acme, False),
    ):
        with pytest.raises(AccessError):
            attempt()
    with pytest.raises(InputError, match="already"):
        world.tenants.create(world.provider, " ACME ")
    with pytest.raises(InputError, match="own account"):
        world.tenants.set_enabled(world.provider, world.home, False)
    assert world.tenants.rename(world.provider, acme, "Acme Ltd").name == "Acme Ltd"
