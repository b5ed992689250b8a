"""What people do with the console, done in a real browser."""

import threading
import time

import pyotp

from keibi.contract.names import Severity
from tests.console.conftest import new_context, sign_in, wait_until
from tests.console.seeding import integrity_event


def test_the_palette_opens_by_keyboard_and_leads_to_a_computer(open_page, seeded):
    watched = open_page("/")
    page = watched.page
    page.keyboard.press("Control+k")
    page.locator("#palette input").wait_for(state="visible")
    page.keyboard.type("somewhere else")
    page.keyboard.press("Escape")
    page.locator("#palette input").wait_for(state="hidden")
    page.keyboard.press("Control+k")
    page.keyboard.type("web-01")
    page.wait_for_selector("#palette [role=option] >> text=web-01.example.jp")
    page.wait_for_function(
        "() => document.querySelector('#palette [aria-selected=true]')?.textContent.includes('web-01')", timeout=5000
    )
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/computers/{seeded.computers['web-01'].computer_id}")
    assert watched.troubles == []


def test_every_menu_works_by_keyboard(open_page):
    page = open_page("/").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("button", name="Language").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#menu-language:popover-open")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent.trim()") == "English"
    page.keyboard.press("Escape")
    assert page.locator("#menu-language:popover-open").count() == 0


def test_the_live_tail_shows_a_new_event_within_a_second(open_page, seeded):
    watched = open_page("/events?live=on")
    page = watched.page
    page.wait_for_selector("table[data-state=live]")
    wait_until(lambda: "Live:" in page.locator("[data-tail-status]").inner_text())
    subject = f"/etc/live-{time.time_ns()}"
    event = integrity_event(subject, severity=Severity.CRITICAL, rule_id="im-linux-cron")
    sent = {}

    def send():
        seeded.computers["bastion"].send(event)
        sent["at"] = time.monotonic()

    thread = threading.Thread(target=send)
    thread.start()
    page.locator("tbody tr", has_text=subject).wait_for()
    seen_at = time.monotonic()
    thread.join()
    # Counted from the manager's acknowledgement, which comes when the event is durable.
    assert seen_at - sent["at"] < 1.0
    row = page.locator(f"#e-{event.event_id}")
    assert "Critical" in row.inner_text()
    assert watched.troubles == []


def test_a_filter_stands_in_the_address_and_reads_as_a_sentence(open_page, seeded):
    page = open_page("/events").page
    page.locator(".filter summary", has_text="of any severity").click()
    page.get_by_role("link", name="of high severity and above").click()
    page.wait_for_url("**severity=high*")
    page.fill("#filter-q", "sshd_config")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=sshd_config*")
    sentence = page.locator(".filters").inner_text()
    assert "of high severity and above" in sentence
    assert "with the text “sshd_config”" in sentence
    assert page.locator("tbody tr").count() == 1
    assert "1 event" in page.locator("form[data-selection] header h2").inner_text()


def test_pages_follow_each_other_without_gap_or_repetition(open_page, seeded):
    web = seeded.computers["web-02"].computer_id
    page = open_page(f"/events?computer={web}&rule=im-linux-cron").page
    seen = page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.id)")
    page.get_by_role("link", name="Next page").click()
    page.wait_for_url("**cursor=*")
    seen += page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.id)")
    assert len(seen) == len(set(seen)) == 70


def test_a_file_name_is_never_markup(open_page):
    page = open_page("/events?q=bold").page
    row = page.locator("tbody tr").first
    assert "<b>bold\\x1b[31m</b>" in row.inner_text()
    assert row.locator("b").count() == 0


def test_tags_are_put_on_many_events_after_a_preview(open_page, seeded):
    web = seeded.computers["web-02"].computer_id
    watched = open_page(f"/events?computer={web}")
    page = watched.page
    page.locator("[data-select]").nth(0).check()
    page.locator("[data-select]").nth(1).check()
    page.fill("#bulk-tag", "maintenance")
    page.get_by_role("button", name="Add the tag").click()
    page.wait_for_selector("dialog[open] >> text=This touches 2 events.")
    page.get_by_role("button", name="Do it").click()
    page.wait_for_selector("text=2 events were changed.")
    page.goto(f"{seeded.url}/events?tag=maintenance")
    assert page.locator("tbody tr").count() == 2
    assert watched.troubles == []


