"""Picking a sensitivity algorithm where the user named none."""

from __future__ import annotations

import torch

from ...dde_problem import DDEProblem
from ...errors import UnsupportedError
from ...methods import Method
from ...sensealg import JULIA, DiscreteAdjoint, SenseAlg
from ...tracking import transforming
from ..backend import Problem, SolveOptions

#: Entries of the state above which keeping every stage of every step is likely to be what fills memory.
LARGE_STATE = 1 << 18


def choose_sensealg(problem: Problem, method: Method, options: SolveOptions) -> tuple[SenseAlg | None, str]:
    """The algorithm and why. None means that nothing is recorded.

    The discrete adjoint is the exact gradient of what was computed, reaches everything (times and events
    too) and, with its evaluations' graphs kept, costs the fewest evaluations; only its memory grows with the
    number of steps, so large states are checkpointed.
    """
    if not torch.is_grad_enabled():
        return None, "gradients are disabled"
    if options.sensealg is not None:
        _require_native(options.sensealg)
        return options.sensealg, "asked for"
    size = problem.packed.numel()
    # Checkpoints recompute in autograd's own backward pass, which torch.func does not transform.
    whole = options.events or options.per_sample or transforming() or isinstance(problem, DDEProblem)
    if size > LARGE_STATE and not whole:
        return DiscreteAdjoint(checkpoints="sqrt"), f"a state of {size} entries: memory before speed"
    return DiscreteAdjoint(), "exact for the computed solution, and the fewest evaluations"


def _require_native(sensealg: SenseAlg) -> None:
    """Raise for what only Julia has."""
    if isinstance(sensealg, JULIA):
        raise UnsupportedError(
            f"sensealg={sensealg.name} is one of backend='julia': ask for that, or take DiscreteAdjoint(), which is"
            f" exact for the computed solution."
        )
    if getattr(sensealg, "products", "traced") != "traced":
        raise UnsupportedError(
            f"sensealg={sensealg!r}: autojacvec is for backend='julia'; here products come from autograd: leave it out."
        )
