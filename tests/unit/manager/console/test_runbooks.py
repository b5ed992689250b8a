"""At night an event says what it means, how urgent it is and what to do; the guide says the same kinds."""

import pathlib

import pytest

from keibi.manager.console.agent_words import said
from keibi.manager.console.labels import LABELS
from keibi.manager.console.language import load_catalogue
from keibi.manager.console.malware_sentences import MALWARE
from keibi.manager.console.runbooks import RUNBOOKS, Urgency, runbook_of
from keibi.manager.console.sentences import WHAT
from keibi.protection.anti_malware.events import KINDS as MALWARE_KINDS
from keibi.protection.application_control.events import KINDS as SOFTWARE_KINDS

ROOT = pathlib.Path(__file__).resolve().parents[4]
GATE_KINDS = tuple(kind for kind in MALWARE if kind.startswith("gate."))


@pytest.mark.parametrize("kind", [*MALWARE_KINDS, *SOFTWARE_KINDS, *GATE_KINDS])
def test_every_kind_of_event_has_a_sentence_and_says_what_to_do(kind):
    assert kind in MALWARE or kind in WHAT
    found = runbook_of(kind, "detected")
    assert found is not None
    assert found.urgency is Urgency.NONE or found.steps


def test_a_kind_that_is_gone_has_no_entry():
    known = {*MALWARE_KINDS, *SOFTWARE_KINDS, *GATE_KINDS}
    assert {key.partition(":")[0] for key in RUNBOOKS} <= known


def test_what_was_done_makes_a_difference():
    assert runbook_of("malware.found", "quarantined").urgency is Urgency.TODAY
    assert runbook_of("malware.found", "passed").urgency is Urgency.NOW
    assert runbook_of("malware.behaviour", "stopped") != runbook_of("malware.behaviour", "detected")
    assert runbook_of("file.updated", "detected") is None


def test_everything_is_told_in_japanese_too():
    catalogue = load_catalogue("ja")
    texts = [text for book in RUNBOOKS.values() for text in (book.meaning, *book.steps)]
    assert [text for text in texts if said(catalogue, text) == text] == []
    assert set(LABELS["urgency"]) == {str(urgency) for urgency in Urgency}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_guide_tells_of_every_kind_that_somebody_should_see_to(language):
    guide = (ROOT / f"docs/guide/administrator.{language}.md").read_text(encoding="utf-8")
    urgent = {key.partition(":")[0] for key, book in RUNBOOKS.items() if book.urgency is not Urgency.NONE}
    assert sorted(kind for kind in urgent if f"`{kind}`" not in guide) == []
