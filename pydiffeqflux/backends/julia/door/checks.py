"""What the layers of DiffEqFlux do not take, or not from here."""

from __future__ import annotations

import torch

from .... import sensealg as sensealgs
from ....controllers import PIDController
from ....errors import DtypeError, StepSizeRequiredError, UnsupportedError
from ....methods import Method
from ....sde_problem import SDEProblem
from ....tracking import transforming
from ...backend import Problem, SolveOptions
from ..engine import _require
from .call import Layer


def options(problem: Problem, method: Method, options: SolveOptions) -> None:
    """Whether a layer can be told all of this.

    Raises:
        UnsupportedError, DtypeError, StepSizeRequiredError: it cannot.
    """
    _require(problem, options)
    if problem.packed.device.type != "cpu":
        raise DtypeError(
            f"backend='diffeqflux' solves on the CPU; y0 is on {problem.packed.device}: move it (y0.cpu()), or use"
            f" backend='julia' or backend='torch'."
        )
    stochastic = isinstance(problem, SDEProblem)  # whose solvers say by themselves whether they choose their steps
    if not stochastic and not method.adaptive and options.dt is None:
        raise StepSizeRequiredError(
            f"method={method} takes fixed steps, and on backend='diffeqflux' their size must be given: say dt."
        )
    ends = (problem.t0.tensor, problem.t1.tensor, None if options.saves is None else options.saves.tensor)
    missing = {
        "a gradient of times": torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in ends),
        "event": bool(options.events),
        "callbacks": bool(options.doses),
        "fallback": options.fallback is not None,
        "progress": options.progress,
        "per_sample": options.per_sample,
        "controller": options.controller != PIDController(),
        "a torch.func transform": transforming(),
        "every step (saveat=None with save_everystep=True)": options.saves is None and options.unsaved == "steps",
        "tstops": bool(options.stops),
    }
    for name, wanted in missing.items():
        if wanted:
            raise UnsupportedError(f"{name} on backend='diffeqflux' does not exist: use backend='julia'.")


def sensealg(layer: Layer, options: SolveOptions) -> str:
    """The sensitivity algorithm, by its name.

    Raises:
        UnsupportedError: one that does not differentiate this layer.
    """
    chosen = options.sensealg
    if chosen is None:
        return layer.sensealgs[0]
    name = "TrackerAdjoint" if isinstance(chosen, sensealgs.DiscreteAdjoint) else chosen.name
    if name not in layer.sensealgs or chosen != type(chosen)():
        raise UnsupportedError(
            f"sensealg={chosen} on backend='diffeqflux' does not exist: {layer.name} takes"
            f" {', '.join(layer.sensealgs)} without options; backend='julia' takes more."
        )
    return name
