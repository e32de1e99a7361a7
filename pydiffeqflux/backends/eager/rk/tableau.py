"""Butcher tableaus, and the stepper that runs any explicit one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...common.dense import HERMITE, Coefficients, Interpolant
from ...common.rhs import Rhs, Scalar
from ..stepper import Step, Terms, advance, arrive, combine, nonzero

Row = tuple[float, ...]


@dataclass(frozen=True)
class ExplicitTableau:
    """Coefficients of an explicit Runge-Kutta pair.

    Attributes:
        order: of the solution carried on.
        error_order: of the embedded solution (the controller's exponent is 1 / (error_order + 1)).
        c, a, b: nodes, strictly lower stage weights (``a[i]`` has i entries), and solution weights.
        error: weights of the error estimate, ``b - b_hat``; None for a fixed-step method.
        dense: interpolant weights, one row a stage, one column a power of theta from 1 on; None for the
            cubic Hermite interpolant.
        extra_c, extra_a: stages that only the interpolant uses, evaluated when it is built.
        error2: weights of a second estimate of the error (DOP853), to be blended with the first.
    """

    order: int
    error_order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row | None = None
    dense: tuple[Row, ...] | None = None
    extra_c: Row = ()
    extra_a: tuple[Row, ...] = ()
    error2: Row | None = None

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is f at the new point."""
        return self.c[-1] == 1.0 and self.a[-1] == self.b[:-1] and self.b[-1] == 0.0


def with_hermite(tab: ExplicitTableau) -> ExplicitTableau:
    """The tableau with its cubic Hermite interpolant spelled out in the slopes.

    Weights on the slopes need no ``(y1 - y) / dt``, which a step of size 0 (a row of a batch that is done) would
    turn into NaN.
    """
    stages = len(tab.c) + (0 if tab.fsal else 1)
    dense = np.zeros((stages, 3))
    dense[: len(tab.c)] = np.outer(tab.b, HERMITE[0])
    dense[0] += HERMITE[1]
    dense[-1] += HERMITE[2]
    extra = ((), ()) if tab.fsal else ((1.0,), (tab.b,))
    return replace(tab, dense=tuple(map(tuple, dense.tolist())), extra_c=extra[0], extra_a=extra[1])


def _blend(e5: Tensor, e3: Tensor) -> Tensor:
    """DOP853's estimate ``e5 |e5| / sqrt(|e5|^2 + 0.01 |e3|^2)``, a component at a time; 0 where both are."""
    size = e5.abs()
    norm = torch.hypot(size, 0.1 * e3.abs())
    # Clamping keeps 0 / 0 out, and lets NaN through.
    return e5 * (size / norm.clamp_min(torch.finfo(norm.dtype).tiny))


@dataclass
class ExplicitRK:
    """Steps an :class:`ExplicitTableau`. The carry is f at the current point."""

    tableau: ExplicitTableau
    implicit: bool = False

    def __post_init__(self) -> None:
        tab = self.tableau
        self.order = tab.order
        self.error_order = tab.error_order
        self.adaptive = tab.error is not None
        # All that a step can find ready: which weights count, at which nodes.
        self._fsal = tab.fsal
        moves = [advance] * (len(tab.c) - 1)
        if tab.fsal:
            moves[-1] = arrive
        self._stages = tuple(zip(tab.c[1:], map(nonzero, tab.a[1:]), moves, strict=True))
        self._b = nonzero(tab.b)
        self._errors: list[Terms] = [nonzero(e) for e in (tab.error, tab.error2) if e is not None]
        full = tab if tab.dense is not None else with_hermite(tab)
        assert full.dense is not None
        # Of the extra stages, one may be the new point: its state is there already (None).
        self._extra: tuple[tuple[float, Terms | None], ...] = tuple(
            (c, None if c == 1.0 and a == tab.b else nonzero(a))
            for c, a in zip(full.extra_c, full.extra_a, strict=True)
        )
        dense: Coefficients = np.array(full.dense, dtype=np.float64)
        self._used: list[int] = np.flatnonzero(dense.any(axis=1)).tolist()
        self._dense: Coefficients = dense[self._used]

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Tensor:
        return rhs(t, y)

    def slope(self, carry: Tensor) -> Tensor:
        return carry

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Tensor | None) -> Step:
        slopes = [rhs(t, y) if carry is None else carry]
        stage = y
        for c, terms, move in self._stages:
            stage = move(y, dt, terms, slopes)
            slopes.append(rhs(_node(t, dt, c), stage))
        y1 = stage if self._fsal else arrive(y, dt, self._b, slopes)
        return Step(
            y1=y1,
            error=self._error(dt, slopes),
            interpolant=lambda: self._interpolant(rhs, t, dt, y, y1, slopes),
            carry=slopes[-1] if self._fsal else None,
        )

    def _error(self, dt: Scalar, slopes: Sequence[Tensor]) -> Tensor | None:
        if not self._errors:
            return None
        with torch.no_grad():
            scale = dt if isinstance(dt, float) else 1.0
            parts = [combine(terms, slopes, scale) for terms in self._errors]
            error = parts[0] if len(parts) == 1 else _blend(*parts)
            return error if isinstance(dt, float) else error * dt

    def _interpolant(
        self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, y1: Tensor, slopes: Sequence[Tensor]
    ) -> Interpolant:
        every = list(slopes)
        for c, terms in self._extra:
            stage = y1 if terms is None else advance(y, dt, terms, every)
            every.append(rhs(_node(t, dt, c), stage))
        return Interpolant(y, [every[i] for i in self._used], self._dense, dt)


def _node(t: Scalar, dt: Scalar, c: float) -> Scalar:
    """``t + c * dt``; the end of the step to the last digit, for a model that is not defined beyond it."""
    return t + dt if c == 1.0 else t + c * dt
