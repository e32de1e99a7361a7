"""States and rates of change from data alone, by kernel regression: what a neural ODE can be pre-trained on.

At each time a straight line (for the state) and a parabola (for its rate) are fitted to the data around it, weighted
by a kernel: Liang & Wu, "Parameter estimation for differential equation models using a framework of measurement
error in regression models", J. Am. Stat. Assoc. 103 (2008) 1570-1583; Roesch, Rackauckas & Stumpf, "Collocation based
training of neural ordinary differential equations" (2021).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgumentError, InvalidStateError, UnknownNameError, UnsupportedError
from ..interpolation import check_knots

_ROOT2 = math.sqrt(2)


def _within(inside: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A kernel that is zero beyond a distance of 1."""
    return lambda x: torch.where(x.abs() > 1, torch.zeros_like(x), inside(x))


#: Weights as functions of the distance in bandwidths; DiffEqFlux.jl's eleven.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "epanechnikov": _within(lambda x: 0.75 * (1 - x**2)),
    "uniform": _within(lambda x: torch.full_like(x, 0.5)),
    "triangular": _within(lambda x: 1 - x.abs()),
    "quartic": _within(lambda x: 15 / 16 * (1 - x**2) ** 2),
    "triweight": _within(lambda x: 35 / 32 * (1 - x**2) ** 3),
    "tricube": _within(lambda x: 70 / 81 * (1 - x.abs() ** 3) ** 3),
    "gaussian": lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    "cosine": _within(lambda x: math.pi / 4 * torch.cos(math.pi / 2 * x)),
    "logistic": lambda x: 1 / (torch.exp(x) + 2 + torch.exp(-x)),
    "sigmoid": lambda x: 2 / math.pi / (torch.exp(x) + torch.exp(-x)),
    # DiffEqFlux has |x| / 2 inside the sine, which does not integrate to 1; this is Silverman's own.
    "silverman": lambda x: 0.5 * torch.exp(-x.abs() / _ROOT2) * torch.sin(x.abs() / _ROOT2 + math.pi / 4),
}


class Collocation(NamedTuple):
    """What :func:`collocate_data` returns, in the order of DiffEqFlux."""

    du: Tensor  #: estimated rates of change
    u: Tensor  #: smoothed states


def default_bandwidth(n: int) -> float:
    """``n^(-1/5) n^(-3/35) (ln n)^(-1/16)``, as a share of the time span."""
    return float(n ** (-1 / 5) * n ** (-3 / 35) * math.log(n) ** (-1 / 16))


