"""Least-squares shadowing: gradients of long-time averages of chaotic systems.

Two trajectories of a chaotic system part exponentially, and with them every ordinary sensitivity: the gradient of an
average over a long time grows without bound, while the average itself hardly changes. Shadowing compares with another
trajectory: of those of the changed system, the one that stays close (with a clock of its own). Its difference ``v``
from the known trajectory minimises ``int |v|^2 + alpha^2 eta^2`` subject to ``v' = (df/du) v + df/ds + eta f``.

Q. Wang, R. Hu, P. Blonigan, "Least squares shadowing sensitivity analysis of chaotic limit cycle oscillations", J.
Comput. Phys. 267 (2014) 210-224. Here in its adjoint form: one linear system for all parameters.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidArgumentError, InvalidStateError, InvalidTimesError, ShapeError, UnsupportedError
from .methods import Method
from .problem import ODEProblem
from .solve import solve

Array = np.ndarray[Any, np.dtype[np.float64]]


def shadowing_average(
    problem: ODEProblem,
    objective: Callable[[Tensor], Tensor],
    *,
    dt: float,
    transient: float = 0.0,
    alpha: float = 10.0,
    method: Method | str = "rk4",
    **options: Any,
) -> Tensor:
    """The average of ``objective(y)`` over the time span, with the gradient of its infinite-time limit.

    The gradient reaches every tensor that ``problem.func`` and ``objective`` use. That limit does not depend on the
    initial state, and neither does the gradient. The time to average over is that in which the average settles: some
    ten to a hundred turns of the attractor.

    Args:
        problem: an autonomous system (``func`` must not depend on ``t``) with a tensor for its state. ``func`` and
            ``objective`` are called under ``torch.vmap``, for all times at once.
        objective: one number for each state.
        dt: spacing of the points that the trajectory is kept at; a linear system of ``(t1 - t0) / dt`` times the
            state's size is solved, with the state's size for its bandwidth.
        transient: so much time at the beginning is left out, for the state to reach the attractor.
        alpha: the price of running the clock faster or slower.
        method: of the solve. A fixed-step method takes one step from point to point.
        **options: further keyword arguments of :func:`pydiffeqflux.solve`.

    Returns:
        The average, a 0-dim tensor.

    Raises:
        InvalidArgumentError, InvalidTimesError: for ``dt``, ``transient``, ``alpha`` and the time span.
        InvalidStateError: the state is not one real tensor.
        ShapeError: ``objective`` returns more than one number for a state.
        UnsupportedError: the problem has a mass matrix.

    Source: Wang, Hu & Blonigan (2014), J. Comput. Phys. 267, 210-224; SciMLSensitivity's ``AdjointLSS``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> level = torch.tensor(2.0, requires_grad=True)
        >>> tank = pdf.ODEProblem(lambda t, y: level - y, torch.ones(1), (0.0, 100.0))
        >>> mean = pdf.shadowing_average(tank, lambda y: y[0], dt=0.1, transient=10.0)
        >>> mean.backward()
        >>> round(mean.item(), 2), round(level.grad.item(), 1)
        (2.0, 1.0)
    """
    for name, value in (("dt", dt), ("alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (math.isfinite(value) and value > 0):
            raise InvalidArgumentError(f"{name}={value!r} must be a positive number.")
    if problem.spec is not None or problem.packed.is_complex():
        raise InvalidStateError("y0 is a structure or complex; shadowing takes one real tensor as its state.")
    if problem.mass_matrix is not None:
        raise UnsupportedError("a mass_matrix with shadowing_average does not exist: solve for dy/dt in func.")
    t0, t1 = problem.t0.value, problem.t1.value
    if not 0 <= transient < t1 - t0:
        raise InvalidTimesError(f"transient={transient!r} must be >= 0 and end before t_span=({t0}, {t1}) does.")
    count = round((t1 - t0 - transient) / dt)
    if count < 2:
        raise InvalidTimesError(f"dt={dt} leaves {count} intervals of t_span=({t0}, {t1}); shadowing needs many.")
    grid = torch.linspace(t0 + transient, t1, count + 1, dtype=torch.float64)
    ys = _trajectory(problem, grid, dt, method, options)
    return _average(problem.func, objective, ys, grid, alpha)


def _trajectory(problem: ODEProblem, grid: Tensor, dt: float, method: Any, options: dict[str, Any]) -> Tensor:
    """``(N + 1, *state)``: first to the end of the transient, then from point to point."""
    with torch.no_grad():
        y, shared = problem.packed, {"dense": False, "save_everystep": False, **options}
        first = float(grid[0])
        if first > problem.t0.value:
            span = (problem.t0.value, first)
            steps = math.ceil((first - problem.t0.value) / dt)
            before = torch.linspace(*span, steps + 1, dtype=torch.float64)[1:].tolist()
            y = solve(ODEProblem(problem.func, y, span), method, saveat=before, **shared).ys[-1]
        ahead = ODEProblem(problem.func, y, (first, problem.t1.value))
        return solve(ahead, method, saveat=grid.tolist(), **shared).ys


def _average(func: Any, objective: Any, ys: Tensor, grid: Tensor, alpha: float) -> Tensor:
    n = ys[0].numel()
    h = float(grid[1] - grid[0])
    middle = (ys[1:] + ys[:-1]) / 2
    times = ((grid[1:] + grid[:-1]) / 2).to(ys)

    def field(t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = func(t, y)
        return out.reshape(-1)

    def measured(y: Tensor) -> Tensor:
        out = objective(y)
        if not isinstance(out, Tensor) or out.numel() != 1:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"objective returned {got}; it must be one number for a state of shape {tuple(y.shape)}.")
        return out.reshape(())

    weights = torch.full((len(ys),), 1.0 / (len(ys) - 1), dtype=ys.dtype, device=ys.device)
    weights[0] = weights[-1] = weights[0] / 2  # the trapezoidal rule
    with torch.no_grad():
        jacobians = torch.vmap(torch.func.jacrev(field, argnums=1))(times, middle).reshape(-1, n, n)
        speeds = torch.vmap(field)(times, middle)
        slopes = torch.vmap(torch.func.grad(measured))(ys).reshape(-1, n) * weights[:, None]
        values = torch.vmap(measured)(middle)
        stretch = (values - values.mean()) / len(values)
    arrays = [x.cpu().double().numpy() for x in (jacobians, speeds, slopes, stretch)]
    costate = torch.as_tensor(_adjoint(arrays[0], arrays[1], arrays[2], arrays[3], h, alpha)).to(ys)
    value = (weights * torch.vmap(measured)(ys)).sum()
    pull = (costate * torch.vmap(field)(times, middle)).sum()
    return value + pull - pull.detach()


def _adjoint(jacobians: Array, speeds: Array, slopes: Array, stretch: Array, h: float, alpha: float) -> Array:
    """The multipliers ``(N, n)`` of the constraints: their product with df/ds is the derivative of the average.

    The constraint of interval i is ``E_i v_i + G_i v_(i+1) - eta_i f_i = df/ds``, by the midpoint rule. The least
    squares problem's normal equations are block tridiagonal, symmetric and positive definite.
    """
    count, n, _ = jacobians.shape
    unit = np.eye(n) / h
    early, late = -unit - jacobians / 2, unit - jacobians / 2
    diagonal = early @ early.transpose(0, 2, 1) + late @ late.transpose(0, 2, 1)
    diagonal += speeds[:, :, None] * speeds[:, None, :] / alpha**2
    above = late[:-1] @ early[1:].transpose(0, 2, 1)
    right = (early @ slopes[:-1, :, None] + late @ slopes[1:, :, None])[..., 0]
    right -= speeds * stretch[:, None] / alpha**2
    # Row d of the band holds the entries d places above the diagonal, by their columns.
    band = np.zeros((2 * n, count, n))
    for row in range(n):
        for column in range(n):
            if column >= row:
                band[column - row, :, column] = diagonal[:, row, column]
            band[n + column - row, 1:, column] = above[:, row, column]
    from scipy.linalg import solveh_banded  # SciPy is slow to import

    solved: Array = solveh_banded(band[::-1].reshape(2 * n, count * n), right.reshape(-1), check_finite=False)
    return solved.reshape(count, n)
