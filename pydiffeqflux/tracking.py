"""Whether somebody may ask for a derivative: by autograd's graph, by forward mode, or by a ``torch.func`` transform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .errors import PyDiffEqFluxError, UnsupportedError


def tracked(x: Tensor) -> bool:
    """Whether ``x`` may carry a derivative that must not be lost.

    Inside forward mode and ``torch.func`` transforms every tensor may: there ``requires_grad`` does not say so
    for tensors of an outer transform, nor for tangents.
    """
    return x.requires_grad or transforming()


def recording() -> bool:
    """Whether operations are to keep derivatives; ``no_grad`` stops autograd's graph, but not forward mode."""
    return torch.is_grad_enabled() or forwarding()


def transforming() -> bool:
    """Inside forward mode, or a ``torch.func`` transform."""
    return forwarding() or torch._C._are_functorch_transforms_active()


_traces = 0


def tracing() -> bool:
    """While a right-hand side is traced: values stand for any others, and cannot be looked at."""
    return _traces > 0


@contextmanager
def traced() -> Iterator[None]:
    """Around the function that is traced."""
    global _traces
    _traces += 1
    try:
        yield
    finally:
        _traces -= 1


def forwarding() -> bool:
    """Inside forward mode: ``torch.func.jvp`` or ``jacfwd``, or a dual level of autograd's."""
    return forward_ad._current_level >= 0


def forwarding_twice() -> bool:
    """Inside forward mode inside forward mode, where torch takes the second derivative of its own operations only.

    A custom ``autograd.Function`` is a constant to the outer one.
    """
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


def untransformed() -> AbstractContextManager[None]:
    """Around operations on plain tensors that no ``torch.func`` transform is to see."""
    return torch._C._DisableFuncTorch()


@contextmanager
def reading(what: str, instead: str) -> Iterator[None]:
    """Around code that reads values which ``torch.func.vmap`` may hide.

    Raises:
        UnsupportedError: they are mapped over; the message says ``instead`` of torch's own.
    """
    try:
        yield
    except PyDiffEqFluxError:
        raise
    except RuntimeError as why:
        if "vmap" not in str(why) or not transforming():
            raise
        raise UnsupportedError(f"torch.func.vmap over {what}: {instead}.") from why


def newest_node() -> int:
    """The sequence number of the newest autograd node of this thread."""
    node: Any = (torch.zeros((), requires_grad=True) + 0.0).grad_fn
    return int(node._sequence_nr())
