"""The adjoints: how the backward pass of a solve is computed, one algorithm a file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .... import sensealg as sensealgs
from ....callbacks import Event
from ....errors import UnsupportedError
from ....methods import Method, Symplectic
from ....sensealg import DiscreteAdjoint, SenseAlg
from ...common.capture import captured_tensors
from ...common.rhs import Rhs
from ...common.sde import Sde
from ...common.stretch import Outcome, Runner, Stretch
from ..integrate import Counts, Settings
from ..stepper import Stepper
from .adjoint import Adjoint
from .backsolve import Backsolve
from .checkpointed import run_checkpointed
from .forward import Forward
from .function import run_stretch
from .gauss import Gauss, Quadrature
from .interpolating import Interpolating
from .job import Job
from .jumps import check_mass

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
    _check_halves(method, sensealg)

    def run(y0: Tensor, stretch: Stretch) -> Outcome:
        nonlocal params
        if params is None:
            params = _parameters(rhs, sensealg, y0, stretch.t0.value)
        job = Job(
            rhs, method, stepper, sensealg, settings, counts, stretch, events, batched=batched, params=tuple(params)
        )
        if isinstance(sensealg, DiscreteAdjoint):
            return run_checkpointed(job, y0)
        check_mass(rhs, sensealg)
        algorithm = _stochastic(stepper) if isinstance(rhs, Sde) else _ALGORITHMS.get(type(sensealg))
        if algorithm is None:
            raise UnsupportedError(f"sensealg={sensealg.name} does not exist on backend='torch'.")
        return run_stretch(algorithm(job), y0)

    return run


def _check_halves(method: Method, sensealg: SenseAlg) -> None:
    """Whether a symplectic method can step what ``sensealg`` solves.

    The adjoint of a separable system is one itself; together with a state or parameter gradients it is not.

    Raises:
        UnsupportedError: it cannot, and no other method was given.
    """
    together = (sensealgs.BacksolveAdjoint, sensealgs.InterpolatingAdjoint, sensealgs.ForwardSensitivity)
    if isinstance(method, Symplectic) and isinstance(sensealg, together) and getattr(sensealg, "method", None) is None:
        raise UnsupportedError(
            f"sensealg={sensealg.name} solves an equation that has no halves as method={method} needs them: use"
            f" DiscreteAdjoint() or GaussAdjoint(), or BacksolveAdjoint(method='tsit5')."
        )


def _stochastic(stepper: Stepper) -> type[Adjoint]:
    """The only continuous adjoint of stochastic equations, or the exact one of the method that has it."""
    from ..sde.backsolve import StochasticBacksolve
    from ..sde.reversible import ReversibleBacksolve
    from ..sde.reversible_heun import ReversibleHeunScheme
    from ..sde.scheme import Halved

    scheme = stepper.scheme if isinstance(stepper, Halved) else stepper
    return ReversibleBacksolve if isinstance(scheme, ReversibleHeunScheme) else StochasticBacksolve


def _parameters(rhs: Rhs, sensealg: SenseAlg, y0: Tensor, t0: float) -> list[Tensor]:
    """What to differentiate with respect to besides the state.

    Raises:
        UnsupportedError: inside a ``torch.func`` transform, which hides the tensors that a function closes over.
    """
    try:
        at = y0.detach().requires_grad_()
        when = rhs.time(t0).requires_grad_()
    except RuntimeError as inside:
        raise UnsupportedError(
            f"sensealg={sensealg.name} inside a torch.func transform (grad, vmap, ...): there, use sensealg=None or"
            f" DiscreteAdjoint(), whose steps torch.func transforms like any other operations."
        ) from inside
    return captured_tensors(rhs.models, lambda: rhs.probe(when, at), [at, when])
