"""The derivatives of what an iteration has found, by the implicit function theorem.

With ``r(x) = 0`` at the solution and W its Jacobian there, one further Newton correction ``x - W^-1 r(x)``, whose ``r``
carries the graph and whose W is a constant, has the exact first derivative. (Each correction makes one more derivative
exact, so two of them carry the second.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import GradientError
from ...tracking import forwarding_twice
from .jacobian import from_columns, to_columns


def corrected(
    x: Tensor, residual: Callable[[Tensor], Tensor], lu: Tensor, pivots: Tensor, *, batched: bool, order: int
) -> Tensor:
    """The root ``x`` of ``residual`` with ``order`` derivatives, by Newton corrections that do not move it."""
    for _ in range(order):
        columns = (to_columns(part, batched) for part in (x, residual(x)))
        x = from_columns(_correct(*columns, lu, pivots, order), x)
    return x


def refuse_forward_twice() -> None:
    """Raises GradientError where derivatives of the implicit function would be lost without a word."""
    if forwarding_twice():
        raise GradientError(
            "forward mode inside forward mode (jacfwd(jacfwd(f)), say) through an implicit method that iterates; take"
            " one of the two derivatives in reverse, as torch.func.hessian does, or use a Rosenbrock method, such as"
            " 'rodas5p'."
        )


class _Correct(torch.autograd.Function):
    """``x - W^-1 r`` with W held constant: right for ``order`` derivatives, an error beyond."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, residual: Tensor, lu: Tensor, pivots: Tensor, order: int) -> Tensor:
        corrected: Tensor = x - torch.linalg.lu_solve(lu, pivots, residual.unsqueeze(-1)).squeeze(-1)
        return corrected

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, residual, lu, pivots, ctx.order = inputs
        ctx.save_for_backward(residual, lu, pivots)
        ctx.save_for_forward(residual, lu, pivots)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        residual, lu, pivots = ctx.saved_tensors
        known = torch.zeros_like(residual) if tangents[0] is None else tangents[0]
        if tangents[1] is not None:
            known = known - torch.linalg.lu_solve(lu, pivots, tangents[1].unsqueeze(-1)).squeeze(-1)
        return known + _guard(residual, ctx.order - 1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        residual, lu, pivots = ctx.saved_tensors
        grad = -torch.linalg.lu_solve(lu, pivots, grads[0].unsqueeze(-1), adjoint=True).squeeze(-1)
        if torch.is_grad_enabled():
            grad = grad + _guard(residual, ctx.order - 1)
        return grads[0], grad, None, None, None


# `apply` looks the signature up in every call; found here, that costs nothing.
_Correct.forward.__signature__ = inspect.signature(_Correct.forward)  # type: ignore[attr-defined]


_correct: Callable[..., Tensor] = _Correct.apply


class _Guard(torch.autograd.Function):
    """Zero, tied to everything that the residual depends on: differentiating it more than ``left`` times raises.

    A gradient taken with ``create_graph=True`` contains this zero, so that only a derivative which would
    miss the change of W (and so come out wrong without a word) is refused, not the graph as such.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, left: int) -> Tensor:
        return torch.zeros_like(residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        residual, ctx.left = inputs
        ctx.save_for_backward(residual)
        ctx.save_for_forward(residual)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _refuse_at(ctx.left)
        (residual,) = ctx.saved_tensors
        zero: Tensor = _guard(residual, ctx.left - 1)
        return zero

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        _refuse_at(ctx.left)
        (residual,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _guard(residual, ctx.left - 1), None
        return torch.zeros_like(residual), None


_guard: Callable[..., Tensor] = _Guard.apply


def _refuse_at(left: int) -> None:
    if left == 0:
        raise GradientError(
            "a higher derivative than asked for was taken through an implicit method, whose stages are carried to the"
            " first derivative by default and to the second with sensealg=DiscreteAdjoint(second_order=True);"
            " Rosenbrock methods ('rodas5p', 'rosenbrock23') have derivatives of every order."
        )
