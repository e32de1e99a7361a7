"""What the integration loop asks of a method, and nothing more.

A stepper is stateless: what it remembers from one step to the next (the last slope of a first-same-as-last
method, the differences of a multistep one) is its *carry*, made by :meth:`Stepper.start` and handed on by
each :class:`Step`. A rejected step's carry is simply dropped.

Times and step sizes come in three forms, and a stepper's arithmetic works for all of them alike
(``t + c * dt``):

* ``t`` and ``dt`` Python floats: the usual case, with the fewest tensor operations;
* 0-dim tensors: where the times carry a gradient;
* tensors of shape ``(B, 1, ..., 1)`` that broadcast against the state: per-sample stepping.

``dt`` is signed (negative when solving backwards in time) and, as a tensor, has the state's real dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.dense import Interpolant
from ..common.rhs import Rhs, Scalar


@dataclass(frozen=True, slots=True)
class Constant:
    """Something in a carry that no gradient passes through, such as a Jacobian that Newton's method uses again.

    Tensors that stand in a carry as they are count as part of the solution: checkpointing differentiates them.
    """

    value: Tensor


@dataclass(slots=True)
class Step:
    """The outcome of one attempted step of size ``dt`` from ``(t, y)``."""

    y1: Tensor
    #: Local error estimate, shaped like the state and without a graph; None for a fixed-step method.
    error: Tensor | None
    #: Builds the dense output of the step; called only where it is needed.
    interpolant: Callable[[], Interpolant]
    #: What the next step starts from if this one is accepted.
    carry: Any
    #: False where an implicit equation was not solved: the loop tries again with a smaller step. A tensor where that
    #: is only known on the state's device, or for each row.
    converged: bool | Tensor = True
    #: Exponent of the controller is 1 / (error_order + 1); None: the stepper's own.
    error_order: float | None = None
    #: A multistep method's own choice of dt_next / dt after acceptance; None: the controller chooses.
    factor: float | None = None


class Stepper(Protocol):
    """One method, ready to step."""

    #: Order of the carried solution.
    order: int
    adaptive: bool
    #: True where steps need the Jacobian of the right-hand side.
    implicit: bool

    @property
    def error_order(self) -> float:
        """Order of the error estimate."""
        ...

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Any:
        """The carry of the first step (also after the state jumped at an event or a dose)."""
        ...

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Any) -> Step:
        """Attempt one step."""
        ...

    def slope(self, carry: Any) -> Tensor | None:
        """f at the current point where the carry holds it (saves an evaluation), else None."""
        ...


#: The non-zero weights of a linear combination, each with the index of its slope.
Terms = tuple[tuple[float, int], ...]


def nonzero(weights: Sequence[float]) -> Terms:
    """The terms of ``sum_j weights[j] * slopes[j]`` that count; filtered once, not in every step."""
    return tuple((w, j) for j, w in enumerate(weights) if w != 0.0)


def advance(y: Tensor, dt: Scalar, terms: Terms, slopes: Sequence[Tensor]) -> Tensor:
    """``y + dt * sum_j w_j * slopes[j]`` in as few operations as possible; ``y`` itself without terms."""
    if not terms:
        return y
    if not isinstance(dt, float):
        return torch.addcmul(y, dt.to(y.dtype), combine(terms, slopes))
    w, j = terms[0]
    out = torch.add(y, slopes[j], alpha=dt * w)
    if torch.is_grad_enabled():
        for w, j in terms[1:]:
            out = torch.add(out, slopes[j], alpha=dt * w)
    else:  # `out` is ours alone: no graph can hold it
        for w, j in terms[1:]:
            out.add_(slopes[j], alpha=dt * w)
    return out


def arrive(y: Tensor, dt: Scalar, terms: Terms, slopes: Sequence[Tensor]) -> Tensor:
    """:func:`advance` for the solution itself, at one more operation: the slopes are summed up first.

    So y is rounded once a step and not once a term, which in single precision is the larger part of the error.
    """
    if not terms or not isinstance(dt, float):
        return advance(y, dt, terms, slopes)
    return y + combine(terms, slopes, dt)


def combine(terms: Terms, slopes: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """``scale * sum_j w_j * slopes[j]``, of at least one term."""
    w, j = terms[0]
    total = slopes[j] * (scale * w)
    if torch.is_grad_enabled():
        for w, j in terms[1:]:
            total = torch.add(total, slopes[j], alpha=scale * w)
    else:
        for w, j in terms[1:]:
            total.add_(slopes[j], alpha=scale * w)
    return total


def increment(y: Tensor, dt: Scalar, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """:func:`advance` with weights that may be zero."""
    return advance(y, dt, nonzero(weights), slopes)


def combination(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """:func:`combine` with weights that may be zero, though not all of them."""
    return combine(nonzero(weights), slopes)
