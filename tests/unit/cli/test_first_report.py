"""When `keibi up` says that a computer is protected: each module at work by the policy, and nobody waits for an inventory."""

import pytest

from keibi.cli.first_report import SETTLE_SECONDS, STARTING_SECONDS, is_protected, said_of

STARTED = 1_000_000.0
ANTI_MALWARE = {"module": "anti_malware", "health": "active", "policy_generation": 7}
BUILDS = {
    "module": "application_control",
    "health": "starting",
    "policy_generation": 7,
    "message": "building the inventory: 41 %, 12,345 programs, libraries and scripts, now /usr/lib",
}
WORKER_STARTS = {"module": "application_control", "health": "starting", "policy_generation": 0, "message": "its worker starts"}
OFF = {"module": "integrity_monitoring", "health": "inactive", "policy_generation": 7}
FAILS = {"module": "application_control", "health": "error", "policy_generation": 0, "message": "safe mode: it ended thrice"}


def status(*modules: dict, **more: object) -> dict:
    return {"started_at": STARTED, "policy_generation": 7, "modules": list(modules), **more}


@pytest.mark.parametrize(
    ("found", "after_seconds", "expected"),
    [
        (status(ANTI_MALWARE, OFF), 0.5, True),
        (status(ANTI_MALWARE, BUILDS), SETTLE_SECONDS + 0.1, True),
        (status(ANTI_MALWARE, BUILDS), SETTLE_SECONDS - 0.5, False),
        (status(BUILDS, OFF), SETTLE_SECONDS + 0.1, True),
        (status(ANTI_MALWARE, FAILS), 0.5, True),
        (status(ANTI_MALWARE, WORKER_STARTS), 30.0, False),
        (status(ANTI_MALWARE, WORKER_STARTS), STARTING_SECONDS + 1, True),
        (status(ANTI_MALWARE, {**BUILDS, "policy_generation": 6}), 10.0, False),
        (status(WORKER_STARTS), STARTING_SECONDS + 1, False),
        (status(OFF), 10.0, False),
        (status(), 10.0, False),
        (status(ANTI_MALWARE, policy_generation=0), 10.0, False),
        (status(ANTI_MALWARE, started_at=STARTED - 60.0), 10.0, False),
        ({}, 10.0, False),
    ],
)
def test_a_computer_is_protected_once_every_module_works_by_the_policy(found, after_seconds, expected):
    assert is_protected(found, STARTED, STARTED + after_seconds) is expected


def test_what_goes_on_is_said_with_how_far_it_is():
    assert said_of(BUILDS) == (
        "application control: works; building the inventory: 41 %, 12,345 programs, libraries and scripts, now /usr/lib"
        " (this goes on by itself)"
    )
    assert said_of(OFF) == "integrity monitoring: off by policy"
    assert said_of(ANTI_MALWARE) == "anti malware: active"
    assert said_of(WORKER_STARTS) == "application control: starting its worker starts"
    assert said_of(FAILS) == "application control: error safe mode: it ended thrice"
