"""Second derivatives of a right-hand side along a direction, which the gradient of a Rosenbrock step needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UntraceableError
from ...graph import Kernels
from ...problem import ODEProblem
from ..common.rhs import Rhs
from . import toolchain
from .emit import emit
from .lang.machine import Loaded
from .model import Model, traced_kernels


@dataclass
class Second:
    """The kernel of ``v (df/dy u + df/dt tau)``'s derivatives, and its constants.

    Attributes:
        places: where u and tau lie in the buffer of constants; tau is absent (-1) where f does not depend on time.
        sources: the other externals, each by its place among the model's own, or as it is.
    """

    traced: Kernels
    code: Loaded
    work: int
    places: tuple[int, int]
    sources: list[tuple[str, Tensor]]

    @property
    def address(self) -> int:
        return self.code.address("vjp")

    def constants(self) -> tuple[Tensor, Tensor]:
        """The buffers ``c`` and ``i``; room for u and tau among the former."""
        dtype = self.traced.y.dtype
        found = []
        for name, kind in (("c", dtype), ("i", torch.int64)):
            parts = [x.detach().reshape(-1).to(kind) for buffer, x in self.sources if buffer == name]
            found.append(torch.cat(parts) if parts else torch.empty(1, dtype=kind))
        return found[0], found[1]


def second_of(problem: ODEProblem, model: Model) -> Second | str:
    """The second derivatives of a problem's function, traced where they have not been; or why there are none."""
    if model.second is None:
        try:
            model.second = _trace(problem, model)
        except UntraceableError as why:
            model.second = str(why)
    return model.second


def _trace(problem: ODEProblem, model: Model) -> Second:
    y = problem.packed.detach()
    rhs = Rhs(problem.func, problem.spec, y)
    with torch.no_grad():
        rhs.evaluate(problem.t0.value, y)
    u, tau = torch.zeros_like(y), torch.zeros((), dtype=y.dtype)

    def along(t: Tensor, x: Tensor) -> Tensor:
        """``df/dy u + df/dt tau``: linear in v is ``v df/d(y, t)``, so its derivative by v does it."""
        with torch.enable_grad():
            at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            when = t if t.requires_grad else t.detach().requires_grad_()
            v = torch.zeros_like(x).requires_grad_()
            out = rhs.evaluate(when, at)
            by_t, by_y = torch.autograd.grad(out, (when, at), v, create_graph=True, allow_unused=True)
            total: Any = torch.zeros((), dtype=x.dtype)
            for g, w in ((by_t, tau), (by_y, u)):
                if g is not None:
                    total = total + (g * w).sum()
            if not total.requires_grad:
                return torch.zeros_like(x)
            (out,) = torch.autograd.grad(total, v, create_graph=True)
            return out

    traced = traced_kernels(along, rhs.time(problem.t0.value), y)
    own = model.traced.graphs.externals[: model.params]
    externals = traced.graphs.externals
    if len(own) != traced.graphs.params or any(a is not b for a, b in zip(own, externals, strict=False)):
        raise UntraceableError("the Jacobian does not depend on the same parameters as the function")
    places, sources = {id(u): -1, id(tau): -1}, []
    for x, slot in zip(externals[model.params :], traced.arguments[model.params :], strict=True):
        if id(x) in places:
            places[id(x)] = slot.offset
        sources.append((slot.buffer, x))
    text, work = emit(traced.program("vjp"))
    return Second(traced, toolchain.kernels([text], model.single), work, (places[id(u)], places[id(tau)]), sources)
