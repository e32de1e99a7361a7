"""The sensitivity algorithms in SciMLSensitivity's words."""

from __future__ import annotations

from dataclasses import dataclass

from ... import sensealg as sensealgs
from ...errors import UnsupportedError
from ...sensealg import SenseAlg
from .session import Session


@dataclass(frozen=True)
class Sensitivity:
    """A sensitivity algorithm that Julia holds; the tolerances of its backward solve where they differ."""

    handle: int
    name: str
    rtol: float | None
    atol: float | None


#: The algorithm where none was named: SciMLSensitivity's own recommendation.
DEFAULT = sensealgs.GaussAdjoint()


class Sensitivities:
    """Julia's sensitivity algorithms, each made once."""

    def __init__(self, session: Session):
        self._session = session
        self._known: dict[SenseAlg, Sensitivity] = {}

    def get(self, chosen: SenseAlg) -> Sensitivity:
        """The algorithm that ``chosen`` describes.

        Raises:
            UnsupportedError: SciMLSensitivity has none, or not with these options.
        """
        if chosen not in self._known:
            handle = self._session.call("bridge_sensitivity", chosen.name, _options(chosen))
            rtol, atol = (getattr(chosen, name, None) for name in ("rtol", "atol"))
            self._known[chosen] = Sensitivity(handle, chosen.name, rtol, atol)
        return self._known[chosen]


def _options(chosen: SenseAlg) -> str:
    """Its options as Julia writes keyword arguments."""
    if getattr(chosen, "method", None) is not None:
        raise UnsupportedError(
            f"sensealg={chosen.name}(method={chosen.method}): SciMLSensitivity solves backwards with the forward"  # type: ignore[attr-defined]
            f" method; leave method out, or use backend='torch'."
        )
    if isinstance(chosen, sensealgs.QuadratureAdjoint):
        return f"abstol = {chosen.abstol!r}, reltol = {chosen.reltol!r},"
    if isinstance(chosen, sensealgs.BacksolveAdjoint):
        if chosen.seminorm:
            raise UnsupportedError("sensealg=BacksolveAdjoint(seminorm=True) exists on backend='torch' only.")
        return f"checkpointing = {_julia(chosen.checkpointing)},"
    if isinstance(chosen, sensealgs.InterpolatingAdjoint | sensealgs.GaussAdjoint):
        return f"checkpointing = {_julia(chosen.checkpointing)},"
    raise UnsupportedError(
        f"sensealg={chosen.name} does not exist on backend='julia': take GaussAdjoint (the default there),"
        f" InterpolatingAdjoint, QuadratureAdjoint or BacksolveAdjoint, or backend='torch'."
    )


def _julia(truth: bool) -> str:
    return "true" if truth else "false"
