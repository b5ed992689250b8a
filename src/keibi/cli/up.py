"""`keibi up`, `down` and `status`: one command that protects this computer, with nothing to be known before."""

import json
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from keibi.cli.client import ApiClient, Profile
from keibi.cli.daemons import Daemon, python_module
from keibi.cli.first_report import is_protected, said_of
from keibi.errors import InputError, KeibiError, TryLaterError

BASE = "/var/lib/keibi"
AGENT_USER, MANAGER_USER, SCAN_USER = "keibi-agent", "keibi-manager", "keibi-scan"
PORT = 8443
MANAGER_SECONDS = 90.0
AGENT_SECONDS = 180.0

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """Where everything of this computer's manager and agent lies."""

    base: str = BASE
    port: int = PORT

    @property
    def manager_state(self) -> str:
        """The manager's directory."""
        return f"{self.base}/manager"

    @property
    def agent_state(self) -> str:
        """The agent's directory."""
        return f"{self.base}/agent"

    @property
    def ca_file(self) -> str:
        """The manager's authority, where everybody may read it."""
        return f"{self.base}/ca.pem"

    @property
    def profile_file(self) -> str:
        """The command line's way to the manager."""
        return f"{self.base}/cli.toml"

    @property
    def agent_config(self) -> str:
        """The agent's configuration."""
        return f"{self.base}/agent.toml"

    @property
    def manager_settings(self) -> str:
        """The manager's configuration if somebody has written one, else ""."""
        path = f"{self.base}/manager.toml"
        return path if os.path.exists(path) else ""

    @property
    def url(self) -> str:
        """The console's address."""
        return f"https://localhost:{self.port}"

    def manager(self) -> Daemon:
        """Return the manager's program; settings of one's own go into manager.toml."""
        config = ("--config", self.manager_settings) if self.manager_settings else ()
        return Daemon(
            "manager",
            python_module("keibi.manager.main", *config, "--state", self.manager_state, "--port", str(self.port)),
            f"{self.base}/run/manager.pid",
            f"{self.base}/log/manager.log",
            user=MANAGER_USER if _can_run_ourselves(MANAGER_USER) else "",
        )

    def agent(self) -> Daemon:
        """Return the agent's program."""
        return Daemon(
            "agent",
            python_module("keibi.agent.main", "--config", self.agent_config),
            f"{self.base}/run/agent.pid",
            f"{self.base}/log/agent.log",
        )


def up(layout: Layout) -> int:
    """Start manager and agent, enrol this computer and wait until it reports; a second run changes nothing.

    Raises:
        KeibiError: a step cannot be done; the message says which and what to do.
    """
    _need_root("up")
    started = time.monotonic()
    _step("users and folders", lambda: _prepare(layout))
    _step("manager", lambda: _start_manager(layout))
    _step("enrolment", lambda: _enrol(layout))
    _step("agent", lambda: _start_agent(layout))
    computer = _step("first report", lambda: _wait_for_report(layout), shows_time=True)
    _say_what_now(layout, computer, time.monotonic() - started)
    return 0


def down(layout: Layout) -> int:
    """Stop agent and manager; what they keep stays."""
    _need_root("down")
    for daemon in (layout.agent(), layout.manager()):
        print(f"{daemon.name:<10} {'stopped' if daemon.stop() else 'was not running'}")
    return 0


def status(layout: Layout) -> int:
    """Say what runs and how it is; returns 1 when something does not run."""
    daemons = (layout.manager(), layout.agent())
    for daemon in daemons:
        pid = daemon.running_pid()
        print(f"{daemon.name:<10} {f'runs (process {pid})' if pid else 'does not run'}; log {daemon.log_file}")
    if all(daemon.running_pid() for daemon in daemons):
        print(f"console    {layout.url}")
        return 0
    print("'keibi up' starts what is missing")
    return 1


def ensure_users(users: tuple[str, ...] = (AGENT_USER, MANAGER_USER, SCAN_USER)) -> None:
    """Make the system users that do not exist."""
    for user in users:
        try:
            pwd.getpwnam(user)
        except KeyError:
            command = [shutil.which("useradd") or "/usr/sbin/useradd", "--system", "--user-group", "--no-create-home"]
            _run([*command, "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", user])


