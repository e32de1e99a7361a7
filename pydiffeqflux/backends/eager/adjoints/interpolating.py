"""InterpolatingAdjoint: adjoint and parameter gradient backwards along the forward solution's dense output."""

from __future__ import annotations

import torch
from torch import Tensor

from .adjoint import Adjoint
from .forward_path import ForwardPath
from .job import Seeds
from .jumps import Jumps
from .sweep import Reverse, largest_of, stretches


class Interpolating(Adjoint):
    """d/dt (lambda, mu) = (-lambda df/dy, -lambda df/dp) at y(t) read off the forward solution."""

    @property
    def needs_dense(self) -> bool:  # type: ignore[override]
        return not self.job.sensealg.checkpointing  # type: ignore[attr-defined]

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        job = self.job
        vjp = job.vjp
        path = ForwardPath(job, self.pieces, y0, ys)

        def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            _, v_y, v_p = vjp(t, path(t), -state[0])
            assert v_y is not None
            return (v_y, *v_p)

        jumps = Jumps(job)
        mu = [torch.zeros_like(p) for p in job.params]
        lam, mu = jumps.take(job.t1, y1, torch.zeros_like(y1), mu, seeds.at_end)
        width = y0.numel() * (2 if y0.is_complex() and mu else 1)
        mass = jumps.matrix(sum(p.numel() for p in mu))
        reverse = Reverse(job, augmented, (lam, *mu), norm=largest_of(width), mass=mass)
        path.clock = reverse.rhs
        for t, s, jump, index in path.split(stretches(job, seeds)):
            lam, *mu = reverse.run((lam, *mu), t, s)
            if jump is not None and index is not None:
                lam, mu = jumps.take(s, ys[index], lam, mu, jump)
        return jumps.at_start(lam), mu
