"""libbpf by ctypes: loads compiled kernel programs and attaches them."""

import ctypes
from typing import Any

from keibi.errors import TryLaterError

SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
"""Called with a context, and with the address and length of a record of a ring buffer."""


def load_libbpf() -> Any:
    """Return libbpf, with the signatures of what is used and its own printing switched off.

    Raises:
        TryLaterError: it is not installed.
    """
    try:
        libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise TryLaterError("libbpf_absent", f"libbpf cannot be used: {error}", hint="apt-get install libbpf1") from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("bpf_object__open", pointer, [text]),
        ("bpf_object__load", number, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_program_by_name", pointer, [pointer, text]),
        ("bpf_object__find_map_fd_by_name", number, [pointer, text]),
        ("bpf_program__attach", pointer, [pointer]),
        ("bpf_program__set_autoload", number, [pointer, ctypes.c_bool]),
        ("bpf_link__destroy", number, [pointer]),
        ("bpf_link__fd", number, [pointer]),
        ("bpf_map_lookup_elem", number, [number, pointer, pointer]),
        ("ring_buffer__new", pointer, [number, SAMPLE, pointer, pointer]),
        ("ring_buffer__epoll_fd", number, [pointer]),
        ("ring_buffer__consume", number, [pointer]),
        ("ring_buffer__free", None, [pointer]),
        ("libbpf_set_print", pointer, [pointer]),
    ):
        function = getattr(libbpf, name)
        function.restype, function.argtypes = result, arguments
    libbpf.libbpf_set_print(None)  # its lines would go to standard error without our escaping
    return libbpf
