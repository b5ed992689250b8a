"""How a computer becomes known, and how its agent proves afterwards that it is the same.

The agent makes an Ed25519 key on the computer; the private half never leaves it. Enrolment trades a token (bound to a
tenant, group, expiry and count) for a computer id. Later the agent signs the manager's challenge and gets an access token
that lasts `ACCESS_TOKEN_SECONDS`.
"""

import msgspec

ACCESS_TOKEN_SECONDS = 900
CHALLENGE_SECONDS = 60
SIGNATURE_CONTEXT = b"keibi agent challenge v1\0"
"""Put before what is signed, so that a signature made here can never be taken for another kind of signature."""


class ComputerFacts(msgspec.Struct, frozen=True):
    """What the agent knows of its computer without being told."""

    hostname: str
    machine_id: str
    os_name: str  # ID of os-release: "debian", "rhel"
    os_version: str  # VERSION_ID of os-release
    os_pretty_name: str
    kernel: str
    architecture: str
    cpu_count: int
    memory_bytes: int
    addresses: list[str] = []
    cloud: str = ""  # "aws", "gcp", "azure" or ""
    cloud_instance_id: str = ""


class EnrolRequest(msgspec.Struct, frozen=True):
    """Sent once to POST /agent/v1/enrol."""

    token: str
    public_key: bytes  # 32 bytes, raw Ed25519
    agent_version: str
    facts: ComputerFacts
    signature: bytes  # over SIGNATURE_CONTEXT + b"enrol" + public_key + token, proves the private half is held


class EnrolResponse(msgspec.Struct, frozen=True):
    """The computer is known from now on."""

    computer_id: str
    tenant_name: str
    heartbeat_seconds: int


class ChallengeRequest(msgspec.Struct, frozen=True):
    """POST /agent/v1/challenge; answered for unknown computers too, so that ids cannot be tried out."""

    computer_id: str


class ChallengeResponse(msgspec.Struct, frozen=True):
    """A nonce to sign within CHALLENGE_SECONDS; usable once."""

    nonce: bytes


class TokenRequest(msgspec.Struct, frozen=True):
    """POST /agent/v1/token."""

    computer_id: str
    nonce: bytes
    signature: bytes  # over challenge_message(computer_id, nonce)


class TokenResponse(msgspec.Struct, frozen=True):
    """An opaque access token for the Authorization header (`Bearer …`)."""

    access_token: str
    expires_in_seconds: int


def enrol_message(public_key: bytes, token: str) -> bytes:
    """Return what the agent signs when it enrols."""
    return SIGNATURE_CONTEXT + b"enrol\0" + public_key + token.encode()


def challenge_message(computer_id: str, nonce: bytes) -> bytes:
    """Return what the agent signs to get an access token."""
    return SIGNATURE_CONTEXT + b"token\0" + computer_id.encode() + b"\0" + nonce
