"""How a module's worker gives up power at its start, and says which walls stand."""

import os
import pwd
import signal
from collections.abc import Iterable

from keibi.agent.linux import sandbox
from keibi.contract.status import Capability

USER = "keibi-agent"


def live_without_root(wall: str, state_directory: str, keep: Iterable[str], *, for_children: bool = False) -> list[Capability]:
    """Become an ordinary user that keeps a few capabilities and owns the state; says so under the name `wall`.

    A process that is not root, such as a test's, stays as it is. `for_children`: see `sandbox.drop_privileges`.
    """
    if os.geteuid() != 0:
        return []
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        return [Capability(wall, False, f"there is no user {USER}: 'keibi up' makes it")]
    _give_to(state_directory, account.pw_uid, account.pw_gid)
    sandbox.drop_privileges(USER, keep, for_children=for_children)
    # The kernel forgets this wish when a process becomes another user.
    sandbox.die_with_parent(signal.SIGKILL)
    return [Capability(wall, True)]


def forbid_system_calls() -> Capability:
    """Give up the system calls that no worker needs."""
    try:
        sandbox.forbid_system_calls()
    except (OSError, KeyError) as error:
        return Capability("seccomp", False, f"not on this machine: {error}")
    return Capability("seccomp", True)


def _give_to(directory: str, uid: int, gid: int) -> None:
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(os.path.join(parent, name), uid, gid, follow_symlinks=False)
    os.chown(directory, uid, gid)
