"""Jacobians of the right-hand side, and the linear systems ``(M - h df/dy) x = b`` of implicit methods.

A state is taken apart into real columns here: ``(N,)`` for the whole state, or ``(B, D)`` where its rows are
independent systems (then there is one small matrix a row). Complex entries count as two reals: the Jacobian
of a function that is not holomorphic has no complex form.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap

from ...errors import PyDiffEqFluxError
from ...tracking import forwarding, transforming
from .control import to_float
from .rhs import Rhs
from .stepper import Scalar

#: One truth value for the whole state, or one a row where rows step for themselves.
Flags = np.ndarray[Any, np.dtype[np.bool_]]

log = logging.getLogger(__name__)


def to_columns(y: Tensor, batched: bool) -> Tensor:
    """The state as real columns: ``(N,)``, or ``(B, D)`` when batched."""
    if y.is_complex():
        y = torch.view_as_real(y)
    return y.reshape(y.shape[0], -1) if batched else y.reshape(-1)


def from_columns(columns: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`to_columns`, in the shape and dtype of ``like``."""
    if like.is_complex():
        return torch.view_as_complex(columns.reshape(*like.shape, 2))
    return columns.reshape(like.shape)


@dataclass(slots=True)
class Linearised:
    """f and its derivatives at one point."""

    #: f(t, y), shaped like the state: it comes with the Jacobian at no cost.
    f: Tensor
    #: ``(N, N)``, or ``(B, D, D)`` when batched, over real columns.
    dfdy: Tensor
    #: Shaped like the state; None where it was not asked for, or f is known not to depend on t.
    dfdt: Tensor | None
    #: The matrix in front of the derivative, ``(N, N)`` or ``(B, D, D)``; None for the identity.
    leading: Tensor | None = None


def jacobian(rhs: Rhs, t: Scalar, y: Tensor, *, batched: bool, with_time: bool = False) -> Linearised:
    """df/dy (and df/dt) at ``(t, y)``: one evaluation, and vector-Jacobian products vectorised by torch.func's vmap.

    With gradients enabled the result carries a graph in t, y and the parameters; under ``no_grad`` it is
    detached. Where the function cannot be vectorised (a custom ``autograd.Function`` without a vmap rule, say),
    the products are formed one at a time instead, and the log says why once.
    """
    if torch.is_inference_mode_enabled():  # nothing is recorded there, and a Jacobian needs a record
        with torch.inference_mode(False), torch.no_grad():
            t = t.clone() if isinstance(t, Tensor) else t
            return jacobian(rhs, t, y.clone(), batched=batched, with_time=with_time)
    rhs.njac += 1
    if rhs.linearise is not None:
        known: Linearised = rhs.linearise(t, y, batched, with_time)
        known.leading = rhs.leading if known.leading is None else known.leading
        return known
    found = differentiate(rhs, rhs.evaluate, t, y, batched=batched, with_time=with_time)
    found.leading = rhs.leading
    return found


def differentiate(
    rhs: Rhs, function: Callable[[Tensor, Tensor], Tensor], t: Scalar, y: Tensor, *, batched: bool, with_time: bool
) -> Linearised:
    """The value and derivatives of a state-shaped ``function`` of ``rhs``, in the way that ``rhs`` admits."""
    time, columns = rhs.time(t), to_columns(y, batched)

    def field(time: Tensor, columns: Tensor) -> Tensor:
        return to_columns(function(time, from_columns(columns, y)), batched)

    f, dfdy, dfdt = _first_that_works(rhs, field, time, columns, with_time)
    return Linearised(from_columns(f, y), dfdy, None if dfdt is None else from_columns(dfdt, y))


def stage_jacobian(rhs: Rhs, t: Scalar, y: Tensor, x: Tensor, h: Scalar, *, batched: bool) -> Linearised:
    """As :func:`jacobian`, at a point where the derivative of the solution is ``x / h``."""
    if rhs.linearise_implicit is None:
        return jacobian(rhs, t, y, batched=batched)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            t = t.clone() if isinstance(t, Tensor) else t
            return stage_jacobian(rhs, t, y.clone(), x.clone(), h, batched=batched)
    rhs.njac += 1
    found: Linearised = rhs.linearise_implicit(t, y, x / h, batched)
    return found


Field = Callable[[Tensor, Tensor], Tensor]
Found = tuple[Tensor, Tensor, Tensor | None]

#: For right-hand sides that need another than the first of the ways below: which.
_way: weakref.WeakKeyDictionary[Rhs, int] = weakref.WeakKeyDictionary()


def _first_that_works(rhs: Rhs, field: Field, time: Tensor, columns: Tensor, with_time: bool) -> Found:
    """The fastest way of forming the Jacobian that this function admits, remembered for the next time."""
    first = _way.get(rhs, 0)
    if first == 0 and transforming():
        first = 1  # under transforms of the user's own only torch.func nests
    for way in range(first, len(_WAYS)):
        try:
            found = _WAYS[way](field, time, columns, with_time)
        except PyDiffEqFluxError:
            raise
        except RuntimeError as why:
            # Not vectorisable, or an error of the function's own: that comes up again, and from the last as it is.
            if way == len(_WAYS) - 1:
                raise
            reason = why
            continue
        if way > first:
            _way[rhs] = way
            if way == len(_WAYS) - 1:
                log.warning("Jacobian rows are formed one by one: the function cannot be vectorised (%s)", reason)
        return found
    raise AssertionError("unreachable: the last way either returns or raises")


