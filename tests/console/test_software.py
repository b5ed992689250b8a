"""Software changes worked through in a real browser and from the command line, with a manager of their own."""

import contextlib
import json
import re
import threading
import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from keibi.cli.main import main
from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.contract.status import Capability, Health
from keibi.contract.unlock import is_code
from tests.console.conftest import Watched, get_token, new_context, serving, sign_in
from tests.console.seeding import SeedComputer
from tests.console.software_seeding import NO_GATE, module_status, sha256_of, tell_of_software
from tests.console.usable import RULES, assert_usable, both_ways

GATE = [
    Capability("fanotify_permission_events", is_available=True),
    Capability("kernel_guard", is_available=False, reason="BPF LSM is not among the kernel's modules (lsm=)"),
]


@pytest.fixture(scope="module")
def software(tmp_path_factory, browser):
    """A manager with four computers that tell of software; `computers` by name, `events` by a short name."""
    with serving(tmp_path_factory.mktemp("software")) as served:
        get_token(served, browser)
        for number, name in enumerate(("web-01", "web-02", "db-01", "bastion")):
            address = f"192.0.2.{10 + number}"
            served.computers[name] = SeedComputer(served.url, served.token, f"{name}.example.jp", addresses=[address])
        web, second, database, bastion = served.computers.values()
        web.beat(others=[module_status(1)], capabilities=GATE)
        second.beat(others=[module_status(1)], capabilities=GATE)
        database.beat(others=[module_status(1, health=Health.WARNING, not_enforced=[NO_GATE])])
        bastion.beat(others=[module_status(1, maintenance_until_at=time.time() + 1800)])
        served.events = tell_of_software(served.computers.values())
        yield served


@pytest.fixture(scope="module")
def context(software, browser):
    made = new_context(browser, storage_state=software.cookies)
    yield made
    made.close()


@pytest.fixture
def open_software(software, context):
    """A function that opens a page of the manager with software."""
    pages = []

    def opened(path):
        watched = Watched(context.new_page())
        pages.append(watched.page)
        watched.page.goto(software.url + path)
        return watched

    yield opened
    for page in pages:
        page.close()


@contextlib.contextmanager
def answering(computer, kind, result):
    """Let a computer answer one command of that kind, as its agent would."""
    done = threading.Event()

    def work():
        deadline = time.monotonic() + 20
        while not done.is_set() and time.monotonic() < deadline:
            computer.commands.clear()
            computer.beat(others=[module_status(1)], capabilities=GATE)
            found = [command for command in computer.commands if command.kind is kind]
            if found:
                computer.beat(
                    others=[module_status(1)], capabilities=GATE, results=[computer.answer(one, **result) for one in found]
                )
                return
            time.sleep(0.1)  # an agent's own pace

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def rows(page):
    return page.locator("table.list tbody tr")


@pytest.mark.timeout(120)
@both_ways
def test_every_page_about_software_loads_and_can_be_used_by_everyone(software, browser, language, theme, width):
    web, database = software.computers["web-01"].computer_id, software.computers["db-01"].computer_id
    addresses = [
        "/",
        "/events/software",
        "/events/software?by=computer&standing=all",
        "/events/software?by=bringer",
        "/events/software?text=nothing-fits-this",
        f"/events/software/program?key={sha256_of('miner')}",
        "/events/software/decisions",
        "/events/software/rulesets",
        f"/computers/{web}/software",
        f"/computers/{database}/software",
        *(f"/events/{software.events[name].event_id}" for name in ("miner", "tool", "inline")),
        "/rules/new?module=application_control",
    ]
    assert_usable(browser, software, addresses, language=language, theme=theme, width=width)


