"""Both languages are complete, and vendored files are what they are said to be."""

import hashlib
import importlib.util
import json
import pathlib
import re

import pytest

from keibi.manager.console import labels
from keibi.manager.console.language import load_catalogue, preferred_language
from keibi.protection.integrity_monitoring.events import KINDS
from keibi.protection.integrity_monitoring.rules import ATTRIBUTE_GROUPS, FILE_ATTRIBUTES

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONSOLE = ROOT / "src/keibi/manager/console"
PLACEHOLDER = re.compile(r"%\((\w+)\)s")


@pytest.fixture(scope="module")
def texts():
    spec = importlib.util.spec_from_file_location("console_texts", ROOT / "scripts/console_texts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_text_of_the_console_is_in_japanese_and_none_is_left_over(texts):
    after = texts.merged("ja")
    wanted = {message.id for message in after if message.id}
    have = {message.id for message in texts.read_catalogue("ja") if message.id}
    assert texts.untranslated(after) == []
    assert have - wanted == set()


def test_a_translation_names_the_same_values_as_its_source(texts):
    for message in texts.read_catalogue("ja"):
        if not message.id:
            continue
        source = message.id if isinstance(message.id, str) else message.id[1]
        target = message.string if isinstance(message.string, str) else message.string[0]
        assert set(PLACEHOLDER.findall(source)) == set(PLACEHOLDER.findall(target)), source


def test_every_attribute_and_kind_that_an_agent_sends_has_a_word():
    from keibi.manager.console.sentences import RENAMED, WHAT

    names = set(FILE_ATTRIBUTES)
    for groups in ATTRIBUTE_GROUPS.values():
        for attributes in groups.values():
            names |= set(attributes)
    assert names - set(labels.LABELS["attribute"]) == set()
    # Only files and directories have names that can be changed.
    unnamed = {kind for kind in KINDS if kind not in WHAT and not kind.endswith(".renamed")}
    assert unnamed == set()
    assert set(RENAMED) <= set(KINDS)


def test_every_word_of_application_control_has_one_of_ours():
    from keibi.manager.console.sentences import WHAT
    from keibi.protection.application_control import events, rules

    assert set(events.KINDS) <= set(WHAT)
    for group, words in (
        ("reason_code", events.ReasonCode),
        ("file_type", events.FileKind),
        ("inline", rules.InlineKind),
        ("rule_action", rules.RuleAction),
    ):
        assert {str(word) for word in words} <= set(labels.LABELS[group]), group


def test_an_unknown_value_is_shown_as_it_is():
    assert labels.label(load_catalogue("ja"), "severity", "apocalyptic") == "apocalyptic"


@pytest.mark.parametrize(
    ("header", "language"),
    [("ja-JP,en;q=0.5", "ja"), ("en,ja;q=0.9", "en"), ("fr,ja;q=0.2", "ja"), ("", "en"), ("ja;q=x,de", "en")],
)
def test_the_browsers_language_is_respected_before_anybody_signed_in(header, language):
    assert preferred_language(header) == language


def test_vendored_files_are_the_ones_that_are_listed():
    folder = CONSOLE / "static/vendor"
    listed = {
        name: digest
        for package in json.loads((folder / "VENDORED.json").read_text())
        for name, digest in package["files"].items()
    }
    present = {path.name for path in folder.iterdir()} - {"VENDORED.json"}
    assert present == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_no_template_has_anything_inline():
    for path in (CONSOLE / "templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path.name
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), path.name
