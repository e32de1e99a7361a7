"""What the compiled engine can solve; and where it is worth it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import BacksolveAdjoint, DiscreteAdjoint, GaussAdjoint, InterpolatingAdjoint
from ...tracking import transforming
from ..backend import SolveOptions
from ..common.autocast import of_models
from .tableaus import table_of

#: The adjoint equations that are compiled.
CONTINUOUS = (InterpolatingAdjoint, BacksolveAdjoint, GaussAdjoint)


def uncovered(problem: ODEProblem, method: Method, options: SolveOptions) -> str | None:
    """Why this solve is not one for the compiled engine; None where it is. The model itself is not looked at."""
    y = problem.packed
    if problem.mass_matrix is not None:
        return "a mass matrix is not compiled"
    if transforming():
        return "torch.func transforms and forward mode go through eager operations"
    if y.device.type != "cpu":
        return f"the state is on {y.device}"
    if y.dtype not in (torch.float32, torch.float64):
        return f"the state is {y.dtype}, not float32 or float64"
    if of_models("cpu") is not None:
        return "autocast chooses dtypes operation by operation"
    if options.memo.get("plain") is method and (options.sensealg is None or not torch.is_grad_enabled()):
        return None
    why = _uncovered(problem, method, options)
    if why is None and not (options.per_sample or method.implicit or options.events or options.doses):
        options.memo["plain"] = method  # nothing but these two was looked at
    return why


def _uncovered(problem: ODEProblem, method: Method, options: SolveOptions) -> str | None:
    """The same, by what was asked for."""
    if table_of(method) is None:
        return f"method={method} is not compiled"
    for given, what in (
        (options.stops, "tstops"), (options.norm is not None, "a norm of one's own"),
        (options.progress, "a progress bar"),
    ):  # fmt: skip
        if given:
            return f"{what} is not compiled"
    if (options.events or options.doses) and (why := _uncovered_jumps(problem, method, options)) is not None:
        return why
    if options.per_sample and (why := _uncovered_rows(problem, options)) is not None:
        return why
    if method.implicit and (why := _uncovered_stiff(problem, options)) is not None:
        return why
    sensealg = options.sensealg
    if not torch.is_grad_enabled() or sensealg is None or isinstance(sensealg, DiscreteAdjoint):
        return None
    if not isinstance(sensealg, CONTINUOUS):
        return f"sensealg={sensealg.name} is not compiled"
    if options.per_sample:
        return f"sensealg={sensealg.name} with per_sample=True is not compiled"
    if not options.throw:
        return f"sensealg={sensealg.name} with throw=False is not compiled"
    from . import continuous

    return continuous.uncovered(sensealg, method)


def _uncovered_jumps(problem: ODEProblem, method: Method, options: SolveOptions) -> str | None:
    """The same for what events and doses add."""
    what = "events" if options.events else "callbacks"
    if options.per_sample:
        return f"{what} with per_sample=True is not compiled"
    recording = torch.is_grad_enabled()
    if method.implicit and recording:
        return f"{what} with gradients of a Rosenbrock method is not compiled"
    whole = options.sensealg is None or (
        isinstance(options.sensealg, DiscreteAdjoint) and options.sensealg.checkpoints is None
    )
    if recording and not whole:
        return f"{what} with sensealg={options.sensealg} is not compiled"
    return None


def _uncovered_rows(problem: ODEProblem, options: SolveOptions) -> str | None:
    """The same for what per-sample mode adds."""
    if problem.spec is not None or problem.packed.dim() < 2:
        return "per_sample=True is compiled for a state that is one tensor of two or more dimensions"
    if options.saves is None and options.unsaved == "steps":
        return "per_sample=True is compiled with saveat, or save_everystep=False, only"
    if options.dense:
        return "per_sample=True is compiled with dense=False only"
    if isinstance(options.rtol, Tensor) or isinstance(options.atol, Tensor):
        return "per_sample=True with tolerances that are tensors is not compiled"
    if isinstance(options.sensealg, DiscreteAdjoint) and options.sensealg.checkpoints is not None:
        return "per_sample=True with checkpoints is not compiled"
    return None


#: Entries of the state up to which a dense Jacobian is factorised here.
DENSE_JACOBIAN = 100


def _uncovered_stiff(problem: ODEProblem, options: SolveOptions) -> str | None:
    """The same for what Rosenbrock methods add."""
    n = problem.packed.numel()
    if n > DENSE_JACOBIAN:
        return f"a Jacobian of {n} rows and columns is factorised faster, or row by row, in eager torch"
    if options.per_sample:
        return "per_sample=True with a Rosenbrock method is not compiled"
    saves = None if options.saves is None else options.saves.tensor
    times = (problem.t0.tensor, problem.t1.tensor, saves)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in times):
        return "gradients of times through a Rosenbrock method are not compiled"
    if isinstance(options.sensealg, DiscreteAdjoint) and options.sensealg.checkpoints is not None:
        return "checkpoints of a Rosenbrock method are not compiled"
    return None
