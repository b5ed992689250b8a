"""Patterns of paths and keys: `/` divides parts, `*` and `?` stay inside a part, `**` stands for any number of whole parts.

`a/**/b` matches `a/b` too; `a/**` matches what is below `a`, not `a` itself. `?` is one character; bytes that are no UTF-8 are
matched by `*` only. Case counts. Patterns come from rules that customers write and names from anybody, so all matching is done
by RE2, whose time is linear in the length of the name.
"""

import re
from collections.abc import Iterable

import re2

from keibi.errors import InputError
from keibi.protection.base import Text

MAX_PATTERN_LENGTH = 4096
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# One character of a name: ASCII, a whole UTF-8 sequence (never a part of one), or a byte that UTF-8 does not use.
_ANY_CHARACTER = (
    rb"(?:[^/\x80-\xff]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|[\xc0\xc1\xf5-\xff])"
)

EVERYTHING = "**"


class Patterns:
    """A set of patterns, any of which is enough."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile the patterns.

        Raises:
            InputError: `pattern_invalid`, with the pattern and why.
        """
        self.patterns = tuple(patterns)
        parts = [_parts(pattern) for pattern in self.patterns]
        self.matches_everything = any(pattern == EVERYTHING for pattern in self.patterns)
        self._full = _compile(b"|".join(_expression(pattern) for pattern in parts))
        self._above = _compile(b"|".join(filter(None, (_expression_above(pattern) for pattern in parts))))
        self._is_empty = not self.patterns
        self._leads_anywhere = self.matches_everything or any(pattern[0] == EVERYTHING for pattern in parts)

    def match(self, name: bytes) -> bool:
        """Whether a pattern matches the whole name."""
        if self._is_empty:
            return False
        return self.matches_everything or self._full.fullmatch(name) is not None

    def may_match_below(self, directory: bytes) -> bool:
        """Whether a pattern could match something below this directory; `b""` is where the patterns start."""
        if self._is_empty:
            return False
        return not directory or self._leads_anywhere or self._above.fullmatch(directory) is not None

    def match_with_all_below(self, directory: bytes) -> bool:
        """Whether everything below this directory is matched: a pattern names it, or ends in `/**` above or at it."""
        if self._is_empty:
            return False
        return self.match(directory) or self.match(directory + b"/x")


def substitute(text: str, variables: dict[str, str]) -> str:
    """Return `text` with each `${NAME}` replaced.

    Raises:
        InputError: `variable_unknown`: no value is set.
    """

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise InputError(
                "variable_unknown",
                f"there is no value for ${{{found[1]}}}",
                where=repr(text),
                hint="set it among the policy's variables of integrity monitoring",
            )
        return variables[found[1]]

    return _VARIABLE.sub(value_of, text)


def has_variable(text: str) -> bool:
    """Whether the text has a `${NAME}` in it."""
    return _VARIABLE.search(text) is not None


SYNTAX = Text(
    en="`*` and `?` stand for characters inside a part, `**` for any number of whole parts, `/` divides parts.",
    ja="`*`と`?`は1つの階層内の文字、`**`は任意の数の階層、`/`は階層の区切りを表します。",
)


def _parts(pattern: str) -> list[str]:
    if not pattern:
        raise InputError("pattern_invalid", "an empty pattern matches nothing", hint=SYNTAX.en)
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise InputError("pattern_invalid", f"a pattern of {len(pattern)} characters, more than {MAX_PATTERN_LENGTH}")
    if "\0" in pattern:
        raise InputError("pattern_invalid", f"the pattern {pattern!r} has a NUL character in it, which no name can have")
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        if "**" in part and part != EVERYTHING:
            raise InputError("pattern_invalid", f"in the pattern {pattern!r} `**` must be a whole part", hint=SYNTAX.en)
        if part in (".", "..") or (not part and index != 0):
            what = "an empty part" if not part else f"the part {part!r}"
            raise InputError("pattern_invalid", f"the pattern {pattern!r} has {what} in it, which no path has")
    # Two neighbours are one, and would only make the automaton larger.
    return [part for index, part in enumerate(parts) if not (part == EVERYTHING and index and parts[index - 1] == EVERYTHING)]


def _expression(parts: list[str]) -> bytes:
    out = b""
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == EVERYTHING:
            out += b".+" if is_last else b"(?:[^/]*/)*"
        else:
            out += _part_expression(part) + (b"" if is_last else b"/")
    return out


def _expression_above(parts: list[str]) -> bytes:
    """Return what matches each directory on the way to what the pattern matches."""
    out = b""
    for part in reversed(parts[:-1] if parts[-1] != EVERYTHING else parts):
        if part == EVERYTHING:
            out = b"(?:.*)"
        else:
            expression = _part_expression(part)
            out = expression + (b"(?:/" + out + b")?" if out else b"")
    if parts[0] == "":
        # An absolute pattern: the way to it begins with "/", and the root itself is on it.
        return out or b"/?"
    return out


def _part_expression(part: str) -> bytes:
    out = b""
    for byte_or_wildcard in re.split(r"([*?])", part):
        if byte_or_wildcard == "*":
            out += b"[^/]*"
        elif byte_or_wildcard == "?":
            out += _ANY_CHARACTER
        else:
            out += b"".join(b"\\x%02x" % byte for byte in byte_or_wildcard.encode())
    return out


def _compile(expression: bytes) -> "re2._Regexp":
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False
    options.max_mem = 64 * 1024 * 1024
    try:
        return re2.compile(b"(?:" + expression + b")", options)
    except re2.error as error:
        raise InputError("pattern_invalid", f"these patterns are too large together: {error}") from error
