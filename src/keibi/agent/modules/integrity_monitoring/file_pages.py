"""The entries of a directory as they lie in the baseline: packed, so that an unchanged directory is one comparison of bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

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

_SETTLED = bytes([ContentOutcome.NOT_ASKED.value, ContentOutcome.HASHED.value])


class Extras(msgspec.Struct, frozen=True, array_like=True):
    """What few entries have: kept beside the packed part."""

    index: int
    link_target: bytes | None
    xattrs: dict[bytes, bytes] | None
    flags: int | None
    accessed_ns: int | None


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
        return not self.outcomes.translate(None, _SETTLED)

    def entry_names(self) -> list[bytes]:
        """Return the names, in order."""
        return self.names.split(b"\0") if self.wishes else []

    def entries(self) -> Iterator[FileState]:
        """Yield the entries, in order of their names."""
        extras = {extra.index: extra for extra in _extras_decoder.decode(self.extras)} if self.extras else {}
        digest_at = 0
        for index, name in enumerate(self.entry_names()):
            outcome = ContentOutcome(self.outcomes[index])
            digest = b""
            if outcome is ContentOutcome.HASHED:
                digest = self.digests[digest_at : digest_at + DIGEST_BYTES]
                digest_at += DIGEST_BYTES
            state = replace(
                unpack_state(join_path(self.directory, name), self.states, index * PACKED_STATE.size),
                asked=Wish(self.wishes[index]),
                content=outcome,
                content_hash=digest,
            )
            if extra := extras.get(index):
                state = replace(
                    state,
                    link_target=extra.link_target,
                    xattrs=extra.xattrs,
                    flags=extra.flags,
                    accessed_ns=extra.accessed_ns,
                )
            yield state


def pages_of(directory: bytes, states: Sequence[FileState]) -> Iterator[Page]:
    """Yield the pages that hold these entries of a directory. `states` is sorted by path."""
    for start in range(0, len(states), PAGE_ENTRIES):
        part = states[start : start + PAGE_ENTRIES]
        extras = [
            Extras(index, state.link_target, state.xattrs, state.flags, state.accessed_ns)
            for index, state in enumerate(part)
            if (state.link_target, state.xattrs, state.flags, state.accessed_ns) != (None, None, None, None)
        ]
        yield Page(
            directory,
            b"\0".join(split_path(state.path)[1] for state in part),
            b"".join(pack_state(state) for state in part),
            bytes(state.asked.value for state in part),
            bytes(state.content.value for state in part),
            b"".join(state.content_hash for state in part if state.content is ContentOutcome.HASHED),
            _encoder.encode(extras) if extras else b"",
        )


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