def test_a_policy_is_assigned_to_chosen_computers_after_a_preview(open_page, seeded):
    watched = open_page("/computers")
    page = watched.page
    page.get_by_label("Choose db-01.example.jp").focus()
    page.keyboard.press("Space")
    page.get_by_label("Choose bastion.example.jp").check()
    assert "2 chosen" in page.locator("[data-selection-bar]").inner_text()
    page.select_option("#bulk-policy", label="Base > Linux")
    page.get_by_role("button", name="Assign: see a preview").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "2 computers go from the default of their system to Base > Linux." in dialog.inner_text()
    assert "bastion.example.jp, db-01.example.jp" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert page.locator("tbody tr", has_text="automatic").count() == 4
    page.get_by_role("button", name="Assign: see a preview").click()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Assign it").click()
    page.wait_for_selector("text=Saved. It reaches 2 computers.")
    assert page.locator("tbody tr", has_text="Base > Linux").count() == 2
    page.locator("[data-select-all]").check()
    page.get_by_role("button", name="Assign: see a preview").click()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Assign it").click()
    assert page.locator("tbody tr", has_text="automatic").count() == 4
    assert watched.troubles == []


def test_before_and_after_stand_below_each_other_on_a_telephone(open_page, seeded):
    page = open_page(f"/events/{seeded.event_id}", width=390).page
    cells = page.locator(".changes td.after")
    assert cells.count() >= 3
    for index in range(cells.count()):
        box = cells.nth(index).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_a_policy_change_shows_its_difference_and_reach_before_it_is_saved(open_page, seeded):
    watched = open_page("/policies")
    page = watched.page
    page.get_by_role("link", name="Linux", exact=True).click()
    page.wait_for_selector(".setting")
    field = page.locator('input[name="setting:integrity_monitoring:full_rehash_days"]')
    field.fill("9")
    page.get_by_role("button", name="Review the change").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "9" in dialog.locator(".enforce").inner_text()
    assert "It reaches 4 computers." in dialog.inner_text()
    dialog.get_by_role("button", name="Save and apply").click()
    page.wait_for_selector("text=Saved. It reaches 4 computers.")
    setting = page.locator("#setting-integrity_monitoring-full_rehash_days")
    assert "Set here" in setting.inner_text()
    setting.get_by_role("checkbox").check()
    page.get_by_role("button", name="Review the change").click()
    with page.expect_navigation():
        page.locator("dialog[open]").get_by_role("button", name="Save and apply").click()
    assert "Set here" not in page.locator("#setting-integrity_monitoring-full_rehash_days").inner_text()
    page.get_by_role("link", name="History").click()
    page.wait_for_selector("text=Return to it")
    assert watched.troubles == []


def test_a_policy_is_duplicated_and_moved_and_says_what_that_does(open_page):
    watched = open_page("/policies")
    page = watched.page
    page.get_by_role("link", name="Linux", exact=True).click()
    page.get_by_role("button", name="More").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.textContent.trim() == 'Move'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog#duplicate[open]")
    assert page.locator("#copy-name").input_value() == "Linux (copy)"
    page.fill("#copy-name", "Kiosks")
    page.get_by_role("button", name="Make the copy").click()
    page.wait_for_selector("text=The policy is made.")
    assert page.locator("h1").inner_text() == "Kiosks"
    page.get_by_role("button", name="More").click()
    page.locator("#menu-policy").get_by_role("button", name="Move").click()
    assert "Base > Kiosks" not in page.locator("#f-parent option").all_inner_texts()
    page.select_option("#f-parent", label="Base > Linux")
    page.locator("#move").get_by_role("button", name="Review the change").click()
    preview = page.locator("#move-slot dialog[open]")
    preview.wait_for()
    assert "It reaches no computer yet." in preview.inner_text()
    with page.expect_navigation():
        preview.get_by_role("button", name="Move it").click()
    assert "Base > Linux > Kiosks" in page.locator(".crumbs").inner_text()
    page.get_by_role("button", name="More").click()
    page.locator("#menu-policy").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    page.wait_for_selector("text=The policy is deleted.")
    assert watched.troubles == []


