"""A small real manager for tests of the agent: HTTPS with an own CA, the contract's codec, real signatures, faults on request."""

import datetime as dt
import ipaddress
import json
import secrets
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from keibi.contract.codec import CONTENT_TYPE, decode, encode
from keibi.contract.commands import Command, CommandResult
from keibi.contract.enrolment import (
    ChallengeRequest,
    ChallengeResponse,
    EnrolRequest,
    EnrolResponse,
    TokenRequest,
    TokenResponse,
    challenge_message,
    enrol_message,
)
from keibi.contract.events import Event, EventBatch, EventReceipt
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse, WakeResponse
from keibi.contract.policy import EffectivePolicy


class Authority:
    """A certificate authority, and the certificates it gives."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Keibi test {name}")])
        self._directory = directory
        self.certificate = self._build(self._name, self._key.public_key(), is_authority=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_files(self, *, address: str = "127.0.0.1", valid_from_days: int = -1, valid_to_days: int = 1) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keibi")])
        certificate = self._build(name, key.public_key(), address=address, days=(valid_from_days, valid_to_days))
        stem = secrets.token_hex(4)
        certificate_path, key_path = self._directory / f"{stem}.pem", self._directory / f"{stem}.key"
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return certificate_path, key_path

    def _build(self, subject, public_key, *, is_authority=False, address="", days=(-1, 365)):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if address:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        return builder.sign(self._key, hashes.SHA256())


class ManagerState:
    """What the manager knows; outlives a restart of its server."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokens = {"good-token": 1}
        self.computers: dict[str, bytes] = {}
        self.keys_in_use: set[bytes] = set()
        self.access_tokens: set[str] = set()
        self.nonces: set[bytes] = set()
        self.events: dict[str, Event] = {}
        self.event_order: list[str] = []
        self.received_count = 0
        self.batches: list[str] = []
        self.heartbeats: list[HeartbeatRequest] = []
        self.results: list[CommandResult] = []
        self.commands: list[Command] = []
        self.policy: EffectivePolicy | None = None
        self.raw_response: bytes | None = None  # sent instead of the next heartbeat's answer
        self.faults: dict[str, tuple[int, dict[str, str], bytes]] = {}  # path -> status, headers, body
        self.lose_receipts = 0
        self.clock_ahead_seconds = 0.0
        self.token_seconds = 900
        self.refused_subjects: set[str] = set()
        self.wake = threading.Event()
        self.sign_in_count = 0
        self.arrived_at: dict[str, float] = {}
        self.content: dict[str, bytes] = {}  # by the name in the address
        self.content_ranges: list[str] = []
        self.content_parts_left: int | None = None  # after so many parts the connection breaks; None: never

    def send(self, command: Command) -> None:
        with self.lock:
            self.commands.append(command)
        self.wake.set()

    def set_policy(self, policy: EffectivePolicy) -> None:
        with self.lock:
            self.policy = policy
        self.wake.set()


