"""The entries of a directory as they lie in the baseline: packed, so that an unchanged directory is one comparison of bytes."""

import stat
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
from msgspec import structs

from keibi.agent.linux.files import (
    DIGEST_BYTES,
    PACKED_STATE,
    ContentOutcome,
    FileState,
    Wish,
    pack_state,
    unpack_state,
)

PAGE_ENTRIES = 256
"""Entries a page is split at. One changed entry rewrites one page, so pages of huge directories must stay small."""

SETTLED_OUTCOMES = bytes([ContentOutcome.NOT_ASKED.value, ContentOutcome.HASHED.value, ContentOutcome.TOO_LARGE.value])
"""Outcomes that trying again would not mend."""

# The byte of st_mode, the first member of a packed state, that holds the file type in its upper half.
_TYPE_AT = 1 if sys.byteorder == "little" else 2
_SYMLINK_MARKS = bytes(int(byte & 0xF0 == stat.S_IFLNK >> 8) for byte in range(256))


class Extras(msgspec.Struct, frozen=True, array_like=True):
    """What few entries have: kept beside the packed part."""

    index: int
    link_target: bytes | None
    xattrs: dict[bytes, bytes] | None
    flags: int | None
    accessed_ns: int | None


_NO_EXTRAS = Extras(0, None, None, None, None)
_encoder = msgspec.msgpack.Encoder()
_extras_decoder = msgspec.msgpack.Decoder(list[Extras])


@dataclass(frozen=True, slots=True)
class Page:
    """Some or all entries of one directory, sorted by name."""

    directory: bytes
    names: bytes  # joined by NUL
    states: bytes  # PACKED_STATE after PACKED_STATE
    wishes: bytes  # one byte an entry
    outcomes: bytes  # one byte an entry
    digests: bytes  # DIGEST_BYTES for every entry whose outcome is HASHED
    extras: bytes = b""

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.wishes)

    @property
    def first(self) -> bytes:
        """Name of the first entry."""
        return self.names.partition(b"\0")[0]

    @property
    def is_settled(self) -> bool:
        """False when some content could not be read, so that the next scan must try again."""
        return is_settled(self.outcomes)

    def entry_names(self) -> list[bytes]:
        """Return the names, in order."""
        return self.names.split(b"\0") if self.wishes else []

    def entry_extras(self) -> dict[int, Extras]:
        """Return what lies beside the packed part, by the entry's index."""
        return {extra.index: extra for extra in _extras_decoder.decode(self.extras)} if self.extras else {}

    def entries(self) -> Iterator[FileState]:
        """Yield the entries, in order of their names."""
        extras = self.entry_extras()
        digest_at = 0
        for index, name in enumerate(self.entry_names()):
            yield self._entry(index, name, digest_at, extras.get(index, _NO_EXTRAS))
            digest_at += DIGEST_BYTES * (self.outcomes[index] == ContentOutcome.HASHED.value)

    def entry(self, name: bytes) -> FileState | None:
        """Return the entry of that name, or None."""
        names = self.entry_names()
        index = bisect_left(names, name)
        if index == len(names) or names[index] != name:
            return None
        digest_at = DIGEST_BYTES * self.outcomes.count(ContentOutcome.HASHED.value, 0, index)
        return self._entry(index, name, digest_at, self.entry_extras().get(index, _NO_EXTRAS))

    def _entry(self, index: int, name: bytes, digest_at: int, extra: Extras) -> FileState:
        outcome = ContentOutcome(self.outcomes[index])
        return replace(
            unpack_state(join_path(self.directory, name), self.states, index * PACKED_STATE.size),
            asked=Wish(self.wishes[index]),
            content=outcome,
            content_hash=self.digests[digest_at : digest_at + DIGEST_BYTES] if outcome is ContentOutcome.HASHED else b"",
            link_target=extra.link_target,
            xattrs=extra.xattrs,
            flags=extra.flags,
            accessed_ns=extra.accessed_ns,
        )


class PageEditor:
    """Changes single entries of a page without unpacking the others: a busy directory is written entry by entry."""

    def __init__(self, directory: bytes, page: Page | None) -> None:
        self._directory = directory
        self._names = page.entry_names() if page else []
        self._states = bytearray(page.states if page else b"")
        self._wishes = bytearray(page.wishes if page else b"")
        self._outcomes = bytearray(page.outcomes if page else b"")
        self._digests = bytearray(page.digests if page else b"")
        self._extras = {self._names[index]: extra for index, extra in page.entry_extras().items()} if page else {}

    def put(self, state: FileState) -> None:
        """Add the entry, or replace the one of that name."""
        name = split_path(state.path)[1]
        self.remove(name)
        index = bisect_left(self._names, name)
        digest_at = self._digest_at(index)
        self._names.insert(index, name)
        self._states[index * PACKED_STATE.size : index * PACKED_STATE.size] = pack_state(state)
        self._wishes.insert(index, state.asked.value)
        self._outcomes.insert(index, state.content.value)
        if state.content is ContentOutcome.HASHED:
            self._digests[digest_at:digest_at] = state.content_hash
        if extras := extras_of(0, state):
            self._extras[name] = extras

    def remove(self, name: bytes) -> None:
        """Take the entry out, if there is one."""
        index = bisect_left(self._names, name)
        if index == len(self._names) or self._names[index] != name:
            return
        if self._outcomes[index] == ContentOutcome.HASHED.value:
            digest_at = self._digest_at(index)
            del self._digests[digest_at : digest_at + DIGEST_BYTES]
        del self._names[index], self._wishes[index], self._outcomes[index]
        del self._states[index * PACKED_STATE.size : (index + 1) * PACKED_STATE.size]
        self._extras.pop(name, None)

    def pages(self) -> list[Page]:
        """Return the page as it is now; several when it has grown too large, none when it is empty."""
        extras = [structs.replace(extra, index=bisect_left(self._names, name)) for name, extra in sorted(self._extras.items())]
        return packed_pages(
            self._directory,
            b"\0".join(self._names),
            bytes(self._states),
            bytes(self._wishes),
            bytes(self._outcomes),
            bytes(self._digests),
            extras,
        )

    def _digest_at(self, index: int) -> int:
        return DIGEST_BYTES * self._outcomes.count(ContentOutcome.HASHED.value, 0, index)


