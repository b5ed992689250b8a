"""Making the manager: every service gets what it needs, and nothing looks for anything by itself."""

import errno
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

import keibi
from keibi.errors import InputError, RefusedError, TryLaterError
from keibi.manager.access.service import AccessService, AccessSettings, FirstAdministrator
from keibi.manager.access.sessions import SessionLimits
from keibi.manager.agents.access_tokens import AccessTokens
from keibi.manager.agents.challenges import Challenges
from keibi.manager.agents.commands import CommandService
from keibi.manager.agents.heartbeats import Heartbeats
from keibi.manager.agents.policy_watch import PolicyWatch
from keibi.manager.agents.revocations import Revocations
from keibi.manager.agents.routes import AgentRoutes
from keibi.manager.agents.service import EnrolmentService
from keibi.manager.agents.signals import SignalKind, Signals
from keibi.manager.agents.uploads import Uploads
from keibi.manager.agents.wake import WakeUps
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.service import ComputerService
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.config import ManagerConfig
from keibi.manager.database import Database
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest
from keibi.manager.events.service import EventService
from keibi.manager.events.store import EventStore
from keibi.manager.keys import SecretBox, UnlockSecrets, load_or_make_key
from keibi.manager.malware.service import MalwareService
from keibi.manager.patterns.agents import AgentContent
from keibi.manager.patterns.service import PatternService
from keibi.manager.patterns.store import ContentStore
from keibi.manager.policies.service import PolicyService
from keibi.manager.policies.tables import PolicyRecord
from keibi.manager.rules.catalog import ShippedRules
from keibi.manager.rules.service import RuleService
from keibi.manager.services import Services
from keibi.manager.software.service import SoftwareService
from keibi.manager.tenants.service import TenantService

FIRST_PASSWORD_FILE = "first-password"  # noqa: S105 - the name of a file

logger = logging.getLogger("keibi.manager")


@dataclass(frozen=True)
class Manager:
    """The running parts behind the services."""

    services: Services
    signals: Signals
    wake_ups: WakeUps
    heartbeats: Heartbeats
    revocations: Revocations
    policy_watch: PolicyWatch
    agent_routes: AgentRoutes
    uploads: Uploads
    store: EventStore
    daemon: EventDaemon | None
    first_administrator: FirstAdministrator | None

    def close(self) -> None:
        """End the event store's process and close the database; after the event loop has ended."""
        self.signals.stop()
        self.store.client.close()
        if self.daemon is not None:
            self.daemon.stop()
        self.services.database.dispose()


def make_manager(config: ManagerConfig, access: AccessSettings | None = None, shipped: ShippedRules | None = None) -> Manager:
    """Prepare the state directory, the database and the event store, and make every service. Blocks for a second or two.

    The shipped rules are read from the content directory unless whoever starts several managers has read them already.

    Raises:
        KeibiError: the directory, a key, the database, the content or the event store cannot be used, and why.
    """
    prepare_directory(config.state_directory)
    token_key = load_or_make_key(config.path("keys", "agent-tokens.key"))
    box = SecretBox(load_or_make_key(config.path("keys", "secrets.key")))
    database = Database(config.url)
    daemon: EventDaemon | None = None
    try:
        database.migrate()
        _refuse_superuser(database)
        if not config.event_store_url:
            daemon = EventDaemon(pathlib.Path(config.path("events")), memory_bytes=config.event_memory_bytes)
            daemon.start()
        store = EventStore(_client(config, daemon))
        store.prepare()
        return _compose(config, access, shipped, database, token_key, box, store, daemon)
    except BaseException:
        if daemon is not None:
            daemon.stop()
        database.dispose()
        raise


