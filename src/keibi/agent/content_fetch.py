"""Files that a policy names and that are too large for it, such as sets of patterns: fetched before the policy is applied.

Theory of operation. Each file is known by its SHA-256 and lies at `{state}/content/{sha256}`. What is missing is fetched in
parts into `{sha256}.part`, which outlives a broken connection and a restart of the agent; only a whole file with the right
digest gets its name. A file that no policy in force or to be applied names is deleted.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable

from keibi.agent.durable_file import sync_directory
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.session import ManagerSession
from keibi.contract.policy import ContentReference, EffectivePolicy
from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError

PART_BYTES = 4 * 1024 * 1024
MAX_CONTENT_BYTES = 2 * 1024**3
"""Largest single file that is taken."""
SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the disk for the spool and the policy."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = ".part"
_HASH_BLOCK = 1024 * 1024


def references_of(*policies: EffectivePolicy | None) -> dict[str, ContentReference]:
    """Return the files that policies name, by their digest."""
    return {
        reference.sha256: reference
        for policy in policies
        if policy is not None
        for part in policy.modules
        for reference in part.content
    }


class ContentStore:
    """The files in a state directory. Used by one thread."""

    def __init__(self, state_directory: str) -> None:
        self._directory = os.path.join(state_directory, "content")

    def path_of(self, sha256: str) -> str:
        """Return where a file lies, or will."""
        return os.path.join(self._directory, sha256)

    def missing(self, references: Iterable[ContentReference]) -> list[ContentReference]:
        """Return the files that are not there whole.

        Raises:
            InputError: a reference is none: no digest, or a size beyond all bounds.
        """
        found = []
        for reference in references:
            if not _SHA256.fullmatch(reference.sha256) or not 0 <= reference.size <= MAX_CONTENT_BYTES:
                raise InputError(
                    "content_invalid",
                    f"the policy names content {reference.name[:80]!r} with {reference.size} bytes, which cannot be right",
                    hint=f"at most {MAX_CONTENT_BYTES} bytes, named by 64 hexadecimal digits",
                )
            try:
                is_whole = os.stat(self.path_of(reference.sha256)).st_size == reference.size
            except FileNotFoundError:
                is_whole = False
            if not is_whole:
                found.append(reference)
        return found

    def begin(self, reference: ContentReference) -> int:
        """Prepare for a file and return how many bytes of it are here already.

        Raises:
            TryLaterError: the disk has no room for it, or cannot be written.
        """
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            path = self._part_of(reference)
            have = os.stat(path).st_size if os.path.exists(path) else 0
            if have > reference.size:
                os.unlink(path)
                have = 0
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            raise _unwritable(error, self._directory) from error
        needed = reference.size - have + SPARE_BYTES
        if free < needed:
            raise TryLaterError(
                "disk_full",
                f"{reference.name} needs {needed} bytes, and {free} are free",
                where=self._directory,
                hint="free space on this disk; it is fetched as soon as there is some",
            )
        return have

    def append(self, reference: ContentReference, data: bytes) -> None:
        """Add bytes to what is here of a file.

        Raises:
            TryLaterError: they cannot be written.
        """
        try:
            with open(self._part_of(reference), "ab") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
        except OSError as error:
            raise _unwritable(error, self._directory) from error

    def finish(self, reference: ContentReference) -> None:
        """Give a file its name when it is the right one; what is not is deleted.

        Raises:
            RefusedError: it is not what the policy names. TryLaterError: the disk cannot be written.
        """
        part = self._part_of(reference)
        try:
            digest = hashlib.sha256()
            with open(part, "ab+") as file:
                file.seek(0)
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
                os.fsync(file.fileno())
            if digest.hexdigest() != reference.sha256:
                os.unlink(part)
                raise RefusedError(
                    "content_wrong",
                    f"what came as {reference.name} has the SHA-256 {digest.hexdigest()}, not {reference.sha256}",
                    hint="it is fetched anew; if this repeats, look at the manager's disk and at what is in between",
                )
            os.replace(part, self.path_of(reference.sha256))
            sync_directory(self._directory)
        except OSError as error:
            raise _unwritable(error, self._directory) from error

    def keep_only(self, digests: Iterable[str]) -> list[str]:
        """Delete every other file, and return the names of what went."""
        kept = {name for digest in digests for name in (digest, digest + _PART)}
        gone = []
        try:
            for name in sorted(os.listdir(self._directory)):
                if name not in kept:
                    os.unlink(os.path.join(self._directory, name))
                    gone.append(name)
        except OSError:
            # Tried again with the next policy; a file too many harms nobody.
            pass
        return gone

    def _part_of(self, reference: ContentReference) -> str:
        return self.path_of(reference.sha256) + _PART


class ContentFetch:
    """Fetches what policies name over a connection of its own, which `ManagerLink` gives and takes away."""

    def __init__(self, store: ContentStore, files: Lane, log: Log) -> None:
        self._store = store
        self._files = files
        self._log = log
        self._session: ManagerSession | None = None
        self._lane: Lane | None = None

    def connect(self, session: ManagerSession | None, lane: Lane | None) -> None:
        """Take a session to the manager with the lane it is used in; None when there is none any more."""
        self._session, self._lane = session, lane

    async def is_complete(self, policy: EffectivePolicy) -> bool:
        """Whether everything that a policy names is here.

        Raises:
            InputError: it names what cannot be.
        """
        return not await self._files.run(self._store.missing, references_of(policy).values())

    async def fetch(self, policy: EffectivePolicy, is_wanted: Callable[[], bool]) -> bool:
        """Get everything that a policy names; returns whether it is all here. Stops as soon as it is not wanted any more.

        Raises:
            KeibiError: something cannot be had now, and why. What has come of it so far is kept.
        """
        for reference in await self._files.run(self._store.missing, references_of(policy).values()):
            have = await self._files.run(self._store.begin, reference)
            if have:
                self._log.info("content is fetched on", name=reference.name, have=have, size=reference.size)
            while have < reference.size:
                if not is_wanted():
                    return False
                data = await self._part(reference, have)
                await self._files.run(self._store.append, reference, data)
                have += len(data)
            if not reference.size:
                await self._files.run(self._store.append, reference, b"")
            await self._files.run(self._store.finish, reference)
            self._log.info("content fetched", name=reference.name, kind=reference.kind, size=reference.size)
        return True

    async def forget_others(self, *policies: EffectivePolicy | None) -> None:
        """Delete what none of these policies names."""
        gone = await self._files.run(self._store.keep_only, references_of(*policies))
        if gone:
            self._log.info("content that no policy names any more is deleted", count=len(gone))

    async def _part(self, reference: ContentReference, first: int) -> bytes:
        session, lane = self._session, self._lane
        if session is None or lane is None:
            raise TryLaterError("manager_away", f"{reference.name} cannot be fetched: there is no manager to ask")
        last = min(first + PART_BYTES, reference.size) - 1
        try:
            data = await lane.run(session.get_part, f"/agent/v1/content/{reference.sha256}", first, last)
        except KeibiError as error:
            error.where = error.where or reference.name
            raise
        if not 0 < len(data) <= last - first + 1:
            raise TryLaterError("content_incomplete", f"{len(data)} bytes of {reference.name} came instead of {last - first + 1}")
        return data


def _unwritable(error: OSError, directory: str) -> TryLaterError:
    return TryLaterError(
        "content_unwritable",
        f"content of the policy cannot be kept: {error.strerror}",
        where=directory,
        hint="check the disk; it is tried again",
    )
