"""A real manager in a process of its own, seeded over the agents' protocol, and a real browser in front of it."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import sync_playwright

from keibi.contract.names import Severity
from keibi.contract.status import Health, NotEnforced
from keibi.manager.console.visit import FLASH_COOKIE
from tests.console.seeding import SeedComputer, changed_sshd_config, integrity_event

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 60
TIMEOUT_MILLISECONDS = 15_000


@dataclass
class Served:
    """A manager that serves."""

    url: str
    state: object
    password: str
    token: str = ""
    computers: dict = field(default_factory=dict)
    event_id: str = ""
    cookies: dict = field(default_factory=dict)  # of the browser in which the administrator signed in


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serving(state):
    """Start a manager in that directory and end it; what it logged must be no fault."""
    port = free_port()
    config = state / "manager.toml"
    config.write_text(f'state_directory = "{state}/state"\nport = {port}\nlog_level = "warning"\n')
    log = (state / "log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "keibi.manager.main", "--config", str(config)], stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, (state / "log").read_text()
        password = (state / "state/first-password").read_text().split()[1]
        yield Served(f"https://127.0.0.1:{port}", state, password)
    finally:
        process.terminate()
        process.wait(30)
        log.close()
    faults = [line for line in (state / "log").read_text("utf-8", "replace").splitlines() if "Traceback" in line]
    assert faults == [], (state / "log").read_text("utf-8", "replace")[-4000:]


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("manager")) as made:
        yield made


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


def new_context(browser, **options):
    context = browser.new_context(**context_options(options))
    context.set_default_timeout(TIMEOUT_MILLISECONDS)
    return context


def context_options(options):
    values = {"ignore_https_errors": True, "viewport": {"width": 1440, "height": 900}, "timezone_id": "Asia/Tokyo"}
    return {**values, "locale": "en-US", **options}


def sign_in(page, served, name="admin", password=""):
    page.goto(f"{served.url}/sign-in")
    page.fill("#f-name", name)
    page.fill("#f-password", password or served.password)
    page.click("button.primary")
    page.wait_for_selector(".frame, .notice.error")


def get_token(served, browser):
    """Sign in, keep the session, and make a token that enrols computers."""
    context = new_context(browser)
    page = context.new_page()
    sign_in(page, served)
    page.goto(f"{served.url}/administration/tokens#new")
    page.fill("#f-name", "Seed")
    page.locator('form[action="/administration/tokens"] button.primary').click()
    command = page.locator("[data-copy-source]").inner_text()
    served.token = re.search(r"--token (\S+)", command)[1]
    served.cookies = context.storage_state()
    context.close()


@pytest.fixture(scope="session")
def seeded(served, browser):
    """The manager with four computers and their events."""
    get_token(served, browser)
    for number, name in enumerate(("web-01", "web-02", "db-01", "bastion")):
        served.computers[name] = SeedComputer(
            served.url, served.token, f"{name}.example.jp", addresses=[f"192.0.2.{10 + number}"]
        )
    web, second, database, bastion = served.computers.values()
    web.beat()
    second.beat()
    bastion.beat(drifts=3)
    reason = "NFS does not report the changes of other clients; it is looked at in scheduled scans only."
    database.beat(
        health=Health.WARNING, not_enforced=[NotEnforced("Real-time monitoring of /srv/nfs", reason, "nfs")], message="Partly."
    )
    events = [
        integrity_event(f"/etc/cron.d/job{number}", severity=Severity.MEDIUM, rule_id="im-linux-cron", ago=number * 600)
        for number in range(70)
    ]
    second.send(*events)
    event = changed_sshd_config(rule_id="im-linux-ssh-daemon", ago=60)
    web.send(event, integrity_event("/tmp/<b>bold\\x1b[31m</b>", "file.created", rule_id="im-linux-cron", actor=False, ago=90))
    served.event_id = event.event_id
    return served


@pytest.fixture(scope="session")
def signed_in_state(seeded):
    """The administrator's session, for any number of browser contexts."""
    return seeded.cookies


class Watched:
    """A page whose console messages, errors and policy violations are kept."""

    def __init__(self, page):
        self.page = page
        self.troubles = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.troubles.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def contexts(browser, signed_in_state):
    """Signed-in contexts by their width, kept for all tests: fonts, styles and scripts are then loaded and compiled once."""
    made = {}
    yield made
    for context in made.values():
        context.close()


@pytest.fixture
def open_page(seeded, browser, signed_in_state, contexts):
    """A function that opens pages as the signed-in administrator."""
    pages = []

    def opened(path="/", *, width=1440):
        if width not in contexts:
            size = {"width": width, "height": 900}
            contexts[width] = new_context(browser, storage_state=signed_in_state, viewport=size)
        contexts[width].clear_cookies(name=FLASH_COOKIE)  # a word of confirmation that an earlier test did not wait for
        watched = Watched(contexts[width].new_page())
        pages.append(watched.page)
        watched.page.goto(seeded.url + path)
        return watched

    yield opened
    for page in pages:
        page.close()
