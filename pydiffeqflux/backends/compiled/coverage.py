"""What the compiled engine can solve; and where it is worth it."""

from __future__ import annotations

import torch


from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import DiscreteAdjoint
from ...tracking import transforming
from ..backend import SolveOptions
from .tableaus import table_of



def uncovered(problem: ODEProblem, method: Method, options: SolveOptions) -> str | None:
    """Why this solve is not one for the compiled engine; None where it is. The model itself is not looked at."""
    y = problem.packed
    if transforming():
        return "torch.func transforms and forward mode go through eager operations"
    if y.device.type != "cpu":
        return f"the state is on {y.device}"
    if y.dtype not in (torch.float32, torch.float64):
        return f"the state is {y.dtype}, not float32 or float64"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses dtypes operation by operation"
    if table_of(type(method)) is None:
        return f"method={method} is not compiled"
    for given, what in (
        (options.events, "events"), (options.doses, "callbacks"), (options.stops, "tstops"),
        (options.norm is not None, "a norm of one's own"), (options.progress, "a progress bar"),
        (options.per_sample, "per_sample=True"),
    ):  # fmt: skip
        if given:
            return f"{what} is not compiled"
    sensealg = options.sensealg
    if torch.is_grad_enabled() and sensealg is not None and not isinstance(sensealg, DiscreteAdjoint):
        return f"sensealg={sensealg.name} is not compiled"
    return None
