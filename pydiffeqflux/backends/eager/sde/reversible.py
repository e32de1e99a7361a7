"""BacksolveAdjoint of the reversible Heun method: its steps undone one after the other, the gradient exact.

Kidger, Foster, Li & Lyons (2021), "Efficient and accurate gradients for neural SDEs", arXiv:2105.13493.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....errors import UnsupportedError
from ...common.sde import Sde
from ...common.stretch import Outcome
from ..adjoints.adjoint import Adjoint
from ..adjoints.job import Job, Seeds
from ..integrate import Integration
from .reversible_heun import Companion, ReversibleHeunScheme, back, forth
from .scheme import Halved


class ReversibleBacksolve(Adjoint):
    """Keeps the sizes of the steps and the very last state; everything between comes back by reversal."""

    def __init__(self, job: Job):
        super().__init__(job)
        if job.settings.stops:
            raise UnsupportedError(
                "BacksolveAdjoint with reversible_heun and tstops: the method starts afresh at each of them, which"
                " cannot be undone; use DiscreteAdjoint(), or the method 'heun'."
            )
        self.steps: list[tuple[float, float]] = []
        self.loop: Integration | None = None

    def forward(self, y0: Tensor) -> Outcome:
        settings = self.job.settings
        self.job.settings = replace(settings, recorder=self._note)
        try:
            return super().forward(y0)
        finally:
            self.job.settings = settings

    @property
    def _scheme(self) -> ReversibleHeunScheme:
        stepper = self.job.stepper
        scheme = stepper.scheme if isinstance(stepper, Halved) else stepper
        assert isinstance(scheme, ReversibleHeunScheme)
        return scheme

    def _note(self, loop: Integration, dt: float, target: float | None) -> None:
        self.loop = loop
        if isinstance(self.job.stepper, Halved):
            half = 0.5 * dt
            self.steps += [(loop.t, half), (loop.t + half, loop.t + dt - (loop.t + half))]
        else:
            self.steps.append((loop.t, dt))

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        sde, params = self.job.rhs, self.job.params
        assert isinstance(sde, Sde) and self.loop is not None
        y, carry = y1, self.loop.carry
        of_y, of_carry = seeds.at_end, Companion(*(torch.zeros_like(x) for x in carry))
        mu = [torch.zeros_like(p) for p in params]
        due = len(self.job.ts) - 1
        for t, dt in reversed(self.steps):
            of_start = torch.zeros_like(y)
            while due >= 0 and self.job.ts[due] > t:
                # A saved state inside the step lies on the straight line between its ends.
                share = min((self.job.ts[due] - t) / dt, 1.0)
                of_y, of_start = of_y + share * seeds.at_saves[due], of_start + (1 - share) * seeds.at_saves[due]
                due -= 1
            w = sde.path.increment(t, dt)
            y, carry = back(sde, t, dt, w, y, carry)
            of_y, of_carry, more = _through(sde, params, t, dt, w, y, carry, of_y, of_carry)
            of_y = of_y + of_start
            mu = [a + b for a, b in zip(mu, more, strict=True)]
        while due >= 0:
            of_y = of_y + seeds.at_saves[due]
            due -= 1
        return self._at_the_start(sde, y0, of_y, of_carry, mu)

    def _at_the_start(
        self, sde: Sde, y0: Tensor, of_y: Tensor, of_carry: Companion, mu: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The companion starts as the state, with drift and diffusion there."""
        if self._scheme.given is not None:
            return of_y, mu
        with torch.enable_grad():
            at = y0.detach().requires_grad_()
            found = _grads(sde.both(self.job.t0, at), (at, *self.job.params), of_carry[:2])
        return of_y + of_carry.z + found[0], [a + b for a, b in zip(mu, found[1:], strict=True)]


def _through(
    sde: Sde,
    params: tuple[Tensor, ...],
    t: float,
    dt: float,
    w: Tensor,
    y: Tensor,
    carry: Companion,
    of_y: Tensor,
    of_carry: Companion,
) -> tuple[Tensor, Companion, list[Tensor]]:
    """The gradients of what a step started from, for those of what it came to."""
    with torch.enable_grad():
        at = [x.detach().requires_grad_() for x in (y, *carry)]
        y1, carry1 = forth(sde, t + dt, dt, w, at[0], Companion(*at[1:]))
        found = _grads((y1, *carry1), (*at, *params), (of_y, *of_carry))
    return found[0], Companion(*found[1:4]), found[4:]


def _grads(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], seeds: tuple[Tensor, ...]) -> list[Tensor]:
    pairs = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        [o for o, _ in pairs], inputs, [s for _, s in pairs], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
