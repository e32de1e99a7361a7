"""Jacobians of the right-hand side.

A state is taken apart into real columns here: ``(N,)`` for the whole state, or ``(B, D)`` where its rows are
independent systems (then there is one small matrix a row). Complex entries count as two reals: the Jacobian
of a function that is not holomorphic has no complex form.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ...errors import PyDiffEqFluxError
from ...tracking import newest_node, transforming
from .rhs import Rhs, Scalar

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
        before = newest_node()
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
