"""Enrolment and the connection: what goes well, and what each thing that goes wrong says."""

import socket
import ssl
import stat
import threading
import time

import msgspec
import pytest

from keibi.agent.identity import IdentityStore, public_bytes
from keibi.agent.session import AccessTokens, ManagerSession
from keibi.agent.transport import endpoint_of
from keibi.contract.codec import CONTENT_TYPE
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse, WakeResponse
from keibi.errors import AccessError, InputError, RefusedError, TryLaterError
from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import AgentRun, wait_for

BEAT = HeartbeatRequest(0, "", "")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def manager(authority):
    running = TestManager(ManagerState(), authority.server_files())
    yield running
    running.kill()


@pytest.fixture
def agent(tmp_path):
    return AgentRun(tmp_path)


@pytest.fixture
def session(agent, manager, authority):
    identity = agent.enrol(manager.url, authority.pem)
    opened = ManagerSession(endpoint_of(manager.url, authority.pem), AccessTokens(identity))
    yield opened
    opened.abort()
    opened.close()


def beat(session) -> HeartbeatResponse:
    return session.post("/agent/v1/heartbeat", BEAT, HeartbeatResponse)


def test_enrolment_makes_an_identity_that_only_root_can_read(agent, manager, authority):
    identity = agent.enrol(manager.url, authority.pem)
    assert identity.tenant_name == "Example"
    assert identity.computer_id in manager.state.computers
    path = agent.state / "identity.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in agent.state.iterdir()] == ["identity.json"]
    assert "PRIVATE" not in repr(identity)


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        ("wrong", AccessError, "no such enrolment token"),
        ("used", AccessError, "was used already"),
        (" ", InputError, "no enrolment token"),
    ],
)
def test_a_bad_token_gets_the_managers_plain_reason_and_leaves_no_identity(agent, manager, authority, token, error, message):
    manager.state.tokens["used"] = 0
    with pytest.raises(error, match=message):
        agent.enrol(manager.url, authority.pem, token)
    assert not (agent.state / "identity.json").exists()


def test_enrolling_twice_needs_again(agent, manager, authority):
    manager.state.tokens["good-token"] = 2
    first = agent.enrol(manager.url, authority.pem)
    with pytest.raises(InputError, match=f"enrolled already as {first.computer_id} .*--again"):
        agent.enrol(manager.url, authority.pem)
    second = agent.enrol(manager.url, authority.pem, again=True)
    assert second.computer_id != first.computer_id
    assert second.key_pem != first.key_pem


def test_an_enrolment_that_was_cut_short_goes_on_with_the_same_key(agent, manager, authority):
    manager.kill()
    with pytest.raises(TryLaterError, match="nothing listens"):
        agent.enrol(manager.url, authority.pem)
    pending = (agent.state / "identity.key.pending").read_text()
    assert stat.S_IMODE((agent.state / "identity.key.pending").stat().st_mode) == 0o600
    again = TestManager(manager.state, authority.server_files(), manager.port)
    try:
        assert agent.enrol(manager.url, authority.pem).key_pem == pending
    finally:
        again.kill()


def test_a_pending_key_that_is_somebody_elses_by_now_is_replaced(agent, manager, authority):
    store = IdentityStore(str(agent.state))
    pending = store.pending_key()
    manager.state.keys_in_use.add(public_bytes(pending))
    identity = agent.enrol(manager.url, authority.pem)
    assert manager.state.computers[identity.computer_id] != public_bytes(pending)


def test_a_cloned_disk_keeps_protecting_but_does_not_speak_for_the_original(agent, manager, authority):
    identity = agent.enrol(manager.url, authority.pem)
    clone = msgspec.structs.replace(identity, machine_id="0" * 32)
    (agent.state / "identity.json").write_bytes(msgspec.json.encode(clone))
    agent.start(agent.worker())
    try:
        wait_for(lambda: "cloned" in agent.status()["manager"]["error"], "the message")
        wait_for(lambda: agent.status()["workers"][0]["state"] == "running", "protection")
        assert manager.state.sign_in_count == 0
        manager.state.tokens["good-token"] = 1
        agent.enrol(manager.url, authority.pem, again=True)
        wait_for(lambda: agent.status()["manager"]["is_connected"], "its own identity to be taken up")
    finally:
        agent.stop()


