"""Changes of a fleet, grouped by the real event store: nothing of them is kept anywhere else."""

import time

import pytest

from keibi.errors import AccessError, InputError
from keibi.manager.software.model import Bringer, ChangeFilter, PackageName, Standing
from tests.unit.manager.policies.world import principal
from tests.unit.manager.software.making import a_change, sha256_of


def found(world, by="hash", who=None, **filters):
    return world.software.changes(who or world.alice, ChangeFilter(**filters), by).items


def test_one_content_on_many_computers_is_one_group(sqlite_world):
    world = sqlite_world
    first, second = world.world.computer("web-1"), world.world.computer("web-2")
    world.tell(
        first,
        a_change("/opt/a", name="a", ago=600),
        a_change("/srv/b", name="a", ago=300, kind="software.blocked", repeat_count=4),
    )
    world.tell(
        second, a_change("/opt/a", name="a", user="eve", process="/usr/bin/scp"), a_change("/opt/other", name="o", ago=900)
    )
    newest, other = found(world)
    assert (newest.sha256, newest.key) == (sha256_of("a"), sha256_of("a"))
    assert (newest.event_count, newest.computer_count, newest.path_count, newest.hash_count) == (3, 2, 2, 1)
    assert newest.paths == ("/opt/a", "/srv/b")
    assert newest.computer_ids == tuple(sorted((first, second)))
    assert (newest.execution_count, newest.blocked_count) == (4, 4)
    assert newest.bringers == (Bringer("deploy", "/usr/bin/curl"), Bringer("eve", "/usr/bin/scp"))
    assert newest.standing is Standing.OPEN
    assert newest.last_at - newest.first_at == pytest.approx(600, abs=5)
    assert other.paths == ("/opt/other",)


def test_changes_are_grouped_by_computer_by_bringer_and_by_place(sqlite_world):
    world = sqlite_world
    first, second = world.world.computer("web-1"), world.world.computer("web-2")
    world.tell(first, a_change("/opt/a", name="a"), a_change("/opt/b", name="b", user="eve"))
    world.tell(second, a_change("/opt/a", name="a"))
    assert {(group.key, group.hash_count) for group in found(world, "computer")} == {(first, 2), (second, 1)}
    assert sorted(group.event_count for group in found(world, "bringer")) == [1, 2]
    assert {group.key for group in found(world, "place", sha256=sha256_of("a"))} == {f"{first}\n/opt/a", f"{second}\n/opt/a"}
    with pytest.raises(InputError) as refused:
        found(world, "colour")
    assert refused.value.code == "field_invalid"


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"process": "curl"}, {"/opt/app/run"}),
        ({"process": "/usr/bin/dpkg"}, {"/usr/bin/tool"}),
        ({"user": "www-data"}, {"/var/www/shell.php"}),
        ({"path": "/opt/"}, {"/opt/app/run"}),
        ({"path": "/usr/bin/tool"}, {"/usr/bin/tool"}),
        ({"path": "/usr/bin"}, set()),
        ({"file": "shell.php"}, {"/var/www/shell.php"}),
        ({"file": "*.php"}, {"/var/www/shell.php"}),
        ({"sha256": sha256_of("t").upper()[:12]}, {"/usr/bin/tool"}),
        ({"package": "tool"}, {"/usr/bin/tool"}),
        ({"text": "SHELL www"}, {"/var/www/shell.php"}),
        ({"text": "debian-tool"}, set()),
        ({"kinds": ("software.changed",)}, {"/usr/bin/tool"}),
        ({"since": 0.0, "until": 10.0}, set()),
        ({"text": "100%_"}, set()),
    ],
)
def test_a_filter_finds_what_it_says(sqlite_world, filters, names):
    world = sqlite_world
    world.tell(
        world.world.computer("web-1"),
        a_change("/opt/app/run", name="r"),
        a_change(
            "/usr/bin/tool",
            name="t",
            kind="software.changed",
            user="root",
            process="/usr/bin/dpkg",
            package={"name": "tool", "version": "1.2", "origin": "Debian"},
        ),
        a_change("/var/www/shell.php", name="s", user="www-data", process="/usr/sbin/apache2", file_type="script"),
    )
    assert {group.paths[0] for group in found(world, **filters)} == names
    assert world.software.count(world.alice, ChangeFilter(**filters)) == len(names)