def _prepare(layout: Layout) -> str:
    ensure_users()
    os.makedirs(layout.base, mode=0o755, exist_ok=True)
    # The content of the agent's directory is root's; its worker, who is not root, must get through to its own part.
    for path, mode in (
        (layout.base, 0o755),
        (f"{layout.base}/run", 0o755),
        (f"{layout.base}/log", 0o755),
        (f"{BASE}/prove", 0o755),
    ):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
    os.makedirs(layout.agent_state, mode=0o700, exist_ok=True)
    os.makedirs(layout.manager_state, mode=0o700, exist_ok=True)
    os.chmod(layout.manager_state, 0o700)
    daemon = layout.manager()
    if daemon.user and daemon.running_pid() is None:
        account = pwd.getpwnam(daemon.user)
        for parent, _, files in os.walk(layout.manager_state):
            for path in (parent, *(os.path.join(parent, name) for name in files)):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    if not os.path.exists(layout.agent_config):
        socket_path = f"{layout.base}/run/agent.sock"
        content = f'state_directory = "{layout.agent_state}"\nsocket_path = "{socket_path}"\n'
        _write(layout.agent_config, content, 0o644)
    return layout.base


def _start_manager(layout: Layout) -> str:
    daemon = layout.manager()
    note = "" if daemon.user else f" as root, because {MANAGER_USER} may not read {sys.prefix}"
    if daemon.running_pid() is None:
        _check_port(layout.port)
    pid = daemon.start()
    _wait(lambda: _answers(layout) or _is_gone(daemon), MANAGER_SECONDS, daemon)
    _publish_ca(layout)
    return f"process {pid} at {layout.url}{note}"


def _answers(layout: Layout) -> bool:
    context = ssl.create_default_context()
    # Only whether somebody answers: nothing is sent, and the agent and the command line check the certificate.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", layout.port), 2) as raw, context.wrap_socket(raw) as _:
            return True
    except OSError:
        return False


def _publish_ca(layout: Layout) -> None:
    with open(f"{layout.manager_state}/tls/ca.pem") as file:
        content = file.read()
    _write(layout.ca_file, content, 0o644)


def _enrol(layout: Layout) -> str:
    # Imported here: `keibi agent …` on a computer without the manager must not need its packages.
    from keibi.agent.config import load_config as load_agent_config
    from keibi.agent.enrolment import enrol
    from keibi.agent.facts import read_machine_id
    from keibi.agent.identity import IdentityStore
    from keibi.manager.config import load_config as load_manager_config
    from keibi.manager.local import grant_local_access

    identity = IdentityStore(layout.agent_state).load(read_machine_id())
    has_key = os.path.exists(layout.profile_file) and _profile_works(layout)
    config = load_manager_config(layout.manager_settings, state_directory=layout.manager_state, port=layout.port)
    if not has_key or identity is None:
        access = grant_local_access(config, with_key=not has_key, with_token=identity is None)
        if access.api_key:
            content = f'url = "{layout.url}"\napi_key = "{access.api_key}"\nca = "{layout.ca_file}"\n'
            _write(layout.profile_file, content, 0o600)
        if identity is None:
            with open(layout.ca_file) as file:
                ca = file.read()
            identity = enrol(load_agent_config(layout.agent_config, must_exist=True), layout.url, access.enrolment_token, ca)
            return f"this computer is now {identity.computer_id}"
    return f"this computer is {identity.computer_id}"


def _profile_works(layout: Layout) -> bool:
    try:
        api_of(layout).get("/computers", limit=1)
    except KeibiError:
        return False
    return True


def _start_agent(layout: Layout) -> str:
    return f"process {layout.agent().start()}"


def _wait_for_report(layout: Layout) -> dict[str, Any]:
    from keibi.agent.facts import read_machine_id
    from keibi.agent.identity import IdentityStore

    identity = IdentityStore(layout.agent_state).load(read_machine_id())
    if identity is None:
        raise TryLaterError("not_enrolled", "this computer lost its identity meanwhile", where=layout.agent_state)
    client, agent = api_of(layout), layout.agent()
    started_at = os.stat(agent.pid_file).st_mtime
    seen: dict[str, Any] = {}
    shown = ""

    def is_there() -> bool:
        nonlocal seen, shown
        seen = client.get(f"/computers/{identity.computer_id}")
        status = seen.get("status") or {}
        said = next((one.get("message", "") for one in status.get("modules", []) if one.get("message")), "")
        if said and said != shown and sys.stdout.isatty():
            shown = said
            print(f"\r\033[K  first report … {said[:90]}", end="", flush=True)
        return is_protected(status, started_at, time.time())

    _wait(lambda: is_there() or _is_gone(agent), AGENT_SECONDS, agent)
    return seen


