"""Second derivatives of a right-hand side along a direction, which the gradient of a Rosenbrock step needs."""

from __future__ import annotations

from dataclasses import dataclass

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
    """The kernel of the derivatives of ``v (df/dy u + df/dt tau)``, a number, and its constants.

    Attributes:
        places: where u, tau and v lie in the buffer of constants; -1 where f does not depend on the state, or on time.
        sources: the other externals, each by its place among the model's own, or as it is.
    """

    traced: Kernels
    code: Loaded
    work: int
    places: tuple[int, int, int]
    sources: list[tuple[str, Tensor]]

    @property
    def address(self) -> int:
        return self.code.address("vjp")

    def constants(self) -> tuple[Tensor, Tensor]:
        """The buffers ``c`` and ``i``; room for u, tau and v among the former."""
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
    v, u, tau = torch.zeros_like(y), torch.zeros_like(y), torch.zeros((), dtype=y.dtype)

    def along(t: Tensor, x: Tensor) -> Tensor:
        """``v (df/dy u + df/dt tau)``, by one gradient.

        (``df/dy u`` alone would take two, and torch's derivatives of its normalisations are wrong from the third on.)
        """
        with torch.enable_grad():
            at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            when = t if t.requires_grad else t.detach().requires_grad_()
            out = rhs.evaluate(when, at)
            total = torch.zeros((), dtype=x.dtype)
            if out.requires_grad:
                found = torch.autograd.grad(out, (when, at), v, create_graph=True, allow_unused=True)
                for g, w in zip(found, (tau, u), strict=True):
                    if g is not None:
                        total = total + (g * w).sum()
            return total

    # The Jacobian may not depend on all parameters (a last bias): both kernels read them from the same buffer.
    traced = traced_kernels(along, rhs.time(problem.t0.value), y, model.traced.graphs.externals[: model.params])
    if traced.graphs.params != model.params:
        raise UntraceableError("the Jacobian depends on parameters that the function does not depend on")
    externals = traced.graphs.externals
    places, sources = {id(u): -1, id(tau): -1, id(v): -1}, []
    for x, slot in zip(externals[model.params :], traced.arguments[model.params :], strict=True):
        if id(x) in places:
            places[id(x)] = slot.offset
        sources.append((slot.buffer, x))
    text, work = emit(traced.program("vjp"))
    code = toolchain.kernels([text], model.single)
    return Second(traced, code, work, (places[id(u)], places[id(tau)], places[id(v)]), sources)