def test_the_package_of_a_group_is_known_and_code_without_a_file_is_of_its_interpreter(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    package = {"name": "tool", "version": "1.2", "origin": "Debian"}
    world.tell(
        computer,
        a_change("/usr/bin/tool", name="t", package=package),
        a_change("/usr/bin/python3", name="python", kind="software.inline_code", reason_code="inline_code", inline="command"),
        a_change("/run/x", sha256=None),
    )
    groups = {group.key: group for group in found(world)}
    assert groups[sha256_of("t")].package == PackageName("tool", "1.2", "Debian")
    assert groups["inline:/usr/bin/python3"].execution_count == 1
    assert "path:/run/x" in groups


def test_pages_follow_each_other_without_gap_or_repetition_and_say_the_true_total(sqlite_world):
    world = sqlite_world
    world.tell(world.world.computer("web-1"), *(a_change(f"/opt/{number}", ago=number // 3) for number in range(25)))
    seen, cursor = [], None
    while True:
        page = world.software.changes(world.alice, ChangeFilter(), "hash", cursor, 7)
        assert page.total == 25
        seen += [group.key for group in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 25
    for bad in ("nonsense", "WzFd"):
        with pytest.raises(InputError) as refused:
            world.software.changes(world.alice, ChangeFilter(), "hash", bad)
        assert refused.value.code == "cursor_invalid"


def test_what_agents_trust_by_themselves_and_proofs_wait_for_nobody(sqlite_world):
    world = sqlite_world
    world.tell(
        world.world.computer("web-1"),
        a_change("/usr/bin/new", name="n", state="trusted", reason_code="trusted_updater"),
        a_change("/tmp/prove", name="p", is_proof=True),
    )
    (only,) = found(world)
    assert only.standing is Standing.RECOGNISED
    assert found(world, standing=Standing.OPEN) == []
    assert world.software.open_count(world.alice) == 0


def test_details_of_another_shape_do_not_break_the_list(sqlite_world):
    world = sqlite_world
    event = a_change("/opt/odd", name="odd", package="no mapping", brought_by=[1, 2], size="large", repeat_count=-5)
    world.tell(world.world.computer("web-1"), event, a_change("/opt/good", name="good"))
    assert len(found(world)) == 2


def test_nobody_sees_the_software_of_another_customer_or_of_another_group(sqlite_world):
    world = sqlite_world
    group = world.world.group("Tokyo")
    inside, outside = world.world.computer("in", group_id=group), world.world.computer("out")
    world.tell(inside, a_change("/opt/in"))
    world.tell(outside, a_change("/opt/out"))
    assert found(world, who=world.world.eve) == []
    assert [one.paths for one in found(world, who=principal(world.tenant_id, group=group))] == [("/opt/in",)]
    with pytest.raises(AccessError):
        found(world, who=principal(world.tenant_id, permissions=frozenset({"rules.view"})))


def test_a_hundred_thousand_changes_are_no_limit(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("build")
    for part in range(4):
        world.tell(computer, *(a_change(f"/build/{part}/{number}") for number in range(25_000)))
    began_at = time.monotonic()
    page = world.software.changes(world.alice, ChangeFilter(standing=Standing.OPEN))
    assert page.total == 100_000
    assert time.monotonic() - began_at < 10  # measured: 0.7 seconds


def test_what_held_a_threat_waits_with_its_name_until_somebody_allows_the_threat(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    world.tell(
        computer,
        a_change("/opt/bad", name="bad", ago=60, kind="software.distrusted", reason_code="malware", threat="Test.Marker"),
        a_change("/opt/free", name="free", ago=60, kind="software.distrusted", reason_code="malware", threat="Test.Other"),
        a_change("/opt/free", name="free", kind="software.trusted_again", reason_code="inventory", state="trusted"),
    )
    (waiting,) = found(world, standing=Standing.OPEN)
    assert (waiting.paths, waiting.threats, waiting.reason_codes) == (("/opt/bad",), ("Test.Marker",), ("malware",))
    (free,) = found(world, standing=Standing.RECOGNISED)
    assert free.paths == ("/opt/free",)
