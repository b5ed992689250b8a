"""Builds small registry hives, since no free ones may be shipped (format: regf, as documented by M. Suhanov)."""

import struct
from dataclasses import dataclass, field

NOTHING = 0xFFFFFFFF


@dataclass
class Key:
    name: str
    values: dict[str, str] = field(default_factory=dict)
    subkeys: list["Key"] = field(default_factory=list)
    modified_at: int = 132000000000000000


def build(root: Key, *, loop: bool = False) -> bytes:
    """Return the bytes of a hive whose root key is `root`; with `loop` the first subkey lists its parent's subkeys."""
    cells = bytearray(32)  # the hbin header, written last

    def add(payload: bytes) -> int:
        offset = len(cells)
        size = (len(payload) + 4 + 7) & ~7
        cells.extend(struct.pack("<i", -size) + payload + b"\0" * (size - 4 - len(payload)))
        return offset

    def node(key: Key, subkey_list: int, value_list: int) -> bytes:
        name = key.name.encode("ascii")
        return struct.pack(
            "<2sHQ4sIIIIIIIIIIIII4sHH",
            b"nk", 0x20, key.modified_at, b"\0" * 4, 0, len(key.subkeys), 0, subkey_list, NOTHING,
            len(key.values), value_list, NOTHING, NOTHING, 0, 0, 0, 0, b"\0" * 4, len(name), 0,
        ) + name  # fmt: skip

    def write(key: Key) -> int:
        offset = add(node(key, NOTHING, NOTHING))
        value_offsets = []
        for name, text in key.values.items():
            data = text.encode("utf-16-le") + b"\0\0"
            data_offset = add(data)
            encoded = name.encode("ascii")
            value_offsets.append(add(struct.pack("<2sHIIIHH", b"vk", len(encoded), len(data), data_offset, 1, 1, 0) + encoded))
        value_list = add(struct.pack(f"<{len(value_offsets)}I", *value_offsets)) if value_offsets else NOTHING
        children = [write(child) for child in key.subkeys]
        subkey_list = NOTHING
        if children:
            subkey_list = add(struct.pack("<2sH", b"lf", len(children)) + b"".join(struct.pack("<II", c, 0) for c in children))
            if loop:
                child = key.subkeys[0]
                looped = Key(child.name, {}, [child], child.modified_at)
                start = children[0] + 4
                patched = node(looped, subkey_list, NOTHING)
                cells[start : start + len(patched)] = patched
        patched = node(key, subkey_list, value_list)
        cells[offset + 4 : offset + 4 + len(patched)] = patched
        return offset

    root_offset = write(root)
    size = (len(cells) + 4095) & ~4095
    cells.extend(b"\0" * (size - len(cells)))
    cells[:32] = struct.pack("<4sIIIIQI", b"hbin", 0, size, 0, 0, 0, 0)
    header = struct.pack("<4sIIQIIIIIII64s", b"regf", 1, 1, 0, 1, 5, 0, 1, root_offset, size, 1, b"\0" * 64)
    return (header + b"\0" * (508 - len(header)) + b"\0" * 4).ljust(4096, b"\0") + bytes(cells)
