"""The contract of an adjoint: a forward solve, and the gradient of a loss through it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ...common.dense import Piecewise
from ...common.stretch import Outcome
from .job import Job, Seeds


class Adjoint(ABC):
    """One algorithm. Made for one job; keeps from the forward pass what its backward pass wants."""

    #: Whether the forward solve must keep its dense output for the backward pass.
    needs_dense = False

    def __init__(self, job: Job):
        self.job = job
        self.pieces: Piecewise | None = None

    def forward(self, y0: Tensor) -> Outcome:
        """Solve forwards."""
        wanted = self.job.stretch.pieces
        self.pieces = Piecewise(1.0 if self.job.stretch.t1.value > self.job.t0 else -1.0) if self.needs_dense else None
        mark = len(wanted.steps) if wanted is not None else 0
        outcome = self.job.integrate(y0, self.pieces if wanted is None else wanted)
        if wanted is not None and self.pieces is not None:  # the user's dense output serves both
            for t, dt, piece in wanted.steps[mark:]:
                self.pieces.append(t, dt, piece)
            self.pieces.end = wanted.end
        return outcome

    @abstractmethod
    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        """The loss's gradient with respect to ``y0`` and to each of ``job.params``."""
