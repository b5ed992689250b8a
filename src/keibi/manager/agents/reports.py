"""Writing what an agent says into its computer's report."""

import msgspec

from keibi.contract.enrolment import ComputerFacts
from keibi.contract.status import AgentStatus
from keibi.manager.computers.problems import drifts_of, problems_of
from keibi.manager.computers.tables import ReportRecord

MAX_ADDRESSES = 64
MAX_DIGEST_CHARACTERS = 128


def keep_facts(report: ReportRecord, facts: ComputerFacts, digest: str) -> None:
    """Copy facts into a report; text from an agent is cut, never trusted to fit."""
    report.hostname = storable(facts.hostname, 255)
    report.os_name = storable(facts.os_name, 64)
    report.os_version = storable(facts.os_version, 64)
    report.os_pretty_name = storable(facts.os_pretty_name, 200)
    report.addresses = " ".join(storable(address, 64).replace(" ", "") for address in facts.addresses[:MAX_ADDRESSES])
    report.facts = storable_json(facts)
    report.facts_digest = storable(digest, MAX_DIGEST_CHARACTERS)


def keep_status(report: ReportRecord, status: AgentStatus, digest: str, at: float) -> None:
    """Copy a status into a report, with the problems that it tells of."""
    problems = problems_of(status)
    report.status = storable_json(status)
    report.status_digest = storable(digest, MAX_DIGEST_CHARACTERS)
    report.status_at = at
    report.agent_version = storable(status.agent_version, 64)
    report.generation_in_force = max(0, min(status.policy_generation, 2**31 - 1))
    report.problems = storable_json(problems)
    report.problem_count = len(problems)
    report.drift_count = max(0, min(drifts_of(status), 2**31 - 1))


def storable(text: str, max_characters: int) -> str:
    """Return text from an agent as every database can hold it: cut, and without NUL."""
    return text[:max_characters].replace("\0", "\ufffd")


def storable_json(value: object) -> str:
    """Return a value from an agent as JSON text that every database can hold."""
    # JSON writes NUL as an escape, which must not come back as one.
    return msgspec.json.encode(value).decode().replace("\\u0000", "\\ufffd")
