"""Whatever bytes come, each reader of the agent core answers with its own error or a value, never with a surprise."""

import asyncio
import contextlib
import os
import pathlib

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keibi.agent.config import parse_config
from keibi.agent.control import request
from keibi.agent.facts import collect_facts
from keibi.agent.heartbeat import HeartbeatAnswer
from keibi.agent.identity import IdentityStore
from keibi.agent.policy_store import PolicyStore
from keibi.agent.safe_mode import SafeMode, StartRecord
from keibi.agent.transport import Endpoint, Reply, answer_of, endpoint_of
from keibi.contract.codec import CONTENT_TYPE, encode
from keibi.errors import InputError, KeibiError

LENIENT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.text(max_size=200))
@LENIENT
def test_a_configuration_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        parse_config(text, where="agent.toml")


@given(st.text(max_size=80))
@LENIENT
def test_an_address_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        endpoint_of(text, "")


@given(
    st.integers(100, 599),
    st.sampled_from([CONTENT_TYPE, "application/json", "text/html", ""]),
    st.text(max_size=10),
    st.one_of(st.binary(max_size=200), st.recursive(st.integers(0, 9) | st.text(max_size=5), st.lists, max_leaves=5).map(encode)),
)
@LENIENT
def test_an_answer_is_read_or_means_an_error_that_says_who_must_act(status, content_type, retry_after, body):
    endpoint = Endpoint("127.0.0.1", 1, None)
    reply = Reply(status, content_type, retry_after, body)
    try:
        outcome: object = answer_of(reply, HeartbeatAnswer, endpoint)
    except KeibiError as error:
        outcome = error
    assert isinstance(outcome, HeartbeatAnswer) or (outcome.code and outcome.where == "127.0.0.1:1")


@given(st.binary(max_size=200))
@LENIENT
def test_files_in_the_state_directory_are_read_or_count_as_absent_or_damaged(tmp_path, content):
    (tmp_path / "policy").mkdir(exist_ok=True)
    for name in ("identity.json", "safe-mode.json", "starts.json", "policy/in-force", "policy/received", "policy/refusal"):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
    store = PolicyStore(str(tmp_path), "1")
    assert store.received_generation >= 0 or store.received is not None or store.refusal is not None
    SafeMode(str(tmp_path)).reason("sensor")
    StartRecord(str(tmp_path)).begin()
    with contextlib.suppress(KeibiError):
        IdentityStore(str(tmp_path)).load("")


@given(st.binary(max_size=300))
@LENIENT
def test_files_of_the_computer_never_break_the_facts(tmp_path, content):
    for name in ("etc/machine-id", "etc/os-release", "proc/meminfo", "proc/net/fib_trie", "proc/net/if_inet6"):
        path = pathlib.Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    msgspec.json.encode(collect_facts(str(tmp_path)))


@pytest.mark.parametrize("said", [b"", b"junk\n", b"[]\n", b'{"answer": 3}\n', b'{"error": {"code": 5}}\n'])
def test_an_agent_that_answers_nonsense_is_told_as_an_error(tmp_path, said):
    path = str(tmp_path / "socket")

    async def ask():
        async def serve(reader, writer):
            await reader.readline()
            writer.write(said)
            writer.close()

        server = await asyncio.start_unix_server(serve, path)
        async with server:
            await request(path, {"do": "status"}, timeout_seconds=5)

    with pytest.raises(KeibiError):
        asyncio.run(ask())
    assert os.path.exists(path)
