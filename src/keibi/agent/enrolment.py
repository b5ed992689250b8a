"""Making a computer known: trades a token for an identity, once."""

import os

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keibi.agent.config import AgentConfig
from keibi.agent.facts import collect_facts, read_machine_id
from keibi.agent.identity import Identity, IdentityStore, new_identity, public_bytes
from keibi.agent.transport import Connection, Endpoint, endpoint_of, post
from keibi.agent.version import agent_version
from keibi.contract.enrolment import ComputerFacts, EnrolRequest, EnrolResponse, enrol_message
from keibi.errors import InputError, KeibiError


def enrol(config: AgentConfig, manager_url: str, token: str, ca_pem: str, *, again: bool = False) -> Identity:
    """Enrol this computer and return its identity, which is on disk by then. A running agent takes it up by itself.

    Raises:
        InputError: it is enrolled already and `again` is false; the token or the address is wrong (with the manager's reason).
        AccessError: the manager refuses the token: unknown, expired or used up.
        RefusedError: the manager's certificate is not from the authority in `ca_pem`.
        TryLaterError: the manager is away, or the state directory is not writable.
    """
    store = IdentityStore(config.state_directory)
    if not again and os.path.exists(store.path):
        raise InputError(
            "already_enrolled",
            f"this computer is enrolled already{_as_what(store)}",
            where=store.path,
            hint="use --again to give it a new identity; the old one stays at the manager until it is removed there",
        )
    token = token.strip()
    if not token:
        raise InputError("token_empty", "no enrolment token was given", hint="make one at the manager: console, Computers, Add")
    endpoint = endpoint_of(manager_url, ca_pem)
    facts = collect_facts()
    try:
        key = store.pending_key()
        response = _ask(endpoint, token, key, facts)
    except KeibiError as error:
        if error.code != "key_in_use":
            raise
        # The key of an enrolment that was cut short belongs to somebody by now: to a copy of this disk, or to another token.
        store.forget_pending_key()
        key = store.pending_key()
        response = _ask(endpoint, token, key, facts)
    identity = new_identity(
        computer_id=response.computer_id,
        tenant_name=response.tenant_name,
        manager_url=manager_url,
        machine_id=facts.machine_id,
        ca_pem=ca_pem,
        key=key,
    )
    store.save(identity)
    return identity


def _ask(endpoint: Endpoint, token: str, key: Ed25519PrivateKey, facts: ComputerFacts) -> EnrolResponse:
    public = public_bytes(key)
    request = EnrolRequest(
        token=token,
        public_key=public,
        agent_version=agent_version(),
        facts=facts,
        signature=key.sign(enrol_message(public, token)),
    )
    connection = Connection(endpoint)
    try:
        return post(connection, "/agent/v1/enrol", request, EnrolResponse)
    finally:
        connection.close()


def _as_what(store: IdentityStore) -> str:
    try:
        identity = store.load(read_machine_id())
    except KeibiError:
        return ", with an identity that cannot be used here"
    return f" as {identity.computer_id} at {identity.manager_url} ({identity.tenant_name})" if identity else ""
