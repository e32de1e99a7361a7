"""BacksolveAdjoint for stochastic equations: state, adjoint and parameter gradient solved backwards together.

In Stratonovich form the chain rule is the ordinary one, and reversing time changes nothing but its direction, so the
adjoint of ``dy = f dt + g o dW`` is ``d(lambda) = -lambda df/dy dt - lambda dg/dy o dW``, driven by the same Brownian
path: Li, Wong, Chen & Duvenaud (2020), "Scalable gradients for stochastic differential equations". An Ito equation
is turned into its Stratonovich form first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .... import sde_methods
from ....errors import UnsupportedError
from ....problem import TimePoint
from ....sde_methods import SDEMethod
from ....sensealg import BacksolveAdjoint
from ....state import StateSpec, pack
from ...common.failure import failure
from ...common.rhs import Scalar
from ...common.sde import Sde
from ...common.stretch import Outcome
from ...common.tolerances import Tolerances
from ..adjoints.adjoint import Adjoint
from ..adjoints.job import Job, Seeds
from ..adjoints.sweep import largest_of, scalar, stretches
from ..integrate import Counts, Integration
from .euler_heun import EulerHeunScheme
from .heun import HeunScheme
from .midpoint import MidpointScheme
from .scheme import Halved, Scheme

#: What can be stepped backwards along products of the diffusion with noise, without the diffusion itself.
_BACKWARD: dict[type[SDEMethod], type[Scheme]] = {
    sde_methods.SDEMidpoint: MidpointScheme,
    sde_methods.SDEHeun: HeunScheme,
    sde_methods.EulerHeun: EulerHeunScheme,
}


def backward_method(method: Any) -> SDEMethod:
    """The method of the backward solve: the midpoint rule where none is asked for.

    Raises:
        UnsupportedError: a method that cannot solve the adjoint equation.
    """
    chosen = sde_methods.SDEMidpoint() if method is None else sde_methods.resolve(method)
    if type(chosen) not in _BACKWARD:
        raise UnsupportedError(
            f"BacksolveAdjoint(method={chosen}): the adjoint of an SDE is solved in Stratonovich form, by products of"
            f" its diffusion with noise; use one of {', '.join(kind.name for kind in _BACKWARD)}."
        )
    return chosen


class Augmented(Sde):
    """The equation of ``(y, lambda, mu)``, all of it in one vector; it is its increments that are computed."""

    def __init__(self, sde: Sde, params: Sequence[Tensor], spec: StateSpec, like: Tensor):
        super().__init__(sde.func, sde.diffuse, like, "general", "stratonovich")
        self.sde, self.params, self.spec_of = sde, tuple(params), spec
        self.path = sde.path

    def flow(self, t: Scalar, y: Tensor, dt: float, w: Tensor) -> Tensor:
        return self._increment(t, y, lambda f, noise: f * dt + noise, w)

    def both_product(self, t: Scalar, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return self._increment(t, y, lambda f, noise: f, w), self.product(t, y, w)

    def product(self, t: Scalar, y: Tensor, w: Tensor) -> Tensor:
        return self._increment(t, y, lambda f, noise: noise, w)

    def _increment(self, t: Scalar, z: Tensor, combine: Any, w: Tensor) -> Tensor:
        y, lam = self.spec_of.unflatten(z)[:2]
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            moved = combine(*self.sde.stratonovich_product(t, at, w))
            inputs = (at, *self.params)
            grads: Sequence[Tensor | None] = (None,) * len(inputs)
            if moved.requires_grad:
                # The graph before the captured tensors is shared by all evaluations: it must survive.
                grads = torch.autograd.grad(moved, inputs, -lam, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
        return self.spec_of.flatten((moved.detach(), *filled))


class StochasticBacksolve(Adjoint):
    """Backwards along the steps of the forward solve, or (with tolerances of its own) along adaptive ones."""

    def __init__(self, job: Job):
        super().__init__(job)
        assert isinstance(job.sensealg, BacksolveAdjoint)
        self.sense = job.sensealg
        self.method = backward_method(self.sense.method)
        #: Where the forward solve's steps ended.
        self.ends: list[float] = []

    def forward(self, y0: Tensor) -> Outcome:
        settings = self.job.settings
        self.job.settings = replace(settings, recorder=self._note)
        try:
            return super().forward(y0)
        finally:
            self.job.settings = settings

    def _note(self, loop: Integration, dt: float, target: float | None) -> None:
        self.ends.append(loop.t + dt if target is None else target)

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        job = self.job
        y, lam, mu = y1, seeds.at_end, [torch.zeros_like(p) for p in job.params]
        like, spec = pack((y, lam, *mu))
        assert spec is not None and isinstance(job.rhs, Sde)
        self.augmented = Augmented(job.rhs, job.params, spec, like)
        for t, s, jump, index in stretches(job, seeds):
            z = self._run(spec.flatten((y, lam, *mu)), t, s, y0.numel())
            y, lam, *mu = spec.unflatten(z)
            if jump is not None and index is not None:
                lam = lam + jump
                if self.sense.checkpointing:
                    y = ys[index]
        return lam, mu

    def _run(self, z: Tensor, t: float, s: float, width: int) -> Tensor:
        if t == s:
            return z
        scheme = _BACKWARD[type(self.method)]()
        if self.method.adaptive or self.sense.rtol is not None or self.sense.atol is not None:
            return self._adaptive(Halved(scheme), z, t, s, width)
        between = [end for end in reversed(self.ends) if s < end < t]
        for start, end in zip([t, *between], [*between, s], strict=True):
            z, _, _ = scheme.move(self.augmented, start, end - start, z, None)
        return z

    def _adaptive(self, scheme: Scheme, z: Tensor, t: float, s: float, width: int) -> Tensor:
        forward = self.job.settings
        rtol = scalar(forward.tol.rtol) if self.sense.rtol is None else self.sense.rtol
        atol = scalar(forward.tol.atol) if self.sense.atol is None else self.sense.atol
        every = largest_of(width, width)
        norm = (lambda x: every(x[: 2 * width])) if self.sense.seminorm else every
        settings = replace(
            forward,
            tol=Tolerances(rtol, atol, norm),
            dt=abs(t - s) / 10,
            recorder=None,
            progress=None,
        )
        out = Integration(self.augmented, scheme, settings, TimePoint(t), TimePoint(s), None, counts=Counts()).run(z)
        if not out.status.ok:
            raise failure(out.status, f"in the backward solve, {out.message}", out.t1.value, (t, s), self.method)
        return out.y1
