"""``sdeint_adjoint``: solve without recording, and differentiate by a stochastic adjoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..backends.common.autocast import in_own_precision
from ..backends.common.stretch import Stretch
from ..backends.eager.adjoints.adjoint import Adjoint
from ..backends.eager.adjoints.function import run_stretch
from ..backends.eager.adjoints.job import Job
from ..backends.eager.integrate import Counts
from ..backends.eager.sde.backsolve import StochasticBacksolve
from ..backends.eager.sde.reversible import ReversibleBacksolve
from ..errors import InvalidArgumentError, UnknownOptionError, UnsupportedError
from ..problem import SaveTimes, TimePoint
from ..sde_methods import ReversibleHeun
from ..sensealg import BacksolveAdjoint
from .contract import Checked, check
from .interface import OPTIONS, number, returned, saved, scheme_of, settings_of

REVERSIBLE = "adjoint_reversible_heun"


def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float = 1e-5,
    adjoint_rtol: float = 1e-5,
    atol: float = 1e-4,
    adjoint_atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    **unknown: Any,
) -> Any:
    """torchsde's ``sdeint_adjoint``: as :func:`sdeint`, differentiated by solving an adjoint SDE backwards.

    The adjoint is solved in Stratonovich form (an Ito equation's is converted), along the forward solve's steps
    taken backwards; with ``method="reversible_heun"`` these are undone exactly, and so is the gradient. It has no
    second derivative.

    Args:
        sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min, options, names, logqp: as for :func:`sdeint`.
        adjoint_method: ``"midpoint"`` (where None), ``"heun"`` or ``"euler_heun"``; for ``"reversible_heun"``
            ``"adjoint_reversible_heun"``.
        adjoint_adaptive, adjoint_rtol, adjoint_atol: choose the backward steps by these tolerances instead.
        adjoint_params: what to differentiate with respect to besides ``y0``; ``sde.parameters()`` where None.
        extra, extra_solver_state: as for :func:`sdeint`, without a gradient.

    Returns, Raises:
        as :func:`sdeint`.

    Source: Li, Wong, Chen & Duvenaud (2020), "Scalable gradients for stochastic differential equations"; Kidger,
    Foster, Li & Lyons (2021), arXiv:2105.13493, for the reversible method.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> class Growth(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "stratonovich"
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(0.5))
        ...     def f(self, t, y):
        ...         return self.rate * y
        ...     def g(self, t, y):
        ...         return 0.1 * y
        >>> growth = Growth()
        >>> pdf.sdeint_adjoint(growth, torch.ones(4, 2), [0.0, 1.0], dt=0.05)[-1].log().mean().backward()
        >>> round(growth.rate.grad.item(), 3)  # log y(1) is rate + 0.1 W(1)
        1.0
    """
    if unknown:
        raise UnknownOptionError("sdeint_adjoint", next(iter(unknown)), ARGUMENTS)
    params = _parameters(sde, adjoint_params)
    checked = check(sde, y0, ts, bm, method, adaptive, names, logqp)
    scheme = scheme_of(checked, adaptive, options, extra_solver_state)
    for name, value in (adjoint_options or {}).items():
        if name not in OPTIONS or value:
            raise UnknownOptionError("adjoint_options", name, ("grad_free=False",))
    if any(x.requires_grad for x in extra_solver_state or ()):
        raise UnsupportedError("extra_solver_state requires a gradient, which sdeint_adjoint has not; use sdeint.")
    kind, sense = _algorithm(checked, adjoint_method)
    if adjoint_adaptive:
        tolerances = number("adjoint_rtol", adjoint_rtol), number("adjoint_atol", adjoint_atol)
        sense = BacksolveAdjoint(sense.method, *tolerances)
    _warn(checked, kind)
    values = checked.times
    job = Job(
        checked.sde,
        checked.method,
        scheme,
        sense,
        settings_of(dt, adaptive, rtol, atol, dt_min),
        Counts(),
        Stretch(TimePoint(values[0]), TimePoint(values[-1]), SaveTimes(values), None, False),
        params=params,
    )
    adjoint = kind(job)
    states = saved(in_own_precision(run_stretch)(adjoint, checked.y0), values, checked)
    carry = adjoint.loop.carry if isinstance(adjoint, ReversibleBacksolve) and adjoint.loop is not None else None
    return returned(states, carry, logqp, extra)


ARGUMENTS = tuple(sdeint_adjoint.__annotations__)[:-2]


def _parameters(sde: Any, adjoint_params: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    if adjoint_params is not None:
        return tuple(p for p in adjoint_params if p.requires_grad)
    if not isinstance(sde, nn.Module):
        raise InvalidArgumentError(
            f"sde is a {type(sde).__name__} and no nn.Module, so its parameters are not known: give adjoint_params, ()"
            f" where there are none."
        )
    return tuple(p for p in sde.parameters() if p.requires_grad)


def _algorithm(checked: Checked, adjoint_method: str | None) -> tuple[type[Adjoint], BacksolveAdjoint]:
    reversible = isinstance(checked.method, ReversibleHeun)
    if adjoint_method == REVERSIBLE and not reversible:
        raise InvalidArgumentError(f"adjoint_method={REVERSIBLE!r} goes with method='reversible_heun' only.")
    if reversible and adjoint_method in (None, REVERSIBLE):
        return ReversibleBacksolve, BacksolveAdjoint()
    return StochasticBacksolve, BacksolveAdjoint(method=adjoint_method)


def _warn(checked: Checked, kind: type[Adjoint]) -> None:
    if isinstance(checked.method, ReversibleHeun) and kind is not ReversibleBacksolve:
        warnings.warn(
            f"method='reversible_heun' with another adjoint_method than {REVERSIBLE!r}: the gradient is not exact.",
            stacklevel=3,
        )