def test_a_miner_is_blocked_everywhere_after_a_preview_and_unblocked_again(open_software, software):
    watched = open_software("/events/software")
    page = watched.page
    first = rows(page).first
    assert "kdevtmpfsi" in first.inner_text()
    assert "10 blocked" in first.inner_text()
    before = page.locator("form[data-selection] header h2").inner_text()
    first.get_by_role("button", name="Block").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "Block 1 item" in dialog.inner_text()
    assert "used by Base" in dialog.inner_text()
    assert "It reaches 4 computers." in dialog.inner_text()
    assert Axe().run(page, {"include": [["dialog[open]"]]}, RULES).response["violations"] == []
    dialog.get_by_role("button", name="Cancel").click()
    first.get_by_role("button", name="Block").click()
    page.locator("dialog[open]").get_by_text("Elsewhere, or with a note").click()
    page.fill("dialog[open] #f-note", "Coin miner, seen at night")
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Block it").click()
    page.wait_for_selector("text=Blocked. It reaches 4 computers.")
    assert page.locator("form[data-selection] header h2").inner_text() != before
    assert rows(page).filter(has_text="kdevtmpfsi").count() == 0
    computer = software.computers["web-01"]
    computer.beat(others=[module_status(1)], capabilities=GATE)
    module = next(one for one in computer.policy.modules if one.module is ModuleId.APPLICATION_CONTROL)
    assert sha256_of("miner").encode() in b"".join(rule.body for rule in module.rules)
    page.goto(f"{software.url}/events/software?standing=blocked")
    assert rows(page).count() == 1
    page.goto(f"{software.url}/events/software/rulesets/ac-own-blocked-software")
    assert sha256_of("miner") in page.locator("main").inner_text()
    assert Axe().run(page, options=RULES).response["violations"] == []
    page.goto(f"{software.url}/events/software/decisions")
    assert "Coin miner, seen at night" in rows(page).first.inner_text()
    page.get_by_role("button", name="Undo …").first.click()
    page.locator("dialog[open]").wait_for()
    assert "It reaches 4 computers." in page.locator("dialog[open]").inner_text()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Undo it").click()
    assert "Undone" in rows(page).first.inner_text()
    page.goto(f"{software.url}/events/software")
    assert rows(page).filter(has_text="kdevtmpfsi").count() == 1
    assert watched.troubles == []


def test_many_are_allowed_at_once_by_the_filter_that_found_them(open_software, software):
    watched = open_software("/events/software?path=/opt/build/")
    page = watched.page
    assert "60 contents" in page.locator("form[data-selection] header h2").inner_text()
    page.locator("[data-select-all]").check()
    assert "50 chosen" in page.locator("[data-selection-bar]").inner_text()
    page.get_by_label("all 60 of this filter").check()
    page.get_by_role("button", name="Allow …").click()
    page.locator("dialog[open]").wait_for()
    assert "Allow 60 items" in page.locator("dialog[open]").inner_text()
    assert "used by Base > Linux > Debian and Ubuntu" in page.locator("dialog[open]").inner_text()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Allow it").click()
    page.wait_for_selector("text=No software fits this filter")
    page.goto(f"{software.url}/events/software?standing=allowed&path=/opt/build/")
    assert "60 contents" in page.locator("form[data-selection] header h2").inner_text()
    assert watched.troubles == []


def test_a_package_is_allowed_from_the_page_of_one_program(open_software, software):
    watched = open_software(f"/events/software/program?key={sha256_of('tool')}")
    page = watched.page
    text = page.locator("main").inner_text()
    assert "web-01.example.jp" in text
    assert "db-01.example.jp" in text
    page.select_option("#decide-by", "package")
    page.get_by_role("button", name="Allow …").click()
    page.locator("dialog[open]").wait_for()
    assert "deploy-tool Example" in page.locator("dialog[open]").inner_text()
    page.locator("dialog[open]").get_by_text("Elsewhere, or with a note").click()
    page.select_option("#d-policy", label="Base")
    page.locator("dialog[open]").get_by_role("button", name="Preview again").click()
    page.wait_for_function("() => document.querySelector('dialog[open]')?.textContent.includes('used by Base.')")
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Allow it").click()
    assert page.locator(".page-head .state").inner_text().strip() == "Allowed"
    assert watched.troubles == []


def test_an_event_says_who_brought_it_and_what_can_be_done(open_software, software):
    watched = open_software(f"/events/{software.events['miner'].event_id}")
    page = watched.page
    text = page.locator("main").inner_text()
    assert "was blocked, wanted by /usr/bin/bash as www-data" in page.locator("h1").inner_text()
    assert "It is not in the inventory" in text
    assert "/usr/bin/curl as www-data" in text
    assert "curl -o /tmp/.x/kdevtmpfsi" in text
    assert "Seen on 2 computers" in text
    page.get_by_role("button", name="Block everywhere …").click()
    page.wait_for_selector("dialog[open] >> text=Block 1 item")
    page.goto(f"{software.url}/events/{software.events['odd'].event_id}")
    assert page.locator("main b", has_text="odd").count() == 0
    assert watched.troubles == []