def is_settled(outcomes: bytes) -> bool:
    """Return whether all content that was asked for could be read, as far as it ever can."""
    return not outcomes.translate(None, SETTLED_OUTCOMES)


def symlink_marks(states: bytes) -> bytes:
    """Return one byte for each packed state: 1 where it is a symlink."""
    return states[_TYPE_AT :: PACKED_STATE.size].translate(_SYMLINK_MARKS)


def extras_of(index: int, state: FileState) -> Extras | None:
    """Return what an entry has beside the packed part, if anything."""
    if (state.link_target, state.xattrs, state.flags, state.accessed_ns) == (None, None, None, None):
        return None
    return Extras(index, state.link_target, state.xattrs, state.flags, state.accessed_ns)


def pages_of(directory: bytes, states: Sequence[FileState]) -> list[Page]:
    """Return the pages that hold these entries of a directory. `states` is sorted by path."""
    return packed_pages(
        directory,
        b"\0".join([split_path(state.path)[1] for state in states]),
        b"".join([pack_state(state) for state in states]),
        bytes([state.asked.value for state in states]),
        bytes([state.content.value for state in states]),
        b"".join([state.content_hash for state in states if state.content is ContentOutcome.HASHED]),
        [extras for index, state in enumerate(states) if (extras := extras_of(index, state))],
    )


def packed_pages(
    directory: bytes,
    names: bytes,
    states: bytes,
    wishes: bytes,
    outcomes: bytes,
    digests: bytes,
    extras: Sequence[Extras],
) -> list[Page]:
    """Return the pages of a directory's packed entries, which are sorted by name. None for no entries."""
    if len(wishes) <= PAGE_ENTRIES:
        if not wishes:
            return []
        return [Page(directory, names, states, wishes, outcomes, digests, _encoder.encode(extras) if extras else b"")]
    pages = []
    split = names.split(b"\0")
    digest_at = 0
    for start in range(0, len(wishes), PAGE_ENTRIES):
        end = start + PAGE_ENTRIES
        part = outcomes[start:end]
        digest_end = digest_at + part.count(ContentOutcome.HASHED.value) * DIGEST_BYTES
        ours = [structs.replace(extra, index=extra.index - start) for extra in extras if start <= extra.index < end]
        pages.append(
            Page(
                directory,
                b"\0".join(split[start:end]),
                states[start * PACKED_STATE.size : end * PACKED_STATE.size],
                wishes[start:end],
                part,
                digests[digest_at:digest_end],
                _encoder.encode(ours) if ours else b"",
            )
        )
        digest_at = digest_end
    return pages


def is_listing(pages: Sequence[Page], names: bytes, states: bytes, wishes: bytes) -> bool:
    """Return whether the pages hold exactly these names, lstat results and wishes."""
    if len(pages) == 1:
        page = pages[0]
        return page.states == states and page.names == names and page.wishes == wishes
    return (
        b"".join([page.states for page in pages]) == states
        and b"\0".join([page.names for page in pages]) == names
        and b"".join([page.wishes for page in pages]) == wishes
    )


def has_same_content(pages: Sequence[Page], outcomes: bytes, digests: bytes) -> bool:
    """Return whether what was hashed again (the outcomes other than NOT_ASKED) equals what the pages hold."""
    kept_outcomes = b"".join([page.outcomes for page in pages])
    kept_digests = b"".join([page.digests for page in pages])
    if kept_outcomes == outcomes:
        return kept_digests == digests
    hashed = ContentOutcome.HASHED.value
    digest_at = rank = 0
    for outcome, kept in zip(outcomes, kept_outcomes, strict=True):
        if outcome != ContentOutcome.NOT_ASKED.value:
            if outcome != kept:
                return False
            if outcome == hashed:
                if kept_digests[rank : rank + DIGEST_BYTES] != digests[digest_at : digest_at + DIGEST_BYTES]:
                    return False
                digest_at += DIGEST_BYTES
        if kept == hashed:
            rank += DIGEST_BYTES
    return True


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Return directory and name of an absolute path; the root is the entry "/" of the directory ""."""
    if path == b"/":
        return b"", b"/"
    directory, _, name = path.rpartition(b"/")
    return directory or b"/", name


def join_path(directory: bytes, name: bytes) -> bytes:
    """Return the path whose `split_path` this is."""
    if directory in (b"", b"/"):
        return name if name == b"/" else b"/" + name
    return directory + b"/" + name
