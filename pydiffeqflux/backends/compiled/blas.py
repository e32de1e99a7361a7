"""The matrix product of the BLAS library that torch brings along (or else SciPy): the same one that eager torch calls.

Compiled code calls it by a name of ours, which every process looks up for itself.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .lang.expressions import GEMM

log = logging.getLogger("pydiffeqflux")


@functools.cache
def addresses() -> dict[str, int] | None:
    """Where the products are, by ``GEMM``; None where there is none that computes what it should."""
    for library in (_torch, _scipy):
        found = {}
        for single, name in GEMM.items():
            address = library("sgemm" if single else "dgemm")
            if address is None or not _multiplies(address, single):
                break
            found[name] = address
        else:
            return found
    log.info("no BLAS library was found: large matrix products are compiled loops")
    return None


def _torch(name: str) -> int | None:
    folder = Path(torch.__file__).parent / "lib"
    for path in _libraries(folder):
        try:
            return ctypes.cast(getattr(ctypes.CDLL(str(path)), name + "_"), ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def _libraries(folder: Path) -> Iterator[Path]:
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            yield folder / name


def _scipy(name: str) -> int | None:
    try:
        from scipy.linalg import cython_blas
    except ImportError:
        return None
    capsule = cython_blas.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address: int | None = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return address


def _multiplies(address: int, single: bool) -> bool:
    """Whether it takes integers of 32 bits, as compiled code hands them over, and gets a product right."""
    real = ctypes.c_float if single else ctypes.c_double
    # Columns first: (2, 3) times (3, 2), the high halves of the integers' neighbourhood not zero.
    sizes = [(ctypes.c_int32 * 2)(n, -1) for n in (2, 2, 3, 2, 3, 2)]
    m, n, k, lda, ldb, ldc = (ctypes.byref(x) for x in sizes)
    a, b, c = (real * 6)(*range(1, 7)), (real * 6)(*range(2, 8)), (real * 4)()
    one, zero, plain = ctypes.byref(real(1.0)), ctypes.byref(real(0.0)), ctypes.c_char_p(b"N")
    call: Callable[..., Any] = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(address)
    as_is = ctypes.cast(plain, ctypes.c_void_p)
    call(as_is, as_is, m, n, k, one, a, lda, b, ldb, zero, c, ldc)
    return list(c) == [31.0, 40.0, 58.0, 76.0]
