"""The functions of the C++ libraries: arguments and results, as its sources declare them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

POINTER, LONG, REAL, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
REASON = ctypes.c_char_p
"""Result of a function that looks at sizes again before it computes an address: null, or what does not fit."""

Entries = dict[str, tuple[Any, list[Any]]]
ENTRIES: Entries = {
    'block': (REASON, [*[POINTER] * 2, LONG, *[POINTER] * 2, *[LONG] * 3, POINTER, LONG, INT, POINTER]),
    'embed': (REASON, [*[POINTER] * 2, *[LONG] * 4, POINTER, LONG, INT]),
    'embed_bytes': (REASON, [*[POINTER] * 4, *[LONG] * 3, POINTER, LONG, INT]),
    'merge': (REASON, [*[POINTER] * 2, *[LONG] * 4, POINTER, LONG, INT]),
    'output': (REASON, [*[POINTER] * 3, REAL, *[LONG] * 3, POINTER, LONG, INT]),
    'output_codes': (REASON, [*[POINTER] * 3, *[REAL] * 2, *[LONG] * 2, POINTER, LONG, INT]),
    'layer': (REASON, [*[POINTER] * 2, *[LONG] * 4, POINTER, LONG, INT]),
    'look': (INT, [POINTER, *[LONG] * 5, POINTER]),
    'rank': (REASON, [POINTER, LONG, POINTER, *[LONG] * 4, REAL, *[POINTER] * 4, INT]),
    'assign': (LONG, [POINTER, LONG, POINTER, *[LONG] * 2, *[POINTER] * 4]),
    'matrix_tiles': (INT, [INT]),
    'instructions': (INT, []),
}
PORTABLE_ENTRIES: Entries = {
    'roi_align': (REASON, [*[POINTER] * 2, *[INT] * 3]),
    'roi_align_backward': (REASON, [*[POINTER] * 2, INT]),
    'nms': (LONG, [*[POINTER] * 2]),
    'paste_masks': (None, [*[POINTER] * 2, INT]),
    'to_codes': (None, [POINTER, *[LONG] * 2, POINTER, *[REAL] * 3, POINTER, INT]),
}


def bind(library: ctypes.CDLL, name: str, entries: Entries) -> Callable[..., Any]:
    """The function ``mixaq_<name>``; where it gives a reason, that is raised as a ValueError."""
    function = getattr(library, f'mixaq_{name}')
    function.restype, function.argtypes = entries[name]
    if function.restype is REASON:
        function.errcheck = _raise_reason
    return function


def _raise_reason(reason: bytes | None, function: Any, arguments: Any) -> None:
    if reason is not None:
        raise ValueError(f'the kernels refuse their input: {reason.decode()}')
