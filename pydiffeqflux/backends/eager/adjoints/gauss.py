"""GaussAdjoint and QuadratureAdjoint: the adjoint is solved alone, the parameter gradient is an integral."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ....sensealg import QuadratureAdjoint
from ...common.dense import Piecewise
from .adjoint import Adjoint
from .forward_path import ForwardPath
from .jacobians import transposed
from .job import Seeds
from .jumps import Jumps
from .sweep import Reverse, add, stretches

Integrand = Callable[[float], list[Tensor]]


class Gauss(Adjoint):
    """mu = integral of lambda df/dp, by Gauss-Legendre quadrature on each step of the backward solve."""

    @property
    def needs_dense(self) -> bool:  # type: ignore[override]
        return not getattr(self.job.sensealg, "checkpointing", False)

    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        job = self.job
        vjp = job.vjp
        path = ForwardPath(job, self.pieces, y0, ys)

        def adjoint(t: Tensor, lam: Tensor) -> Tensor:
            _, v_y, _ = vjp(t, path(t), -lam, params=False)
            assert v_y is not None
            return v_y

        jumps = Jumps(job)
        mu = [torch.zeros_like(p) for p in job.params]
        lam, mu = jumps.take(job.t1, y1, torch.zeros_like(y1), mu, seeds.at_end)
        mass = None if job.rhs.mass is None else job.rhs.mass.matrix.mT
        reverse = Reverse(job, adjoint, lam, batched=job.batched, mass=mass)
        path.clock = reverse.rhs
        reverse.rhs.linearise = transposed(job, path)
        for t, s, jump, index in path.split(stretches(job, seeds)):
            if t != s:
                solved = Piecewise(1.0 if s > t else -1.0)
                lam = reverse.run(lam, t, s, solved)
                if mu:
                    mu = add(mu, self._integral(solved, lambda time: self._integrand(path, solved, time)))  # noqa: B023
            if jump is not None and index is not None:
                lam, mu = jumps.take(s, ys[index], lam, mu, jump)
        return jumps.at_start(lam), mu

    def _integrand(self, path: ForwardPath, solved: Piecewise, t: float) -> list[Tensor]:
        _, _, v_p = self.job.vjp(t, path(t), solved(t), state=False)
        return v_p

    def _integral(self, solved: Piecewise, integrand: Integrand) -> list[Tensor]:
        """Backwards steps have negative dt, and mu' = -lambda df/dp: together a plus."""
        # n nodes are exact to degree 2n - 1: one more than the method's order needs.
        nodes, weights = np.polynomial.legendre.leggauss(self.job.stepper.order // 2 + 2)
        total = [torch.zeros_like(p) for p in self.job.params]
        for t, dt, _ in solved.steps:
            for x, w in zip(nodes, weights, strict=True):
                values = integrand(t + dt * (0.5 + 0.5 * float(x)))
                total = [a.add(v, alpha=-0.5 * dt * float(w)) for a, v in zip(total, values, strict=True)]
        return total


class Quadrature(Gauss):
    """mu = integral of lambda df/dp, by adaptive Gauss-Kronrod (7, 15) to the tolerances of its own."""

    def _integral(self, solved: Piecewise, integrand: Integrand) -> list[Tensor]:
        sense = self.job.sensealg
        assert isinstance(sense, QuadratureAdjoint)
        total = [torch.zeros_like(p) for p in self.job.params]
        # The steps are where the solution changes its polynomial: start from them.
        todo = [(t, t + dt) for t, dt, _ in solved.steps]
        whole = abs(solved.steps[-1][0] + solved.steps[-1][1] - solved.steps[0][0])
        for _ in range(10_000):
            if not todo:
                break
            a, b = todo.pop()
            value, error, size = _kronrod(integrand, a, b, total)
            share = abs(b - a) / whole
            if error <= max(sense.abstol * share, sense.reltol * size) or abs(b - a) < 1e-12 * whole:
                total = [x - v for x, v in zip(total, value, strict=True)]
            else:
                todo += [(a, 0.5 * (a + b)), (0.5 * (a + b), b)]
        return total


#: Nodes and weights of the 15-point Kronrod rule on [-1, 1] (positive half, centre first), and of the
#: 7-point Gauss rule at every second of them. Piessens et al., QUADPACK (1983), routine QK15.
_NODES = (
    0.0,
    0.207784955007898467600689403773245,
    0.405845151377397166906606412076961,
    0.586087235467691130294144691693045,
    0.741531185599394439863864773280788,
    0.864864423359769072789712788640926,
    0.949107912342758524526189684047851,
    0.991455371120812639206854697526329,
)
_KRONROD = (
    0.209482141084727828012999174891714,
    0.204432940075298892414161999234649,
    0.190350578064785409913256402421014,
    0.169004726639267902826583426598550,
    0.140653259715525918745189590510238,
    0.104790010322250183839876322541518,
    0.063092092629978553290700663189204,
    0.022935322010529224963732008058970,
)
_GAUSS = (
    0.417959183673469387755102040816327,
    0.381830050505118944950369775488975,
    0.279705391489276667901467771423780,
    0.129484966168869693270611432679082,
)


def _kronrod(integrand: Integrand, a: float, b: float, like: list[Tensor]) -> tuple[list[Tensor], float, float]:
    """The integral from a to b, the largest difference between the two rules, and the integral's largest entry."""
    centre, half = 0.5 * (a + b), 0.5 * (b - a)
    fine = [torch.zeros_like(x) for x in like]
    coarse = [torch.zeros_like(x) for x in like]
    for i, (node, weight) in enumerate(zip(_NODES, _KRONROD, strict=True)):
        for sign in (1.0,) if i == 0 else (1.0, -1.0):
            values = integrand(centre + sign * half * node)
            for f, v in zip(fine, values, strict=True):
                f.add_(v, alpha=weight * half)
            if i % 2 == 0:
                for c, v in zip(coarse, values, strict=True):
                    c.add_(v, alpha=_GAUSS[i // 2] * half)
    pairs = [(f, f - c) for f, c in zip(fine, coarse, strict=True) if f.numel()]
    if not pairs:
        return fine, 0.0, 0.0
    largest = [torch.stack([v.abs().max() for v in column]).max() for column in zip(*pairs, strict=True)]
    size, error = torch.stack(largest).tolist()  # in one transfer: each would wait for a GPU by itself
    return fine, error, size
