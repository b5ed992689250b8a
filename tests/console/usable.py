"""Whether pages can be used by everyone: they load in both languages, themes and widths, obey their policy, and please axe."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.console.conftest import Watched, new_context

RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]},
    "resultTypes": ["violations"],
}
LOOKED_AT = {"exclude": [["table.list tbody tr:nth-child(n+7)"]]}
"""The rows of a long list are alike; half a dozen of them is looked at."""

both_ways = pytest.mark.parametrize(("language", "theme", "width"), [("en", "light", 1440), ("ja", "dark", 390)])


def set_preferences(page, seeded, language, theme):
    """Have the signed-in user see everything in a language and a theme."""
    page.goto(f"{seeded.url}/account")
    page.select_option("#f-language", language)
    page.select_option("#f-theme", theme)
    with page.expect_navigation():
        page.locator('form[action="/account/preferences"] button').click()


def assert_usable(browser, seeded, addresses, *, language, theme, width):
    """Open each address as the signed-in user of `seeded`, and collect what is wrong before failing with all of it."""
    size = {"width": width, "height": 844}
    context = new_context(browser, storage_state=seeded.cookies, viewport=size, reduced_motion="reduce")
    watched = Watched(context.new_page())
    page = watched.page
    set_preferences(page, seeded, language, theme)
    found = []
    for address in addresses:
        watched.troubles.clear()
        answer = page.goto(seeded.url + address)
        page.wait_for_function("() => !document.querySelector('[data-chart]:not([data-drawn])')")
        assert answer.status == 200, address
        assert page.get_attribute("html", "lang") == language
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{address}: {wide} pixels wide")
        found += [f"{address}: {trouble}" for trouble in watched.troubles]
        for violation in Axe().run(page, LOOKED_AT, RULES).response["violations"]:
            nodes = "; ".join(node["html"][:160] for node in violation["nodes"][:3])
            found.append(f"{address}: {violation['id']}: {nodes}")
    set_preferences(page, seeded, "en", "system")
    context.close()
    assert not found, "\n".join(found)