def test_policies_go_out_as_a_file_and_come_in_again_after_a_dry_run(open_page, tmp_path):
    watched = open_page("/policies")
    page = watched.page
    page.get_by_role("link", name="Linux", exact=True).click()
    page.get_by_role("button", name="More").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export with all below it").click()
    assert download.value.suggested_filename == "Linux.yaml"
    text = download.value.path().read_text("utf-8")
    assert "parent: Base > Linux" in text
    page.goto(page.url.partition("/policies")[0] + "/policies/import")
    file = tmp_path / "policies.yaml"
    file.write_text(text)
    page.set_input_files("#file", file)
    page.wait_for_function("() => document.querySelector('#text').value.includes('policies/1')")
    page.get_by_role("button", name="Review the change").click()
    page.wait_for_selector("#import-slot >> text=Nothing differs from what is set now.")
    page.fill("#text", "keibi: policies/1\npolicies:\n  - name: Film\n    parent: Base > Linux\n    colour: red\n")
    page.get_by_role("button", name="Review the change").click()
    problem = page.locator("#import-slot .notice.error")
    problem.wait_for()
    assert "line 3, column 5:" in problem.inner_text()
    page.fill(
        "#text",
        "keibi: policies/1\npolicies:\n  - name: Film\n    parent: Base > Linux\n    heartbeat_seconds: 30\n"
        "  - name: Linux\n    parent: Base\n    description: What serves.\n    heartbeat_seconds: 45\n",
    )
    page.get_by_role("button", name="Review the change").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "Base > Linux > Film New" in " ".join(dialog.inner_text().split())
    assert "45" in dialog.inner_text()
    assert "It reaches 4 computers." in dialog.inner_text()
    dialog.get_by_role("button", name="Go on editing").click()
    page.fill("#text", "keibi: policies/1\npolicies:\n  - name: Film\n    parent: Base > Linux\n")
    page.get_by_role("button", name="Review the change").click()
    page.locator("dialog[open]").get_by_role("button", name="Save and apply").click()
    page.wait_for_selector("text=Saved. It reaches 0 computers.")
    assert page.get_by_role("link", name="Film", exact=True).count() == 1
    # A status of 422 is what the browser itself notes about the wrong file; nothing else may be there.
    assert [trouble for trouble in watched.troubles if "422" not in trouble] == []


def test_a_wrong_value_is_told_in_place(open_page):
    page = open_page("/policies").page
    page.get_by_role("link", name="Linux", exact=True).click()
    page.locator('input[name="setting:integrity_monitoring:scan_schedule"]').fill("every day")
    page.get_by_role("button", name="Review the change").click()
    page.wait_for_selector("#save-slot .notice.error")
    assert "every day" in page.locator("#save-slot").inner_text()


def test_an_own_rule_is_written_with_its_problems_by_line_and_tried(open_page):
    watched = open_page("/rules/new")
    page = watched.page
    page.wait_for_selector("text=The rule is complete.")
    text = page.locator("#text").input_value()
    page.locator("#text").fill(text.replace("severity: medium", "severity: terrible"))
    page.wait_for_selector("#problems >> text=Line 9")
    page.locator("#text").fill(text)
    page.wait_for_selector("text=The rule is complete.")
    page.get_by_role("button", name="Try it").click()
    page.wait_for_selector("text=It would report this change.")
    page.get_by_role("button", name="Save the rule").click()
    page.wait_for_url("**/rules/im-my-application")
    page.wait_for_selector("text=My application's configuration")
    # A status of 422 is what the browser itself notes about the wrong text; nothing else may be there.
    assert [trouble for trouble in watched.troubles if "422" not in trouble] == []


