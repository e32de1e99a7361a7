"""Which backends there are, and which one ``"auto"`` means."""

from __future__ import annotations

from ..errors import BackendUnavailableError, UnknownNameError
from .backend import Backend

NAMES = ("auto", "torch", "eager", "compiled", "julia")


def get(name: str) -> Backend:
    """The backend called ``name``; ``"auto"`` is the native one where Julia is not set up.

    Raises:
        UnknownNameError: none of that name.
        BackendUnavailableError: it cannot run here; the message says how to get it.
    """
    if name in ("auto", "torch"):
        from .native import NativeBackend

        return NativeBackend()
    if name == "eager":
        from .eager.engine import EagerBackend

        return EagerBackend()
    if name == "compiled":
        from . import native

        if not native.available():
            raise BackendUnavailableError("backend='compiled' needs llvmlite: pip install llvmlite.")
        from .compiled.engine import CompiledBackend

        return CompiledBackend()
    if name == "julia":
        raise BackendUnavailableError(
            "backend='julia' is not part of this release of pydiffeqflux: upgrade once the changelog lists it"
            " (pip install --upgrade pydiffeqflux), and solve with backend='torch' until then."
        )
    raise UnknownNameError("backend", name, NAMES)
