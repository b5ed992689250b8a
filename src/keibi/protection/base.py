"""What every module's pure half shares: bilingual texts, settings help, and the description of a module."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shipped text in both languages. Own rules may leave Japanese out; English then serves both."""

    en: str
    ja: str = ""

    def in_language(self, language: str) -> str:
        """Return the Japanese text for "ja" where there is one, else the English one."""
        return self.ja if language == "ja" and self.ja else self.en


def help_text(
    title: Text,
    description: Text,
    *,
    unit: str = "",
    ge: int | None = None,
    le: int | None = None,
    max_length: int | None = None,
    since: int = 1,
) -> msgspec.Meta:
    """Return the `Meta` of a settings field: console form, JSON schema and reference page are made from it.

    `since` is the settings version that brought the field; agents that declare an older one do not get it.
    """
    extra: dict[str, object] = {"x-title-ja": title.ja, "x-description-ja": description.ja, "x-unit": unit, "x-since": since}
    if max_length is not None:
        return msgspec.Meta(title=title.en, description=description.en, extra_json_schema=extra, max_length=max_length)
    return msgspec.Meta(title=title.en, description=description.en, extra_json_schema=extra, ge=ge, le=le)


@dataclass(frozen=True, kw_only=True)
class Module:
    """One protection module, as manager and agent know it. A new module is one of these in `catalog.MODULES`."""

    module: ModuleId
    title: Text
    description: Text
    states: tuple[ModuleState, ...]
    default_state: ModuleState
    settings_type: type[msgspec.Struct]
    settings_version: int
    rule_type: type[msgspec.Struct]


def escape_name(raw: bytes | str) -> str:
    """Return a name as safe printable text: control characters, invalid UTF-8 and bidirectional marks become `\\xNN` (bytes).

    A file name is hostile: printed as it is it can forge log lines or terminal commands (AIDE CVE-2025-54389). Every name
    passes here before it is stored, sent or shown. `unescape_name` gives the exact bytes back.
    """
    data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def unescape_name(text: str) -> bytes:
    """Return the bytes that `escape_name` was given.

    Raises:
        ValueError: a backslash that is not the start of `\\\\` or `\\xNN`.
    """
    out = bytearray()
    position = 0
    while (found := text.find("\\", position)) >= 0:
        out += text[position:found].encode()
        if text[found : found + 2] == "\\\\":
            out += b"\\"
            position = found + 2
        elif text[found + 1 : found + 2] == "x" and len(text) >= found + 4:
            out += bytes.fromhex(text[found + 2 : found + 4])
            position = found + 4
        else:
            raise ValueError(f"a lone backslash at position {found} of {text!r}")
    return bytes(out + text[position:].encode())


def outermost(directories: Iterable[bytes]) -> list[bytes]:
    """Return the directories that lie below no other of them, in order of their parts."""
    kept: list[bytes] = []
    # By parts and not by bytes: "/a-b" sorts between "/a" and "/a/b", and would hide that the last lies below the first.
    for directory in sorted(set(directories), key=lambda one: one.rstrip(b"/").split(b"/")):
        if not (kept and directory.startswith(kept[-1].rstrip(b"/") + b"/")):
            kept.append(directory)
    return kept
