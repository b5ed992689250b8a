"""The reference pages say what the code says."""

import importlib.util
import pathlib
import re
import subprocess
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["reference"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["reference"]
    return module


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, str]:
    return reference.pages()


def test_the_reference_pages_are_what_the_code_says(pages):
    stale = [
        name
        for name, text in pages.items()
        if not (path := ROOT / "docs/reference" / name).exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs` and commit what it writes"


def test_every_setting_and_every_rule_is_told_in_both_languages(pages):
    for name in ("settings", "rules"):
        english, japanese = pages[f"{name}.md"].splitlines(), pages[f"{name}.ja.md"].splitlines()
        assert len(english) == len(japanese)
        rows = [(one, other) for one, other in zip(english, japanese, strict=True) if one.startswith("| ")]
        assert len(rows) > 10
        assert [one for one, other in rows if one == other] == []


def test_every_command_and_every_endpoint_says_what_it_is_for(reference):
    commands = list(reference.commands_of(reference.build_parser()))
    assert {"keibi up", "keibi agent doctor", "keibi events list"} <= {command.name for command in commands}
    assert [command.name for command in commands if not command.about] == []
    rows = [line for line in reference.rest_api_page().splitlines() if "/api/v1/" in line and line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []


def test_links_between_pages_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_page_of_ways_round_says_what_the_tests_hold():
    check = subprocess.run([sys.executable, ROOT / "scripts/ways_round.py", "--check"], check=False)
    assert check.returncode == 0, "out of date: python scripts/ways_round.py"


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert sum(1 for _, name in named if name) > 40
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists()
        or (name and not re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE))
    ]
    assert missing == []
