"""Brings the console's catalogues up to date with the texts in its code and templates, and lists what is not translated.

`python scripts/console_texts.py` rewrites `locale/*.po`: new texts come in untranslated, texts that are gone go out. With
`--check` nothing is written, and the exit status is 1 when something is missing or left over.
"""

import argparse
import pathlib
import sys

from babel.messages import pofile
from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir

CONSOLE = pathlib.Path(__file__).resolve().parents[1] / "src/keibi/manager/console"
METHODS = [("templates/**.html", "jinja2"), ("**.py", "python")]
OPTIONS = {"templates/**.html": {"newstyle_gettext": "true", "trimmed": "false", "extensions": "jinja2.ext.do"}}


def source_texts() -> Catalog:
    """Return every text that is marked for translation, with the files it stands in."""
    catalog = Catalog(project="keibi", charset="utf-8", fuzzy=False)
    keywords = {**DEFAULT_KEYWORDS, "N_": None}
    for name, _line, message, comments, _context in extract_from_dir(
        CONSOLE, method_map=METHODS, options_map=OPTIONS, keywords=keywords
    ):
        catalog.add(message, None, [(name, 1)], auto_comments=comments)
    return catalog


def read_catalogue(language: str) -> Catalog:
    """Return a catalogue as it is on disk."""
    path = CONSOLE / "locale" / f"{language}.po"
    if not path.exists():
        return Catalog(locale=language, project="keibi", charset="utf-8", fuzzy=False)
    with path.open("rb") as file:
        return pofile.read_po(file, locale=language)


def untranslated(catalog: Catalog) -> list[str]:
    """Return the texts without a translation."""
    found = []
    for message in catalog:
        if not message.id:
            continue
        strings = message.string if isinstance(message.string, (tuple, list)) else (message.string,)
        if message.fuzzy or not all(strings):
            found.append(message.id if isinstance(message.id, str) else message.id[0])
    return found


def merged(language: str) -> Catalog:
    """Return the catalogue of a language with exactly the texts of the source."""
    catalog = read_catalogue(language)
    catalog.update(source_texts(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    return catalog


def main() -> int:
    """Update or check the Japanese catalogue; English is the source."""
    parser = argparse.ArgumentParser(description="Bring the console's catalogues up to date.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is missing or left over")
    options = parser.parse_args()
    before, after = read_catalogue("ja"), merged("ja")
    if options.check:
        missing = untranslated(after)
        gone = {message.id for message in before if message.id} - {message.id for message in after if message.id}
        for text in missing:
            print(f"not translated: {text!r}")
        for text in gone:
            print(f"not used any more: {text!r}")
        return 1 if missing or gone else 0
    with (CONSOLE / "locale/ja.po").open("wb") as file:
        pofile.write_po(file, after, width=120, sort_output=True, omit_header=False, no_location=True)
    for text in untranslated(after):
        print(text.replace("\n", "\\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
