"""Cutting a YARA source into its rules, without judging them: the compiler does that, one rule at a time.

Only the lexical form matters here: comments, texts, regular expressions and hexadecimal strings may hold braces and the word
`rule`, and mean nothing by them. In YARA a `/` begins a comment or a regular expression and nothing else (division is `\\`).
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<comment> //[^\n]* | /\*.*?(?:\*/|\Z) )
  | (?P<text> "(?:[^"\\\n]|\\.)*" )
  | (?P<regex> /(?:[^/\\\n]|\\.)+/ )
  | (?P<brace> [{}] )
  | (?P<word> [A-Za-z_][A-Za-z0-9_]* )
    """,
    re.VERBOSE | re.DOTALL,
)
_MODIFIERS = frozenset({"private", "global"})


@dataclass(frozen=True)
class Unit:
    """One import, include or rule, with the comments before it. `line` counts from 1; `stray` is text before it that is none."""

    kind: str  # "import", "include" or "rule"
    name: str  # of the rule; what is imported
    modifiers: frozenset[str]
    text: str
    line: int
    stray: str = ""


@dataclass(frozen=True)
class Cut:
    """A source in parts: what stands before the first unit (author, licence), the units, and what at its end is none."""

    header: str
    units: list[Unit]
    rest: str


def cut(source: str) -> Cut:
    """Return the parts of a source."""
    header = ""
    units: list[Unit] = []
    position = start = 0
    kind = name = ""
    modifiers: set[str] = set()
    began = depth = counted_to = 0
    line = 1
    while found := _TOKEN.search(source, position):
        position = found.end()
        token, group = found.group(), found.lastgroup
        if group == "comment":
            continue
        if not kind:
            if group != "word":
                continue
            if token in _MODIFIERS:
                modifiers.add(token)
                began = began or found.start()
            elif token in ("rule", "import", "include"):
                kind, name, depth = token, "", 0
                began = began if modifiers else found.start()
            continue
        if kind == "rule":
            if group == "word" and not name:
                name = token
            elif group == "brace":
                depth += {"{": 1, "}": -1}[token]
            if group != "brace" or depth > 0:
                continue
        elif group == "text":
            name = token[1:-1]
        else:
            kind = ""
            continue
        line, counted_to = line + source.count("\n", counted_to, began), began
        comments, stray = _apart(source[start:began])
        if not units:
            header, comments = comments, ""
        units.append(Unit(kind, name, frozenset(modifiers), comments + source[began:position], line, stray))
        start, kind, began, modifiers = position, "", 0, set()
    rest = source[start:].strip() if kind or _has_more_than_comments(source[start:]) else ""
    return Cut(header.strip(), units, rest)


def _apart(text: str) -> tuple[str, str]:
    """Return the comments of a text, each on lines of its own, and what else is in it."""
    comments: list[str] = []
    rest: list[str] = []
    position = 0
    for found in _TOKEN.finditer(text):
        if found.lastgroup == "comment":
            comments.append(f"{found.group()}\n")
            rest.append(text[position : found.start()])
            position = found.end()
    rest.append(text[position:])
    return "".join(comments), " ".join(rest).strip()


def _has_more_than_comments(text: str) -> bool:
    return any(found.lastgroup != "comment" for found in _TOKEN.finditer(text))
