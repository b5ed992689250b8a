"""Containers by the names of their control groups."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.containers import ControlGroups, container_in, container_of

ID = "0a1b2c3d4e5f" + "6" * 52


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/docker/{ID}", "docker:0a1b2c3d4e5f"),
        (f"/system.slice/docker-{ID}.scope", "docker:0a1b2c3d4e5f"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman:0a1b2c3d4e5f"),
        (f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{ID}.scope", "kubernetes:0a1b2c3d4e5f"),
        (f"/kubepods/besteffort/pod0815/{ID}", "kubernetes:0a1b2c3d4e5f"),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", "kubernetes:0a1b2c3d4e5f"),
        (f"/default/{ID}", "containerd:0a1b2c3d4e5f"),
        ("/lxc/web", "lxc:web"),
        ("/lxc.payload.web/init.scope", "lxc:web"),
        ("/machine.slice/machine-build.scope", "nspawn:build"),
        ("/machine.slice/systemd-nspawn@build.service/payload", "nspawn:build"),
        ("/system.slice/docker.service", ""),
        ("/user.slice/user-1000.slice/session-3.scope", ""),
        ("/", ""),
        ("", ""),
        (f"/docker/{ID[:60]}", ""),
    ],
)  # fmt: skip
def test_a_control_group_names_its_container(path, container):
    assert container_of(path.encode()) == container
    assert container_in(f"0::{path}\n".encode()) == container


def test_any_hierarchy_of_version_one_may_name_it():
    assert container_in(f"3:cpu:/\n2:memory:/docker/{ID}\n1:name=systemd:/\n".encode()) == "docker:0a1b2c3d4e5f"


@given(st.binary(max_size=200))
def test_arbitrary_names_are_harmless(path):
    assert isinstance(container_of(path), str)


@pytest.mark.skipif(os.geteuid() != 0, reason="opening by handle is root's")
def test_a_control_group_that_is_no_more_is_no_container():
    assert ControlGroups().container(2**60) == ""
    assert ControlGroups(()).container(1) == ""
