"""What agents say in English is read in the reader's language, and what is known here is still said."""

import errno
import os
import pathlib

import pytest

from keibi.manager.computers.model import Problem
from keibi.manager.console.agent_words import AGENT_SENTENCES, KNOWN, NOT_ENFORCED, SHIPPED_POLICIES, SYSTEM_ERRORS, said
from keibi.manager.console.language import Catalogue, load_catalogue
from keibi.manager.console.problems import detail, told

ROOT = pathlib.Path(__file__).resolve().parents[4]
JAPANESE = load_catalogue("ja")


@pytest.fixture(scope="module")
def agent_source() -> str:
    """The agent's code, with what stands in braces taken out of its texts."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/keibi/agent").rglob("*.py"))


def fixed_parts(message: str) -> list[str]:
    """Return the pieces of a sentence between its values."""
    return [part.split("%(")[0].strip(" :") for part in message.split(")s")]


def test_every_known_sentence_is_still_said_by_the_agent_or_a_shipped_policy(agent_source):
    policies = (ROOT / "content/policies/10-linux.yaml").read_text(encoding="utf-8")
    for message in SHIPPED_POLICIES:
        assert message in policies
    gone = [
        message
        for message in (*AGENT_SENTENCES, *NOT_ENFORCED)
        if not all(part in agent_source for part in fixed_parts(message) if len(part) > 2)
    ]
    assert gone == []


def test_the_words_of_system_errors_are_those_of_the_system():
    known = {os.strerror(number) for number in errno.errorcode}
    assert [text for text in SYSTEM_ERRORS if text not in known] == []


def test_every_shipped_policy_has_a_description_in_japanese():
    policies = (ROOT / "content/policies/10-linux.yaml").read_text(encoding="utf-8")
    described = [line.partition(":")[2].strip() for line in policies.splitlines() if line.strip().startswith("description:")]
    assert len(described) == len(SHIPPED_POLICIES)
    assert [text for text in described if said(JAPANESE, text) == text] == []


@pytest.mark.parametrize("message", [message for message in KNOWN if "%(" not in message])
def test_a_known_sentence_is_told_in_japanese_and_left_as_it_is_in_english(message):
    assert said(JAPANESE, message) != message
    assert said(Catalogue("en"), message) == message


def test_values_in_a_sentence_are_kept_and_a_sentence_inside_a_sentence_is_told_too():
    assert (
        said(JAPANESE, "the gate was closed: it did not answer within 0.7 s")
        == "ゲートが閉じました：0.7秒以内に応答しませんでした"
    )
    assert said(JAPANESE, "software on /srv/%(x)s") == "/srv/%(x)s上のソフトウェア"


def test_what_is_not_known_stays_as_it_is():
    for text in ("", "a sentence of a newer agent", "x" * 5000, "no clamd answers"):
        assert said(JAPANESE, text) == text


def test_a_problem_repeats_nothing_and_tells_the_reason():
    missing = Problem("module_missing", "The agent does not have Anti-malware.", "anti_malware")
    assert (told(JAPANESE, missing), detail(JAPANESE, missing)) == ("エージェントに不正プログラム対策がありません。", "")
    silent = Problem("module_warning", "Application control works, but not fully: no reason given", "application_control")
    assert detail(JAPANESE, silent) == ""
    refused = Problem("not_enforced", "blocking: the gate does not hold programs yet", "application_control")
    assert detail(JAPANESE, refused) == "ブロック: ゲートはまだプログラムの実行を保留していません"
    assert detail(JAPANESE, Problem("of_a_newer_manager", "Something else.")) == "Something else."