def _cotangents(columns: Tensor) -> Tensor:
    """One-hot rows ``(D, ...)``; when batched each is set for all samples at once, as they do not interact."""
    eye = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    return eye if columns.dim() == 1 else eye.unsqueeze(1).expand(-1, *columns.shape)


def _assemble(grad_t: Tensor, grad_y: Tensor, rows: bool) -> tuple[Tensor, Tensor | None]:
    """Stacked products as df/dy and df/dt; None where a time shared by all samples has summed over them."""
    if grad_y.dim() == 2:
        return grad_y, grad_t.reshape(-1)
    return grad_y.transpose(0, 1), grad_t.reshape(grad_y.shape[0], -1).T if rows else None


def _transformed(field: Field, time: Tensor, columns: Tensor, with_time: bool) -> Found:
    """By torch.func alone, which nests inside other transforms."""
    f, pull = vjp(field, time, columns)[:2]
    grad_t, grad_y = vmap(pull)(_cotangents(columns))
    dfdy, dfdt = _assemble(grad_t, grad_y, rows=time.dim() > 0)
    if with_time and dfdt is None:
        # The product with the time is linear in the cotangent: its own derivative is df/dt, sample by sample.
        slope, twice = vjp(lambda cotangent: pull(cotangent)[0], torch.zeros_like(f))[:2]
        (dfdt,) = twice(torch.ones_like(slope))
    return f, dfdy, dfdt if with_time else None


def _recorded(field: Field, time: Tensor, columns: Tensor, with_time: bool, *, one_by_one: bool = False) -> Found:
    """By autograd's record of one evaluation: half the cost, and it tells where f does not depend on t."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # New nodes, so that only what passes through the arguments is differentiated. Both hang on one node: a
        # fresh leaf beside a state with a history would make autograd search that whole history in every step.
        parts = [x if graph and x.requires_grad else x.detach().requires_grad_() for x in (time, columns)]
        joined = torch.cat([part.reshape(-1) for part in parts]).split([part.numel() for part in parts])
        time, columns = (piece.reshape(part.shape) for piece, part in zip(joined, parts, strict=True))
        before = _newest_node()
        f = field(time, columns)
        if graph and not one_by_one and _has_custom_node(f, before):
            raise RuntimeError("under vmap an autograd.Function, or compiled code, may lose its second derivative")

        def pull(cotangent: Tensor, create: bool, many: bool = False) -> tuple[Tensor | None, ...]:
            if not f.requires_grad:
                return None, None
            return torch.autograd.grad(
                f,
                (time, columns),
                cotangent,
                retain_graph=True,
                create_graph=create,
                allow_unused=True,
                is_grads_batched=many,
            )

        cotangents = _cotangents(columns)
        if one_by_one:
            pulled = zip(*(pull(cotangent, graph) for cotangent in cotangents.unbind()), strict=True)
            grad_t, grad_y = (None if parts[0] is None else torch.stack(parts) for parts in pulled)
        else:
            grad_t, grad_y = pull(cotangents, graph, many=True)
        timeless = grad_t is None
        dfdy, dfdt = _assemble(
            time.new_zeros(len(cotangents), *time.shape) if grad_t is None else grad_t,
            torch.zeros_like(cotangents) if grad_y is None else grad_y,
            rows=time.dim() > 0,
        )
        if with_time and dfdt is None and not timeless:
            cotangent = torch.zeros_like(f).requires_grad_()
            (slope,) = pull(cotangent, True)[:1]  # linear in the cotangent: its derivative is df/dt, sample by sample
            if slope is not None and slope.requires_grad:
                dfdt = torch.autograd.grad(slope, cotangent, create_graph=graph, allow_unused=True)[0]
    if not graph:
        f, dfdy, dfdt = f.detach(), dfdy.detach(), None if dfdt is None else dfdt.detach()
    return f, dfdy, dfdt if with_time and not timeless else None


def _newest_node() -> int:
    """The sequence number of the newest autograd node of this thread."""
    node = (torch.zeros((), requires_grad=True) + 0.0).grad_fn
    return int(node._sequence_nr()) if node is not None else 0


def _has_custom_node(f: Tensor, before: int) -> bool:
    """Whether what has been recorded since holds an ``autograd.Function`` (compiled code is one): their backward
    passes may do as they please with the batched tensors of a vmap, such as to leave the graph out."""
    stack, visited = [f.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited or node._sequence_nr() <= before:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        visited.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False


_WAYS: tuple[Callable[[Field, Tensor, Tensor, bool], Found], ...] = (
    _recorded,
    _transformed,
    partial(_recorded, one_by_one=True),
)


class _Solve(torch.autograd.Function):
    """``W^-1 b`` (or ``W^-T b``) from W's factors, differentiable any number of times in W and b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, lu: Tensor, pivots: Tensor, b: Tensor, adjoint: bool) -> Tensor:
        x: Tensor = torch.linalg.lu_solve(lu, pivots, b, adjoint=adjoint)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        matrix, lu, pivots, _, ctx.adjoint = inputs
        ctx.save_for_backward(matrix, lu, pivots, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, Tensor, None]:
        matrix, lu, pivots, x = ctx.saved_tensors
        grad_b = _solve(matrix, lu, pivots, grads[0], not ctx.adjoint)
        left, right = (x, grad_b) if ctx.adjoint else (grad_b, x)
        return -left @ right.mT, None, None, grad_b, None


