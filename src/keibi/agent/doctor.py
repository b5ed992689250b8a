"""What is wrong with the agent on this computer, and what to do about it: rows that a person can act on.

Half of it needs no running agent (`examine`), the other half asks the running one (`examine_running`).
"""

import os
import shutil
import ssl
import stat
import time
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from keibi.agent.config import AgentConfig
from keibi.agent.contact import Contact
from keibi.agent.durable_file import read_if_there
from keibi.agent.facts import read_machine_id
from keibi.agent.identity import Identity, IdentityStore
from keibi.agent.transport import Connection, Endpoint, endpoint_of
from keibi.contract.status import AgentStatus, Health
from keibi.errors import InputError, KeibiError

LEAST_FREE_BYTES = 100 * 1024 * 1024
COMFORTABLE_FREE_BYTES = 1024 * 1024 * 1024
CA_ENDS_SOON_SECONDS = 30 * 86400.0
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 5.0, 300.0


class Outcome(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Row(msgspec.Struct, frozen=True):
    """One check."""

    check: str
    outcome: Outcome
    found: str
    what_to_do: str = ""


def examine(config: AgentConfig) -> list[Row]:
    """Return what can be seen from files and from a try to reach the manager. Blocks for some seconds at worst."""
    rows = [_state_directory(config.state_directory), _disk(config.state_directory)]
    if shutil.which("setpriv") is None:
        rows.append(
            Row("worker bonds", Outcome.WARN, "setpriv is absent: a stuck worker could outlive the agent", "install util-linux")
        )
    try:
        identity = IdentityStore(config.state_directory).load(read_machine_id())
    except (KeibiError, OSError) as error:
        return [*rows, _failed("identity", error)]
    if identity is None:
        found = "this computer is not enrolled: it protects itself, but no manager knows of it"
        return [*rows, Row("identity", Outcome.WARN, found, "enrol it with `keibi agent enrol`")]
    rows.append(Row("identity", Outcome.OK, f"{identity.computer_id} of {identity.tenant_name}"))
    try:
        endpoint = endpoint_for(config, identity)
    except KeibiError as error:
        return [*rows, _failed("manager's CA", error)]
    return [*rows, _authority(endpoint), _manager(endpoint)]


def examine_running(status: AgentStatus, contact: Contact, workers: Sequence[dict[str, object]], spool_trouble: str) -> list[Row]:
    """Return what the running agent knows of itself."""
    rows = [_contact(contact), _clock(contact), _policy(status), _spool(status, spool_trouble)]
    for worker in workers:
        is_running = worker["state"] == "running"
        found = f"{worker['state']}, {worker['crash_count']} crashes" + (
            f", last by {worker['last_end']}" if worker["last_end"] else ""
        )
        outcome = Outcome.FAIL if not is_running else Outcome.WARN if worker["crash_count"] else Outcome.OK
        what_to_do = "" if is_running else "see the log; then `keibi agent leave-safe-mode`"
        rows.append(Row(f"worker {worker['worker']}", outcome, found, what_to_do))
    for module in status.modules:
        is_well = module.health in (Health.ACTIVE, Health.INACTIVE)
        outcome = Outcome.OK if is_well else Outcome.FAIL if module.health is Health.ERROR else Outcome.WARN
        rows.append(Row(f"module {module.module}", outcome, f"{module.health}{': ' if module.message else ''}{module.message}"))
        rows += [
            Row(f"module {module.module}", Outcome.WARN, f"not enforced: {missing.what}", missing.reason)
            for missing in module.not_enforced
        ]
    for capability in status.capabilities:
        outcome = Outcome.OK if capability.is_available else Outcome.WARN
        rows.append(
            Row(
                f"kernel: {capability.name}",
                outcome,
                "available" if capability.is_available else "not available",
                capability.reason,
            )
        )
    return rows


def endpoint_for(config: AgentConfig, identity: Identity) -> Endpoint:
    """Return where the manager is: what the configuration says, else what was true at enrolment.

    Raises:
        InputError: the address or the CA is wrong.
    """
    ca_pem = identity.ca_pem
    if config.ca_file:
        content = read_if_there(config.ca_file)
        if content is None:
            raise InputError("ca_absent", "there is no CA file", where=config.ca_file, hint="mend ca_file in agent.toml")
        ca_pem = content.decode("ascii", "replace")
    return endpoint_of(config.manager_url or identity.manager_url, ca_pem)


def _state_directory(directory: str) -> Row:
    try:
        found = os.stat(directory)
    except OSError as error:
        return Row(
            "state directory", Outcome.FAIL, f"{directory}: {error.strerror}", "start the agent as root; it makes the directory"
        )
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != 0 or mode & 0o077:
        what = f"{directory} belongs to user {found.st_uid} with mode {mode:04o}"
        return Row("state directory", Outcome.FAIL, what, f"chown root:root {directory} && chmod 0700 {directory}")
    return Row("state directory", Outcome.OK, f"{directory}, only for root")


def _disk(directory: str) -> Row:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Row("disk space", Outcome.FAIL, f"{directory}: {error.strerror}")
    found = f"{free / 1024**2:,.0f} MiB free for {directory}"
    if free < LEAST_FREE_BYTES:
        return Row("disk space", Outcome.FAIL, found, "make room: events cannot be kept on a full disk")
    return Row("disk space", Outcome.OK if free >= COMFORTABLE_FREE_BYTES else Outcome.WARN, found)


def _authority(endpoint: Endpoint) -> Row:
    ends_at = min(ssl.cert_time_to_seconds(str(certificate["notAfter"])) for certificate in endpoint.context.get_ca_certs())
    left = ends_at - time.time()
    found = f"valid until {time.strftime('%Y-%m-%d', time.gmtime(ends_at))}"
    if left < CA_ENDS_SOON_SECONDS:
        return Row("manager's CA", Outcome.FAIL if left < 0 else Outcome.WARN, found, "renew the manager's CA and enrol again")
    return Row("manager's CA", Outcome.OK, found)


def _manager(endpoint: Endpoint) -> Row:
    connection = Connection(endpoint)
    try:
        reply = connection.request("GET", "/agent/v1/wake?seconds=0", timeout_seconds=10.0)
    except KeibiError as error:
        return _failed("manager", error)
    finally:
        connection.close()
    if reply.status not in (200, 401):
        found = f"{endpoint.name} answers with status {reply.status}"
        return Row("manager", Outcome.FAIL, found, "is it a Keibi manager of a fitting version, and no proxy between?")
    return Row("manager", Outcome.OK, f"{endpoint.name} answers over TLS 1.3, certificate as expected")


def _contact(contact: Contact) -> Row:
    error = contact.error
    if error is not None:
        return _failed("heartbeat", error)
    if contact.last_success_at is None:
        return Row("heartbeat", Outcome.WARN, "none yet" if contact.computer_id else "not enrolled")
    return Row("heartbeat", Outcome.OK, f"last answer {time.time() - contact.last_success_at:.0f} s ago")


def _clock(contact: Contact) -> Row:
    skew = contact.clock_skew_seconds
    if skew is None:
        return Row("clock", Outcome.WARN, "not compared with the manager's yet")
    found = f"the manager's clock is {abs(skew):.1f} s {'ahead' if skew >= 0 else 'behind'}"
    outcome = Outcome.OK if abs(skew) < SKEW_WARN_SECONDS else Outcome.WARN if abs(skew) < SKEW_FAIL_SECONDS else Outcome.FAIL
    return Row("clock", outcome, found, "" if outcome is Outcome.OK else "set up NTP on both computers")


def _policy(status: AgentStatus) -> Row:
    if status.policy_error:
        found = f"generation {status.policy_generation} is in force; a newer one was refused: {status.policy_error}"
        return Row("policy", Outcome.FAIL, found, "mend the policy at the manager")
    if not status.policy_generation:
        return Row("policy", Outcome.WARN, "none yet: nothing is watched", "enrol the computer, or wait for the first heartbeat")
    return Row("policy", Outcome.OK, f"generation {status.policy_generation} is in force")


def _spool(status: AgentStatus, trouble: str) -> Row:
    if trouble:
        return Row("spool", Outcome.FAIL, trouble, "make room on the disk")
    spool = status.spool
    found = f"{spool.waiting_count:,} events wait ({spool.waiting_bytes / 1024:,.0f} KiB), {spool.dropped_count:,} dropped so far"
    return Row("spool", Outcome.WARN if spool.dropped_count else Outcome.OK, found)


def _failed(check: str, error: Exception) -> Row:
    if isinstance(error, KeibiError):
        return Row(check, Outcome.FAIL, error.message + (f" ({error.where})" if error.where else ""), error.hint)
    return Row(check, Outcome.FAIL, str(error))
