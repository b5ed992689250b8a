"""A rule: which entities are watched, by which attributes, and how grave a change is.

Written as YAML under `content/integrity_monitoring/`, one rule a file, every rule with samples. The manager checks it, then
sends it to agents as JSON of `Rule` (without samples).
"""

from enum import StrEnum

import msgspec

from keibi.contract.names import Severity
from keibi.protection.base import Text


class EntityType(StrEnum):
    """What can be watched."""

    FILE = "file"
    DIRECTORY = "directory"
    PROCESS = "process"
    PORT = "port"
    USER = "user"
    GROUP = "group"
    SERVICE = "service"
    SOFTWARE = "software"
    REGISTRY_KEY = "registry_key"
    REGISTRY_VALUE = "registry_value"


class Change(StrEnum):
    """What became of an entity."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    RENAMED = "renamed"


FILE_ATTRIBUTES = (
    "permissions", "owner", "group", "size", "modified_at", "changed_at", "accessed_at", "inode", "device", "link_count",
    "contents", "link_target", "xattrs", "acl", "capabilities", "flags", "type",
)  # fmt: skip

ATTRIBUTE_GROUPS: dict[EntityType, dict[str, tuple[str, ...]]] = {
    EntityType.FILE: {
        "standard": ("type", "permissions", "owner", "group", "size", "modified_at", "contents", "link_target", "capabilities"),
        "content": ("contents",),
        "permissions_only": ("type", "permissions", "owner", "group", "acl", "capabilities"),
        "growing_log": ("type", "permissions", "owner", "group", "inode"),
        "existence": (),
        "all": tuple(name for name in FILE_ATTRIBUTES if name != "accessed_at"),
    },
    EntityType.DIRECTORY: {
        "standard": ("type", "permissions", "owner", "group"),
        "permissions_only": ("type", "permissions", "owner", "group", "acl"),
        "existence": (),
    },
    EntityType.PROCESS: {"standard": ("executable", "user", "parent"), "existence": (), "all": (
        "executable", "user", "group", "parent", "command_line", "pid", "started_at")},
    EntityType.PORT: {"standard": ("process", "user"), "existence": (), "all": ("process", "user", "pid")},
    EntityType.USER: {"standard": (
        "uid", "gid", "home", "shell", "full_name", "groups", "is_locked", "password_changed_on", "password_fingerprint"),
        "existence": ()},
    EntityType.GROUP: {"standard": ("gid", "members"), "existence": ()},
    EntityType.SERVICE: {"standard": ("path", "state", "start_type", "command", "user"), "definition": (
        "path", "start_type", "command", "user"), "existence": ()},
    EntityType.SOFTWARE: {"standard": ("version", "architecture", "vendor", "status"), "existence": ()},
    EntityType.REGISTRY_KEY: {"standard": ("modified_at", "value_count", "subkey_count", "security_hash"), "existence": ()},
    EntityType.REGISTRY_VALUE: {"standard": ("value_type", "size", "contents"), "existence": ()},
}  # fmt: skip


class EntitySet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Entities of one type. Patterns: `/` divides, `*` and `?` stay inside a part, `**` spans any number of parts.

    For files and directories `base` is an absolute path and `include`/`exclude` are relative to it. For a registry set
    `base` is the path of a hive file, then `!`, then a key (`/mnt/c/Windows/System32/config/SOFTWARE!Microsoft/Windows`).
    `attributes` holds names of groups or of single attributes; "-name" takes one away.
    For the other types there is no base and patterns match the whole key (`tcp/0.0.0.0/22`, `root`, `ssh.service`).
    """

    type: EntityType
    base: str = ""
    include: list[str] = msgspec.field(default_factory=lambda: ["**"])
    exclude: list[str] = []
    attributes: list[str] = msgspec.field(default_factory=lambda: ["standard"])
    append_only: bool = False  # growing is no change; a changed beginning or a shrunken file is
    follow_links: bool = False
    cross_filesystems: bool = True


class AppliesTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which computers a rule is meant for; an empty list means any."""

    os: list[str] = []  # ID or ID_LIKE of os-release: "debian", "ubuntu", "rhel", "fedora"
    software: list[str] = []  # patterns of installed package names, any of which is enough


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change that the rule must, or must not, report."""

    type: EntityType
    key: str
    change: Change
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    why: str = ""


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a shipped rule must match, and the near misses that it must let pass."""

    match: list[Sample]
    no_match: list[Sample]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One integrity monitoring rule."""

    id: str  # "im-" and words in lower case: stable for ever, titles may change
    version: int
    title: Text
    description: Text
    severity: Severity
    entities: list[EntitySet]
    is_real_time: bool = True
    applies_to: AppliesTo = AppliesTo()
    techniques: list[str] = []  # MITRE ATT&CK ids
    references: list[str] = []
    samples: Samples | None = None
