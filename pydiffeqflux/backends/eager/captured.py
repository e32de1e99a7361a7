"""``backend="captured"``: the eager loop, every step of an explicit method one graph of ``torch.compile``.

What the host does between two steps stays what it was: it reads one number off the device, the error's norm, and
chooses the next step. The step itself (all its stages, each with the model inside) is traced once and compiled; time
and step size go in as tensors, so that no step is compiled twice. Every shape and dtype of the state is compiled anew,
which takes up to a minute. It is meant for GPUs, where a step's operations cost their launches; none has been at hand
to measure that, so nothing chooses this by itself (on a CPU a small network's solve is slower than by eager torch).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ...methods import Method
from ...problem import ODEProblem
from ...solution import Solution
from ...tracking import transforming
from ..anchor import anchor_of
from ..backend import Problem, SolveOptions
from ..common.rhs import Rhs, Scalar
from ..common.tolerances import Tolerances
from .catalogue import EXPLICIT, explicit
from .engine import EagerBackend
from .rk.tableau import ExplicitRK, _node
from .stepper import Step, Stepper, arrive

#: Torch's compiler.
COMPILER = "inductor"
#: ``(t, dt, y, slope at y) -> (new state, error, *slopes)``.
Compiled = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]

#: The compiled steps of every function that is still alive, by method.
_compiled: weakref.WeakKeyDictionary[Any, dict[str, Compiled]] = weakref.WeakKeyDictionary()


class CapturedBackend(EagerBackend):
    """``backend="captured"``."""

    name = "captured"

    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        """Solve.

        Raises:
            UnsupportedError: the method is not an explicit one, or rows step for themselves.
        """
        why = None
        if not isinstance(problem, ODEProblem) or problem.mass_matrix is not None:
            why = "only ODEProblems without a mass matrix"
        elif type(method) not in EXPLICIT:
            why = f"only explicit methods, and {method} is not one"
        elif options.per_sample:
            why = "no per_sample=True"
        if why is not None:
            raise UnsupportedError(f"backend='captured' compiles {why}: leave it out, or take backend='eager'.")
        return super().solve(problem, method, options)

    def stepper(self, problem: Problem, method: Method, tol: Tolerances, *, second_order: bool) -> Stepper:
        assert isinstance(problem, ODEProblem)
        name = EXPLICIT[type(method)]
        return CapturedRK(explicit(name), name, problem.func)


class CapturedRK:
    """As :class:`ExplicitRK`; steps of a size that is a tensor with a gradient of its own stay eager."""

    implicit = False

    def __init__(self, plain: ExplicitRK, name: str, func: Callable[..., Any]):
        self.plain, self.name, self.func = plain, name, func
        self.order, self.error_order, self.adaptive = plain.order, plain.error_order, plain.adaptive

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Tensor:
        return self.plain.start(rhs, t, y)

    def slope(self, carry: Tensor) -> Tensor:
        return self.plain.slope(carry)

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Tensor | None) -> Step:
        plain = self.plain
        # Another right-hand side is an adjoint's own; between two stops its times are held back.
        own = rhs.func is self.func and not rhs._inside and not transforming()
        if not own or not isinstance(t, float) or not isinstance(dt, float):
            return plain.step(rhs, t, dt, y, carry)
        first = rhs(t, y) if carry is None else carry
        wide = torch.float32 if rhs.device.type == "mps" else torch.float64
        now, size = (torch.scalar_tensor(x, dtype=wide, device=rhs.device) for x in (t, dt))
        y1, error, *slopes = self._graph(rhs)(now, size, y, first)
        rhs.nf += len(slopes) - 1
        return Step(
            y1=y1,
            error=error.detach() if self.adaptive else None,
            interpolant=lambda: plain._interpolant(rhs, t, dt, y, y1, slopes),
            carry=slopes[-1] if plain._fsal else None,
        )

    def _graph(self, rhs: Rhs) -> Compiled:
        key = f"{self.name} {rhs.spec!r}"
        try:
            steps = _compiled.setdefault(anchor_of(self.func), {})
        except TypeError:  # cannot be referred to weakly
            steps = {}
        if key not in steps:
            steps[key] = compile_step(self.plain, _evaluation(rhs))
        return steps[key]


def _evaluation(rhs: Rhs) -> Callable[[Tensor, Tensor], Tensor]:
    """f of a packed state; without ``rhs``, which counts."""
    func, spec, dtype = rhs.func, rhs.spec, rhs.time_dtype

    def evaluate(t: Tensor, y: Tensor) -> Tensor:
        return func(t.to(dtype), y) if spec is None else spec.flatten(func(t.to(dtype), spec.unflatten(y)))

    return evaluate


def compile_step(plain: ExplicitRK, evaluate: Callable[[Tensor, Tensor], Tensor]) -> Compiled:
    """A step of a method as one graph."""

    def step(t: Tensor, dt: Tensor, y: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        slopes, stage = [first], y
        for c, terms, move in plain._stages:
            stage = move(y, dt, terms, slopes)
            slopes.append(evaluate(_time(t, dt, c), stage))
        y1 = stage if plain._fsal else arrive(y, dt, plain._b, slopes)
        error = plain._error(dt, slopes)
        return y1, y1 if error is None else error, *slopes

    return torch.compile(step, dynamic=False, backend=COMPILER)


def _time(t: Tensor, dt: Tensor, c: float) -> Tensor:
    found = _node(t, dt, c)
    assert isinstance(found, Tensor)
    return found
