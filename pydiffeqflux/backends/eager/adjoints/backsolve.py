"""BacksolveAdjoint: state, adjoint and parameter gradient solved backwards together."""

from __future__ import annotations

import torch
from torch import Tensor

from ....sensealg import BacksolveAdjoint
from .adjoint import Adjoint
from .job import Seeds
from .sweep import Reverse, largest_of, stretches


class Backsolve(Adjoint):
    """d/dt (y, lambda, mu) = (f, -lambda df/dy, -lambda df/dp)."""

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        job = self.job
        sense = job.sensealg
        assert isinstance(sense, BacksolveAdjoint)
        vjp = job.vjp

        def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            y, lam = state[:2]
            f, v_y, v_p = vjp(t, y, -lam)
            assert v_y is not None
            return (f, v_y, *v_p)

        lam, y = seeds.at_end, y1
        mu = [torch.zeros_like(p) for p in job.params]
        width = y0.numel() * (2 if y0.is_complex() and mu else 1)
        every = largest_of(width, width)
        norm = (lambda z: every(z[: 2 * width])) if sense.seminorm else every
        reverse = Reverse(job, augmented, (y, lam, *mu), norm=norm)
        for t, s, jump, index in stretches(job, seeds):
            y, lam, *mu = reverse.run((y, lam, *mu), t, s)
            if jump is not None and index is not None:
                lam = lam + jump
                if sense.checkpointing:
                    y = ys[index]
        return lam, mu
