"""What application control must never block, whatever rules say: else a mistake could lock everybody out.

The floor holds a program by where it lies *and* what it is: its path is one of these, and its content is a package's own or was
there when protection began. A file that somebody puts at such a path later is judged like any other.
"""

from collections.abc import Iterable

from keibi.protection.patterns import Patterns

LOGIN_AND_PACKAGES = (
    "/usr/lib/systemd/**",
    "/lib/systemd/**",
    "/usr/sbin/init",
    "/sbin/init",
    "/usr/sbin/sshd",
    "/usr/lib/openssh/*",
    "/usr/libexec/openssh/*",
    "/usr/bin/login",
    "/bin/login",
    "/usr/bin/su",
    "/bin/su",
    "/usr/bin/sudo",
    "/usr/sbin/agetty",
    "/sbin/agetty",
    "/usr/sbin/getty",
    "/usr/sbin/sulogin",
    "/usr/sbin/unix_chkpwd",
    "/sbin/unix_chkpwd",
    "/usr/lib/security/*.so",
    "/usr/lib64/security/*.so",
    "/usr/lib/*/security/*.so",
    "/lib/*/security/*.so",
    "/usr/bin/bash",
    "/bin/bash",
    "/usr/bin/dash",
    "/bin/dash",
    "/usr/bin/sh",
    "/bin/sh",
    "/usr/bin/dpkg*",
    "/usr/bin/apt*",
    "/usr/lib/apt/**",
    "/usr/bin/rpm*",
    "/usr/bin/dnf*",
    "/usr/bin/yum",
    "/usr/lib64/ld-linux*",
    "/lib64/ld-linux*",
    "/usr/lib/*/ld-linux*",
    "/lib/*/ld-linux*",
    "/usr/lib/ld-linux*",
)
"""Programs without which nobody could sign in or repair; libraries that they load are added by whoever knows them."""


class Floor:
    """Says why a file must never be blocked. Immutable; the agent makes it at its start."""

    def __init__(self, *, agent_directories: Iterable[bytes], needed: Iterable[bytes], contents_at_start: Iterable[str]) -> None:
        """`needed` are libraries and programs by path; `contents_at_start` the SHA-256 of what lay at all of these then."""
        self._patterns = Patterns(LOGIN_AND_PACKAGES)
        self._agent = tuple(directory.rstrip(b"/") + b"/" for directory in agent_directories)
        self._needed = frozenset(needed)
        self._contents = frozenset(contents_at_start)

    def is_agents(self, path: bytes) -> bool:
        """Whether the path belongs to the agent."""
        return path.startswith(self._agent)

    def reason(self, path: bytes, sha256: str, *, is_packaged: bool, is_root_writable_only: bool) -> str:
        """Return why a file must never be blocked, "" when it may be."""
        if path.startswith(self._agent):
            return "belongs to the agent itself" if is_root_writable_only or sha256 in self._contents else ""
        if not (path in self._needed or self._patterns.match(path)):
            return ""
        if is_packaged or sha256 in self._contents:
            return "is needed to sign in, or to install software"
        return ""