def test_a_restore_is_previewed_and_then_carried_out_by_the_agent(open_page, seeded):
    web = seeded.computers["web-01"]
    watched = open_page(f"/events/{seeded.event_id}")
    page = watched.page
    page.get_by_role("button", name="Restore it: see a preview").click()
    page.wait_for_selector("#now-slot .notice")

    def taken(kind):
        web.beat()
        return next((command for command in web.commands if command.kind == kind), None)

    command = wait_until(lambda: taken("preview_restore"))
    assert command.arguments["key"] == "/etc/ssh/sshd_config"
    difference = "--- a\n+++ b\n@@ -1 +1 @@\n-PermitRootLogin yes\n+PermitRootLogin no\n"
    result = web.answer(command, "ready", difference=difference, can_restore=True, expected_hash="ab12")
    web.beat(results=[result])
    page.wait_for_selector("dialog[open] >> text=PermitRootLogin no")
    page.get_by_role("button", name="Restore it", exact=True).click()
    command = wait_until(lambda: taken("restore"))
    assert command.arguments["expected_hash"] == "ab12"
    web.beat(results=[web.answer(command, "restored content, owner and mode of /etc/ssh/sshd_config")])
    page.wait_for_selector("#now-slot >> text=restored content, owner and mode")
    assert watched.troubles == []


def test_drifts_are_listed_and_approved(open_page, seeded):
    bastion = seeded.computers["bastion"]
    watched = open_page(f"/computers/{bastion.computer_id}/baseline")
    page = watched.page
    page.get_by_role("button", name="Ask the computer").click()
    page.wait_for_selector("text=Asking the computer")

    def taken(kind):
        bastion.beat(drifts=3)
        return next((command for command in bastion.commands if command.kind == kind), None)

    command = wait_until(lambda: taken("list_baseline"))
    drift = {"drift_id": "d1", "type": "file", "key": "/etc/hosts", "change": "updated", "changed_attributes": ["size"]}
    versions = [
        {"version": 2, "kind": "scan", "entry_count": 10, "change_count": 1, "finished_at": time.time()},
        {"version": 1, "kind": "build", "entry_count": 9, "change_count": 9, "finished_at": time.time() - 60},
    ]
    bastion.beat(drifts=3, results=[bastion.answer(command, drifts=[drift], versions=versions)])
    page.locator("tbody tr", has_text="/etc/hosts").wait_for()
    page.get_by_label("/etc/hosts").check()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/commands/*")
    command = wait_until(lambda: taken("decide_drift"))
    assert command.arguments == {"decision": "approve", "drift_ids": ["d1"]}
    assert watched.troubles == []


def test_two_step_sign_in_is_set_up_with_a_qr_code_and_asked_for(seeded, browser, open_page):
    page = open_page("/administration/users").page
    page.get_by_role("button", name="New user").click()
    page.fill("#f-name", "totoro")
    page.fill("#f-password", "the cat bus comes at night 3")
    page.get_by_role("button", name="Make the user").click()
    page.wait_for_url("**/administration/users/*")
    context = new_context(browser)
    own = context.new_page()
    sign_in(own, seeded, "totoro", "the cat bus comes at night 3")
    own.goto(f"{seeded.url}/account")
    own.get_by_role("button", name="Set up").click()
    own.wait_for_selector(".qr svg")
    secret = own.locator("#two-step-slot code").inner_text()
    own.fill("#f-code", pyotp.TOTP(secret).now())
    own.get_by_role("button", name="Turn on").click()
    own.wait_for_selector("#two-step-slot pre")
    recovery = own.locator("#two-step-slot pre").inner_text().split()
    assert len(recovery) == 10
    own.goto(f"{seeded.url}/")
    own.get_by_role("button", name="Your account").click()
    own.get_by_role("button", name="Sign out").click()
    own.wait_for_url("**/sign-in")
    sign_in(own, seeded, "totoro", "the cat bus comes at night 3")
    assert "one-time code" in own.locator(".notice.error").inner_text()
    own.fill("#f-password", "the cat bus comes at night 3")
    own.fill("#f-totp", recovery[0])
    own.click("button.primary")
    own.wait_for_selector(".frame")
    context.close()


def test_the_audit_trail_is_verified(open_page):
    watched = open_page("/administration/audit")
    watched.page.get_by_role("button", name="Verify the chain").click()
    watched.page.wait_for_selector("#verify-slot .notice.good")
    assert watched.troubles == []


