"""What a gate and its judges say to each other, in the standard library's means, since the gate has no other.

A judge listens at `{directory}/{module}.sock` before it gives up root; gates connect, and only root may. Each packet of the
SOCK_SEQPACKET socket is one JSON object with a `type`, and carries at most one file descriptor. The gate never waits for a judge:
it puts the kernel's question aside, answers others, and falls back to the terms when the deadline has passed.
"""

import array
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

MAX_PACKET_BYTES: Final = 64 * 1024
EXEC: Final = "exec"
OPEN: Final = "open"
WRITTEN: Final = "written"  # a writer has closed; never waits
OFF: Final = "off"
WATCH: Final = "watch"  # notification events only: nothing is held up
PREVENT: Final = "prevent"  # permission events: the kernel holds exec and open until the verdict
ALLOW: Final = "allow"
DENY: Final = "deny"
ALL_FILES: Final = "all"
GUARD_OFF: Final = "off"
GUARD_REPORT: Final = "report"
GUARD_ENFORCE: Final = "enforce"
GUARD_MODES: Final = (GUARD_OFF, GUARD_REPORT, GUARD_ENFORCE)  # each does more than the one before
CODE_APPROVED: Final = "approved"  # it may run, as it is: written to, it is to be judged anew
CODE_REFUSED: Final = "refused"  # it may neither run nor be mapped as code, whoever asks
CODE_FREE: Final = "free"  # it may run, and no writer is to stop that
SOFTWARE: Final = "software"  # ELF, "#!", an execute bit, or one of the suffixes


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a judge wants of every gate. A new one replaces the former; another generation makes gates forget its verdicts."""

    module: str
    generation: int = 0
    mode: str = OFF  # OFF, WATCH or PREVENT
    events: tuple[str, ...] = ()  # of EXEC, OPEN, WRITTEN
    files: str = ALL_FILES  # about which files OPEN and WRITTEN ask: ALL_FILES or SOFTWARE; EXEC asks always
    suffixes: tuple[str, ...] = ()  # ".py": further names that count as SOFTWARE
    by_asker: bool = False  # a verdict that is not to be remembered holds for the process alone that was asked about
    deadline_milliseconds: int = 3000
    on_timeout: str = ALLOW  # ALLOW or DENY
    closed_at_most_seconds: int = 60  # without any verdict for so long, nobody is held and nothing denied; 0: however long
    places: tuple[str, ...] = ()  # mount points; empty: every local file system
    includes_network: bool = False
    excluded: tuple[str, ...] = ()  # directories (absolute, no trailing slash) about whose files this judge is not asked
    guard: str = GUARD_OFF  # what the kernel guard does with code that no gate sees, and with the judge's verdicts on code
    protects_agent: bool = False  # whether the kernel guard keeps the agent's processes and what they keep from others


@dataclass(frozen=True)
class FileKey:
    """A file as it is now. Equal keys mean an unchanged file, but for stores through a shared memory mapping."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileKey":
        """Return the key of what was looked at."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a gate asks. The receiver owns the descriptor that came with it (read-only, raises no events) and closes it."""

    id: int  # unique for one connection; 0 when no verdict is awaited
    event: str  # EXEC, OPEN or WRITTEN
    is_held: bool  # the kernel holds a process until the verdict
    is_proof: bool  # from a private gate: judge as if the policy prevented
    pid: int  # who opens, executes or wrote
    path: bytes
    key: FileKey
    at: float  # when the gate read the event, UTC seconds


@dataclass(frozen=True, kw_only=True)
class GateState:
    """How a gate is; sent when it connects and whenever it changes."""

    is_proof: bool = False
    pid: int = 0
    is_enforcing: bool = False  # permission events are taken, the self-test passed and the canary is answered
    reason: str = ""  # why it does not enforce although some terms say PREVENT
    suspended: tuple[str, ...] = ()  # judges that gave no verdict for so long that what they do not know is let pass
    mounts: tuple[tuple[str, str, str, str], ...] = ()  # mount point, type, "permission" | "notification" | "none", reason
    metrics: tuple[tuple[str, float], ...] = ()  # "questions_count", "overdue_count", "overflows_count", "cached_count", …


