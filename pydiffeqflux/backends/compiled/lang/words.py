"""The types and the words of the language that Python has none for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

#: Flat arrays: of the state's dtype, of double precision, of integers.
Reals = np.ndarray[Any, Any]
Wide = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
#: A number of the state's dtype.
Real = float

_F = TypeVar("_F", bound=Callable[..., Any])


def apart(function: _F) -> _F:
    """A function that is called where others are inlined: what is called from many places is compiled only once."""
    function.apart = True  # type: ignore[attr-defined]
    return function


def real(x: float) -> Real:
    """``x``, rounded to the state's dtype."""
    raise NotImplementedError("a word of the compiled language")


def kernel(address: int, *args: Any) -> None:
    """Call the compiled function at ``address``; it returns nothing."""
    raise NotImplementedError("a word of the compiled language")


def reals_at(address: int) -> Reals:
    """The array of the state's dtype at an address."""
    raise NotImplementedError("a word of the compiled language")


def wide_at(address: int) -> Wide:
    """The array of double precision at an address."""
    raise NotImplementedError("a word of the compiled language")


def ints_at(address: int) -> Ints:
    """The array of integers at an address."""
    raise NotImplementedError("a word of the compiled language")


def gemm(
    turned_a: int, turned_b: int, m: int, n: int, k: int, a: Reals, lda: int, b: Reals, ldb: int, c: Reals, ldc: int
) -> None:  # fmt: skip
    """The BLAS routine of this name: ``c = a b``, columns first; all integers literal."""
    raise NotImplementedError("a word of the compiled language")


def peek(x: Ints, k: int) -> int:
    """``x[k]``, which another thread may write to: what it wrote before ``poke`` is seen from then on."""
    raise NotImplementedError("a word of the compiled language")


def poke(x: Ints, k: int, value: int) -> None:
    """``x[k] = value``, for other threads to ``peek`` at."""
    raise NotImplementedError("a word of the compiled language")


def bits(x: float) -> int:
    """The bits of ``x`` as an integer (32 of them in single precision)."""
    raise NotImplementedError("a word of the compiled language")


def from_bits(x: int) -> Real:
    """The number of the state's dtype with these bits."""
    raise NotImplementedError("a word of the compiled language")


def wide_from_bits(x: int) -> float:
    """The double-precision number with these bits."""
    raise NotImplementedError("a word of the compiled language")


def is_single() -> bool:
    """Whether the state's dtype is single precision: known when compiling."""
    raise NotImplementedError("a word of the compiled language")


def select(condition: bool, a: float, b: float) -> float:
    """``a`` or ``b``, both computed: no branch, so that a loop around it can be vectorised."""
    raise NotImplementedError("a word of the compiled language")
