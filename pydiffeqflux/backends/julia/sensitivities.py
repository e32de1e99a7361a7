"""The sensitivity algorithms in SciMLSensitivity's words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ... import sensealg as sensealgs
from ...errors import UnsupportedError
from ...sensealg import SenseAlg
from .session import Session


@dataclass(frozen=True)
class Sensitivity:
    """A sensitivity algorithm that Julia holds.

    Attributes:
        rtol, atol: the tolerances of its backward solve where they differ.
        quadrature: relative and absolute tolerance of its quadrature, where it has these. SciMLSensitivity knows one
            pair for both: the tighter ones are taken.
        needs: the traced functions that it calls.
        plain: it calls the right-hand side with plain numbers only.
    """

    handle: int
    name: str
    rtol: float | None
    atol: float | None
    needs: tuple[str, ...]
    plain: bool
    quadrature: tuple[float, float] = (math.inf, math.inf)

    def tolerances(self, rtol: float, atol: float) -> tuple[float, float]:
        """Those of the backward solve, given the forward solve's."""
        pairs = zip((self.rtol or rtol, self.atol or atol), self.quadrature, strict=True)
        # A quadrature that is to be exact never ends.
        wanted = [min(mine, its) if its > 0 else mine for mine, its in pairs]
        return wanted[0], wanted[1]


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
            traced = getattr(chosen, "products", None) == "traced" or isinstance(chosen, sensealgs.ForwardSensitivity)
            needs = ("vjp", "vjp_y") if traced else ("vjp",) if getattr(chosen, "products", "") == "zygote" else ()
            quadrature = (math.inf, math.inf)
            if isinstance(chosen, sensealgs.QuadratureAdjoint):
                quadrature = chosen.reltol, chosen.abstol
            self._known[chosen] = Sensitivity(handle, chosen.name, rtol, atol, needs, traced, quadrature)
        return self._known[chosen]


def _options(chosen: SenseAlg) -> str:
    """Its options as Julia writes keyword arguments."""
    if isinstance(chosen, sensealgs.DiscreteAdjoint):
        if chosen.checkpoints is not None or chosen.second_order:
            raise UnsupportedError(
                f"sensealg={chosen}: on backend='julia' DiscreteAdjoint is ReverseDiffAdjoint, one tape without"
                f" options; leave them out, or take GaussAdjoint(), whose memory does not grow so, or backend='torch'."
            )
        return ""
    if isinstance(chosen, sensealgs.ForwardDiffSensitivity):
        return "" if chosen.chunk_size is None else f"chunk_size = {chosen.chunk_size},"
    if isinstance(chosen, sensealgs.ForwardSensitivity | sensealgs.ReverseDiffAdjoint | sensealgs.TrackerAdjoint):
        return ""
    if getattr(chosen, "method", None) is not None:
        raise UnsupportedError(
            f"sensealg={chosen.name}(method={chosen.method}): SciMLSensitivity solves backwards with the forward"  # type: ignore[attr-defined]
            f" method; leave method out, or use backend='torch'."
        )
    products = getattr(chosen, "products", "traced")
    said = f"autojacvec = {_quoted(products)},"
    if isinstance(chosen, sensealgs.QuadratureAdjoint):
        return f"{said} abstol = {chosen.abstol!r}, reltol = {chosen.reltol!r},"
    if isinstance(chosen, sensealgs.BacksolveAdjoint) and chosen.seminorm:
        raise UnsupportedError("sensealg=BacksolveAdjoint(seminorm=True) exists on backend='torch' only.")
    return f"{said} checkpointing = {_julia(chosen.checkpointing)},"  # type: ignore[attr-defined]


def _quoted(text: str) -> str:
    return f'"{text}"'


def _julia(truth: bool) -> str:
    return "true" if truth else "false"
