"""A whole manager in this process: real database, real event store, real application, spoken to over ASGI."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient

from keibi.contract.codec import CONTENT_TYPE, decode, encode
from keibi.contract.enrolment import (
    ChallengeRequest,
    ChallengeResponse,
    ComputerFacts,
    EnrolRequest,
    EnrolResponse,
    TokenRequest,
    TokenResponse,
    challenge_message,
    enrol_message,
)
from keibi.contract.names import ModuleId, new_id
from keibi.contract.status import AgentStatus, Health, ModuleStatus
from keibi.manager.access.passwords import Argon2Parameters
from keibi.manager.access.service import AccessSettings
from keibi.manager.application import make_application
from keibi.manager.composition import Manager, content_directory, make_manager
from keibi.manager.config import ManagerConfig
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.rules.catalog import ShippedRules, read_content
from keibi.protection.catalog import MODULES

QUICK = AccessSettings(argon2=Argon2Parameters(memory_kib=64, passes=1))


@pytest.fixture(scope="session")
def shared_event_daemon(tmp_path_factory):
    """One event store for all managers of a test run; each has tenants of its own."""
    directory = tmp_path_factory.mktemp("shared-events")
    daemon = EventDaemon(directory / "store")
    daemon.start()
    (directory / "key").write_text(daemon.key)
    yield daemon.url, str(directory / "key")
    daemon.stop()


@functools.cache
def shipped() -> ShippedRules:
    """The shipped rules as a manager reads them when it starts, read once for all managers of a test run."""
    return read_content(content_directory(), tries_samples=False)


@pytest.fixture
def manager(database_url, shared_event_daemon, tmp_path) -> Iterator[Manager]:
    """A prepared manager, on SQLite and on PostgreSQL; nothing serves it yet."""
    made = make_manager(config_for(database_url, shared_event_daemon, tmp_path / "state"), QUICK, shipped())
    yield made
    made.close()


@pytest.fixture
def client(manager) -> Iterator[TestClient]:
    """A client of the running application; background tasks run."""
    with serving(manager) as made:
        yield made


def config_for(database_url: str, event_daemon: tuple[str, str], state: pathlib.Path, **more: object) -> ManagerConfig:
    url, key_file = event_daemon
    return ManagerConfig(
        state_directory=str(state), database_url=database_url, event_store_url=url, event_store_key_file=key_file, **more
    )


@contextlib.contextmanager
def serving(manager: Manager) -> Iterator[TestClient]:
    with TestClient(make_application(manager), base_url="https://manager.example", raise_server_exceptions=False) as made:
        yield made


def signed_in(client: TestClient, name: str, password: str) -> TestClient:
    """Sign a client in; its CSRF token goes with every request from then on."""
    response = client.post("/api/v1/auth/sign-in", json={"name": name, "password": password})
    assert response.status_code == 200, response.text
    client.headers["X-Keibi-Csrf"] = response.json()["csrf_token"]
    return client


def administrator(client: TestClient, manager: Manager) -> TestClient:
    first = manager.first_administrator
    assert first is not None
    return signed_in(client, first.name, first.password)


class SimulatedAgent:
    """An agent's side of the protocol, with a real key."""

    def __init__(self, client: TestClient, hostname: str = "web1", machine_id: str = "") -> None:
        self.client = client
        self.key = Ed25519PrivateKey.generate()
        self.facts = facts(hostname, machine_id or new_id())
        self.computer_id = ""
        self.access_token = ""

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def post(self, path, value, type_=None, *, token=None):
        headers = {"Content-Type": CONTENT_TYPE, "Authorization": f"Bearer {self.access_token if token is None else token}"}
        # Agents have no cookies: the client may be signed in for the API.
        response = self.client.post(f"/agent/v1/{path}", content=encode(value), headers={**headers, "Cookie": ""})
        if type_ is None:
            return response
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == CONTENT_TYPE
        return decode(response.content, type_)

    def enrol_request(self, token: str, **changes) -> EnrolRequest:
        request = EnrolRequest(
            token=token,
            public_key=self.public_key,
            agent_version="0.1.0",
            facts=self.facts,
            signature=self.key.sign(enrol_message(self.public_key, token)),
        )
        return msgspec.structs.replace(request, **changes)

    def enrol(self, token: str) -> "SimulatedAgent":
        self.computer_id = self.post("enrol", self.enrol_request(token), EnrolResponse).computer_id
        return self

    def token_request(self) -> TokenRequest:
        nonce = self.post("challenge", ChallengeRequest(self.computer_id), ChallengeResponse).nonce
        return TokenRequest(self.computer_id, nonce, self.key.sign(challenge_message(self.computer_id, nonce)))

    def get_access(self) -> "SimulatedAgent":
        self.access_token = self.post("token", self.token_request(), TokenResponse).access_token
        return self


def facts(hostname: str = "web1", machine_id: str = "m" * 32, **changes) -> ComputerFacts:
    made = ComputerFacts(
        hostname=hostname,
        machine_id=machine_id,
        os_name="debian",
        os_version="12",
        os_pretty_name="Debian GNU/Linux 12 (bookworm)",
        kernel="6.1.0",
        architecture="x86_64",
        cpu_count=2,
        memory_bytes=4 * 1024**3,
        addresses=["192.0.2.10", "2001:db8::10"],
    )
    return msgspec.structs.replace(made, **changes)


def status(generation: int = 1, health: Health = Health.ACTIVE, **changes) -> AgentStatus:
    """Return a status in which every built module is active, and integrity monitoring as `health` says."""
    first = ModuleStatus(ModuleId.INTEGRITY_MONITORING, health, policy_generation=generation)
    others = [
        ModuleStatus(built.module, Health.ACTIVE, policy_generation=generation)
        for built in MODULES
        if built.module is not ModuleId.INTEGRITY_MONITORING
    ]
    made = AgentStatus(
        agent_version="0.1.0", started_at=1.0, boot_id="b", policy_generation=generation, clock_at=1.0, modules=[first, *others]
    )
    return msgspec.structs.replace(made, **changes)