# `apply` looks the signature up in every call; found here, that costs nothing.
_Solve.forward.__signature__ = inspect.signature(_Solve.forward)  # type: ignore[attr-defined]
_solve: Callable[..., Tensor] = _Solve.apply

#: Columns up to which torch's own derivative of a factorisation is the faster one; it grows with their cube a solve.
SMALL = 64


def _natively(matrix: Tensor) -> bool:
    """Whether torch differentiates the factorisation: always in forward mode, which nests only so."""
    return matrix.shape[-1] <= SMALL or forwarding()


def per_row(h: Scalar) -> bool:
    """Whether every row of the state has a step of its own."""
    return isinstance(h, Tensor) and h.dim() > 0


def as_converged(flags: Flags, like: Tensor) -> Any:
    """Flags as :attr:`Step.converged` has them: a bool, or a tensor of one a row."""
    return bool(flags[0]) if flags.size == 1 else torch.as_tensor(flags, device=like.device)


@dataclass(slots=True)
class Factored:
    """``W = M - h df/dy``, factorised once for many solves."""

    matrix: Tensor
    lu: Tensor
    pivots: Tensor
    batched: bool
    #: What LAPACK says of each matrix: 0 where it is regular.
    info: Tensor
    each: bool

    @property
    def regular(self) -> Flags:
        """False where W is singular: the step has to be tried with another h. One flag a row where each has its h."""
        return (self.info == 0).cpu().numpy() if self.each else np.array([to_float(self.info.any()) == 0.0])

    @property
    def converged(self) -> Tensor:
        """The same as :attr:`Step.converged` has it, left on its device: reading it would wait for a GPU."""
        return self.info == 0 if self.each else ~self.info.any()

    def solve(self, b: Tensor) -> Tensor:
        """``W^-1 b`` for a state-shaped b; its graph runs through W and b."""
        columns = to_columns(b, self.batched).unsqueeze(-1)
        if torch.is_grad_enabled() and not _natively(self.matrix):
            x = _solve(self.matrix, self.lu, self.pivots, columns, False)
        else:
            x = torch.linalg.lu_solve(self.lu, self.pivots, columns)
        return from_columns(x.squeeze(-1), b)


def factorise(dfdy: Tensor, h: Scalar, *, batched: bool, leading: Tensor | None = None) -> Factored:
    """Factorise ``M - h dfdy``; h is a number, a 0-dim tensor, or (when batched) one number a row.

    Args:
        leading: M; None for the identity.
    """
    if leading is None:
        leading = torch.eye(dfdy.shape[-1], dtype=dfdy.dtype, device=dfdy.device)
    if isinstance(h, Tensor):
        matrix = leading - (h.reshape(-1, 1, 1) if h.dim() else h).to(dfdy.dtype) * dfdy
    else:
        matrix = torch.add(leading, dfdy, alpha=-h)
    lu, pivots, info = torch.linalg.lu_factor_ex(matrix if _natively(matrix) else matrix.detach())
    return Factored(matrix, lu, pivots, batched, info, per_row(h))


def matrix_norm(dfdy: Tensor) -> float:
    """A bound of the spectral radius (the largest over the samples): the smaller of two induced norms."""
    size = dfdy.detach().abs()
    return to_float(torch.minimum(size.sum(-1).amax(-1), size.sum(-2).amax(-1)).max())


@dataclass(slots=True)
class Memo:
    """The linearisation at a step's start, kept for further attempts: a rejected step moves neither t nor y."""

    linearised: Linearised | None = None
    _at: tuple[Any, ...] = ()

    def at(self, rhs: Rhs, t: Scalar, y: Tensor, *, batched: bool, with_time: bool) -> Linearised:
        """As :func:`jacobian`, unless the last call was for the very same point."""
        # Identity of y and the gradient mode: a replay with gradients must not meet a Jacobian without its graph.
        here = (rhs, y, t if isinstance(t, float) else id(t), torch.is_grad_enabled(), with_time)
        known = self._at
        same = len(known) == len(here) and known[0] is rhs and known[1] is y and known[2:] == here[2:]
        if self.linearised is None or not same:
            self.linearised = jacobian(rhs, t, y, batched=batched, with_time=with_time)
            self._at = here
        return self.linearised