def test_a_cloned_disk_is_noticed(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    with pytest.raises(RefusedError, match=r"this one is 0{32}.*cloned"):
        IdentityStore(str(agent.state)).load("0" * 32)


def test_a_key_that_others_can_read_is_refused(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    (agent.state / "identity.json").chmod(0o644)
    with pytest.raises(RefusedError, match="mode 0644"):
        IdentityStore(str(agent.state)).load("")


def test_one_sign_in_serves_many_requests_and_is_renewed_when_refused(session, manager):
    for _ in range(3):
        beat(session)
    assert manager.state.sign_in_count == 1
    manager.state.access_tokens.clear()
    beat(session)
    assert manager.state.sign_in_count == 2


def test_a_token_is_renewed_before_it_ends(session, manager):
    manager.state.token_seconds = 0
    beat(session)
    beat(session)
    assert manager.state.sign_in_count == 2


def test_a_manager_that_was_restarted_is_spoken_to_again_at_once(session, manager, authority):
    beat(session)
    manager.kill()
    again = TestManager(manager.state, authority.server_files(), manager.port)
    try:
        beat(session)
    finally:
        again.kill()


def test_a_removed_computer_is_told_so(session, manager):
    manager.state.computers.clear()
    with pytest.raises(AccessError, match=r"this computer is not known.*enrol it again"):
        beat(session)


def test_a_long_poll_can_be_ended_from_another_thread(session, manager):
    beat(session)
    outcome = []

    def poll():
        try:
            session.get("/agent/v1/wake?seconds=25", WakeResponse, timeout_seconds=30)
        except TryLaterError as error:
            outcome.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    wait_for(lambda: thread.is_alive(), "the poll to begin")
    started = time.monotonic()
    while thread.is_alive() and time.monotonic() - started < 5:
        session.abort()
        thread.join(0.05)
    assert outcome
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ((503, {"Retry-After": "7"}, b"busy"), TryLaterError, "manager_busy"),
        ((500, {}, b"oops"), TryLaterError, "manager_failed"),
        ((404, {"Content-Type": "text/html"}, b"<html>"), InputError, "manager_version"),
        ((302, {"Location": "https://elsewhere/"}, b""), InputError, "manager_answer_invalid"),
        ((200, {"Content-Type": "text/html"}, b"<html>log in to the hotel network</html>"), InputError, "manager_answer_invalid"),
        ((200, {"Content-Type": CONTENT_TYPE}, b"junk"), InputError, "manager_answer_invalid"),
        ((422, {"Content-Type": "application/json"}, b"{junk"), InputError, "manager_refuses"),
        ((500, {"Content-Type": "application/json"}, b"x" * 100_000), InputError, "manager_answer_invalid"),
    ],
)
def test_each_bad_answer_says_what_it_is(session, manager, fault, error, code):
    manager.state.faults["/agent/v1/heartbeat"] = fault
    with pytest.raises(error) as told:
        beat(session)
    assert told.value.code == code
    assert told.value.where == f"127.0.0.1:{manager.port}"
    if code == "manager_busy":
        assert told.value.retry_after_seconds == 7.0


def test_another_authority_is_refused(agent, manager, authority, tmp_path):
    with pytest.raises(RefusedError) as told:
        agent.enrol(manager.url, Authority(tmp_path, "another").pem)
    assert told.value.code == "manager_certificate_untrusted"


def test_another_name_is_refused(agent, authority):
    manager = TestManager(ManagerState(), authority.server_files(address="192.0.2.1"))
    with pytest.raises(RefusedError) as told:
        agent.enrol(manager.url, authority.pem)
    manager.kill()
    assert told.value.code == "manager_certificate_name"


@pytest.mark.parametrize(("days", "what"), [((2, 5), "is not valid yet"), ((-5, -2), "has expired")])
def test_a_clock_that_is_off_is_suspected(agent, authority, days, what):
    manager = TestManager(ManagerState(), authority.server_files(valid_from_days=days[0], valid_to_days=days[1]))
    with pytest.raises(RefusedError, match=f"{what} by this computer's clock.*compare the clocks"):
        agent.enrol(manager.url, authority.pem)
    manager.kill()


def test_tls_below_1_3_is_refused(agent, authority):
    manager = TestManager(ManagerState(), authority.server_files(), highest=ssl.TLSVersion.TLSv1_2)
    with pytest.raises((InputError, TryLaterError)):
        agent.enrol(manager.url, authority.pem)
    assert not manager.state.computers
    manager.kill()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_service_on_the_port_is_told(agent, authority, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(answer)
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(InputError, match=r"no TLS 1\.3 with what listens there"):
            agent.enrol(f"https://127.0.0.1:{server.getsockname()[1]}", authority.pem)
        thread.join(5)


@pytest.mark.parametrize(
    ("url", "ca", "code"),
    [
        ("http://127.0.0.1", None, "manager_url_invalid"),
        ("127.0.0.1:8443", None, "manager_url_invalid"),
        ("https://127.0.0.1:99999", None, "manager_url_invalid"),
        ("https://127.0.0.1", "no certificate", "ca_invalid"),
    ],
)
def test_a_wrong_address_or_authority_is_told_before_anything_is_sent(agent, authority, url, ca, code):
    with pytest.raises(InputError) as told:
        agent.enrol(url, ca or authority.pem)
    assert told.value.code == code


def test_a_clock_that_differs_from_the_managers_is_told(agent, manager, authority):
    manager.state.clock_ahead_seconds = 1000.0
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker())
    try:
        wait_for(lambda: agent.status()["manager"]["clock_skew_seconds"], "the comparison")
        assert 990 < agent.status()["manager"]["clock_skew_seconds"] < 1010
        rows = {row["check"]: row for row in agent.ask("doctor")["rows"]}
        assert rows["clock"]["outcome"] == "fail"
        assert "NTP" in rows["clock"]["what_to_do"]
    finally:
        agent.stop()