def test_a_change_without_the_sessions_token_is_refused(seeded, open_page):
    page = open_page("/account").page
    send = (
        """() => fetch("/account/theme", {method: "POST", body: new URLSearchParams({theme: "dark"})}).then(got => got.status)"""
    )
    assert page.evaluate(send) == 400
    page.reload()
    assert page.get_attribute("html", "data-theme") == "system"


def test_the_events_can_be_had_as_csv(seeded, open_page):
    page = open_page("/events").page
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    path = download.value.path()
    assert "sshd_config" in path.read_text("utf-8")


def test_event_retention_says_what_it_removes_before_it_is_set(open_page, seeded):
    seeded.computers["bastion"].send(integrity_event("/etc/old", ago=3 * 86400.0), integrity_event("/etc/older", ago=4 * 86400.0))
    watched = open_page("/administration/retention")
    page = watched.page
    assert "90 days" in page.locator("tbody tr").inner_text()
    page.select_option("#f-module", "integrity_monitoring")
    page.fill("#f-days", "1")
    page.get_by_role("button", name="Review the change").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "Integrity monitoring: kept for 1 day." in dialog.inner_text()
    assert "2 events are older." in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    page.fill("#f-days", "400")
    page.get_by_role("button", name="Review the change").click()
    dialog.wait_for()
    assert "No event is older than that" in dialog.inner_text()
    with page.expect_navigation():
        dialog.get_by_role("button", name="Save").click()
    row = page.locator("tbody tr", has_text="Integrity monitoring")
    assert "400 days" in row.inner_text()
    row.get_by_role("button", name="Take the rule away").click()
    dialog.wait_for()
    assert "kept for 90 days" in dialog.inner_text()
    with page.expect_navigation():
        dialog.get_by_role("button", name="Save").click()
    assert page.locator("tbody tr").count() == 1
    assert watched.troubles == []


def test_a_provider_chooses_a_customer_and_is_told_when_one_is_needed(open_page, seeded):
    watched = open_page("/administration/customers")
    page = watched.page
    page.get_by_role("button", name="New customer").click()
    page.fill("#f-name", "Sakura Foods")
    page.get_by_role("button", name="Make the customer").click()
    page.wait_for_selector("text=The customer is made.")
    names = page.locator("tbody tr td:first-child").all_inner_texts()
    (other,) = {name.splitlines()[0].strip() for name in names} - {"Sakura Foods"}
    page.goto(seeded.url)
    # Who works for several customers sees whose computer it is.
    assert f"web-01.example.jp · {other}" in page.locator(".timeline").inner_text()
    page.goto(f"{seeded.url}/events/{seeded.event_id}")
    assert other in page.locator("main dd", has_text="web-01.example.jp").inner_text()
    page.goto(f"{seeded.url}/administration/retention")
    page.wait_for_selector("text=Choose a customer at the top to change its rules.")
    assert page.locator("tbody tr", has_text="Sakura Foods").count() == 1
    page.goto(f"{seeded.url}/policies")
    page.get_by_role("button", name="New policy").click()
    page.select_option("#f-parent", "")
    page.fill("#f-name", "Nowhere")
    page.get_by_role("button", name="Make the policy").click()
    page.wait_for_selector("text=Choose a customer at the top first.")
    page.goto(f"{seeded.url}/computers")
    page.get_by_label("Choose web-01.example.jp").check()
    page.select_option("#bulk-policy", label="Sakura Foods · Base > Linux")
    page.get_by_role("button", name="Assign: see a preview").click()
    page.wait_for_selector("text=The policy and the computers belong to different customers.")
    page.get_by_role("button", name="All customers").first.click()
    with page.expect_navigation():
        page.locator("#menu-customer").get_by_role("button", name="Sakura Foods").click()
    page.wait_for_selector("text=No computers yet")
    page.locator('button[popovertarget="menu-customer"]').click()
    with page.expect_navigation():
        page.locator("#menu-customer").get_by_role("button", name="All customers").click()
    page.wait_for_selector("text=web-01.example.jp")
    assert [trouble for trouble in watched.troubles if "422" not in trouble] == []
