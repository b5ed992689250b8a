"""Windows registry keys and values as entities, read from hive files on mounted Windows disks or images.

A hive is hostile input, so it is parsed by a child process that has given up everything: another user, no capabilities, no
files, no network, no new programs, bounded memory and time. The child is `python -m keibi.agent.linux.registry`; it gets the
hive as an anonymous memory file on descriptor 0 and writes msgpack to standard output.
"""

import codecs
import hashlib
import os
import subprocess
import sys
from typing import Any

import msgspec

from keibi.agent.linux import sandbox
from keibi.errors import InputError, TryLaterError
from keibi.protection.base import escape_name

MAX_HIVE_BYTES = 512 * 1024 * 1024
MAX_SECONDS = 60
_MAX_MEMORY_BYTES = 2 * 1024 * 1024 * 1024


class HiveContent(msgspec.Struct, frozen=True):
    """What a key and all below it hold; keys of both maps start with the key's own path, parts divided by `/`."""

    keys: dict[str, dict[str, Any]]
    values: dict[str, dict[str, Any]]
    problems: list[str] = []  # parts of the hive that could not be read


def read_hive(path: str, key: str) -> HiveContent:
    """Return registry keys and values at and below `key` ("Microsoft/Windows/CurrentVersion/Run") of the hive file at `path`.

    A key that does not exist gives empty maps. Entity keys are `path!key/sub` and, for values, `path!key/sub//name`.

    Raises:
        InputError: it is not a registry hive, too large, or too damaged to start with.
        TryLaterError: it cannot be opened now, or took longer than MAX_SECONDS.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TryLaterError("hive_unreadable", f"cannot open the registry hive: {error.strerror}", where=path) from error
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_HIVE_BYTES:
            raise InputError("hive_too_large", f"the registry hive has {size} bytes, more than {MAX_HIVE_BYTES}", where=path)
        memory = os.memfd_create("hive")
        try:
            offset = 0
            while offset < size and (sent := os.sendfile(memory, descriptor, offset, min(size - offset, 1 << 24))):
                offset += sent
            os.lseek(memory, 0, os.SEEK_SET)
            return _parse_apart(memory, path, key)
        finally:
            os.close(memory)
    finally:
        os.close(descriptor)


def _parse_apart(memory: int, path: str, key: str) -> HiveContent:
    command = [sys.executable, "-m", "keibi.agent.linux.registry", key]
    try:
        child = subprocess.run(command, stdin=memory, capture_output=True, timeout=MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise TryLaterError("hive_slow", f"the registry hive was not read within {MAX_SECONDS} seconds", where=path) from error
    if child.returncode == 0:
        prefix = escape_name(path) + "!"
        content = msgspec.msgpack.decode(child.stdout, type=HiveContent)
        return HiveContent(
            {prefix + name: attributes for name, attributes in content.keys.items()},
            {prefix + name: attributes for name, attributes in content.values.items()},
            content.problems,
        )
    said = escape_name(child.stderr[-300:].strip().rpartition(b"\n")[2])
    why = said or "the reader was killed"
    raise InputError("hive_damaged", f"this is not a registry hive that can be read: {why}", where=path)


def _parse(key: str) -> HiveContent:
    # Imported before the sandbox closes, since afterwards no file can be opened.
    from construct import ConstructError
    from regipy.exceptions import RegipyException, RegistryKeyNotFoundException
    from regipy.registry import RegistryHive

    for encoding in ("utf-16-le", "ascii", "utf-8"):
        codecs.lookup(encoding)
    with open("/proc/self/fd/0", "rb") as file:
        data = file.read()
    _confine()
    hive = _hive_from(data, RegistryHive)
    keys: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    if (missing := hive.header.hive_bins_data_size + 4096 - len(data)) > 0:
        problems.append(f"the file is {missing} bytes shorter than its header says: it is cut off")
    try:
        start = hive.get_key("\\" + key.strip("/").replace("/", "\\")) if key.strip("/") else hive.root
    except RegistryKeyNotFoundException:
        return HiveContent({}, {})
    pending = [(key.strip("/"), start)]
    seen: set[int] = set()
    while pending:
        path, record = pending.pop()
        try:
            subkeys = list(record.iter_subkeys() or ())
            found = list(record.iter_values(trim_values=False) or ())
        except (RegipyException, ConstructError, ValueError, KeyError, OverflowError) as error:
            problems.append(f"{escape_name(path)}: {error}")
            continue
        keys[escape_name(path)] = {
            "modified_at": record.header.last_modified,
            "value_count": record.values_count,
            "subkey_count": record.subkey_count,
        }
        for value in found:
            raw = value.value if isinstance(value.value, bytes) else repr(value.value).encode("utf-8", "surrogatepass")
            values[f"{escape_name(path)}//{escape_name(value.name)}"] = {
                "value_type": str(value.value_type),
                "size": len(raw),
                "contents": hashlib.sha256(raw).hexdigest(),
            }
        for subkey in subkeys:
            # A damaged or hostile hive can point back to a parent.
            if subkey.header.subkeys_list_offset != 0xFFFFFFFF and subkey.subkey_count:
                if subkey.header.subkeys_list_offset in seen:
                    problems.append(f"{escape_name(path)}: a key list is used twice (a loop)")
                    continue
                seen.add(subkey.header.subkeys_list_offset)
            pending.append((f"{path}/{subkey.name}" if path else subkey.name, subkey))
    return HiveContent(keys, values, problems[:100])


def _hive_from(data: bytes, hive_class: Any) -> Any:
    """Build a hive from bytes: the library only takes a path, and this process may open none."""
    from io import BytesIO

    from regipy.registry import NKRecord
    from regipy.structs import REGF_HEADER

    hive = hive_class.__new__(hive_class)
    hive.partial_hive_path = None
    hive.hive_type = None
    hive._stream = BytesIO(data)
    hive.header = REGF_HEADER.parse_stream(BytesIO(data))
    root_cell = next(hive.get_hbin_at_offset().iter_cells(hive._stream))
    hive.root = NKRecord(root_cell, hive._stream)  # type: ignore[no-untyped-call]
    hive.name = hive.header.file_name
    return hive


def _confine() -> None:
    sandbox.limit_resources(memory_bytes=_MAX_MEMORY_BYTES, cpu_seconds=MAX_SECONDS, file_bytes=0)
    if os.geteuid() == 0:
        sandbox.drop_privileges("nobody")
    else:
        sandbox.drop_capabilities()
    try:
        sandbox.restrict_files(readable=())
    except OSError:
        # A kernel before 5.13. The other walls stand: no capability, no socket, no program.
        pass
    sandbox.forbid_system_calls((*sandbox.NEVER_NEEDED, "socket", "execve", "execveat"))


def main() -> int:
    """Parse the hive on descriptor 0 and write a HiveContent as msgpack."""
    try:
        content = _parse(sys.argv[1])
    except Exception as error:  # noqa: BLE001  the edge of a process whose input is hostile
        print(f"{type(error).__name__}: {error}"[:300].replace("\n", " "), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
