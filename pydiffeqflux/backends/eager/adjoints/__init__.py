"""The adjoints: how the backward pass of a solve is computed, one algorithm a file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .... import sensealg as sensealgs
from ....callbacks import Event
from ....errors import UnsupportedError
from ....methods import Method
from ....sensealg import DiscreteAdjoint, SenseAlg
from ..integrate import Counts, Outcome, Settings
from ..joint import Runner, Stretch
from ..rhs import Rhs
from ..stepper import Stepper
from .backsolve import Backsolve
from .capture import captured_tensors
from .checkpointed import run_checkpointed
from .forward import Forward
from .function import Adjoint, Job, run_stretch
from .gauss import Gauss, Quadrature
from .interpolating import Interpolating

_ALGORITHMS: dict[type[SenseAlg], type[Adjoint]] = {
    sensealgs.BacksolveAdjoint: Backsolve,
    sensealgs.InterpolatingAdjoint: Interpolating,
    sensealgs.QuadratureAdjoint: Quadrature,
    sensealgs.GaussAdjoint: Gauss,
    sensealgs.ForwardSensitivity: Forward,
}


def adjoint_runner(
    rhs: Rhs,
    method: Method,
    stepper: Stepper,
    sensealg: SenseAlg,
    settings: Settings,
    counts: Counts,
    events: Sequence[Event],
    batched: bool,
) -> Runner:
    """What solves a stretch so that its backward pass is ``sensealg``'s."""
    params: list[Tensor] | None = None

    def run(y0: Tensor, stretch: Stretch) -> Outcome:
        nonlocal params
        if params is None:
            at = y0.detach().requires_grad_()
            when = rhs.time(stretch.t0.value).requires_grad_()
            params = captured_tensors(rhs.func, lambda: rhs.evaluate(when, at), [at, when])
        job = Job(
            rhs, method, stepper, sensealg, settings, counts, stretch, events, batched=batched, params=tuple(params)
        )
        if isinstance(sensealg, DiscreteAdjoint):
            return run_checkpointed(job, y0)
        algorithm = _ALGORITHMS.get(type(sensealg))
        if algorithm is None:
            raise UnsupportedError(f"sensealg={sensealg.name} does not exist on backend='torch'.")
        job.adjoint = algorithm(job)
        return run_stretch(job, y0)

    return run


