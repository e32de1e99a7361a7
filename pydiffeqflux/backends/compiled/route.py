"""The way of a problem that is solved again and again, remembered: nothing is looked up that cannot have changed.

What can have is looked at every time: the arguments, the values of the save times, everything that the function
reaches, and the modes that torch is in. Then the loop of the last time is entered with the state as it is now.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem
from ...solution import Solution, Stats
from ...tracking import transforming
from ..backend import SolveOptions
from .engine import describe, model_for, run
from .model import Arguments, Model, walked
from .plain import solve as plain_solve
from .shards import MANY


class Route:
    """One problem, solved with the same arguments as before."""

    def __init__(
        self, problem: ODEProblem, method: Method, options: SolveOptions, model: Model, given: tuple[Any, ...],
        saveat: Tensor | None,
    ):  # fmt: skip
        self.method, self.options, self.model, self.given = method, options, model, given
        self.times = None if saveat is None else saveat.detach().clone()
        self.reach = walked(problem.func).reach
        self.shape, self.dtype, self.default = problem.packed.shape, problem.packed.dtype, torch.get_default_dtype()
        self.plan = model.plans.get(problem, method, options)
        self.arguments: Arguments | None = None
        #: Nothing is wanted but the saved states, as long as nobody records.
        self.plain = not options.dense and (options.saves is not None or options.unsaved == "end")

    def again(self, problem: ODEProblem, given: tuple[Any, ...], saveat: Any) -> Solution | None:
        """The solution; None where something is not as it was."""
        began = time.perf_counter()
        y0, times = problem.packed, self.times
        if (
            given != self.given or y0.shape != self.shape or y0.dtype is not self.dtype or not y0.is_cpu
            or transforming() or torch.is_autocast_enabled("cpu") or torch.get_default_dtype() is not self.default
        ):  # fmt: skip
            return None
        if times is None:
            if saveat is not None:
                return None
        elif (
            type(saveat) is not Tensor or saveat.requires_grad or saveat.dtype is not times.dtype
            or not torch.equal(times, saveat)
        ):  # fmt: skip
            return None
        if not self.reach.unchanged():
            return None
        if self.plain and not torch.is_grad_enabled():
            return self._plainly(problem, began)
        return run(problem, self.method, self.options, self.model, self.reach.tensors, began)

    def _plainly(self, problem: ODEProblem, began: float) -> Solution | None:
        model, method, took = self.model, self.method, 0.0

        def finish(stats: Stats) -> None:
            describe(stats, method, None, "gradients are disabled", took)

        given, tensors = self.arguments, self.reach.tensors
        if given is None or tensors[0].data_ptr() != given.addresses[0 if model.params else 1]:
            given = model.arguments(tensors, kept=False)
            # A single tensor that lies in memory as the kernels want it is handed over as it is.
            alone = len(tensors) == 1 and tensors[0].data_ptr() in given.addresses
            self.arguments = given if alone else None
        found = plain_solve(problem, self.options, self.plan, model, given, finish)
        took = time.perf_counter() - began
        return found


def route_of(
    problem: ODEProblem, method: Method, options: SolveOptions, given: tuple[Any, ...], saveat: Any
) -> Route | None:
    """The route of a problem that was solved by this engine, if there is one to be remembered."""
    if options.memo.get("plain") is not method or not (saveat is None or type(saveat) is Tensor):
        return None
    if options.saves is not None and options.saves.tensor is not None:
        return None
    model, _ = model_for(problem, method, options)
    if not isinstance(model, Model) or not model.pure or model.operations >= MANY:
        return None
    return Route(problem, method, options, model, given, saveat)
