"""The forward solution during a backward pass: kept densely, or solved again between checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ....problem import TimePoint
from ...common.dense import Piecewise
from ...common.rhs import Rhs
from ..integrate import Counts, Integration
from .job import Job

Piece = tuple[float, float, Tensor | None, int | None]


class ForwardPath:
    """``path(t)`` is y(t).

    Without ``pieces`` the states at the saved times are the checkpoints: :meth:`split` then announces each
    interval between two of them, and the solution on it is computed again, densely, when it is entered.
    """

    def __init__(self, job: Job, pieces: Piecewise | None, y0: Tensor, ys: Tensor):
        self.job = job
        self.pieces = pieces
        self.recompute = pieces is None
        #: Knows the numbers behind the times that it hands out: the right-hand side of the backward solve.
        self.clock: Rhs | None = None
        self._checkpoints = [(job.t0, y0)]
        self._checkpoints += [(t, y) for t, y in zip(job.ts, ys, strict=True) if t != job.t0]

    def __call__(self, t: Tensor | float) -> Tensor:
        assert self.pieces is not None
        first, last = sorted(self.pieces.span)
        if isinstance(t, Tensor) and t.requires_grad:  # an implicit method wants the derivative in time
            return self.pieces.at_tensor(t.clamp(first, last))
        # A float32 time may round a little past the end of the span.
        number = self.clock.number(t) if isinstance(t, Tensor) and self.clock is not None else float(t)
        return self.pieces(min(max(number, first), last))

    def split(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The backward stretches, cut at the checkpoints where the solution has to be computed again."""
        if not self.recompute:
            yield from pieces
            return
        sign = 1.0 if self.job.t1 > self.job.t0 else -1.0
        for t, s, jump, index in pieces:
            inside = [c for c in self._checkpoints if s * sign < c[0] * sign < t * sign]
            start = max((c for c in self._checkpoints if c[0] * sign <= s * sign), key=lambda c: c[0] * sign)
            legs = [start, *inside]
            for time, state in reversed(legs):
                self._solve_again(time, state, t)
                stop = max(time * sign, s * sign) * sign
                last = (time, state) == legs[0] or time == legs[0][0]
                yield t, stop, jump if last else None, index if last else None
                t = stop

    def _solve_again(self, t: float, y: Tensor, end: float) -> None:
        job = self.job
        self.pieces = Piecewise(1.0 if end > t else -1.0)
        if t == end:
            return
        with torch.no_grad():
            Integration(
                job.rhs,
                job.stepper,
                job.settings,
                TimePoint(t),
                TimePoint(end),
                None,
                counts=Counts(),
                pieces=self.pieces,
            ).run(y)