def test_who_may_not_decide_sees_the_same_without_buttons(software, browser, open_software):
    page = open_software("/administration/users").page
    page.get_by_role("button", name="New user").click()
    page.fill("#f-name", "audrey")
    page.fill("#f-password", "an auditor reads everything 7")
    page.select_option("#f-role", "auditor")
    page.get_by_role("button", name="Make the user").click()
    page.wait_for_url("**/administration/users/*")
    context = new_context(browser)
    auditor = context.new_page()
    sign_in(auditor, software, "audrey", "an auditor reads everything 7")
    web = software.computers["web-01"].computer_id
    for address in ("/events/software", f"/events/software/program?key={sha256_of('shell')}", f"/computers/{web}/software"):
        assert auditor.goto(software.url + address).status == 200
        assert auditor.locator("main button:visible:not([data-copy])").count() == 0, address
        assert auditor.locator("[data-select]").count() == 0
    context.close()


def test_maintenance_of_two_computers_is_previewed_and_sent(open_software, software):
    watched = open_software("/computers")
    page = watched.page
    page.get_by_label("Choose web-01.example.jp").check()
    page.get_by_label("Choose web-02.example.jp").check()
    page.select_option("#bulk-minutes", "120")
    page.get_by_role("button", name="Maintenance …").click()
    page.locator("dialog[open]").wait_for()
    assert "Maintenance for 2 hours" in page.locator("dialog[open]").inner_text()
    assert "It reaches 2 computers." in page.locator("dialog[open]").inner_text()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Begin maintenance").click()
    page.wait_for_selector("text=Sent to 2 computers.")
    for name in ("web-01", "web-02"):
        computer = software.computers[name]
        computer.beat(others=[module_status(1)], capabilities=GATE)
        sent = [one for one in computer.commands if one.kind is CommandKind.SET_MAINTENANCE]
        assert sent[-1].arguments == {"minutes": 120}
        assert sent[-1].module is ModuleId.APPLICATION_CONTROL
        computer.beat(others=[module_status(1)], capabilities=GATE, results=[computer.answer(one) for one in sent])
    assert watched.troubles == []


def test_a_computer_shows_its_level_its_holes_and_searches_its_inventory(open_software, software):
    computer = software.computers["web-01"]
    watched = open_software(f"/computers/{computer.computer_id}/software")
    page = watched.page
    text = page.locator("main").inner_text()
    assert "fanotify holds programs back, and nothing else does." in text
    assert "Programs and libraries in memory only (memfd), or on a file system" in text
    assert "BPF LSM is not among the kernel's modules" in page.locator("main").text_content()
    item = {
        "path": "/usr/bin/ssh<b>x</b>",
        "sha256": "a" * 64,
        "size": 1_200_000,
        "kind": "program",
        "state": "trusted",
        "trusted_by": "inventory",
        "package": {"name": "openssh-client", "version": "1:9.2p1"},
        "user": "",
        "process": "",
    }
    page.fill("#inventory-text", "ssh")
    result = {"items": [item, "not a row"], "next": "", "total_count": 1, "unrecognised_count": 0}
    with answering(computer, CommandKind.LIST_SOFTWARE, result):
        page.get_by_role("button", name="Ask the computer").click()
        page.wait_for_selector("#inventory tbody tr")
    assert "/usr/bin/ssh<b>x</b>" in page.locator("#inventory tbody").inner_text()
    assert "openssh-client" in page.locator("#inventory tbody").inner_text()
    assert page.locator("#inventory tbody b").count() == 0
    assert watched.troubles == []


def test_the_unlock_code_of_the_dialog_is_the_one_that_the_agent_takes(open_software, software):
    computer = software.computers["db-01"]
    computer.beat(others=[module_status(1)], capabilities=GATE)
    watched = open_software(f"/computers/{computer.computer_id}/software")
    page = watched.page
    page.get_by_role("button", name="Make an unlock code").click()
    page.fill("#f-challenge", "K7QX-M2N0")
    page.get_by_role("button", name="Show the code").click()
    page.wait_for_selector("#unlock-slot .notice.error")
    page.fill("#f-challenge", "k7qx-m2nv")
    page.get_by_role("button", name="Show the code").click()
    code = page.locator("#unlock-slot [data-copy-source]").inner_text()
    assert is_code(computer.policy.unlock_secret, "K7QX-M2NV", code)


