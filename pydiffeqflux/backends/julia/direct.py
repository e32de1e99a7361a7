"""Julia's functions that are called in every iteration, as C functions; see ``julia/src/direct.jl``.

A call by address with one struct costs a microsecond, by juliacall with twenty arguments fifty.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_INT, _FLOAT = ctypes.c_int64, ctypes.c_double


def _fields(ints: str, floats: str) -> list[tuple[str, Any]]:
    return [(name, _INT) for name in ints.split()] + [(name, _FLOAT) for name in floats.split()]


class Ask(ctypes.Structure):
    """What to solve. Zero stands for what there is none of."""

    _fields_ = _fields(
        "main equation alg sensealg options watch points everystep dense maxiters nsaves saves nstops stops ntol rtol"
        " atol y0 p c i us last",
        "t0 t1",
    )


class Came(ctypes.Structure):
    """What came of it."""

    _fields_ = _fields("run count retcode nf naccept nreject njac finite event", "t")


class Pull(ctypes.Structure):
    """Which gradient."""

    _fields_ = _fields("main run alg sensealg seeds du0 dp c i", "rtol atol")


class Evaluation(ctypes.Structure):
    """One evaluation of a right-hand side."""

    _fields_ = _fields("main kernels y p c i out", "t")


class Entries:
    """The functions, each returning 0, or another number where it failed.

    Args:
        addresses: what ``bridge_entries`` returns.
    """

    def __init__(self, addresses: tuple[int, ...]):
        solve, pull, evaluate, release, park, unpark = addresses
        pointer = ctypes.c_void_p
        one = ctypes.CFUNCTYPE(ctypes.c_int, pointer)
        two = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer)
        self.solve: Callable[..., int] = two(solve)
        self.pull: Callable[..., int] = one(pull)
        self.evaluate: Callable[..., int] = one(evaluate)
        self.release: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int, pointer, _INT)(release)
        #: By these the calling thread says that it leaves Julia for a while, and that it is back: the collector waits
        #: for every thread that has not left.
        self.park: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_int8)(park)
        self.unpark: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_int8)(unpark)


class Signals:
    """Python's functions by which Julia has signal handlers run, and the exception that one of them raised."""

    def __init__(self) -> None:
        self._raised = (ctypes.c_void_p * 3)()

    @property
    def addresses(self) -> list[int]:
        """As ``bridge_watch`` takes them."""
        api = ctypes.pythonapi
        functions = (api.PyGILState_Ensure, api.PyErr_CheckSignals, api.PyErr_Fetch, api.PyGILState_Release)
        found = [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions]
        return [*found, ctypes.addressof(self._raised)]

    def reraise(self) -> None:
        """Raise the exception, if there is one."""
        if self._raised[0]:
            exception = list(self._raised)
            self._raised[:] = [None] * 3
            restore = ctypes.pythonapi.PyErr_Restore
            restore.argtypes = [ctypes.c_void_p] * 3
            restore.restype = None
            restore(*exception)  # raises: ctypes looks for an exception after every call of Python's own functions
