"""ForwardSensitivity: the derivatives of the state are solved for next to it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....errors import UnsupportedError
from ....state import pack
from ...common.rhs import Rhs
from ...common.stretch import Outcome
from ..catalogue import stepper_for
from .adjoint import Adjoint
from .job import Seeds


class Forward(Adjoint):
    """d/dt (y, S) = (f, (df/dy) S + [0, df/dp]) for S = d(y)/d(y0, p), one column a derivative."""

    def forward(self, y0: Tensor) -> Outcome:
        job = self.job
        if y0.is_complex():
            raise UnsupportedError("ForwardSensitivity needs a real state; use DiscreteAdjoint() for a complex one.")
        if job.events:
            raise UnsupportedError("ForwardSensitivity has no events; use DiscreteAdjoint() or GaussAdjoint().")
        n = y0.numel()
        self._sizes = [p.numel() for p in job.params]
        vjp = job.vjp

        def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            y, columns = state
            f, dfdy, dfdp = vjp.rows(t, y)
            source = torch.cat([f.new_zeros(n, n), *(g.reshape(n, -1) for g in dfdp)], dim=1)
            return f, dfdy @ columns + source

        start = torch.cat([torch.eye(n, dtype=y0.dtype, device=y0.device), y0.new_zeros(n, sum(self._sizes))], dim=1)
        packed, spec = pack((y0, start))
        assert spec is not None
        rhs = Rhs(augmented, spec, packed)
        wide = replace(
            job,
            rhs=rhs,
            stepper=stepper_for(job.method, job.settings.tol),
            params=(),
        )
        outcome = wide.integrate(packed, None)
        job.rhs.nf += rhs.nf
        if job.stretch.pieces is not None:
            # The dense output is the state's own: solve once more, for it alone.
            job.integrate(y0, job.stretch.pieces)
        unpacked = [spec.unflatten(z) for z in (outcome.saved or outcome.step_states)]
        self._at_saves = [columns for _, columns in unpacked]
        y1, self._at_end = spec.unflatten(outcome.y1)
        states = [y for y, _ in unpacked]
        if outcome.saved:
            return replace(outcome, y1=y1, saved=states)
        return replace(outcome, y1=y1, step_states=states)

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        total = seeds.at_end.reshape(-1) @ self._at_end
        for g, columns in zip(seeds.at_saves, self._at_saves, strict=True):
            total = total + g.reshape(-1) @ columns
        n = y0.numel()
        pieces = total[n:].split(self._sizes)
        return total[:n].reshape(y0.shape), [
            g.reshape(p.shape).to(p.dtype) for g, p in zip(pieces, self.job.params, strict=True)
        ]