def test_the_first_page_names_what_waits_and_where_it_is_not_enforced(open_software, software):
    software.computers["db-01"].beat(others=[module_status(1, health=Health.WARNING, not_enforced=[NO_GATE])])
    text = open_software("/").page.locator(".needs").first.inner_text()
    assert "Application control is not enforced on 1 computer as its policy asks" in text
    assert re.search(r"\d+ software changes? waits? for a decision", text)


def test_an_entry_is_written_into_a_ruleset_and_taken_out(open_software, software):
    page = open_software("/events/software/rulesets/ac-own-allowed-software").page
    page.get_by_role("button", name="Add an entry").click()
    page.select_option("#f-kind", "path")
    page.fill("#f-value", "opt/shop/**")
    page.get_by_role("button", name="See a preview").click()
    page.wait_for_selector("dialog[open] .problem-slot .notice.error")
    page.fill("#f-value", "/opt/shop/**")
    page.get_by_role("button", name="See a preview").click()
    page.wait_for_selector("text=Allow 1 item")
    with page.expect_navigation():
        page.get_by_role("button", name="Allow it").click()
    page.fill("#text", "shop")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=shop*")
    assert rows(page).count() == 1
    rows(page).first.locator("[data-select]").check()
    with page.expect_navigation():
        page.get_by_role("button", name="Take out").click()
    page.wait_for_selector("text=1 entry was taken out.")


def test_the_command_line_does_the_same(software, context, monkeypatch, capsys):
    page = context.new_page()
    page.goto(f"{software.url}/administration/api-keys")
    secret = page.evaluate(
        """async () => {
            const csrf = document.querySelector('meta[name="csrf"]').content;
            const body = JSON.stringify({name: "cli", role_id: "administrator"});
            const headers = {"Content-Type": "application/json", "X-Keibi-Csrf": csrf};
            return (await (await fetch("/api/v1/api-keys", {method: "POST", headers, body})).json()).secret;
        }"""
    )
    page.close()
    monkeypatch.setenv("KEIBI_URL", software.url)
    monkeypatch.setenv("KEIBI_API_KEY", secret)
    monkeypatch.setenv("KEIBI_CA", str(software.state / "state/tls/ca.pem"))

    def keibi(*arguments, status=0):
        assert main(["software", *arguments]) == status, capsys.readouterr().err
        return capsys.readouterr().out

    assert "/var/www/html/up/s.php" in keibi("changes", "--path", "/var/www/")
    listed = json.loads(keibi("changes", "--by", "computer", "--standing", "all", "--json"))
    assert listed["total"] == 3
    preview = keibi("block", sha256_of("shell"), "--note", "web shell")
    assert "It reaches 4 computer(s)" in preview
    assert "Nothing was changed" in preview
    made = json.loads(keibi("block", sha256_of("shell"), "--note", "web shell", "--yes", "--json"))
    assert made["note"] == "web shell"
    assert "Nothing waits" in keibi("changes", "--path", "/var/www/")
    assert "web shell" in keibi("decisions")
    assert sha256_of("shell") in keibi("rulesets", "ac-own-blocked-software")
    assert "ac-own-blocked-software" in keibi("rulesets")
    assert "Nothing was changed" in keibi("undo", made["decision_id"])
    assert "undone" in keibi("undo", made["decision_id"], "--yes")
    assert "It reaches 1 computer(s): bastion.example.jp" in keibi("maintenance", "bastion.example.jp", "--dry-run")
    computer = software.computers["bastion"]
    with answering(computer, CommandKind.SET_MAINTENANCE, {"until": time.time() + 600}):
        assert "done" in keibi("maintenance", "bastion.example.jp", "--minutes", "10")
    result = {"items": [], "next": "", "total_count": 48_213, "unrecognised_count": 12}
    with answering(computer, CommandKind.LIST_SOFTWARE, result):
        assert "48213 in the inventory" in keibi("inventory", "bastion.example.jp", "nothing")
    assert re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}\n", keibi("unlock-code", "bastion.example.jp", "K7QX-M2NV"))
    keibi("allow", "too short", status=2)
