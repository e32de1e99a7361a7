"""Derivatives inside a right-hand side: of a model that is itself to be differentiated.

They are taken by autograd, which costs half of what ``torch.func`` does on small models, and by ``torch.func`` where
somebody transforms the whole solve (forward mode, ``vmap``): only that nests there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..tracking import transforming


class Pullback(Protocol):
    """The vector-Jacobian product ``v -> v df/dy``; with ``batched``, of many ``v`` along a first dimension."""

    def __call__(self, v: Tensor, batched: bool = False) -> Tensor: ...


def pullback(func: Callable[..., Tensor], *args: Any) -> tuple[Tensor, Pullback]:
    """``func(*args)``, and the vector-Jacobian product with respect to its last argument.

    Both record a graph where gradients are enabled, so that what is made of them can be differentiated; without
    gradients they record none.
    """
    if torch.is_inference_mode_enabled():  # nothing is recorded there, and a derivative needs a record
        with torch.inference_mode(False), torch.no_grad():
            return pullback(func, *(x.clone() if isinstance(x, Tensor) else x for x in args))
    *others, y = args
    if transforming():
        return _functional(lambda x: func(*others, x), y)
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        # A new node, so that only what passes through this evaluation is differentiated.
        at = y.view_as(y) if recording and y.requires_grad else y.detach().requires_grad_()
        out = func(*others, at)

    def product(v: Tensor, batched: bool = False) -> Tensor:
        found: tuple[Tensor | None, ...] = (None,)
        if out.requires_grad:
            # The graph before the parameters is shared by all evaluations: it must survive.
            found = torch.autograd.grad(
                out, at, v, create_graph=recording, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        if found[0] is not None:
            return found[0]
        return at.new_zeros((len(v), *at.shape)) if batched else torch.zeros_like(at)

    return out if recording else out.detach(), product


def _functional(func: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Pullback]:
    """The same by ``torch.func``."""
    out, back, *_ = torch.func.vjp(func, y)

    def product(v: Tensor, batched: bool = False) -> Tensor:
        found: Tensor = torch.vmap(lambda row: back(row)[0])(v) if batched else back(v)[0]
        return found

    return out, product


def gradient(func: Callable[..., Tensor], *args: Any) -> Tensor:
    """The gradient of ``func(*args).sum()`` with respect to the last argument, recorded as in :func:`pullback`."""
    out, back = pullback(func, *args)
    return back(torch.ones_like(out))


def jacobian_rows(func: Callable[..., Tensor], event_dims: int, *args: Any) -> tuple[Tensor, Tensor]:
    """``func(*args)`` and its Jacobian in the last argument, where the samples of a batch do not interact.

    Args:
        func: returns the shape of its last argument, ``(*batch, *event)``.
        event_dims: how many dimensions of a sample there are.

    Returns:
        The value, and ``(n, *batch, *event)``: row i is the gradient of the i-th entry of each sample.
    """
    out, back = pullback(func, *args)
    event = out.shape[out.dim() - event_dims :]
    size = event.numel()
    basis = torch.eye(size, dtype=out.dtype, device=out.device)
    wide = basis.reshape(size, *(1,) * (out.dim() - event_dims), *event).expand(size, *out.shape)
    try:
        return out, back(wide, batched=True)
    except RuntimeError:  # an operator without a batching rule: one row after the other
        return out, torch.stack([back(row) for row in wide])
