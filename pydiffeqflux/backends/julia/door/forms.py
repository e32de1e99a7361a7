"""Functions of torch as DiffEqFlux's layers want them: of flat states alone.

DiffEqFlux hands its models no time. A function of time and state is made one of the state with a clock in it: an entry
behind the others, which is the time and whose rate of change is one. Functions that do not look at the time go without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....graph.trace import Evaluate
from ....state import StateSpec
from ..model import Model, Models


@dataclass(frozen=True)
class Form:
    """What a form of a function is remembered by."""

    model: Any
    form: Any


def timed(model: Model) -> bool:
    """Whether a traced function looks at the time."""
    first = next(n for n in model.kernels.graphs.forward.nodes if n.op == "placeholder")
    return bool(first.users)


def with_clock(evaluate: Evaluate, shape: torch.Size, rate: float) -> Evaluate:
    """``evaluate(t, y)`` as a function of ``(n + 1,)``; ``rate`` is what it returns for the clock."""

    def at(t: Tensor, z: Tensor) -> Tensor:
        out = evaluate(z[-1], z[:-1].reshape(shape))
        # A matrix has as many columns as there are states.
        wide = out.reshape(-1) if out.shape == shape else out
        return torch.cat([wide, torch.full_like(wide[..., :1], rate)], -1)

    return at


def ticking(flat: Tensor, t0: float) -> Tensor:
    """A flat state with a clock."""
    return torch.cat([flat, flat.new_full((1,), t0)])


class Tracer:
    """Traces the functions of a problem, with vector-Jacobian products where a gradient is ``wanted``."""

    def __init__(self, models: Models, t0: float, wanted: bool, spec: StateSpec | None):
        self.models, self.t0, self.wanted, self.spec = models, t0, wanted, spec

    def __call__(self, key: Any, evaluate: Evaluate, like: Tensor, what: str) -> Model:
        like = like.detach()
        model = self.models.get(key, evaluate, torch.scalar_tensor(self.t0, dtype=like.dtype), like, what, self.spec)
        if self.wanted:
            model.need("vjp")
        return model
