"""Users and groups from /etc/passwd, /etc/shadow and /etc/group: as entities, and as names for numbers.

Only the local files are read. A directory service (LDAP, SSSD) may know more accounts than these; asking it could enumerate a
whole company at every look.
"""

import datetime as dt
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from keibi.protection.base import escape_name


class AccountNames:
    """Names for user and group numbers; the files are read again when they change."""

    def __init__(self, etc: str = "/etc") -> None:
        self._etc = etc
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self._read: dict[str, int] = {}

    def user(self, uid: int) -> str:
        """Return the user's name, or the number as text where there is none."""
        self._refresh("passwd", self._users)
        return self._users.get(uid, str(uid))

    def group(self, gid: int) -> str:
        """Return the group's name, or the number as text where there is none."""
        self._refresh("group", self._groups)
        return self._groups.get(gid, str(gid))

    def _refresh(self, name: str, into: dict[int, str]) -> None:
        path = f"{self._etc}/{name}"
        try:
            stamp = os.stat(path).st_mtime_ns
        except OSError:
            stamp = -1
        if self._read.get(name) == stamp:
            return
        into.clear()
        for fields in _records(path):
            if len(fields) > 2 and fields[2].isdigit():
                into.setdefault(int(fields[2]), escape_name(fields[0]))
        self._read[name] = stamp


def collect_users(fingerprint_key: bytes, etc: str = "/etc") -> dict[str, dict[str, Any]]:
    """Return local users: name -> attributes of the entity type "user".

    `password_fingerprint` changes when the password hash does; it is keyed with `fingerprint_key` (at most 64 bytes, secret
    to this computer), so that neither the hash nor anything to guess it by leaves. /etc/shadow is left out where it cannot
    be read.
    """
    memberships: dict[str, list[str]] = {}
    for fields in _records(f"{etc}/group"):
        if len(fields) >= 4:
            for member in fields[3].split(b","):
                if member:
                    memberships.setdefault(escape_name(member), []).append(escape_name(fields[0]))
    shadow = {fields[0]: fields for fields in _records(f"{etc}/shadow") if len(fields) >= 3}
    users: dict[str, dict[str, Any]] = {}
    for fields in _records(f"{etc}/passwd"):
        if len(fields) < 7:
            continue
        name = escape_name(fields[0])
        users[name] = {
            "uid": int(fields[2]) if fields[2].isdigit() else None,
            "gid": int(fields[3]) if fields[3].isdigit() else None,
            "full_name": escape_name(fields[4]),
            "home": escape_name(fields[5]),
            "shell": escape_name(fields[6]),
            "groups": sorted(memberships.get(name, [])),
        }
        if secret := shadow.get(fields[0]):
            users[name] |= {
                "is_locked": secret[1].startswith((b"!", b"*")),
                "password_changed_on": _date(secret[2]),
                "password_fingerprint": hashlib.blake2b(secret[1], key=fingerprint_key, digest_size=8).hexdigest(),
            }
    return users


def collect_groups(etc: str = "/etc") -> dict[str, dict[str, Any]]:
    """Return local groups: name -> attributes of the entity type "group"."""
    return {
        escape_name(fields[0]): {
            "gid": int(fields[2]) if fields[2].isdigit() else None,
            "members": sorted(escape_name(member) for member in fields[3].split(b",") if member),
        }
        for fields in _records(f"{etc}/group")
        if len(fields) >= 4
    }


def _records(path: str) -> Iterator[list[bytes]]:
    try:
        with open(path, "rb") as file:
            for line in file:
                stripped = line.rstrip(b"\n")
                if stripped and not stripped.startswith((b"#", b"+", b"-")):
                    yield stripped.split(b":")
    except OSError:
        return


def _date(days_since_epoch: bytes) -> str:
    try:
        return (dt.date(1970, 1, 1) + dt.timedelta(days=int(days_since_epoch))).isoformat()
    except (ValueError, OverflowError):
        return ""
