"""``odeint_adjoint``: the gradient by solving the augmented adjoint equation backwards in time.

The state that goes backwards is the tuple ``(vjp_t, y, adj_y, *vjp_params)``, from one output time to the one
before; at each of them y is put back to what the forward solve found there. Memory does not grow with the number
of steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..backends import native
from ..backends.common.autocast import without_autocast
from ..backends.common.capture import captured_tensors
from ..backends.common.rhs import Rhs
from ..backends.common.tolerances import Norm, rms_norm
from ..errors import InvalidArgumentError, UnsupportedError
from ..methods import Method
from ..sensealg import BacksolveAdjoint
from ..tracking import transforming
from . import compiled
from .augmented import Augmented
from .call import Call, make_call, require_two_times
from .callbacks import Callbacks, callbacks_of
from .julia import on_julia
from .options import Engine, MethodLike, Problem, engine_for, largest, packed_norm
from .state import pack_state, tolerance
from .times import Times


def odeint_adjoint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodLike = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: MethodLike = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Any:
    """As :func:`odeint`, with gradients from an adjoint equation solved backwards, in constant memory.

    Args:
        func: as for :func:`odeint`. It need not be an ``nn.Module``: parameters in closures and plain tensors
            are found too. ``callback_step_adjoint`` and its relatives are called during the backward solve.
        y0, t, rtol, atol, method, options, event_fn: as for :func:`odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method: those of the backward solve; the forward ones where None.
        adjoint_options: the options of the backward solve; the forward ones but for ``norm`` where None. Its
            ``norm`` takes the tuple ``(vjp_t, y, adj_y, *vjp_params)``, or is ``"seminorm"``, which leaves the
            parameters out of the error control.
        adjoint_params: the tensors to differentiate with respect to; searched for where None.
        backend: as for :func:`odeint`; ``"julia"`` differentiates by SciMLSensitivity's ``BacksolveAdjoint`` (unless
            ``options["sensealg"]`` names another), which solves backwards with the forward method and its options.

    Returns:
        As :func:`odeint`.

    Raises:
        PyDiffEqFluxError: one of its subclasses, as for :func:`odeint`.

    Source: Chen et al., "Neural ordinary differential equations" (2018); seminorms: Kidger, Chen & Lyons, "Hey,
    that's not an ODE" (2021).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> rate = torch.tensor(2.0, requires_grad=True)
        >>> ys = pdf.odeint_adjoint(lambda t, y: -rate * y, torch.ones(1), torch.tensor([0.0, 1.0]))
        >>> ys[-1].sum().backward()
        >>> round(float(rate.grad), 4)
        -0.1353
    """
    if transforming():
        raise UnsupportedError("odeint_adjoint inside torch.func or forward mode: odeint works there, take that.")
    if event_fn is not None:
        require_two_times(t)
    if on_julia(backend):
        return _by_julia(
            func,
            make_call(
                func,
                y0,
                t,
                rtol,
                atol,
                method,
                options,
                backend=backend,
                sensealg=BacksolveAdjoint(rtol=_tightest(adjoint_rtol, rtol), atol=_tightest(adjoint_atol, atol)),
            ),
            t,
            event_fn,
            {"adjoint_method": adjoint_method, "adjoint_options": adjoint_options},
            adjoint_params,
        )
    if adjoint_method is not None and adjoint_method != method and options is not None and adjoint_options is None:
        raise InvalidArgumentError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. So as `options` has"
            " been passed then `adjoint_options` must be passed as well."
        )
    call = make_call(func, y0, t, rtol, atol, method, options)
    if event_fn is None and adjoint_params is None and not adjoint_options and not callbacks_of(func, "_adjoint"):
        ys = _compiled(call, adjoint_rtol, adjoint_atol, adjoint_method)
        if ys is not None:
            return ys
    params = _parameters(func, call, adjoint_params)
    backward = dict(adjoint_options if adjoint_options is not None else _without_norm(options))
    _warn_of_frozen(params, backward)
    backward["norm"] = _adjoint_norm(
        backward.get("norm"), packed_norm((options or {}).get("norm"), call.spec), call, len(params.listed)
    )
    job = Job(
        func,
        call,
        event_fn,
        _inherited("rtol", adjoint_rtol, rtol),
        _inherited("atol", adjoint_atol, atol),
        method if adjoint_method is None else adjoint_method,
        callbacks_of(func, "_adjoint"),
    )
    times = call.times.tensor if call.times.differentiable else None
    ys = _Adjoint.apply(job, backward, call.y0, times, *params.all)
    if event_fn is None:
        return call.structured(ys)
    return ys[0], call.structured(ys[1])


def _by_julia(
    func: Any, call: Call, t: Tensor, event_fn: Any, missing: dict[str, Any], params: Sequence[Tensor] | None
) -> Any:
    """The same solve on ``backend="julia"``, its gradient an adjoint of SciMLSensitivity."""
    for name, value in missing.items():
        if value is not None:
            raise UnsupportedError(
                f"{name}={value!r} with backend='julia': SciMLSensitivity solves backwards with the forward method and"
                f" its options; leave it out, or leave backend out."
            )
    if params is not None:
        known = {id(p) for p in params}
        used = [p for p in _parameters(func, call, None).all if id(p) not in known]
        if used:
            raise UnsupportedError(
                f"adjoint_params leaves out {len(used)} tensors that func uses and that require gradients (the first"
                f" has shape {tuple(used[0].shape)}); backend='julia' differentiates with respect to all of them:"
                f" freeze those with requires_grad_(False), or leave backend out."
            )
    if event_fn is None:
        return call.unpack(call.engine.integrate(call.y0, call.times))
    when, y1 = call.engine.until_event(call.y0, call.times, event_fn)
    return torch.tensor(when, dtype=t.dtype, device=call.y0.device), call.unpack([call.y0, y1])


def _compiled(call: Call, rtol: Any, atol: Any, method: MethodLike) -> Tensor | None:
    """The solution by the compiled engine, with the same adjoint equation behind it; None where it is not for that."""
    numbers = all(x is None or type(x) is float for x in (rtol, atol))
    if not numbers or not (method is None or isinstance(method, Method)):
        return None
    return compiled.states(call, BacksolveAdjoint(method, rtol, atol))


@dataclass
class Parameters:
    """The tensors to differentiate with respect to: those that torchdiffeq would list, and others found."""

    listed: list[Tensor]
    others: list[Tensor]
    #: How many of those listed do not require a gradient, and were left out.
    frozen: int

    @property
    def all(self) -> tuple[Tensor, ...]:
        return (*self.listed, *self.others)


def _parameters(func: Any, call: Call, given: Sequence[Tensor] | None) -> Parameters:
    others: list[Tensor] = []
    if given is not None:
        listed = list(given)
    else:
        listed = list(func.parameters()) if isinstance(func, nn.Module) else []
        if torch.is_grad_enabled():
            known = {id(p) for p in listed}
            y, when = call.y0.detach().requires_grad_(), call.rhs.time(call.times.values[0]).requires_grad_()
            found = captured_tensors(func, lambda: call.rhs.evaluate(when, y), [y, when])
            others = [p for p in found if id(p) not in known]
    wanted = [p for p in listed if p.requires_grad]
    return Parameters(wanted, others, len(listed) - len(wanted))


def _warn_of_frozen(params: Parameters, options: dict[str, Any]) -> None:
    if params.frozen and callable(options.get("norm")):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. For efficiency this will be excluded from the"
            " adjoint pass, and will not appear as a tensor in the adjoint norm.",
            stacklevel=3,
        )


def _without_norm(options: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if name != "norm"}


def _inherited(name: str, own: Any, forward: Any) -> Any:
    """The backward tolerance: the forward one, the tightest where that differs from entry to entry."""
    if own is not None:
        return own
    try:
        return min(float(torch.as_tensor(part).min()) for part in forward)
    except TypeError:  # not a sequence
        return forward


def _tightest(own: Any, forward: Any) -> float:
    """A tolerance of the backward solve as one number."""
    given = forward if own is None else own
    parts = given if isinstance(given, tuple | list) else [given]
    return min(float(torch.as_tensor(part).min()) for part in parts)


def _adjoint_norm(given: Any, state_norm: Norm, call: Call, listed: int) -> Callable[[Any], Any]:
    """The norm of the augmented state, a tuple."""

    def default(state: tuple[Tensor, ...]) -> Tensor:
        t, y, adj_y, *params = state
        return largest([t.abs(), _tensor(state_norm(y), t), _tensor(state_norm(adj_y), t), *map(rms_norm, params)])

    if given is None:
        return default
    if given == "seminorm":
        return lambda state: default(state[:3])

    def users(state: tuple[Tensor, ...]) -> Any:
        t, y, adj_y, *params = state
        # It expects the parameters that torchdiffeq would have; more that were found do not count.
        params = params[:listed]
        if call.spec is None:
            return given((t, y, adj_y, *params))
        return given((t, *call.spec.unflatten(y), *call.spec.unflatten(adj_y), *params))

    return users


def _tensor(x: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(x, device=like.device).to(like.dtype)


@dataclass
class Job:
    """A solve and, for its backward pass, how to do that."""

    func: Any
    call: Call
    event_fn: Callable[..., Tensor] | None
    rtol: Any
    atol: Any
    method: MethodLike
    callbacks: Callbacks

    def engine(self, rhs_of: Augmented, state: tuple[Tensor, ...], options: dict[str, Any], like: Tensor) -> Reverse:
        packed, spec = pack_state(state)
        rhs = Rhs(rhs_of, spec, packed)
        rtol, atol = (tolerance(f"adjoint_{n}", v, packed, spec) for n, v in (("rtol", self.rtol), ("atol", self.atol)))
        engine = engine_for(self.method, options, Problem(rhs, packed, spec, rtol, atol, like, self.callbacks))
        if hasattr(engine, "resume"):
            engine.resume = True
        return Reverse(engine, spec, like)


@dataclass
class Reverse:
    """Takes the augmented state from one time to another."""

    engine: Engine
    spec: Any
    like: Tensor

    def run(self, state: list[Tensor], t: float, s: float) -> list[Tensor]:
        if t == s:
            return state
        end = self.engine.integrate(self.spec.flatten(state), Times.of((t, s), self.like))[-1]
        return list(self.spec.unflatten(end))


class _Adjoint(torch.autograd.Function):
    """``(y0, t, *params) -> states``, packed; with an event ``-> (time, states)``."""

    @staticmethod
    def forward(
        ctx: Any, job: Job, adjoint_options: dict[str, Any], y0: Tensor, t: Tensor | None, *params: Tensor
    ) -> Any:
        call = job.call
        # Within reach of whoever holds the result's grad_fn, as with torchdiffeq.
        ctx.job, ctx.adjoint_options, ctx.timed = job, adjoint_options, t is not None
        if job.event_fn is None:
            ctx.ts = call.times.values
            ys = torch.stack(call.engine.integrate(y0, call.times))
            native.evaluated(job.func, call.rhs.nf)
            ctx.save_for_backward(ys, *params)
            return ys
        when, y1 = call.engine.until_event(y0, call.times, job.event_fn)
        ctx.ts = (call.times.values[0], when)
        ys = torch.stack([y0, y1])
        ctx.save_for_backward(ys, *params)
        return call.times.tensor.new_tensor(when), ys

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job: Job = ctx.job
        ys, *params = ctx.saved_tensors
        g_ys, ts, rhs = grads[-1], ctx.ts, job.call.rhs
        felt = [p for p in params if p.numel()]
        state = [ys.new_zeros(()), ys[-1], g_ys[-1], *(torch.zeros_like(p) for p in felt)]
        like = job.call.times.tensor.detach()
        reverse = job.engine(Augmented(rhs, tuple(felt), ctx.timed), tuple(state), ctx.adjoint_options, like)
        g_t = torch.zeros(len(ts), dtype=like.dtype, device=like.device) if ctx.timed else None
        for i in range(len(ts) - 1, 0, -1):
            if g_t is not None:
                # Moving an output time moves the state there along f.
                g_t[i] = moved = _dot(g_ys[i], rhs(ts[i], ys[i]))
                state[0] = state[0] - moved
            state = reverse.run(state, ts[i], ts[i - 1])
            state[1] = ys[i - 1]
            state[2] = state[2] + g_ys[i - 1]
        if g_t is not None:
            g_t[0] = state[0]
            if job.event_fn is not None:  # the event's time is a constant here, the second time a direction
                g_t[1] = 0
        found = iter(state[3:])
        g_params = (next(found) if p.numel() else torch.zeros_like(p) for p in params)
        return (None, None, state[2], g_t, *g_params)


def _dot(g: Tensor, f: Tensor) -> Tensor:
    """The real inner product, also of complex tensors (torch's convention for their gradients)."""
    if g.is_complex():
        g, f = torch.view_as_real(g), torch.view_as_real(f.resolve_conj())
    return (g * f).sum()