def _say_what_now(layout: Layout, computer: dict[str, Any], seconds: float) -> None:
    name = computer.get("display_name") or computer.get("hostname") or "this computer"
    print(f"\n{name} is protected ({seconds:.0f} s).")
    for module in computer["status"]["modules"]:
        print(f"  {said_of(module)}")
    print(f"\nConsole     {layout.url}")
    if first := _first_password(layout):
        print(f"User        {first[0]}\nPassword    {first[1]}   (change it under your account)")
    else:
        print("Sign in as you did before; 'keibi manager reset-password NAME' helps if the password is lost.")
    print(f"Certificate the manager's own; its authority is {layout.ca_file}")
    print("\nTry next:")
    print("  keibi prove                   triggers protection harmlessly and shows what arrived")
    print("  keibi events tail             shows events as they come")
    print("  keibi agent status            asks the agent on this computer")
    print("  make down                     stops everything; what was gathered stays")


def _first_password(layout: Layout) -> tuple[str, str] | None:
    """Return user and password of the first administrator as long as they are good; then the file has done its work."""
    from keibi.manager.config import load_config
    from keibi.manager.local import is_first_password_good

    path = f"{layout.manager_state}/first-password"
    try:
        with open(path) as file:
            user, _, password = file.read().strip().partition(" ")
    except OSError:
        return None
    if is_first_password_good(
        load_config(layout.manager_settings, state_directory=layout.manager_state, port=layout.port), user, password
    ):
        return user, password
    os.unlink(path)
    return None


def api_of(layout: Layout) -> ApiClient:
    """Return the API of the manager that `keibi up` started."""
    import tomllib

    with open(layout.profile_file, "rb") as file:
        content = tomllib.load(file)
    return ApiClient(Profile(content["url"], content["api_key"], content["ca"]))


def _step(name: str, action: Callable[[], T], *, shows_time: bool = False) -> T:
    print(f"  {name} …", end="", flush=True)
    started = time.monotonic()
    try:
        outcome = action()
    except BaseException:
        print(" failed")
        raise
    said = outcome if isinstance(outcome, str) else f"{time.monotonic() - started:.1f} s" if shows_time else "done"
    clear = "\r\033[K" if sys.stdout.isatty() else "\r"
    print(f"{clear}  {name:<18} {said}")
    return outcome


def _wait(condition: Callable[[], bool], seconds: float, daemon: Daemon) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                break
        except TryLaterError:
            # The manager is still coming up, or busy.
            pass
        if time.monotonic() > deadline:
            raise TryLaterError(
                "too_slow",
                f"the {daemon.name} did not report within {seconds:.0f} s",
                where=daemon.log_file,
                hint=daemon.log_tail(5),
            )
        time.sleep(0.1)


def _is_gone(daemon: Daemon) -> bool:
    if daemon.running_pid() is not None:
        return False
    raise InputError("ended", f"the {daemon.name} ended at once; its last words:\n{daemon.log_tail()}", where=daemon.log_file)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                "port_busy",
                f"port {port} is used by another program ({error.strerror})",
                hint=f"see who with 'ss -ltnp sport = :{port}', or choose another: keibi up --port {port + 1000}",
            ) from error


def _can_run_ourselves(user: str) -> bool:
    """Whether that user may read this Python and this code: a clone in /root is closed to everybody else."""
    import keibi

    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return False
    if os.geteuid() != 0:
        return False
    needed = (sys.executable, os.path.realpath(sys.executable), os.path.abspath(keibi.__file__))
    check = "import sys; [open(path, 'rb').close() for path in sys.argv[1:]]"
    try:
        outcome = subprocess.run(
            [sys.executable, "-c", check, *needed],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return outcome.returncode == 0


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise InputError("needs_root", f"'keibi {command}' needs root: it makes users and watches the whole computer")


def _write(path: str, content: str, mode: int) -> None:
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _run(command: list[str]) -> None:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise TryLaterError(
            "command_failed", f"{os.path.basename(command[0])}: {outcome.stderr.strip()}", where=json.dumps(command)
        )