def collocate_data(
    data: Any,
    t: Any,
    kernel: str = "triangular",
    bandwidth: float | None = None,
    *,
    at: Any = None,
    backend: str = "torch",
) -> Collocation:
    """Rates of change and smoothed states of a series, without any model of it.

    Args:
        data: ``(n, ...)``, time first; a tensor or an array.
        t: ``(n,)``, increasing.
        kernel: ``"epanechnikov"``, ``"uniform"``, ``"triangular"``, ``"quartic"``, ``"triweight"``, ``"tricube"``,
            ``"gaussian"``, ``"cosine"``, ``"logistic"``, ``"sigmoid"`` or ``"silverman"``.
        bandwidth: the kernel's width as a share of the whole time span: wider is smoother.
            ``n^(-1/5) n^(-3/35) (ln n)^(-1/16)`` where None.
        at: ``(m,)`` times to estimate at; the data's own where None.
        backend: ``"torch"``, or ``"diffeqflux"``: DiffEqFlux's own function, without ``at`` and without a gradient.

    Returns:
        ``(du, u)``, each ``(m, ...)``; differentiable in the data.

    Raises:
        UnknownNameError: another kernel (the nearest one is in the message), or backend.
        UnsupportedError, DtypeError: what DiffEqFlux's function has not, or has wrong (Silverman's kernel).
        InvalidArgumentError: the bandwidth is not positive, or reaches too few data; or there are fewer than three.
        InvalidTimesError, ShapeError: times that are not increasing, or not one for each datum.
        InvalidStateError, DataError: data that are no floating numbers, or not finite.

    Source: DiffEqFlux.jl's function of this name; its papers are named in :mod:`pydiffeqflux.training.collocation`.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> t = torch.linspace(0, 1, 101, dtype=torch.float64)
        >>> du, u = pdf.collocate_data(torch.exp(t)[:, None], t, "tricube", 0.1)
        >>> bool((du - u).abs().max() < 0.01)
        True
    """
    values = torch.as_tensor(data)
    if not values.is_floating_point():
        raise InvalidStateError(f"data has dtype {values.dtype}; a series is floating point: data.double(), say.")
    if not values.dim():
        raise DataError("data is a single number; a series is (n, ...), time first.")
    if not bool(values.isfinite().all()):
        raise DataError("data has entries that are NaN or infinite; leave those times out.")
    n = len(values)
    times = check_knots(t, n, 3, "t").to(values)
    weigh = _kernel(kernel)
    share = default_bandwidth(n) if bandwidth is None else _bandwidth(bandwidth)
    where = times if at is None else torch.as_tensor(at).to(values).reshape(-1)
    if backend != "torch":
        return _theirs(values, times, weigh, share, at, backend)
    width = share * (times[-1] - times[0])
    x = (times[None, :] - where[:, None]) / width  # (m, n), in bandwidths
    w = weigh(x)
    counted = (w > 1e-12 * w.amax(dim=1, keepdim=True)).sum(1)
    if bool((counted < 3).any()):
        few = int(torch.argmax((counted < 3).long()))
        raise InvalidArgumentError(
            f"bandwidth={share:.4g} of the time span reaches only {int(counted[few])} data around"
            f" t={float(where[few])}; a parabola needs three: choose a larger one."
        )
    columns = values.reshape(n, -1)
    line = _local(x, w, columns, 1)
    parabola = _local(x, w, columns, 2)
    shape = (len(where), *values.shape[1:])
    return Collocation((parabola[:, 1] / width).reshape(shape), line[:, 0].reshape(shape))


def _theirs(values: Tensor, times: Tensor, weigh: Any, share: float, at: Any, backend: Any) -> Collocation:
    if backend != "diffeqflux":
        raise UnknownNameError("backend", backend, ("torch", "diffeqflux"))
    if at is not None:
        raise UnsupportedError("at on backend='diffeqflux' does not exist: leave it out, or take backend='torch'.")
    from ..backends.julia.door.collocation import collocated

    name = next(name for name, kernel in KERNELS.items() if kernel is weigh)
    du, u = collocated(values.reshape(len(values), -1), times, name, share)
    return Collocation(du.reshape(values.shape), u.reshape(values.shape))


def _local(x: Tensor, w: Tensor, columns: Tensor, degree: int) -> Tensor:
    """Coefficients ``(m, degree + 1, d)`` of the weighted polynomial around each point."""
    # Distances are in bandwidths, so that the normal equations are well scaled.
    basis = torch.stack([x**k for k in range(degree + 1)], -1)
    weighted = basis * w[..., None]
    return torch.linalg.solve(weighted.mT @ basis, weighted.mT @ columns)


def _kernel(kernel: Any) -> Callable[[Tensor], Tensor]:
    name = kernel.lower().removesuffix("kernel") if isinstance(kernel, str) else kernel
    if name not in KERNELS:
        raise UnknownNameError("kernel", kernel, KERNELS)
    return KERNELS[name]


def _bandwidth(bandwidth: Any) -> float:
    ok = isinstance(bandwidth, numbers.Real) and not isinstance(bandwidth, bool)
    if not ok or not (math.isfinite(bandwidth) and bandwidth > 0):
        raise InvalidArgumentError(f"bandwidth={bandwidth!r} must be a positive number, a share of the time span.")
    return float(bandwidth)
