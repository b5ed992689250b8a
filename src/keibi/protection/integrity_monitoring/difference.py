"""What changed inside a text file: a unified difference with its secrets masked, in bounded time and size.

Secrets are masked on whole contents, before anything is compared, so that neither a changed line nor its context shows one. A
masked value is replaced by a mark that is the same for the same value within one difference and tells nothing about it: a
changed password shows as changed.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache

import re2

MAX_DIFFERENCE_CHARACTERS = 64 * 1024
MAX_LINES = 20_000
"""Above this many lines on a side, lines are not matched: the time for that grows with their product."""
MAX_LINE_CHARACTERS = 2000
_CONTEXT_LINES = 3

_KEY_WORDS = (
    r"pass(?:wd|word|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|client[_-]?secret|credential(?:s)?"
    r"|auth(?:entication)?[_-]?(?:key|token)|encryption[_-]?key|session[_-]?key|requirepass|masterauth|bindpw|psk"
)
# Each pattern has one group: what is secret. RE2, because the text is anybody's.
_PATTERNS = (
    rf"(?i)(?:^|[^a-z0-9])(?:[a-z0-9_.-]*(?:{_KEY_WORDS})[a-z0-9_.-]*)[\"']?\s*(?:=>|[:=])\s*[\"']?([^\s\"'#;,]+)",
    rf"(?i)^\s*[a-z0-9_.-]*(?:{_KEY_WORDS})[a-z0-9_.-]*\s+[\"']?([^\s\"'#;,]+)[\"']?\s*$",
    r"(?i)(?:authorization|proxy-authorization)[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|digest|token)?\s*([^\s\"']+)",
    r"(?i)\bbearer\s+([a-z0-9._~+/=-]{8,})",
    r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s:@]*:([^@\s/]+)@",
    r"\b((?:AKIA|ASIA)[A-Z0-9]{16})\b",
    r"\b(gh[pousr]_[A-Za-z0-9]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{16,})",
    r"\b(eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)",
    r"(\$(?:1|2[abxy]?|5|6|7|y|gy|argon2id?|argon2i|scrypt|apr1|pbkdf2-sha(?:1|256|512))\$[^\s:,\"']+)",
    r"(?i)(?:--?(?:pass(?:word)?|token|secret|api-?key))[= ]([^\s\"']+)",
    r"^[^:\s]+:([^:*!x\s][^:\s]{12,}):\d*:\d*:\d*:\d*:",
)
# Values of settings that are named like a secret and are none: PasswordAuthentication no; passwd: files.
_PLAIN_WORDS = frozenset(
    {
        "yes", "no", "true", "false", "on", "off", "none", "null", "0", "1", "prohibit-password",
        "files", "compat", "systemd", "sss", "ldap", "db", "nis", "required",
    }
)  # fmt: skip
_PEM = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)(.*?)(-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.DOTALL
)


@dataclass(frozen=True)
class ContentDifference:
    """The difference of two contents. `note` says why there is none, or that it is cut."""

    text: str
    masked_count: int = 0
    note: str = ""


@cache
def _compiled() -> "tuple[re2._Regexp, list[re2._Regexp]]":
    """Return one pattern that finds whether there is any secret at all, and each by itself."""
    options = re2.Options()
    options.log_errors = False
    options.one_line = False
    options.never_capture = True
    any_of_them = re2.compile("(?m)" + "|".join(f"(?:{pattern})" for pattern in _PATTERNS), options)
    options.never_capture = False
    return any_of_them, [re2.compile("(?m)" + pattern, options) for pattern in _PATTERNS]


class _Masker:
    def __init__(self) -> None:
        self._any, self._patterns = _compiled()
        self._marks: dict[str, str] = {}
        self.count = 0

    def mask(self, text: str) -> str:
        text = _PEM.sub(self._mask_block, text)
        if self._any.search(text) is None:
            return text
        lines = []
        for line in text.split("\n"):
            if self._any.search(line) is None:
                lines.append(line)
                continue
            for pattern in self._patterns:
                line = pattern.sub(self._mask_group, line)
            lines.append(line)
        return "\n".join(lines)

    def _mask_group(self, found: "re2._Match") -> str:
        secret = found.group(1)
        if not secret or secret.lower() in _PLAIN_WORDS or secret.startswith("‹masked"):
            return str(found.group(0))
        start, end = found.start(1) - found.start(0), found.end(1) - found.start(0)
        whole = found.group(0)
        return str(whole[:start] + self._mark(secret) + whole[end:])

    def _mask_block(self, found: re.Match[str]) -> str:
        return f"{found[1]}\n{self._mark(found[2])}\n{found[3]}"

    def _mark(self, secret: str) -> str:
        self.count += 1
        return self._marks.setdefault(secret, f"‹masked {len(self._marks) + 1}›")


def mask_secrets(text: str) -> tuple[str, int]:
    """Return the text with what looks like a secret replaced by a mark, and how many places that were."""
    masker = _Masker()
    return masker.mask(text), masker.count


def compare_contents(
    before: bytes, after: bytes, *, name: str, masks_secrets: bool = True, max_characters: int = MAX_DIFFERENCE_CHARACTERS
) -> ContentDifference:
    """Return the unified difference of two contents of the file `name` (escaped already).

    Control characters other than tab are shown as `\\xNN`, so that a difference can never command a terminal.
    """
    old, new = _text_of(before), _text_of(after)
    if old is None or new is None:
        return ContentDifference("", note="binary")
    masker = _Masker()
    if masks_secrets:
        old, new = masker.mask(old), masker.mask(new)
    old_lines, new_lines = _lines(old), _lines(new)
    if len(old_lines) > MAX_LINES or len(new_lines) > MAX_LINES:
        return ContentDifference("", note=f"too many lines ({len(old_lines)} before, {len(new_lines)} after)")
    if old_lines == new_lines:
        note = "only masked parts, line ends or the end of the file differ"
        return ContentDifference("", masker.count, note)
    parts: list[str] = []
    size = 0
    for line in _unified(old_lines, new_lines, name):
        size += len(line) + 1
        if size > max_characters:
            return ContentDifference("\n".join(parts), masker.count, f"cut after {max_characters} characters")
        parts.append(line)
    return ContentDifference("\n".join(parts), masker.count)


def _unified(old: list[str], new: list[str], name: str) -> list[str]:
    # What is equal at both ends needs no matching; what is left is bounded, because difflib's time is not.
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    changed_old, changed_new = len(old) - start - end, len(new) - start - end
    if changed_old * changed_new <= 1_000_000:
        return list(difflib.unified_diff(old, new, f"{name} (before)", f"{name} (after)", n=_CONTEXT_LINES, lineterm=""))
    head, tail = old[max(0, start - _CONTEXT_LINES) : start], old[len(old) - end :][:_CONTEXT_LINES]
    first = start - len(head) + 1
    return [
        f"--- {name} (before)",
        f"+++ {name} (after)",
        f"@@ -{first},{changed_old + len(head) + len(tail)} +{first},{changed_new + len(head) + len(tail)} @@",
        *(" " + line for line in head),
        *("-" + line for line in old[start : len(old) - end]),
        *("+" + line for line in new[start : len(new) - end]),
        *(" " + line for line in tail),
    ]


def _text_of(content: bytes) -> str | None:
    if b"\0" in content:
        return _wide_text_of(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    for encoding in ("euc_jp", "cp932"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    text = content.decode("latin-1")
    controls = sum(1 for character in text if character < " " and character not in "\t\r\n\f\x1b")
    return text if controls * 20 <= len(text) else None


def _wide_text_of(content: bytes) -> str | None:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            return None
    return None


def _lines(text: str) -> list[str]:
    return [_printable(line) for line in text.replace("\r\n", "\n").split("\n")]


def _printable(line: str) -> str:
    if len(line) > MAX_LINE_CHARACTERS:
        line = f"{line[:MAX_LINE_CHARACTERS]}… ({len(line)} characters)"
    if line.isprintable():
        return line
    return "".join(
        character
        if character.isprintable() or character == "\t"
        else "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
        for character in line
    )
