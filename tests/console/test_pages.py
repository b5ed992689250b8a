"""Every page, in both languages, both themes and two widths: it loads, obeys its policy, and axe finds nothing."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.console.conftest import Watched, new_context, sign_in
from tests.console.usable import RULES, assert_usable, both_ways


def addresses(seeded):
    web = seeded.computers["web-01"].computer_id
    database = seeded.computers["db-01"].computer_id
    return [
        "/",
        "/computers",
        "/computers?state=offline",
        f"/computers/{database}",
        f"/computers/{web}/events",
        f"/computers/{web}/policy",
        f"/computers/{web}/baseline",
        f"/computers/{web}/commands",
        "/events",
        "/events?severity=critical&period=24h&q=sshd",
        "/events?q=nothing-fits-this",
        f"/events/{seeded.event_id}",
        "/policies",
        "/policies/import",
        "/rules",
        "/rules/im-linux-cron",
        "/rules/new",
        "/administration/users",
        "/administration/roles",
        "/administration/tokens",
        "/administration/api-keys",
        "/administration/customers",
        "/administration/retention",
        "/administration/audit",
        "/account",
    ]


@pytest.mark.timeout(300)
@both_ways
def test_every_page_loads_obeys_its_policy_and_can_be_used_by_everyone(seeded, browser, language, theme, width):
    assert_usable(browser, seeded, addresses(seeded), language=language, theme=theme, width=width)


def test_the_sign_in_page_can_be_used_by_everyone(seeded, browser):
    context = new_context(browser, locale="ja-JP")
    watched = Watched(context.new_page())
    watched.page.goto(f"{seeded.url}/sign-in")
    assert watched.page.get_attribute("html", "lang") == "ja"
    assert Axe().run(watched.page, options=RULES).response["violations"] == []
    assert watched.troubles == []
    context.close()


def test_a_wrong_password_is_told_and_a_right_one_leads_to_where_one_wanted(seeded, browser):
    context = new_context(browser)
    page = context.new_page()
    page.goto(f"{seeded.url}/events?severity=high")
    assert "/sign-in?next=" in page.url
    page.fill("#f-name", "admin")
    page.fill("#f-password", "wrong")
    page.click("button.primary")
    assert "not right" in page.locator(".notice.error").inner_text()
    page.fill("#f-password", seeded.password)
    page.click("button.primary")
    page.wait_for_selector(".frame")
    assert page.url.endswith("/events?severity=high")
    context.close()


def test_an_auditor_sees_no_buttons_that_change_anything(seeded, browser, open_page):
    page = open_page("/administration/users").page
    page.get_by_role("button", name="New user").click()
    page.fill("#f-name", "audrey")
    page.fill("#f-password", "an auditor reads everything 7")
    page.select_option("#f-role", "auditor")
    page.get_by_role("button", name="Make the user").click()
    page.wait_for_url("**/administration/users/*")
    context = new_context(browser)
    auditor = context.new_page()
    sign_in(auditor, seeded, "audrey", "an auditor reads everything 7")
    assert auditor.locator(".notice.warning").count()  # the password was given by somebody else
    auditor.goto(f"{seeded.url}/policies")
    assert auditor.get_by_role("button", name="New policy").count() == 0
    assert auditor.get_by_role("link", name="Import").count() == 0
    auditor.get_by_role("link", name="Linux", exact=True).click()
    auditor.get_by_role("button", name="More").click()
    assert auditor.locator("#menu-policy .item:visible").all_inner_texts() == ["Export as YAML", "Export with all below it"]
    auditor.goto(f"{seeded.url}/computers")
    assert auditor.locator("tbody tr").count() == 4
    assert auditor.locator("[data-select]").count() == 0
    auditor.goto(f"{seeded.url}/administration/retention")
    assert "90 days" in auditor.locator("main").inner_text()
    assert auditor.locator("main form").count() == 0
    refused = auditor.goto(f"{seeded.url}/rules/new")
    assert refused.status == 403
    assert auditor.locator("h1").inner_text() == "You may not do this"
    context.close()


def test_an_unknown_address_is_a_page_that_leads_back(open_page, seeded):
    watched = open_page()
    answer = watched.page.goto(f"{seeded.url}/nowhere/at-all")
    assert answer.status == 404
    assert watched.page.get_by_role("link", name="To the overview").is_visible()
