"""Steady states: solving ``f(u) = 0`` for a state, and linear systems with the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..callbacks import Event
from ..errors import ConvergenceError
from ..problem import ODEProblem
from ..solve import solve
from .derivatives import jacobian_rows, pullback

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RootSettings:
    """When to stop, and how linear systems are solved.

    Attributes:
        rtol, atol: a state ``u`` is a root where ``|f| <= atol + rtol |u|`` in every entry.
        batched: the rows of the state do not interact: one small Jacobian a row.
        linear: ``"dense"``, or ``"gmres"``, which never forms a Jacobian.
    """

    rtol: float
    atol: float
    max_iterations: int
    batched: bool
    linear: str

    def excess(self, u: Tensor, f: Tensor) -> Tensor:
        """The largest ratio of ``|f|`` to what is allowed: a root where it is at most 1."""
        return (f.abs() / (self.atol + self.rtol * u.abs())).amax()


def newton(func: Field, u: Tensor, settings: RootSettings) -> Tensor:
    """Newton's method; a step that does not lower the residual is halved (Deuflhard 2011, section 3)."""
    f = func(u)
    for _ in range(settings.max_iterations):
        if float(settings.excess(u, f)) <= 1.0:
            return u
        step = solve_linear(func, u, -f, settings, transposed=False)
        share, size = 1.0, float(f.norm())
        while True:
            trial = u + share * step
            value = func(trial)
            if float(value.norm()) < size or share < 1e-4:
                break
            share /= 2
        u, f = trial, value
    return _unless_converged("newton", u, f, settings)


def anderson(func: Field, u: Tensor, settings: RootSettings, memory: int = 5) -> Tensor:
    """Fixed-point iteration of ``u + f(u)`` with Anderson's mixing: Anderson (1965), J. ACM 12, 547-560.

    Each row of a batched state is mixed by itself.
    """
    shape = u.shape
    rows = (shape[0], -1) if settings.batched else (1, -1)
    states: list[Tensor] = []
    residuals: list[Tensor] = []
    f = func(u)
    for _ in range(settings.max_iterations):
        if float(settings.excess(u, f)) <= 1.0:
            return u
        states, residuals = [*states, u.reshape(rows)][-memory:], [*residuals, f.reshape(rows)][-memory:]
        mixed = states[-1] + residuals[-1]
        if len(states) > 1:
            df = torch.stack(residuals, -1).diff(dim=-1)
            du = torch.stack(states, -1).diff(dim=-1)
            weights = torch.linalg.pinv(df) @ residuals[-1][..., None]
            mixed = mixed - ((du + df) @ weights)[..., 0]
        u = mixed.reshape(shape)
        f = func(u)
    return _unless_converged("anderson", u, f, settings)


def by_time(func: Field, u: Tensor, settings: RootSettings, t_max: float, options: dict[str, Any]) -> Tensor:
    """Follow ``du/dt = f(u)`` until nothing changes any more."""
    if float(settings.excess(u, func(u))) <= 1.0:
        return u
    still = Event(lambda t, y: settings.excess(y, func(y)).log())
    problem = ODEProblem(lambda t, y: func(y), u, (0.0, t_max), batched=settings.batched)
    sol = solve(problem, event=still, **{"dense": False, "save_everystep": False, **options})
    u = sol.ys[-1]
    return u if len(sol.events[0].ts) else _unless_converged("ode", u, func(u), settings, t_max)


def _unless_converged(solver: str, u: Tensor, f: Tensor, settings: RootSettings, t_max: float = 0.0) -> Tensor:
    """``u`` if it is a root.

    Raises:
        ConvergenceError: it is none.
    """
    excess = float(settings.excess(u, f))
    if excess <= 1.0:
        return u
    spent = f"t_max={t_max:g}" if solver == "ode" else f"max_iterations={settings.max_iterations}"
    raise ConvergenceError(
        f"no steady state was found by solver={solver!r} within {spent}: |f| is {excess:.3g} times what rtol and atol"
        f" allow. Start nearer (u0), allow more, or take another solver ('newton', 'anderson', 'ode')."
    )


def solve_linear(func: Field, u: Tensor, b: Tensor, settings: RootSettings, *, transposed: bool) -> Tensor:
    """``x`` with ``J x = b``, or ``J' x = b``, for the Jacobian of ``func`` at ``u``.

    Raises:
        ConvergenceError: the Jacobian is singular, or GMRES does not get there.
    """
    if settings.linear == "gmres":
        return _krylov(func, u, b, transposed)
    events = u.dim() - (1 if settings.batched else 0)
    _, rows = jacobian_rows(func, events, u)  # (n, [B,] *event)
    n = len(rows)
    matrix = rows.reshape(n, -1, n).transpose(0, 1)
    right = b.reshape(-1, n, 1)
    found, info = torch.linalg.solve_ex(matrix.mT if transposed else matrix, right)
    if bool((info != 0).any()):
        raise ConvergenceError(
            "the Jacobian at the steady state is singular: the state is not isolated (something is conserved, say),"
            " and neither Newton's method nor a gradient is defined; fix what is free by an equation of its own."
        )
    return found.reshape(b.shape)


def _krylov(func: Field, u: Tensor, b: Tensor, transposed: bool) -> Tensor:
    back = pullback(func, u)[1]

    from scipy.sparse.linalg import LinearOperator, gmres  # SciPy is slow to import

    def product(x: Any) -> Any:
        v = torch.as_tensor(x, dtype=u.dtype, device=u.device).reshape(u.shape)
        out = back(v) if transposed else torch.func.jvp(func, (u,), (v,))[1]
        return out.detach().cpu().numpy().reshape(-1)

    n = u.numel()
    right = b.detach().cpu().numpy().reshape(-1)
    operator = LinearOperator((n, n), matvec=product, dtype=right.dtype)
    tight = 1e-12 if u.dtype == torch.float64 else 1e-6
    x, info = gmres(operator, right, rtol=tight, atol=0.0, restart=min(n, 50), maxiter=20)
    if info != 0:
        raise ConvergenceError(
            f"GMRES did not solve the linear system at the steady state ({info} iterations): take linear='dense'."
        )
    return torch.as_tensor(x, dtype=u.dtype, device=u.device).reshape(b.shape)
