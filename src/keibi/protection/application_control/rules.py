"""A rule: a set of entries that allow or block software, each by hash, package, signer, path or interpreter.

Written as YAML under `content/application_control/`, one ruleset a file. The manager checks it, then sends it to agents as JSON
of `Rule` (without samples). A decision of an administrator appends an entry to a ruleset of the tenant's own.
"""

from enum import StrEnum

import msgspec

from keibi.contract.names import Severity
from keibi.protection.base import Text


class RuleAction(StrEnum):
    """What all entries of a ruleset do."""

    ALLOW = "allow"
    BLOCK = "block"  # holds in detect mode too


class InlineKind(StrEnum):
    """Where an interpreter takes code from when not from a script."""

    COMMAND = "command"  # python3 -c, perl -e, sh -c
    STDIN = "stdin"
    ODD_NAME = "odd_name"  # a file that looks like no script


class HashEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="hash"):
    """One content, whatever its name and place."""

    sha256: str  # 64 digits in lower case
    size: int | None = None
    name: str = ""  # how the file was called when somebody decided; not compared
    note: str = ""


class PackageEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="package"):
    """The unchanged files of packages."""

    name: str  # `*` and `?` stand for any characters
    origin: str = ""  # as the repository names itself ("Debian"); "" is any
    version: str = ""  # `*` and `?` too; "" is any
    note: str = ""


class SignerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="signer"):
    """The unchanged files of packages whose repository (deb) or package (rpm) was signed with a key."""

    key_id: str  # the last 16, or all, hexadecimal digits of the key's fingerprint
    note: str = ""


class PathEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="path"):
    """Files by where they lie.

    A path says nothing of what the file holds. So an entry that allows demands by default that root alone can write the file and
    every directory above it.
    """

    pattern: str  # absolute; `*` and `?` stay inside a part, `**` spans any number of parts
    only_root_writable: bool = True  # heeded by entries that allow; one that blocks asks for no owner
    user: str = ""  # who runs it; "" is anybody
    note: str = ""


class InterpreterEntry(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag="interpreter"
):
    """Inline code of an interpreter; goes before the setting for inline code."""

    path: str  # pattern as in PathEntry
    inline: list[InlineKind] = msgspec.field(default_factory=lambda: list(InlineKind))
    from_uid: int = 0  # users with this number or a higher one
    note: str = ""


Entry = HashEntry | PackageEntry | SignerEntry | PathEntry | InterpreterEntry


class AppliesTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which computers a ruleset is meant for; an empty list means any."""

    os: list[str] = []  # ID or ID_LIKE of os-release: "debian", "ubuntu", "rhel", "fedora"
    software: list[str] = []  # patterns of installed package names, any of which is enough


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Software that the ruleset must, or must not, speak of. Facts that are left out are those of an unknown file of root."""

    path: str = "/usr/local/bin/sample"
    sha256: str = ""
    size: int = 0
    package: str = ""
    version: str = ""
    origin: str = ""
    signer: str = ""
    is_root_writable_only: bool = True
    user: str = "root"
    uid: int = 0
    inline: InlineKind | None = None  # then `path` is the interpreter
    why: str = ""


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a shipped ruleset must match, and the near misses that it must let pass."""

    match: list[Sample]
    no_match: list[Sample]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One ruleset."""

    id: str  # "ac-" and words in lower case: stable for ever, titles may change
    version: int
    title: Text
    description: Text
    severity: Severity
    action: RuleAction
    entries: list[Entry]
    applies_to: AppliesTo = AppliesTo()
    is_for_proofs: bool = False  # heeded in private gates alone (`keibi prove`): nothing on the computer is held because of it
    techniques: list[str] = []  # MITRE ATT&CK ids
    references: list[str] = []
    samples: Samples | None = None