@dataclass(frozen=True)
class Told:
    """What a gate tells without a question: `what` is "overdue" (answered by the terms), "repeated" (denied from memory),
    "guarded" (the kernel guard met code that no gate let pass; `path` is only its name) or
    "overflow" (the kernel's queue was full: look at everything again)."""

    what: str
    count: int = 1
    question_id: int = 0
    was_allowed: bool = True
    pid: int = 0
    path: bytes = b""
    key: FileKey | None = None


def send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None, *, flags: int = 0) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone; BlockingIOError with MSG_DONTWAIT when it does not keep up.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor is not None else []
    connection.sendmsg([json.dumps(message, separators=(",", ":")).encode()], rights, flags)


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """Return the next message with the descriptor that came with it, which the caller closes; None when the other side is gone.

    Raises:
        ValueError: not a message; what came with it is closed.
    """
    data, rights, flags, _ = connection.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data:
        _close(descriptors)
        return None
    try:
        message = _message_of(data, flags, len(descriptors))
    except ValueError:
        _close(descriptors)
        raise
    return message, descriptors[0] if descriptors else None


def _message_of(data: bytes, flags: int, descriptor_count: int) -> dict[str, Any]:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or descriptor_count > 1:
        raise ValueError(f"a packet of more than {MAX_PACKET_BYTES} bytes or with {descriptor_count} descriptors")
    message = json.loads(data)
    match message:
        case {"type": str()}:
            return dict(message)
        case _:
            raise ValueError(f"a packet without a type: {data[:80]!r}")


def _close(descriptors: "array.array[int]") -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def path_text(path: bytes) -> str:
    """Return a path as JSON can carry it; `path_bytes` gives the same bytes back."""
    return path.decode("utf-8", "surrogateescape")


def path_bytes(text: str) -> bytes:
    """Return the bytes of a path that `path_text` wrote."""
    return text.encode("utf-8", "surrogateescape")


def fitting(paths: Iterable[str], most_bytes: int) -> list[str]:
    """Return the different ones among these paths, in order, as far as they fit into so many bytes of JSON; the first always."""
    fitting: list[str] = []
    for path in dict.fromkeys(paths):
        most_bytes -= len(json.dumps(path)) + 1
        if fitting and most_bytes < 0:
            break
        fitting.append(path)
    return fitting


def key_list(key: FileKey) -> list[int]:
    """Return a key as JSON carries it."""
    return [key.device, key.inode, key.size, key.modified_ns, key.changed_ns]


def terms_message(terms: Terms) -> dict[str, Any]:
    """Return terms as a judge sends them."""
    return {"type": "terms", **asdict(terms)}


def terms_of(message: dict[str, Any]) -> Terms:
    """Return the terms in a message.

    Raises:
        ValueError: they are not well formed.
    """
    try:
        values = {name: value for name, value in message.items() if name != "type"}
        for name in ("events", "suffixes", "places", "excluded"):
            values[name] = tuple(values.get(name, ()))
        terms = Terms(**values)
    except TypeError as error:
        raise ValueError(f"terms that this gate does not know: {error}") from error
    numbers = (terms.generation, terms.deadline_milliseconds, terms.closed_at_most_seconds)
    words = (terms.module, *terms.events, *terms.suffixes, *terms.places, *terms.excluded)
    if not all(type(number) is int and number >= 0 for number in numbers) or not all(isinstance(word, str) for word in words):
        # Else it would come to light where a process is held.
        raise ValueError(f"terms with a value of another kind: {terms}")
    if (
        terms.mode not in (OFF, WATCH, PREVENT)
        or terms.on_timeout not in (ALLOW, DENY)
        or terms.files not in (ALL_FILES, SOFTWARE)
        or terms.guard not in GUARD_MODES
    ):
        raise ValueError(f"terms with an unknown word: {terms}")
    return terms


