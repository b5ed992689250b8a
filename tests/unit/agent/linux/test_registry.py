import os
import struct

import pytest

from keibi.agent.linux.registry import read_hive
from keibi.errors import InputError, TryLaterError
from tests.unit.agent.linux.hives import Key, build

SOFTWARE = Key(
    "ROOT",
    subkeys=[Key("Microsoft", subkeys=[Key("Run", values={"Updater": "C:\\tools\\up.exe", "Other": "x"})]), Key("Empty")],
)


@pytest.fixture
def hive(tmp_path):
    path = tmp_path / "SOFTWARE"
    path.write_bytes(build(SOFTWARE))
    return path


def test_keys_and_values_of_a_hive_are_entities(hive):
    content = read_hive(str(hive), "")
    assert set(content.keys) == {f"{hive}!{name}" for name in ("", "Microsoft", "Microsoft/Run", "Empty")}
    assert set(content.values) == {f"{hive}!Microsoft/Run//Updater", f"{hive}!Microsoft/Run//Other"}
    assert content.values[f"{hive}!Microsoft/Run//Updater"]["value_type"] == "REG_SZ"
    assert content.problems == []


def test_only_what_is_below_the_named_key_is_read(hive):
    content = read_hive(str(hive), "Microsoft/Run")
    assert set(content.keys) == {f"{hive}!Microsoft/Run"}
    assert len(content.values) == 2
    assert read_hive(str(hive), "No/Such/Key").keys == {}


def test_a_changed_value_has_other_contents(hive):
    before = read_hive(str(hive), "Microsoft").values
    changed = Key("ROOT", subkeys=[Key("Microsoft", subkeys=[Key("Run", values={"Updater": "C:\\evil.exe", "Other": "x"})])])
    hive.write_bytes(build(changed))
    after = read_hive(str(hive), "Microsoft").values
    differing = [key for key in before if before[key]["contents"] != after[key]["contents"]]
    assert differing == [f"{hive}!Microsoft/Run//Updater"]


def test_a_hive_whose_keys_point_in_a_circle_is_read_to_the_end(tmp_path):
    path = tmp_path / "LOOP"
    path.write_bytes(build(SOFTWARE, loop=True))
    content = read_hive(str(path), "")
    assert any("loop" in problem for problem in content.problems)


@pytest.mark.parametrize(
    "data",
    [b"", b"regf", os.urandom(8192), b"\0" * 4096, struct.pack("<4s", b"regf") + b"\xff" * 9000],
    ids=["empty", "short", "random", "zeros", "nonsense"],
)
def test_what_is_no_hive_is_said_to_be_none(tmp_path, data):
    path = tmp_path / "BAD"
    path.write_bytes(data)
    with pytest.raises(InputError, match=str(path)) as refused:
        read_hive(str(path), "")
    assert refused.value.code == "hive_damaged"


def test_a_hive_that_is_cut_off_gives_what_is_there_and_says_so(tmp_path):
    path = tmp_path / "CUT"
    path.write_bytes(build(SOFTWARE)[:5000])
    assert "cut off" in read_hive(str(path), "").problems[0]


def test_a_missing_hive_can_be_tried_later(tmp_path):
    with pytest.raises(TryLaterError, match="No such file"):
        read_hive(str(tmp_path / "ABSENT"), "")


def test_a_hive_is_never_followed_through_a_link(tmp_path, hive):
    link = tmp_path / "LINK"
    link.symlink_to(hive)
    with pytest.raises(TryLaterError):
        read_hive(str(link), "")
