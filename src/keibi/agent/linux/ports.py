"""Listening ports as entities, by the kernel's socket diagnosis (NETLINK_SOCK_DIAG, see sock_diag(7)).

Key: "tcp/0.0.0.0/22", "udp/::/123". A UDP port counts as listening when it is bound and not connected.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from keibi.agent.linux.accounts import AccountNames
from keibi.protection.base import escape_name

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN, _TCP_CLOSE = 10, 7  # an unconnected UDP socket is in TCP_CLOSE
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48s")
_PORTS = struct.Struct("!HH")


def listening_sockets() -> Iterator[tuple[str, int, int]]:
    """Yield (key, inode, uid) of each listening socket in this network namespace.

    Raises:
        OSError: the kernel refuses socket diagnosis.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol, name, state in (
                (socket.IPPROTO_TCP, "tcp", _TCP_LISTEN),
                (socket.IPPROTO_UDP, "udp", _TCP_CLOSE),
            ):
                body = _REQUEST.pack(family, protocol, 0, 1 << state, b"\0" * 48)
                netlink.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0) + body)
                for message in _dump(netlink):
                    # struct inet_diag_msg: family, state, timer, retrans; then inet_diag_sockid: sport, dport, src, dst…
                    (source_port, _) = _PORTS.unpack_from(message, 4)
                    address = message[8:12] if family == socket.AF_INET else message[8:24]
                    uid, inode = struct.unpack_from("=II", message, 64)
                    if source_port:
                        yield f"{name}/{socket.inet_ntop(family, address)}/{source_port}", inode, uid


def _dump(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        data = netlink.recv(1 << 17)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                if code:
                    raise OSError(-code, f"socket diagnosis: {os.strerror(-code)}")
                return
            if length < _HEADER.size:
                raise OSError("socket diagnosis: a message shorter than its header")
            yield data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


class ListeningPorts:
    """Listening ports with their owners. Keeps who owned which socket, since finding that reads /proc/*/fd."""

    def __init__(self, names: AccountNames, proc: str = "/proc") -> None:
        self._names = names
        self._proc = proc
        self._owners: dict[int, tuple[int, str]] = {}

    def collect(self) -> dict[str, dict[str, Any]]:
        """Return listening ports: key -> attributes of the entity type "port".

        `process` is the executable of a process that holds the socket, `""` where none could be found (the kernel itself,
        or another's process that this one may not look into).
        """
        sockets = list(listening_sockets())
        unknown = {inode for _, inode, _ in sockets if inode} - self._owners.keys()
        if unknown:
            self._owners |= self._find_owners(unknown)
        self._owners = {inode: self._owners[inode] for _, inode, _ in sockets if inode in self._owners}
        ports: dict[str, dict[str, Any]] = {}
        for key, inode, uid in sockets:
            pid, executable = self._owners.get(inode, (0, ""))
            # Several sockets may share a port (SO_REUSEPORT): the first with a known owner stands for them.
            if key not in ports or (executable and not ports[key]["process"]):
                ports[key] = {"process": executable, "user": self._names.user(uid), "pid": pid}
        return ports

    def _find_owners(self, wanted: set[int]) -> dict[int, tuple[int, str]]:
        owners: dict[int, tuple[int, str]] = {}
        for entry in os.listdir(self._proc):
            if not entry.isdigit():
                continue
            try:
                descriptors = os.listdir(f"{self._proc}/{entry}/fd")
            except OSError:
                continue
            for descriptor in descriptors:
                try:
                    target = os.readlink(f"{self._proc}/{entry}/fd/{descriptor}")
                except OSError:
                    continue
                if target.startswith("socket:[") and (inode := int(target[8:-1])) in wanted and inode not in owners:
                    try:
                        executable = escape_name(os.readlink(os.fsencode(f"{self._proc}/{entry}/exe")))
                    except OSError:
                        executable = ""
                    owners[inode] = (int(entry), executable)
        return owners
