"""A right-hand side that could not be translated: Julia calls it in Python, and its vector-Jacobian product.

Slow (tens of microseconds for every evaluation, where a translated function takes one), but any torch code will do. The
functions have the same form as the translated ones, plain functions of addresses, so that nothing else has to know.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DtypeError
from ..common.capture import captured_tensors
from ..common.rhs import Rhs
from .session import Session

log = logging.getLogger("pydiffeqflux")

#: The addresses that each function gets after the time.
_ARGUMENTS = {
    "f": ("y", "p", "c", "i", "w", "out"),
    "vjp": ("y", "v", "p", "c", "i", "w", "gy", "gp", "gt"),
    "vjp_y": ("y", "v", "p", "c", "i", "w", "gy"),
    "jac": ("y", "p", "c", "i", "w", "J", "ft"),
}
_C_TYPES = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


class CalledBack:
    """A model whose functions are called in Python; see :class:`~.model.Model` for what a model is."""

    #: Python's signal handlers must not run in what Julia calls: it has its own thread for these calls.
    here = False
    #: Its arrays are the CPU's.
    place = None

    def __init__(self, session: Session, func: Callable[..., Any], rhs: Rhs, t0: Tensor, y0: Tensor):
        self.session, self.rhs, self.shape, self.dtype = session, rhs, y0.shape, y0.dtype
        at, when = y0.detach().clone().requires_grad_(), t0.detach().clone().requires_grad_()
        self.params: Sequence[Tensor] = captured_tensors(func, lambda: rhs.evaluate(when, at), [at, when])
        if any(p.is_complex() for p in self.params):
            raise DtypeError(
                "the right-hand side has complex parameters, to which backend='julia' has no gradients: write them as"
                " real and imaginary parts (torch.view_as_complex in func), or use backend='torch'."
            )
        self.n, self.np = y0.numel(), sum(p.numel() for p in self.params)
        self.handle: int = session.call("bridge_kernels", _name(self.dtype), self.n, self.n, self.np, 0, 0)
        self._pointers: dict[str, Any] = {}
        #: The last request, and what it was made of.
        self.last: tuple[Any, Any] | None = None
        self.calls = 0
        weakref.finalize(self, session.drop, self.handle)
        log.warning("the right-hand side stays in Python: Julia calls it back, tens of microseconds an evaluation")

    def need(self, *names: str) -> None:
        """Give Julia the addresses of these functions."""
        for name in names:
            if name not in self._pointers:
                kind = ctypes.CFUNCTYPE(None, ctypes.c_double, *[ctypes.c_void_p] * len(_ARGUMENTS[name]))
                self._pointers[name] = pointer = kind(self._guarded(name))
                address = ctypes.cast(pointer, ctypes.c_void_p).value
                self.session.call("bridge_pointer", self.handle, name, address)

    def constants(self) -> None:
        """None: the function reads its tensors itself."""

    def evaluate(self, t: float, y: Tensor, p: Tensor, constants: None) -> Tensor:
        """``f(t, y)`` of a flat state."""
        with torch.no_grad():
            return self.rhs.evaluate(t, y.reshape(self.shape)).reshape(-1)

    def _guarded(self, name: str) -> Callable[..., None]:
        """The function as Julia calls it: an exception must not cross, so it waits and the solve gives up."""
        work = getattr(self, f"_{name}")

        def call(t: float, *addresses: int | None) -> None:
            self.calls += 1
            try:
                work(t, dict(zip(_ARGUMENTS[name], addresses, strict=True)))
            except BaseException as error:
                self.session.give_up(error)

        return call

    def _memory(self, address: int | None, n: int) -> Tensor:
        if not n or address is None:
            return torch.zeros(0, dtype=self.dtype)
        return torch.from_numpy(np.ctypeslib.as_array((_C_TYPES[self.dtype] * n).from_address(address)))

    def _f(self, t: float, at: dict[str, int | None]) -> None:
        with torch.no_grad():
            value = self.rhs.evaluate(t, self._memory(at["y"], self.n).reshape(self.shape).clone())
            self._memory(at["out"], self.n).copy_(value.reshape(-1))

    def _pulled(self, t: float, at: dict[str, int | None], params: Sequence[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            y = self._memory(at["y"], self.n).reshape(self.shape).clone().requires_grad_()
            when = self.rhs.time(t).requires_grad_()
            value = self.rhs.evaluate(when, y)
            wanted = [y, when, *params]
            if not value.requires_grad:
                return [torch.zeros_like(x) for x in wanted]
            v = self._memory(at["v"], self.n).reshape(self.shape)
            found = torch.autograd.grad(value, wanted, v, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]

    def _vjp(self, t: float, at: dict[str, int | None]) -> None:
        to_y, to_t, *to_params = self._pulled(t, at, self.params)
        self._memory(at["gy"], self.n).copy_(to_y.reshape(-1))
        self._memory(at["gt"], 1).copy_(to_t.reshape(-1))
        if to_params:
            self._memory(at["gp"], self.np).copy_(torch.cat([g.reshape(-1) for g in to_params]))

    def _vjp_y(self, t: float, at: dict[str, int | None]) -> None:
        self._memory(at["gy"], self.n).copy_(self._pulled(t, at, ())[0].reshape(-1))

    def _jac(self, t: float, at: dict[str, int | None]) -> None:
        y, when = self._memory(at["y"], self.n).reshape(self.shape).clone(), self.rhs.time(t)
        with torch.enable_grad():
            by_t, by_y = torch.autograd.functional.jacobian(self.rhs.evaluate, (when, y))
        self._memory(at["J"], self.n**2).copy_(by_y.reshape(-1))
        self._memory(at["ft"], self.n).copy_(by_t.reshape(-1))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
