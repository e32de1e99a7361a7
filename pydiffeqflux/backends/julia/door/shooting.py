"""DiffEqFlux's ``multiple_shoot``: of data it makes the predictions of all groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ....problem import ODEProblem
from ...common.rhs import Rhs
from .call import Layer, torch_part
from .forms import Form, Tracer, timed
from .ordinary import SENSEALGS


def layer_of(problem: ODEProblem, trace: Tracer) -> Layer:
    """What is called for a problem whose initial state are the data, ``(count, *state)``.

    It makes ``(rows, *state)``, one group's prediction after the other. Each group begins at a datum; the clock is part
    of a datum.
    """
    groups, data = problem.func, problem.packed
    func, times, size = groups.model, groups.times, groups.size  # type: ignore[attr-defined]
    shape, n = data.shape[1:], data[0].numel()
    with torch.no_grad():
        Rhs(func, None, data)(times[0], data[:1])  # its result is checked, and its failure explained
    column = (1,) * data.dim()

    def field(t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = func(t.reshape(column), y.reshape(1, *shape))
        return out.reshape(-1)

    def with_clock(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([field(z[-1], z[:-1]), torch.ones_like(z[-1:])])

    columns = data.reshape(len(data), n)
    model = trace(Form(func, "a group"), field, columns[0], "the model")
    if timed(model):
        columns = torch.cat([columns, torch.tensor(times, dtype=data.dtype)[:, None]], 1)
        model = trace(Form(func, "a group, clock"), with_clock, columns[0], "the model")
    width = columns.shape[1]
    return Layer(
        "multiple_shoot",
        (torch_part(model, [width]),),
        columns,
        (width, len(columns)),
        lambda numbers: numbers[:, :n].reshape(-1, *shape),
        SENSEALGS,
        more=[size],
        times=[times[i] for r in groups.ranges for i in r],  # type: ignore[attr-defined]
    )
