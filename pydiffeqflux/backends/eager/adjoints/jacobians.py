"""The Jacobian of the adjoint equation, for implicit methods: it is known without differentiating again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...common.jacobian import Linearised, jacobian
from ...common.rhs import Scalar
from .forward_path import ForwardPath
from .job import Job


def transposed(job: Job, path: ForwardPath) -> Callable[..., Linearised]:
    """``lambda' = -lambda df/dy`` has the Jacobian ``-(df/dy)^T``, whatever lambda.

    Its derivative in time is a difference quotient: the exact one would need second derivatives of f, and
    only Rosenbrock methods ask for it.
    """
    vjp = job.vjp

    def product(t: float, lam: Tensor) -> Tensor:
        _, v_y, _ = vjp(t, path(t), -lam, params=False)
        assert v_y is not None
        return v_y

    @torch.no_grad()
    def linearise(t: Scalar, lam: Tensor, batched: bool, with_time: bool) -> Linearised:
        when = float(t)
        dfdy = -jacobian(job.rhs, when, path(when), batched=batched).dfdy.transpose(-1, -2)
        value, slope = product(when, lam), None
        if with_time:
            eps = torch.finfo(job.rhs.time_dtype).eps ** (1 / 3) * max(abs(job.t1 - job.t0), 1e-12)
            assert path.pieces is not None
            first, last = sorted(path.pieces.span)
            low, high = max(when - eps, first), min(when + eps, last)
            slope = (product(high, lam) - product(low, lam)) / (high - low)
        return Linearised(value, dfdy, slope)

    return linearise
