"""``sdeint``: solve, and let autograd record the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.common.autocast import in_own_precision
from ..backends.common.failure import failure
from ..backends.common.reading import all_finite
from ..backends.common.stretch import Outcome
from ..backends.common.tolerances import Tolerances
from ..backends.eager.integrate import Counts, Integration, Settings
from ..backends.eager.sde.catalogue import scheme_for
from ..backends.eager.sde.milstein import DerivativeFreeMilstein
from ..backends.eager.sde.reversible_heun import Companion, ReversibleHeunScheme
from ..backends.eager.sde.scheme import Halved, Scheme
from ..errors import InvalidArgumentError, InvalidOptionError, UnknownOptionError
from ..problem import SaveTimes, TimePoint
from ..sde_methods import Milstein, ReversibleHeun
from ..solution import Status
from .contract import Checked, check

OPTIONS = ("grad_free",)


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    **unknown: Any,
) -> Any:
    """torchsde's ``sdeint``: the solution of an SDE at the times ``ts``, differentiable by autograd.

    Args:
        sde: an object with torchsde's attributes ``noise_type`` and ``sde_type``, and methods ``f(t, y)`` and
            ``g(t, y)`` (or ``f_and_g``, ``g_prod``, ``f_and_g_prod``).
        y0: ``(batch, d)``, the state at ``ts[0]``.
        ts: increasing times, a 1-D tensor or numbers.
        bm: a ``BrownianInterval`` or another Brownian motion of shape ``(batch, m)``; a new one where None.
        method: one of torchsde's, or a name from :mod:`pydiffeqflux.sde_methods`; where None ``"srk"`` (Ito,
            ``"euler"`` for general noise) or ``"midpoint"`` (Stratonovich).
        dt: the step; the first one of adaptive steps.
        adaptive: choose the steps by ``rtol`` and ``atol``; steps then end at ``ts`` (fixed ones do not: as in
            torchsde, states between are read off straight lines).
        rtol, atol, dt_min: tolerances, and the step that is accepted whatever its error.
        options: ``{"grad_free": True}`` makes ``"milstein"`` use differences instead of derivatives.
        names: other names of the equation's methods, by ``"drift"``, ``"diffusion"``, ``"prior_drift"``, ...
        logqp: also return the log-ratio to the law with the drift ``sde.h``, ``(T - 1, batch)``.
        extra, extra_solver_state: return, and start from, what ``"reversible_heun"`` keeps besides the state.

    Returns:
        ``(T, batch, d)``; with ``logqp`` and ``extra`` a tuple that begins with it.

    Raises:
        InvalidArgumentError, ShapeError, UnknownNameError, MethodNoiseError: a ``ValueError``, as in torchsde.
        UnknownOptionError: an argument or option that there is not.
        NonFiniteError, StepUnderflowError: the solve failed.

    Source: Li, Wong, Chen & Duvenaud (2020), "Scalable gradients for stochastic differential equations", for the
    interface.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> class Growth(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "ito"
        ...     def f(self, t, y):
        ...         return 0.5 * y
        ...     def g(self, t, y):
        ...         return 0.1 * y
        >>> pdf.sdeint(Growth(), torch.ones(4, 2), torch.linspace(0, 1, 5), dt=0.1).shape
        torch.Size([5, 4, 2])
    """
    if unknown:
        raise UnknownOptionError("sdeint", next(iter(unknown)), ARGUMENTS)
    checked = check(sde, y0, ts, bm, method, adaptive, names, logqp)
    scheme = scheme_of(checked, adaptive, options, extra_solver_state)
    settings = settings_of(dt, adaptive, rtol, atol, dt_min)
    values = checked.times
    loop = Integration(
        checked.sde,
        scheme,
        settings,
        TimePoint(values[0]),
        TimePoint(values[-1]),
        SaveTimes(values),
        counts=Counts(),
    )
    states = saved(in_own_precision(loop.run)(checked.y0), values, checked)
    return returned(states, loop.carry, logqp, extra)


ARGUMENTS = tuple(sdeint.__annotations__)[:-2]


def scheme_of(
    checked: Checked, adaptive: bool, options: dict[str, Any] | None, start: Sequence[Tensor] | None
) -> Scheme:
    """The stepper of a method that was asked for by torchsde's arguments.

    Raises:
        UnknownOptionError, InvalidArgumentError: for ``options`` and ``extra_solver_state``.
    """
    given = {} if options is None else dict(options)
    for name in given:
        if name not in OPTIONS:
            raise UnknownOptionError("options", name, OPTIONS)
    method, noise = checked.method, checked.sde.noise
    if start is not None and start != () and not isinstance(method, ReversibleHeun):
        raise InvalidArgumentError(f"extra_solver_state is for method='reversible_heun'; {method} keeps nothing.")
    scheme: Scheme
    if given.get("grad_free") and isinstance(method, Milstein) and noise != "additive":
        scheme = DerivativeFreeMilstein()
    elif isinstance(method, ReversibleHeun):
        scheme = ReversibleHeunScheme(None if not start else Companion(*start))
    else:
        scheme = scheme_for(type(method)(adaptive=adaptive))
    return Halved(scheme) if adaptive and not scheme.adaptive else scheme


def settings_of(dt: Any, adaptive: bool, rtol: Any, atol: Any, dt_min: Any) -> Settings:
    """What the loop needs to know."""
    tol = Tolerances(number("rtol", rtol), number("atol", atol))
    step, least = number("dt", dt), number("dt_min", dt_min)
    if step == 0.0 or (adaptive and tol.rtol + tol.atol == 0.0):
        raise InvalidOptionError(f"dt={step}, rtol={rtol}, atol={atol}: the step, and one tolerance, must be positive.")
    return Settings(tol=tol, max_steps=10**9, dt=step, dt_min=least if adaptive else 0.0, land=adaptive)


def number(name: str, value: Any) -> float:
    """A finite number >= 0, also from a tensor that requires no gradient."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise InvalidOptionError(f"{name}={value!r} must be a finite number >= 0 that requires no gradient.")
    return float(value)


def saved(out: Outcome, values: tuple[float, ...], checked: Checked) -> Tensor:
    """The states at the times that were asked for.

    Raises:
        SolveError: the solve did not reach its end, or what it came to is not finite.
    """
    if out.status.ok and not all_finite(out.y1):
        out.status, out.message = Status.NON_FINITE, "the state became NaN or infinite"
    if not out.status.ok:
        span = (values[0], values[-1])
        raise failure(out.status, out.message, out.t1.value, span, checked.method, partial=False)
    return torch.stack(out.saved)


def returned(states: Tensor, carry: Any, logqp: bool, extra: bool) -> Any:
    """What torchsde returns: the states, the log-ratio's increments, and the solver's extra state."""
    parts: list[Any] = [states]
    if logqp:
        parts = [states[..., :-1], states[1:, :, -1] - states[:-1, :, -1]]
    if extra:
        parts.append(() if carry is None else tuple(carry))
    return parts[0] if len(parts) == 1 else tuple(parts)
