"""The attributes of a file as administrators know them, made from what was read of it."""

import hashlib
from typing import Any

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.files import ContentOutcome, FileState, FileType, Wish
from keibi.protection.base import escape_name
from keibi.protection.integrity_monitoring.rules import EntityType

_ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY_NAME = b"security.capability"
_FLAG_NAMES = {0x4: "compressed", 0x10: "immutable", 0x20: "append_only", 0x40: "no_dump", 0x800: "encrypted", 0x100000: "verity"}
"""STATX_ATTR_* of linux/stat.h."""

WISHES = {
    "contents": Wish.CONTENT,
    "xattrs": Wish.XATTRS,
    "acl": Wish.XATTRS,
    "capabilities": Wish.XATTRS,
    "flags": Wish.FLAGS,
    "accessed_at": Wish.ACCESS_TIME,
}
"""What must be read of a file so that an attribute is known; the others come with lstat."""


def entity_type_of(state: FileState) -> EntityType:
    """Return whether rules for directories or for files watch it: all that is no directory counts as a file."""
    return EntityType.DIRECTORY if state.type is FileType.DIRECTORY else EntityType.FILE


def attributes_of(state: FileState, names: AccountNames) -> dict[str, Any]:
    """Return every attribute that is known of the file. Times are seconds since the epoch; what was not read is left out."""
    attributes: dict[str, Any] = {
        "type": str(state.type),
        "permissions": f"{state.permissions:04o}",
        "owner": names.user(state.uid),
        "group": names.group(state.gid),
        "modified_at": state.modified_ns / 1e9,
        "changed_at": state.changed_ns / 1e9,
        "inode": state.inode,
        "device": state.device,
        "link_count": state.link_count,
    }
    if state.type in (FileType.REGULAR, FileType.SYMLINK):
        attributes["size"] = state.size
    if state.link_target is not None:
        attributes["link_target"] = escape_name(state.link_target)
    if state.type is FileType.REGULAR and state.content is not ContentOutcome.NOT_ASKED:
        attributes["contents"] = (
            state.content_hash.hex() if state.content is ContentOutcome.HASHED else f"({state.content.name.lower()})"
        )
    if state.xattrs is not None:
        attributes["xattrs"] = {
            escape_name(name): _fingerprint(value)
            for name, value in state.xattrs.items()
            if name not in _ACL_NAMES and name != _CAPABILITY_NAME
        }
        attributes["acl"] = {escape_name(name): _fingerprint(state.xattrs[name]) for name in _ACL_NAMES if name in state.xattrs}
        attributes["capabilities"] = state.xattrs.get(_CAPABILITY_NAME, b"").hex()
    if state.flags is not None:
        attributes["flags"] = sorted(name for bit, name in _FLAG_NAMES.items() if state.flags & bit)
    if state.accessed_ns is not None:
        attributes["accessed_at"] = state.accessed_ns / 1e9
    return attributes


def _fingerprint(value: bytes) -> str:
    """Return a short value as it is, else its hash: attributes are anybody's bytes and may be large."""
    return value.hex() if len(value) <= 64 else "sha256:" + hashlib.sha256(value).hexdigest()
