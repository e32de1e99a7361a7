"""DiffEqFlux's layer for delay equations: NeuralCDDE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....dde_problem import DDEProblem
from ....errors import UnsupportedError
from ...common.rhs import Rhs
from .call import Layer, torch_part
from .forms import Form, Tracer, ticking, timed

#: What differentiates it: a tape over the steps that were taken.
SENSEALGS = ("TrackerAdjoint",)


def layer_of(problem: DDEProblem, trace: Tracer) -> Layer:
    """The layer for a delay equation.

    Raises:
        UnsupportedError: a lag that is a function: DiffEqFlux's layer has constant ones.
    """
    for lag in problem.delays:
        if not lag.constant:
            raise UnsupportedError(
                f"{lag.name} is a function of time and state, and DiffEqFlux's NeuralCDDE has constant lags: use"
                f" backend='julia' or 'torch'."
            )
    y0, spec, count = problem.packed, problem.spec, 1 + len(problem.delays)
    shape, n = y0.shape, y0.numel()

    def side(t: Tensor, z: Tensor) -> Tensor:
        out: Any = problem.func(t, *(x if spec is None else spec.unflatten(x) for x in z.unbind(0)))
        return out if spec is None else spec.flatten(out)

    def with_clock(t: Tensor, z: Tensor) -> Tensor:
        out = side(z[0, -1], z[:, :-1].reshape(count, *shape))
        return torch.cat([out.reshape(-1), torch.ones_like(z[0, -1:])])

    what = "the right-hand side of the DDEProblem"
    checked = Rhs(lambda t, y: problem.func(t, y, *[y] * (count - 1)), spec, y0)
    with torch.no_grad():
        checked(problem.t0.value, y0)  # its result is checked, and its failure explained
    model = trace(problem.func, side, torch.stack([y0] * count), what)
    start, clock = y0.reshape(-1), timed(model)
    if clock:
        start = ticking(start, problem.t0.value)
        model = trace(Form(problem.func, "clock"), with_clock, torch.stack([start] * count), what)
    parts = [torch_part(model, [start.numel()])]
    history, rest = problem.past, []
    if history.func is None:
        assert history.state is not None
        rest = [history.state]
    else:
        with torch.no_grad():
            history.at(torch.scalar_tensor(problem.t0.value, dtype=y0.dtype))

        def before(t: Tensor, when: Tensor) -> Tensor:
            out: Any = history.func(when[0])
            flat: Tensor = (out if spec is None else spec.flatten(out)).reshape(-1)
            return torch.cat([flat, when]) if clock else flat

        when = y0.new_full((1,), problem.t0.value)
        past = trace(Form(history.func, ("of time", clock)), before, when, "the history of the DDEProblem")
        parts.append(torch_part(past, [start.numel()]))
    return Layer(
        "NeuralCDDE",
        tuple(parts),
        start,
        (start.numel(),),
        lambda numbers: numbers[:, :n].reshape(-1, *shape),
        SENSEALGS,
        more=[lag.value for lag in problem.delays],
        width=start.numel(),
        rest=rest,
    )
