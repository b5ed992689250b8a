"""Catalogues of translations, read from `.po` files as they are: there is no step between editing one and seeing it."""

import functools
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from babel.messages.pofile import read_po

LANGUAGES = ("en", "ja")
DEFAULT_LANGUAGE = "en"
LOCALE_DIRECTORY = pathlib.Path(__file__).with_name("locale")


def N_(message: str) -> str:  # noqa: N802 (the name that pybabel looks for)
    """Mark a text for translation where it is written; it is translated where it is shown."""
    return message


@dataclass(frozen=True)
class Catalogue:
    """The texts of one language. English is written in the source, so its catalogue is empty."""

    language: str
    messages: Mapping[str, str] = field(default_factory=dict)
    plurals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def gettext(self, message: str) -> str:
        """Return the text in this language, or as it is where there is none."""
        return self.messages.get(message) or message

    def ngettext(self, singular: str, plural: str, number: int) -> str:
        """Return the text for that number of things. Japanese has one form; English two."""
        forms = self.plurals.get(singular)
        if forms:
            return forms[0]
        return singular if number == 1 else plural


@functools.cache
def load_catalogue(language: str, directory: pathlib.Path = LOCALE_DIRECTORY) -> Catalogue:
    """Return the catalogue of a language; only translations that are not marked fuzzy count. It is read once."""
    path = directory / f"{language}.po"
    if not path.exists():
        return Catalogue(language)
    with path.open("rb") as file:
        entries = read_po(file, locale=language)
    messages: dict[str, str] = {}
    plurals: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        if not entry.id or entry.fuzzy:
            continue
        if isinstance(entry.id, tuple):
            plurals[entry.id[0]] = tuple(entry.string or ())
        elif isinstance(entry.id, str) and isinstance(entry.string, str):
            messages[entry.id] = entry.string
    return Catalogue(language, messages, plurals)


def preferred_language(accept_language: str) -> str:
    """Return the language of an Accept-Language header that the console has, by its order of preference."""
    wanted = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, parameters = part.strip().partition(";")
        quality = parameters.partition("q=")[2] or "1"
        try:
            wanted.append((-float(quality), position, tag.strip().lower().partition("-")[0]))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(wanted) if tag in LANGUAGES), DEFAULT_LANGUAGE)
