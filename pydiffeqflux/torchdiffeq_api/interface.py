"""``odeint``, ``odeint_event`` and ``odeint_dense``: torchdiffeq's functions on this package's solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import native
from ..backends.common.autocast import as_called
from ..backends.common.crossing import link_crossing
from ..backends.common.rhs import Rhs
from ..callbacks import Event
from ..errors import InvalidArgumentError
from ..problem import time_point
from ..state import map_state
from . import compiled
from .call import make_call, require_two_times
from .options import MethodLike
from .state import Conforming, pack_state


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodLike = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    backend: str | None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)``, ``y(t[0]) = y0``; gradients flow back through the steps.

    Args:
        func: ``func(t, y)``, ``t`` a scalar tensor, ``y`` shaped like ``y0``. Its methods ``callback_step``,
            ``callback_accept_step`` and ``callback_reject_step`` (of ``t0, y0, dt``) are called, where it has them.
        y0: a floating or complex tensor of any shape, or a tuple of such tensors.
        t: 1-D floating tensor, strictly increasing or decreasing; the first element is the initial time. May
            require gradients.
        rtol, atol: tolerances per entry: numbers, tensors, or for a tuple ``y0`` one of them for each tensor.
        method: a name of torchdiffeq's (``"dopri5"``, the default, ``"rk4"``, ``"implicit_adams"``,
            ``"scipy_solver"``, ...) or any method of this package (``"vern7"``, ``pydiffeqflux.Rodas5P()``, ...).
        options: adaptive methods know ``norm, first_step, step_t, jump_t, min_step, max_step, safety, ifactor,
            dfactor, max_num_steps`` (times are always float64, so ``dtype`` changes nothing); fixed-step ones
            ``step_size, grid_constructor, interp, perturb`` (and the implicit ones ``max_iters``, the Adams
            methods ``max_order, max_iters``); ``"scipy_solver"`` knows ``solver, min_step, max_step``. Two
            things differ from torchdiffeq, where they cost accuracy: the nodes of ``"gl4"`` are Gauss's, and
            ``"explicit_adams"`` has ``max_order=6`` by default (not 12, where it is unstable).
        event_fn: ``event_fn(t, y)``; the solve goes on from ``t[0]`` in the direction of ``t[1]`` until one of
            its entries is zero.
        backend: ``"julia"`` lets OrdinaryDiffEq.jl solve, and SciMLSensitivity.jl differentiate, by Gauss quadrature
            unless ``options["sensealg"]`` names another algorithm. ``method`` may then be any of its solvers
            (``"FBDF"``; ``"tsit5"`` where None), and ``options`` knows ``first_step, min_step, max_step, step_t,
            jump_t, max_num_steps`` (as many between two output times on average), ``step_size``, and ``fallback`` as
            :func:`pydiffeqflux.solve` does. None or ``"torch"`` is this package's own loop.

    A function that has been evaluated often is compiled, as with ``solve(..., backend="torch")``, where the engine
    covers the call; what it does besides computing (counting its calls, say) keeps it in eager torch.

    Returns:
        The states at ``t``, ``(len(t), *y0.shape)`` (a tuple of such for a tuple). With ``event_fn`` the pair
        of the event's time and the states at ``t[0]`` and there, ``(2, *y0.shape)``; gradients are then those
        at a fixed event time (:func:`odeint_event` has the full ones).

    Raises:
        PyDiffEqFluxError: one of its subclasses. Where torchdiffeq asserts it is an ``AssertionError`` too.

    Source: the interface is torchdiffeq's (R. T. Q. Chen, https://github.com/rtqichen/torchdiffeq).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> ys = pdf.odeint(lambda t, y: -y, torch.ones(2), torch.linspace(0, 1, 5))
        >>> ys.shape, round(float(ys[-1, 0]), 4)
        (torch.Size([5, 2]), 0.3679)
    """
    if event_fn is not None:
        require_two_times(t)
    call = make_call(func, y0, t, rtol, atol, method, options, backend=backend)
    if event_fn is None:
        ys = compiled.states(call)
        if ys is not None:
            return ys
        found = call.unpack(call.engine.integrate(call.y0, call.times))
        native.evaluated(func, call.rhs.nf)
        return found
    when, y1 = call.engine.until_event(call.y0, call.times, event_fn)
    return torch.tensor(when, dtype=t.dtype, device=call.y0.device), call.unpack([call.y0, y1])


