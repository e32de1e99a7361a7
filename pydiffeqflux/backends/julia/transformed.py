"""``torch.func.vmap`` over initial states: the mapped dimension joins the state, and Julia solves once for all of it.

The solve itself runs on a thread of its own, where no transform is active: the stack of those belongs to a thread.
Autograd's graph does not, so that the result can be differentiated as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from ...errors import PyDiffEqFluxError, UnsupportedError
from ...problem import ODEProblem
from ...solution import Solution
from ...state import StateSpec
from ...tracking import forwarding
from ..backend import SolveOptions

_GRAD = (
    "backend='julia' inside torch.func.grad, its relatives or forward mode does not exist: call backward() or"
    " torch.autograd.grad on the solution, which goes through torch.func.vmap, or solve with backend='torch' there."
)


class Mapped:
    """A function of one packed state, as one of many states. Two of the same function are equal."""

    def __init__(self, model: Callable[[Tensor, Any], Any], spec: StateSpec | None):
        self.model, self.spec = model, spec
        self._many = torch.func.vmap(self._one, in_dims=(None, 0))

    def __call__(self, t: Tensor, ys: Tensor) -> Tensor:
        return self._many(t, ys)

    def _one(self, t: Tensor, y: Tensor) -> Any:
        return self.model(t, y) if self.spec is None else self.spec.flatten(self.model(t, self.spec.unflatten(y)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapped) and self.model == other.model and self.spec == other.spec

    def __hash__(self) -> int:
        return id(self.model)


def solve_mapped(
    problem: ODEProblem, options: SolveOptions, solve: Callable[[ODEProblem, SolveOptions], Solution]
) -> Solution:
    """Solve a problem whose initial state :func:`torch.func.vmap` maps over.

    Args:
        solve: solves a problem outside of all transforms.

    Raises:
        UnsupportedError: another transform, several of them, or something that cannot be joined.
    """
    y0, level = problem.packed, functorch.maybe_get_level(problem.packed)
    if forwarding() or any(layer.key() != torch._C._functorch.TransformType.Vmap for layer in _layers()):
        raise UnsupportedError(_GRAD)
    if len(_layers()) > 1 or not functorch.is_batchedtensor(y0):
        raise UnsupportedError(
            "backend='julia' inside torch.func.vmap joins the initial states that are mapped over, once: map over y0"
            " only, in one vmap, or solve with backend='torch' there."
        )
    if options.events or options.doses or any(isinstance(x, Tensor) and x.dim() for x in (options.rtol, options.atol)):
        raise UnsupportedError(
            "backend='julia' inside torch.func.vmap has no events, callbacks and tolerances by state: give the whole"
            " batch as y0, without vmap, or solve with backend='torch' there."
        )
    many = functorch.get_unwrapped(y0).movedim(functorch.maybe_get_bdim(y0), 0)
    found: list[Solution | BaseException] = []
    recording = torch.is_grad_enabled()

    def apart() -> None:
        try:
            with torch.set_grad_enabled(recording):
                joined = ODEProblem(Mapped(problem.func, problem.spec), many, problem.t_span)
                found.append(solve(joined, replace(options, dense=False)))
        except BaseException as why:
            found.append(why)

    thread = threading.Thread(target=apart, name="julia-vmap")
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, BaseException):
        _explained(result)
    assert isinstance(result, Solution)
    ys = functorch._add_batch_dim(result.ys, 1, level)
    result.ys = ys if problem.spec is None else problem.spec.unflatten(ys)
    return result


def _layers() -> list[Any]:
    return list(torch._C._functorch.get_interpreter_stack() or [])


def _explained(why: BaseException) -> None:
    """Raise it, or what it means."""
    if isinstance(why, RuntimeError) and not isinstance(why, PyDiffEqFluxError):
        raise UnsupportedError(
            f"backend='julia' inside torch.func.vmap could not evaluate func on its own ({str(why).splitlines()[0]}):"
            f" if func uses tensors that are mapped over, too, give the whole batch as y0, without vmap, or solve with"
            f" backend='torch' there."
        ) from why
    raise why