def _compose(
    config: ManagerConfig,
    access_settings: AccessSettings | None,
    shipped: ShippedRules | None,
    database: Database,
    token_key: bytes,
    box: SecretBox,
    store: EventStore,
    daemon: EventDaemon | None,
) -> Manager:
    audit = AuditService(database)
    signals = Signals(database)
    wake_ups = WakeUps(signals)
    revocations = Revocations(database, signals)
    revocations.load()
    rules = RuleService(database, audit, config.content_directory or content_directory())
    for problem in rules.load_shipped(shipped):
        logger.error("a shipped rule is left out: %s", problem)
    unlock_secrets = UnlockSecrets(load_or_make_key(config.path("keys", "unlock.key")))
    patterns = PatternService(database, audit, ContentStore(config.path("content")))
    policies = PolicyService(database, audit, rules, unlock_secrets=unlock_secrets, patterns=patterns)
    tenants = TenantService(
        database, audit, [policies.provision], on_disabled=[lambda tenant_id: revocations.revoke(tenant_id, tenant_id)]
    )
    access = AccessService(
        database,
        audit,
        box,
        access_settings or AccessSettings(SessionLimits(config.session_idle_minutes * 60.0, config.session_hours * 3600.0)),
    )
    computers = ComputerService(database, audit, on_revoked=[revocations.revoke], check_policy=_check_policy)
    database.observe(ComputerRecord, lambda rows: _computers_changed(signals, rows))
    tokens = AccessTokens(token_key)
    commands = CommandService(database, audit, signals)
    enrolment = EnrolmentService(database, audit, computers.alarms, tokens, Challenges(token_key), check_policy=_check_policy)
    content = AgentContent(database, policies, patterns.store)
    heartbeats = Heartbeats(database, policies, commands, computers.alarms, signals)
    feed = EventFeed()
    ingest = EventIngest(store, feed)
    events = EventService(store, database, audit, feed=feed, computers=computers)
    software = SoftwareService(database, audit, rules, policies, computers, commands, store, unlock_secrets)
    uploads = Uploads(config.path("uploads"), database)
    malware = MalwareService(store, database, audit, commands, computers, policies, uploads)
    first = access.first_start(tenants)
    if first is not None:
        _keep_first_password(config, first)
    services = Services(
        config=config,
        database=database,
        access=access,
        audit=audit,
        tenants=tenants,
        computers=computers,
        agents=enrolment,
        commands=commands,
        rules=rules,
        policies=policies,
        patterns=patterns,
        events=events,
        software=software,
        ingest=ingest,
        malware=malware,
    )
    return Manager(
        services=services,
        signals=signals,
        wake_ups=wake_ups,
        heartbeats=heartbeats,
        revocations=revocations,
        policy_watch=PolicyWatch(database, signals),
        agent_routes=AgentRoutes(enrolment, tokens, revocations, heartbeats, wake_ups, ingest, uploads, content),
        uploads=uploads,
        store=store,
        daemon=daemon,
        first_administrator=first,
    )


def prepare_directory(path: str) -> None:
    """Make the state directory, readable by the manager alone, and prove that it can be written.

    Raises:
        TryLaterError: it cannot be, and why. RefusedError: others could change what is in it.
    """
    probe = os.path.join(path, ".writable")
    try:
        for part in (path, *(os.path.join(path, name) for name in ("keys", "events", "uploads", "content"))):
            os.makedirs(part, mode=0o700, exist_ok=True)
        if os.stat(path).st_mode & 0o022:
            raise RefusedError("state_exposed", "others may write in the state directory", where=path, hint="chmod 700 it")
        with open(probe, "wb") as file:
            file.write(bytes(64 * 1024))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        hint = {
            errno.EROFS: "the disk is read-only; after an error the kernel may have made it so",
            errno.ENOSPC: "free space on that disk",
            errno.EDQUOT: "the quota on that disk is used up",
            errno.EACCES: "run the manager as the directory's owner",
            errno.EPERM: "run the manager as the directory's owner",
        }.get(error.errno or 0, "")
        raise TryLaterError(
            "state_unwritable", f"the state directory cannot be written: {error.strerror}", where=path, hint=hint
        ) from error
    finally:
        try:
            os.unlink(probe)
        except OSError:
            pass


def content_directory() -> str:
    """Return the directory of the shipped rules: beside the source, or where packages put it.

    Raises:
        InputError: there is none.
    """
    candidates = [
        pathlib.Path(keibi.__file__).resolve().parents[2] / "content",
        pathlib.Path(sys.prefix) / "share" / "keibi" / "content",
        pathlib.Path("/usr/share/keibi/content"),
    ]
    for candidate in candidates:
        if candidate.is_dir():
            return str(candidate)
    raise InputError(
        "content_missing", "the shipped rules are not installed", where=str(candidates[0]), hint="set content_directory"
    )


def _client(config: ManagerConfig, daemon: EventDaemon | None) -> ClickHouse:
    if daemon is not None:
        return ClickHouse(daemon.url, key=daemon.key)
    key = ""
    if config.event_store_key_file:
        try:
            with open(config.event_store_key_file) as file:
                key = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "event_store_key", f"cannot read the event store's password: {error}", where=config.event_store_key_file
            ) from error
    return ClickHouse(config.event_store_url, user=config.event_store_user, key=key)


def _refuse_superuser(database: Database) -> None:
    """Row-level security does not bind superusers: with one, a wall between tenants would be missing, unnoticed."""
    if database.has_unbound_role():
        raise RefusedError(
            "database_superuser",
            "the manager's PostgreSQL role is a superuser or bypasses row-level security",
            hint="use a plain role: CREATE ROLE keibi LOGIN; CREATE DATABASE keibi OWNER keibi",
        )


def _check_policy(session: Session, tenant_id: str, policy_id: str) -> None:
    if session.scalar(select(PolicyRecord.id).where(PolicyRecord.id == policy_id, PolicyRecord.tenant_id == tenant_id)) is None:
        raise InputError("policy_not_found", f"there is no policy {policy_id!r} for that customer")


def _computers_changed(signals: Signals, rows: Sequence[Any]) -> None:
    # A computer that people edited may use another policy now.
    signals.publish(SignalKind.DUE, [row.id for row in rows])


def _keep_first_password(config: ManagerConfig, first: FirstAdministrator) -> None:
    path = config.path(FIRST_PASSWORD_FILE)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(f"{first.name} {first.password}\n")
        os.fchmod(descriptor, 0o600)
    logger.info("made the first administrator %s; the password is in %s", first.name, path)
