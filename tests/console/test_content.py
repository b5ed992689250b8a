"""Content: a pattern set is imported in the browser, its report read, used in a policy, and returned to an older version."""

import pytest

from tests.console.conftest import new_context
from tests.console.usable import assert_usable, both_ways

GOOD = 'rule zq_one { meta: license = "MIT" strings: $a = "zq-one" condition: $a }\n'
BAD = "rule zq_bad { condition: $nowhere }\n"


def load(page, seeded, path, button, name="public-rules"):
    page.goto(f"{seeded.url}/content#new")
    page.set_input_files("#f-file", path)
    page.fill("#f-name", name)
    page.fill("#f-licence", "Detection Rule License 1.1")
    with page.expect_navigation():
        page.locator("form[action='/content/import'] button", has_text=button).last.click()


@pytest.fixture(scope="module")
def imported(seeded, browser, signed_in_state, tmp_path_factory):
    """Two versions of a set, imported through the page; the last report's page is left open."""
    folder = tmp_path_factory.mktemp("patterns")
    first, second = folder / "rules.yar", folder / "newer.yar"
    first.write_text(GOOD)
    second.write_text(GOOD + BAD)
    context = new_context(browser, storage_state=signed_in_state)
    page = context.new_page()
    load(page, seeded, str(second), "Only try")
    assert "A trial: nothing was kept" in page.inner_text("main")
    assert page.locator("table.list a.primary", has_text="public-rules").count() == 0
    load(page, seeded, str(first), "Import")
    load(page, seeded, str(second), "Import")
    yield page
    context.close()


def test_the_report_names_what_was_refused_with_its_place_and_reason(imported):
    text = imported.inner_text("main")
    assert "Imported as version 2 of public-rules" in text
    assert "rules: 1" in text
    assert "MIT (1)" in text
    assert "zq_bad" in text
    assert "newer.yar:2" in text
    assert "The rule does not compile." in text


def test_a_set_is_used_in_a_policy_and_returned_to_an_older_version(imported, seeded):
    page = imported
    page.goto(f"{seeded.url}/content")
    page.click("table.list a.primary")
    page.select_option("#f-policy", label="Base > Linux")
    with page.expect_navigation():
        page.click("text=Use it there")
    assert "Base > Linux" in page.inner_text("ul.enforce")
    with page.expect_navigation():
        page.click("button[aria-label='Return to version 1']")
    assert "Version 1, current" in page.inner_text("main")
    page.locator("form[action$='/delete'] button").click()
    page.wait_for_selector(".problem-slot .notice.error")
    assert "The set public-rules is used by Base > Linux" in page.inner_text("form[action$='/delete'] .problem-slot")
    with page.expect_navigation():
        page.click("button[aria-label='Take it out of Base > Linux']")
    assert "No policy uses it yet." in page.inner_text("main")


def test_a_file_without_use_is_told_in_words(imported, seeded, tmp_path):
    nothing = tmp_path / "old.txt"
    nothing.write_text("44d88612fea8a8f36de82e1278abb02f\n")
    load(imported, seeded, str(nothing), "Import", name="old")
    assert "MD5" in imported.inner_text("main")


@both_ways
def test_the_pages_can_be_used_by_everyone(imported, seeded, browser, language, theme, width):
    imported.goto(f"{seeded.url}/content")
    imported.click("table.list a.primary")
    addresses = ["/content#new", imported.url.removeprefix(seeded.url)]
    assert_usable(browser, seeded, addresses, language=language, theme=theme, width=width)