class TestManager:
    """A server on a port of 127.0.0.1 for a state."""

    __test__ = False

    def __init__(self, state: ManagerState, files: tuple[Path, Path], port: int = 0, *, highest=None) -> None:
        self.state = state
        handler = type("BoundHandler", (_Handler,), {"state": state, "open_sockets": set()})
        self._handler = handler
        self._server = _Server(("127.0.0.1", port), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        if highest is not None:
            context.maximum_version = highest
        self._server.context = context
        self.port = self._server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Stop at once: open connections are cut."""
        self._server.is_killed = True
        self.state.wake.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._handler.open_sockets):
            try:
                connection.shutdown(2)
            except OSError:
                pass
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    context: ssl.SSLContext
    is_killed = False

    def handle_error(self, request, client_address) -> None:
        """Say nothing: cut connections are what the tests are about."""


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"error": {"code": code, "message": message, "hint": hint}}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ManagerState
    open_sockets: set
    server: _Server

    def setup(self) -> None:
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.open_sockets.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.open_sockets.discard(self.request)
        super().finish()
        self.request.close()

    def log_message(self, *arguments) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._serve(body)

    def do_GET(self) -> None:
        self._serve(b"")

    def _serve(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        if self.server.is_killed:
            self.close_connection = True
            return
        if path in self.state.faults:
            status, headers, content = self.state.faults[path]
            self._answer(status, content, headers)
            return
        if path.startswith("/agent/v1/content/"):
            self._send_content(path.rpartition("/")[2])
            return
        try:
            answer = getattr(self, "_" + path.rpartition("/")[2])(body)
        except _RefusedError as error:
            self._answer(error.status, error.body, {"Content-Type": "application/json"})
            return
        if answer is None:
            self.close_connection = True
            return
        self._answer(200, answer if isinstance(answer, bytes) else encode(answer), {"Content-Type": CONTENT_TYPE})

    def _send_content(self, name: str) -> None:
        asked = self.headers.get("Range", "")
        self.state.content_ranges.append(asked)
        if self.state.content_parts_left == 0:
            self.close_connection = True
            return
        if self.state.content_parts_left is not None:
            self.state.content_parts_left -= 1
        if name not in self.state.content:
            error = _RefusedError(404, "content_not_found", "no policy of this computer names this content")
            self._answer(404, error.body, {"Content-Type": "application/json"})
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        self._answer(206, self.state.content[name][int(first) : int(last) + 1], {"Content-Type": "application/octet-stream"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _signed_in(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.state.access_tokens:
            raise _RefusedError(401, "access_token_invalid", "the access token is not valid")

    def _enrol(self, body: bytes):
        asked = decode(body, EnrolRequest)
        Ed25519PublicKey.from_public_bytes(asked.public_key).verify(asked.signature, enrol_message(asked.public_key, asked.token))
        if asked.public_key in self.state.keys_in_use:
            raise _RefusedError(403, "key_in_use", "this key belongs to another computer")
        with self.state.lock:
            left = self.state.tokens.get(asked.token)
            if left is None:
                raise _RefusedError(403, "enrolment_token_unknown", "no such enrolment token", "make a new one in the console")
            if left < 1:
                raise _RefusedError(
                    403, "enrolment_token_used_up", "the enrolment token was used already", "make a new one in the console"
                )
            self.state.tokens[asked.token] -= 1
            computer_id = secrets.token_hex(16)
            self.state.computers[computer_id] = asked.public_key
        return EnrolResponse(computer_id, "Example", 60)

    def _challenge(self, body: bytes):
        decode(body, ChallengeRequest)
        nonce = secrets.token_bytes(32)
        self.state.nonces.add(nonce)
        return ChallengeResponse(nonce)

    def _token(self, body: bytes):
        asked = decode(body, TokenRequest)
        if asked.nonce not in self.state.nonces or asked.computer_id not in self.state.computers:
            raise _RefusedError(403, "computer_unknown", "this computer is not known", "enrol it again")
        self.state.nonces.discard(asked.nonce)
        key = Ed25519PublicKey.from_public_bytes(self.state.computers[asked.computer_id])
        key.verify(asked.signature, challenge_message(asked.computer_id, asked.nonce))
        token = secrets.token_hex(16)
        self.state.access_tokens.add(token)
        self.state.sign_in_count += 1
        return TokenResponse(token, self.state.token_seconds)

    def _heartbeat(self, body: bytes):
        self._signed_in()
        asked = decode(body, HeartbeatRequest)
        with self.state.lock:
            self.state.heartbeats.append(asked)
            self.state.results += asked.results
            commands, self.state.commands = self.state.commands, []
            policy = self.state.policy
            if policy is not None and policy.generation == asked.policy_generation:
                policy = None
            raw, self.state.raw_response = self.state.raw_response, None
        return raw or HeartbeatResponse(time.time() + self.state.clock_ahead_seconds, policy, commands)

    def _wake(self, body: bytes):
        self._signed_in()
        is_due = self.state.wake.wait(25)
        self.state.wake.clear()
        return None if self.server.is_killed else WakeResponse(is_due)

    def _events(self, body: bytes):
        self._signed_in()
        batch = decode(body, EventBatch)
        refused = [event for event in batch.events if event.subject in self.state.refused_subjects]
        if refused:
            raise _RefusedError(422, "event_invalid", f"the event about {refused[0].subject!r} is not valid")
        with self.state.lock:
            self.state.batches.append(batch.batch_id)
            self.state.received_count += len(batch.events)
            for event in batch.events:
                if event.event_id not in self.state.events:
                    self.state.events[event.event_id] = event
                    self.state.event_order.append(event.event_id)
                    self.state.arrived_at[event.event_id] = time.time()
            if self.state.lose_receipts:
                self.state.lose_receipts -= 1
                return None
        return EventReceipt(batch.batch_id, len(batch.events))
