"""Derivative matching: a right-hand side regressed onto rates of change, without solving anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ShapeError
from ..layers.calling import as_rhs, takes_time
from ..layers.solver_layer import check_callable
from .collocation import collocate_data


def half_cosine(done: float) -> float:
    """From 1 at ``done=0`` down to a hundredth at ``done=1``."""
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def match_rates(
    parameters: Iterable[Tensor], losses: Callable[[], tuple[Tensor, Tensor]], steps: int, lr: float
) -> list[float]:
    """Adam along half a cosine; the first of the two losses at each step is returned, the second is minimised."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr)
    found = []
    for step in range(steps):
        set_lr(optimizer, lr * half_cosine(step / steps))
        optimizer.zero_grad()
        shown, minimised = losses()
        minimised.backward()
        optimizer.step()
        found.append(float(shown.detach()))
    return found


def collocation_pretrain(
    node: Any,
    data: Any,
    t: Any,
    kernel: str = "triangular",
    bandwidth: float | None = None,
    *,
    steps: int = 300,
    lr: float = 1e-2,
) -> list[float]:
    """Train a right-hand side on the rates of change that :func:`collocate_data` finds, before any solve.

    It costs about what as many evaluations of the model do, and gives solver-based training a start near a good fit.

    Args:
        node: a layer with a right-hand side (:class:`NeuralODE`, :class:`UniversalODE`, ...), or the model itself.
        data, t, kernel, bandwidth: as for :func:`collocate_data`; each row of the data is a state.
        steps, lr: of Adam (Kingma & Ba 2015); the step size falls to a hundredth along half a cosine.

    Returns:
        The mean squared error of the rates at each step.

    Raises:
        InvalidArgumentError: ``node`` has nothing to train; or ``steps`` or ``lr`` is not positive.
        ShapeError: the model's rates are not of the data's shape.
        Those of :func:`collocate_data`.

    Sources: as for :func:`collocate_data`; Varah (1982), SIAM J. Sci. Stat. Comput. 3, 28-46.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> t = torch.linspace(0, 2, 40)
        >>> node = pdf.NeuralODE(torch.nn.Linear(1, 1), (0.0, 2.0))
        >>> losses = pdf.collocation_pretrain(node, torch.exp(-t)[:, None], t, bandwidth=0.2)
        >>> losses[-1] < 0.01 * losses[0]
        True
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not lr > 0:
        raise InvalidArgumentError(f"steps={steps!r} must be a positive integer, and lr={lr!r} positive.")
    rhs, timed = _right_hand_side(node)
    parameters = [p for p in (node.parameters() if isinstance(node, nn.Module) else ()) if p.requires_grad]
    if not parameters:
        raise InvalidArgumentError(f"node={node!r} has no parameter to train; give an nn.Module with some.")
    like = parameters[0]
    values = torch.as_tensor(data).to(like)
    times = torch.as_tensor(t).to(like)
    du, u = collocate_data(values, times, kernel, bandwidth)
    du, u = du.detach(), u.detach()

    def losses() -> tuple[Tensor, Tensor]:
        rates = torch.vmap(rhs)(times, u) if timed else rhs(times[0], u)
        if rates.shape != du.shape:
            raise ShapeError(f"the model's rates have shape {tuple(rates.shape)} where data has {tuple(du.shape)}.")
        loss = (rates - du).square().mean()
        return loss, loss

    return match_rates(parameters, losses, steps, lr)


def _right_hand_side(node: Any) -> tuple[Callable[[Any, Any], Any], bool]:
    """``func(t, y)`` of a layer or a model, and whether the time matters to it."""
    if hasattr(node, "rhs"):
        return node.rhs, getattr(node, "time_dependent", True)
    check_callable(node, "model(y) or model(t, y), or a layer such as NeuralODE")
    timed = takes_time(node)
    return as_rhs(node, timed), timed