def odeint_event(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: Tensor | float,
    *,
    event_fn: Callable[[Tensor, Any], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """Solve from ``t0`` until ``event_fn(t, y)`` is zero; time and state there carry their full gradients.

    They reach ``y0``, ``t0``, what ``func`` uses, and the parameters of ``event_fn`` itself, by the implicit
    function theorem.

    Args:
        func, y0: as for :func:`odeint`.
        t0: the initial time, a number or a tensor with one element.
        event_fn: returns a tensor; the first of its entries to reach zero ends the solve.
        reverse_time: solve backwards in time.
        odeint_interface: :func:`odeint` or :func:`odeint_adjoint`.
        **kwargs: further arguments of ``odeint_interface``.

    Returns:
        The event's time (0-dim), and the states at ``t0`` and there, ``(2, *y0.shape)``.

    Raises:
        EventNotFoundError: the solve went on to the end of time without an event.
        PyDiffEqFluxError: its other subclasses, as for :func:`odeint`.

    Source: Chen, Amos & Nickel, "Learning neural event functions for ordinary differential equations" (2021).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> height = torch.tensor(0.5, requires_grad=True)
        >>> fall = lambda t, y: -torch.ones_like(y)
        >>> t1, ys = pdf.odeint_event(fall, torch.ones(1), torch.tensor(0.0), event_fn=lambda t, y: y - height)
        >>> t1.backward()
        >>> round(t1.item(), 4), round(height.grad.item(), 4)
        (0.5, -1.0)
    """
    time_point(t0, "t0")
    packed, spec = pack_state(y0)
    start = t0 if isinstance(t0, Tensor) else torch.tensor(float(t0), dtype=torch.float64, device=packed.device)
    ahead = start.reshape(-1).detach() + (-1.0 if reverse_time else 1.0)
    t = torch.cat([start.reshape(-1), ahead])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    model = as_called(func, packed)
    rhs = Rhs(model if spec is not None else Conforming(model), spec, packed)
    ys = solution
    if spec is not None:
        ys = torch.stack([spec.flatten(map_state(lambda x, i=i: x[i], solution)) for i in range(2)])
    crossing = link_crossing(rhs, [Event(event_fn)], 0, float(event_t.detach()), ys[-1])
    when = crossing.t.tensor
    if when is not None:
        event_t = event_t.detach() + (when - when.detach()).to(event_t)
    ys = torch.cat([ys[:-1], crossing.y[None]])
    return event_t, ys if spec is None else spec.unflatten(ys)


def odeint_dense(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodLike = None,
    options: dict[str, Any] | None = None,
    backend: str | None = None,
) -> Callable[[Any], Any]:
    """Solve from ``t0`` to ``t1`` once, and return the solution as a function of time.

    Args:
        func, y0, rtol, atol, method, options: as for :func:`odeint`; any native method will do.
        t0, t1: the ends, numbers or tensors with one element (no gradient flows to them).
        backend: as for :func:`odeint`; with ``"julia"``, where a gradient may be asked for, each call solves once
            more, up to its times.

    Returns:
        ``solution(t)``: the state at a time between ``t0`` and ``t1`` (a number or 0-dim tensor, which may
        require gradients), or for a 1-D tensor of times the states, time first. Gradients reach ``y0`` and what
        ``func`` uses.

    Raises:
        PyDiffEqFluxError: as for :func:`odeint`.
        DenseOutputError: the function was called with a time outside.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> solution = pdf.odeint_dense(lambda t, y: -y, torch.ones(1), 0.0, 1.0)
        >>> round(float(solution(torch.tensor(0.5))), 4)
        0.6065
    """
    ends = [time_point(t0, "t0").value, time_point(t1, "t1").value]
    if ends[0] == ends[1]:
        raise InvalidArgumentError(f"t0={ends[0]} and t1={ends[1]} must differ.")
    t = torch.tensor(ends, dtype=torch.float64, device=pack_state(y0)[0].device)
    call = make_call(func, y0, t, rtol, atol, method, options, backend=backend)
    return call.engine.dense(call.y0, call.times)
