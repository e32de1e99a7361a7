"""Which backends there are, and which one ``"auto"`` means."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..errors import BackendUnavailableError, UnknownNameError
from .backend import Backend

NAMES = ("auto", "torch", "eager", "compiled", "captured", "julia", "diffeqflux")


def get(name: str) -> Backend:
    """The backend called ``name``; ``"auto"`` is the native one unless Julia was set up to be preferred.

    Raises:
        UnknownNameError: none of that name.
        BackendUnavailableError: it cannot run here; the message says how to get it.
    """
    if name == "auto":
        name = "julia" if _julia_preferred() else "torch"
    if name == "torch":
        return _native()
    if name == "eager":
        from .eager.engine import EagerBackend

        return EagerBackend()
    if name == "captured":
        from .eager.captured import CapturedBackend

        return CapturedBackend()
    if name == "compiled":
        if not _compilable()():
            raise BackendUnavailableError("backend='compiled' needs llvmlite: pip install llvmlite.")
        return _compiled()
    if name == "julia":
        from .julia.engine import JuliaBackend

        return JuliaBackend()
    if name == "diffeqflux":
        from .julia.door import DiffEqFluxBackend

        return DiffEqFluxBackend()
    raise UnknownNameError("backend", name, NAMES)


# Remembered: an import inside a function is looked up anew each time, and solves are many.


@functools.cache
def _native() -> Backend:
    from .native import NativeBackend

    return NativeBackend()


@functools.cache
def _compiled() -> Backend:
    from .compiled.engine import CompiledBackend

    return CompiledBackend()


@functools.cache
def _compilable() -> Callable[[], bool]:
    from . import native

    return lambda: native.available()


@functools.cache
def _julia_preferred() -> bool:
    from .julia import configuration

    found = configuration.read()
    return found is not None and found.prefer
