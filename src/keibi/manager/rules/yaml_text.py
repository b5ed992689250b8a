"""YAML that people write: read with limits, and with the line of everything in it.

Only what JSON has comes out: mappings with text keys, lists, text, numbers, true, false, null. Dates stay text. Tags that
make anything else are refused, as are keys that stand twice, aliases above a number and nesting above a depth, so that a
small text never becomes a large value.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_TEXT_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_ALIASES = 64
MAX_VALUES = 50_000
"""Values in a text after its aliases are unfolded."""

PathStep = str | int
Path = tuple[PathStep, ...]

ANY_KEY = "..."
"""Stands in a path for a key that whoever wrote the path does not know."""

_STRING, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp", "value")}
_TYPED = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null")}


@dataclass(frozen=True)
class Place:
    """Where something stands in a text: line and column, both from 1."""

    line: int = 1
    column: int = 1


class YamlProblem(Exception):  # noqa: N818 - a finding about a text, which becomes a `Problem`
    """The text is not YAML, or not the plain part of it that is taken here."""

    def __init__(self, message: str, place: Place = Place(), path: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.path = path
        self.hint = hint


@dataclass(frozen=True)
class YamlDocument:
    """A text as value, with the place of each part of it."""

    value: Any
    places: dict[Path, Place]  # of values; a mapping's entry stands where its key does

    def place_of(self, path: Path) -> Place:
        """Return the place of a path, or of the nearest part above it that there is."""
        return self.places.get(self.known_part(path), Place())

    def known_part(self, path: Path) -> Path:
        """Return the path itself, with unknown keys filled in, or the nearest part above it that the text has."""
        if ANY_KEY in path:
            path = self._only_match(path)
        while path and path not in self.places:
            path = path[:-1]
        return path

    def _only_match(self, path: Path) -> Path:
        """Return the one path that fits a path with unknown keys; when there are several, what is above the first of those."""
        found = [
            known
            for known in self.places
            if len(known) == len(path) and all(step in (ANY_KEY, at) for step, at in zip(path, known, strict=True))
        ]
        return found[0] if len(found) == 1 else path[: path.index(ANY_KEY)]


_STEP = re.compile(r"\[(\.\.\.|\d+)\]|([^.\[\]]+)")


def parse_path(text: str) -> Path:
    """Return the steps of a path as written by msgspec and by `write_path`: "$.entities[0].base"; `[...]` is ANY_KEY."""
    steps: list[PathStep] = []
    for inside, name in _STEP.findall(text.removeprefix("$")):
        steps.append(name or (int(inside) if inside.isdecimal() else ANY_KEY))
    return tuple(steps)


def write_path(path: Path) -> str:
    """Return a path as people read it: "entities[0].base"."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def read_yaml(text: str) -> YamlDocument:
    """Return the one document in `text`.

    Raises:
        YamlProblem: with the place and what to do.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise YamlProblem(f"the text has {size} bytes, more than {MAX_TEXT_BYTES}", hint="split it into several rules")
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        context = f" ({error.context})" if error.context else ""
        raise YamlProblem(
            f"this is not YAML: {error.problem}{context}",
            _place(error.problem_mark or error.context_mark),
            hint="look at the indentation, colons, quotes and brackets at and before this line",
        ) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlProblem(f"this is not YAML: {error}") from error
    if node is None:
        raise YamlProblem("the text is empty")
    reader = _Reader()
    value = reader.read(node, ())
    return YamlDocument(value, reader.places)


def _check_events(text: str) -> None:
    """Walk the events first: composing is recursive, so depth must be known to be small before."""
    depth = aliases = documents = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlProblem(f"this is nested more than {MAX_DEPTH} levels deep", _place(event.start_mark))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES:
                raise YamlProblem(f"there are more than {MAX_ALIASES} aliases (*name)", _place(event.start_mark))
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlProblem(
                    "there is more than one document",
                    _place(event.start_mark),
                    hint="one rule in one text, without `---` between",
                )


class _Reader:
    """Makes values from nodes. Counts what it makes, so that aliases of aliases stop at a limit."""

    def __init__(self) -> None:
        self.places: dict[Path, Place] = {(): Place()}
        self._made = 0
        self._open: set[int] = set()
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: Any, path: Path) -> Any:
        self._made += 1
        if self._made > MAX_VALUES:
            raise YamlProblem(f"the text unfolds to more than {MAX_VALUES} values", _place(node.start_mark), write_path(path))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise YamlProblem("this contains itself", _place(node.start_mark), write_path(path))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return self._sequence(node, path)
        finally:
            self._open.discard(id(node))

    def _sequence(self, node: Any, path: Path) -> list[Any]:
        self._check_tag(node, "tag:yaml.org,2002:seq", path)
        values = []
        for position, item in enumerate(node.value):
            below = (*path, position)
            self.places[below] = _place(item.start_mark)
            values.append(self.read(item, below))
        return values

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        self._check_tag(node, "tag:yaml.org,2002:map", path)
        values: dict[str, Any] = {}
        for key, item in node.value:
            place = _place(key.start_mark)
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise YamlProblem("a key must be plain text", place, write_path(path), "merge keys (<<) are not taken here")
            below = (*path, key.value)
            if key.value in values:
                raise YamlProblem(f"the key {key.value!r} stands here a second time", place, write_path(below), "remove one")
            self.places[below] = place
            values[key.value] = self.read(item, below)
        return values

    def _scalar(self, node: Any, path: Path) -> Any:
        if node.tag in _PLAIN:
            return node.value
        if node.tag in _TYPED:
            try:
                return self._constructor.construct_object(node)
            except ValueError as error:
                raise YamlProblem(f"{node.value!r} is not a value: {error}", _place(node.start_mark), write_path(path)) from error
        raise YamlProblem(f"the tag {node.tag} is not taken here", _place(node.start_mark), write_path(path), "remove the tag")

    def _check_tag(self, node: Any, expected: str, path: Path) -> None:
        if node.tag != expected:
            message = f"the tag {node.tag} is not taken here"
            raise YamlProblem(message, _place(node.start_mark), write_path(path), "remove the tag")


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place()


def with_fields(text: str, fields: dict[str, str | int]) -> str:
    """Return the text of a mapping with these top-level values put in; comments and the order of all else stay.

    Raises:
        YamlProblem: the text cannot be read, or is no mapping.
    """
    document = read_yaml(text)
    if not isinstance(document.value, dict):
        raise YamlProblem("a rule is a mapping of names to values", hint="begin with `id: im-…`")
    lines = text.splitlines()
    for key, value in fields.items():
        line = f"{key}: {value}"
        place = document.places.get((key,))
        if place is None:
            lines = _insert_after_comments(lines, line)
            document = read_yaml("\n".join(lines) + "\n")
        elif place.column == 1 and lines[place.line - 1].startswith(f"{key}:"):
            lines[place.line - 1] = line
        else:
            raise YamlProblem(f"{key!r} cannot be set here", place, key, f"write it as `{line}` on a line of its own")
    changed = "\n".join(lines) + "\n"
    after = read_yaml(changed).value
    if any(after.get(key) != value for key, value in fields.items()):
        raise YamlProblem("the id and the version must stand on lines of their own", hint="for example `version: 1`")
    return changed


def _insert_after_comments(lines: list[str], line: str) -> list[str]:
    start = next((number for number, text in enumerate(lines) if text.strip() and not text.startswith(("#", "---"))), 0)
    return [*lines[:start], line, *lines[start:]]
