"""The norm of the scaled error, traced, for Julia's solvers to choose their steps by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...errors import ShapeError, UnsupportedError
from ...problem import ODEProblem
from ...sensealg import SenseAlg
from ...tracking import transforming
from ..backend import Problem
from .held import Held
from .model import Model, Models, addresses
from .sensitivities import Sensitivity
from .session import Session


class Norm(Held):
    """The keyword arguments of a solve with a norm among them."""

    def __init__(self, session: Session, handle: int, model: Model):
        super().__init__(session, handle)
        self._model = model  # alive as long as this is


def with_norm(
    session: Session, models: Models, options: Held | None, norm: Callable[[Any], Any], y0: Tensor
) -> Norm:
    """These keyword arguments, and a norm as it is now.

    Args:
        norm: the user's function of the scaled error.
        y0: a state.

    Raises:
        UntraceableError: the norm cannot be traced.
        ShapeError: it does not return one number.
    """
    model = models.get(norm, functools.partial(one_number, norm), 0.0, y0, "norm", None)
    values, constants = model.values(), model.constants()
    before = 0 if options is None else options.handle
    handle = session.call("bridge_norm", before, model.handle, values.data_ptr(), *addresses(constants))
    return Norm(session, handle, model)


def one_number(norm: Callable[[Any], Any], t: Tensor, y: Tensor) -> Tensor:
    """The norm, as a tensor with one entry."""
    size = norm(y)
    if not isinstance(size, Tensor) or size.numel() != 1:
        got = f"shape {tuple(size.shape)}" if isinstance(size, Tensor) else f"a {type(size).__name__}"
        raise ShapeError(f"norm returned {got}; on backend='julia' it must return a tensor with one number.")
    return size.reshape(1)


def check_problem(problem: Problem) -> None:
    """Raises UnsupportedError where no norm can be given."""
    what = None
    if not isinstance(problem, ODEProblem):
        what = f"a {type(problem).__name__}"
    elif problem.packed.is_complex():
        what = "a complex state"
    elif transforming():
        what = "torch.func's transforms"
    if what is not None:
        raise UnsupportedError(
            f"norm with {what} does not exist on backend='julia': leave it out, or use backend='torch'."
        )


def check_sensealg(sensealg: SenseAlg, sensitivity: Sensitivity) -> None:
    """Raises UnsupportedError for an algorithm whose own solves do not have the state's shape, or not its numbers."""
    if not sensitivity.plain or sensitivity.name == "ForwardSensitivity":
        raise UnsupportedError(
            f"norm with sensealg={sensealg} does not exist on backend='julia', which translates it for plain numbers"
            f" of the state's shape only: take GaussAdjoint() or another continuous adjoint with its own products,"
            f" leave norm out, or use backend='torch'."
        )
