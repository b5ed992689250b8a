"""Which paths are wanted, and under which name."""

import os

from keibi.agent.sensor.roots import Place, Roots


def test_everything_below_a_root_is_wanted_and_nothing_beside_it():
    roots = Roots([b"/nowhere/etc", b"/nowhere/srv/file"])
    assert roots.places(b"/nowhere/etc") == (Place(b"/nowhere/etc/"),)
    assert roots.places(b"/nowhere/etc/ssh") == (Place(b"/nowhere/etc/ssh/"),)
    assert roots.places(b"/nowhere/etcetera") == ()
    assert roots.places(b"/nowhere/srv/file2") == ()


def test_above_a_root_only_the_names_on_the_way_to_it_are_wanted():
    roots = Roots([b"/nowhere/etc", b"/nowhere/srv/file"])
    expected = {b"etc": (b"/nowhere/etc",), b"srv": (b"/nowhere/srv/file",)}
    assert roots.places(b"/nowhere") == (Place(b"", expected),)
    assert roots.places(b"/") == (Place(b"", {b"nowhere": (b"/nowhere/etc", b"/nowhere/srv/file")}),)


def test_the_whole_tree_can_be_a_root():
    roots = Roots([b"/"], [b"/nowhere/state"])
    assert roots.places(b"/") == (Place(b"/"),)
    assert roots.places(b"/nowhere") == (Place(b"/nowhere/"),)
    assert roots.places(b"/nowhere/state") == ()
    assert roots.places(b"/nowhere/state/deep") == ()
    assert roots.places(b"/nowhere/state2") == (Place(b"/nowhere/state2/"),)


def test_a_symbolic_link_is_told_by_its_own_name(tmp_path):
    point = os.fsencode(tmp_path.resolve())
    os.mkdir(point + b"/real")
    os.symlink("real", point + b"/link")
    roots = Roots([point + b"/link"])
    assert roots.places(point + b"/real/below") == (Place(point + b"/link/below/"),)
    assert not roots.refresh()
    os.unlink(point + b"/link")
    os.symlink("elsewhere", point + b"/link")
    assert roots.refresh()
    assert roots.places(point + b"/real") == ()