def verdict_message(question_id: int, *, is_allowed: bool, remember: bool, code: str = "") -> dict[str, Any]:
    """Return a judge's answer. `remember`: it holds for the file as long as its key is the same.

    `code` is what it means for the file as code, whoever asks: CODE_APPROVED, CODE_REFUSED, CODE_FREE, or "" for nothing. Without
    a word of it a denial that is to be remembered is CODE_REFUSED.
    """
    code = code or (CODE_REFUSED if remember and not is_allowed else "")
    return {"type": "verdict", "id": question_id, "allow": is_allowed, "remember": remember, "code": code}


def no_verdict_message(question_id: int) -> dict[str, Any]:
    """Return a judge's word that there will be no verdict in time: the gate is to answer by the terms."""
    return {"type": "no_verdict", "id": question_id}


def forget_message(files: list[tuple[int, int]] | None = None) -> dict[str, Any]:
    """Return the wish to forget this judge's verdicts on (device, inode) pairs, or all of them."""
    return {"type": "forget", "files": files}


def own_message(pids: list[int]) -> dict[str, Any]:
    """Return the agent's own processes behind this judge, about which no gate asks anybody."""
    return {"type": "own", "pids": pids}


def question_message(question: Question) -> dict[str, Any]:
    """Return a question as a gate sends it; its descriptor goes beside."""
    return {
        "type": "question",
        "id": question.id,
        "event": question.event,
        "held": question.is_held,
        "proof": question.is_proof,
        "pid": question.pid,
        "path": path_text(question.path),
        "key": key_list(question.key),
        "at": question.at,
    }


def question_of(message: dict[str, Any]) -> Question:
    """Return the question in a message.

    Raises:
        ValueError: it is not well formed.
    """
    try:
        return Question(
            id=int(message["id"]),
            event=str(message["event"]),
            is_held=bool(message["held"]),
            is_proof=bool(message["proof"]),
            pid=int(message["pid"]),
            path=path_bytes(message["path"]),
            key=FileKey(*message["key"]),
            at=float(message["at"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a question: {error}") from error


def told_message(told: Told) -> dict[str, Any]:
    """Return what a gate tells."""
    return {
        "type": "told",
        "what": told.what,
        "count": told.count,
        "id": told.question_id,
        "allowed": told.was_allowed,
        "pid": told.pid,
        "path": path_text(told.path),
        "key": key_list(told.key) if told.key is not None else None,
    }


def told_of(message: dict[str, Any]) -> Told:
    """Return what a gate told.

    Raises:
        ValueError: it is not well formed.
    """
    try:
        key = FileKey(*message["key"]) if message["key"] is not None else None
        return Told(
            str(message["what"]),
            int(message["count"]),
            int(message["id"]),
            bool(message["allowed"]),
            int(message["pid"]),
            path_bytes(message["path"]),
            key,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"nothing that a gate tells: {error}") from error


def caught_up_message(at: float) -> dict[str, Any]:
    """Return a gate's word that it has asked about every file whose last writer closed it before this moment (UTC seconds)."""
    return {"type": "caught_up", "at": at}


def state_message(state: GateState) -> dict[str, Any]:
    """Return a gate's state as it sends it."""
    return {"type": "state", **asdict(state)}


def state_of(message: dict[str, Any]) -> GateState:
    """Return the state in a message.

    Raises:
        ValueError: it is not well formed.
    """
    try:
        values = {name: value for name, value in message.items() if name != "type"}
        values["mounts"] = tuple((str(a), str(b), str(c), str(d)) for a, b, c, d in values.get("mounts", ()))
        values["suspended"] = tuple(str(name) for name in values.get("suspended", ()))
        values["metrics"] = tuple((str(name), float(value)) for name, value in values.get("metrics", ()))
        return GateState(**values)
    except TypeError as error:
        raise ValueError(f"not a gate's state: {error}") from error
