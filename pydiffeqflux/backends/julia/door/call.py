"""One call of a layer of DiffEqFlux as a node of the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....errors import GradientError
from ....solution import Status
from ...once import once
from ..held import Held
from ..model import Constants, Model, addresses
from ..session import Session
from ..stretches import _STATUS

_NO_SECOND = "backend='diffeqflux' has no second derivative: differentiate twice with backend='torch'."


class Part(Held):
    """What a layer is made of: a traced module as a Lux layer, or a layer of Boltz's around one.

    Attributes:
        models: the traced functions in it.
        params: the tensors that gradients go to.
        boltz: the name of a layer of Boltz's.
    """

    def __init__(
        self, session: Session, handle: int, models: Sequence[Model], params: Sequence[Tensor], boltz: str = ""
    ):
        super().__init__(session, handle)
        self.models, self.params, self.boltz = tuple(models), list(params), boltz


def torch_part(model: Model, sizes: Sequence[int]) -> Part:
    """A traced function as a Lux layer, whose values have these sizes in Julia's order."""
    handle = model.session.call("bridge_torch_layer", model.handle, *sizes)
    return Part(model.session, handle, [model], model.params)


@dataclass
class Layer:
    """A layer of DiffEqFlux for one problem.

    Attributes:
        name: DiffEqFlux's.
        parts: what it is made of, in DiffEqFlux's order.
        start: the initial state as it is handed over.
        sizes: of that, in Julia's order.
        read: from the numbers that it returns, one state a row, to the problem's (packed) states.
        more: the numbers that it is made of.
        width: how many states there are in its solve, a clock included; None where they are not flat.
        rest: tensors that gradients go to besides those of the parts, behind them.
        sensealgs: what differentiates it; the first is the default.
        reason: why that one.
        seed: of the noise.
        saves: the times that it is told to save; None for those that are asked for.
        times: of what it returns; None for the same.
    """

    name: str
    parts: tuple[Part, ...]
    start: Tensor
    sizes: tuple[int, ...]
    read: Callable[[Tensor], Tensor]
    sensealgs: tuple[str, ...]
    more: Sequence[float] = ()
    width: int | None = None
    rest: Sequence[Tensor] = ()
    reason: str = "the layer's default"
    seed: int | None = None
    saves: Sequence[float] | None = None
    times: Sequence[float] | None = None

    @property
    def called(self) -> str:
        """The name, and within it that of a layer of Boltz's."""
        inner = self.parts[0].boltz
        return f"{self.name}({inner})" if inner else self.name

    @property
    def params(self) -> list[Tensor]:
        return [*(x for part in self.parts for x in part.params), *self.rest]


@dataclass
class Call:
    """What a layer is called with, and what came of it."""

    layer: Layer
    solver: int
    sensealg: str
    wanted: bool
    t0: float
    t1: float
    saves: tuple[float, ...]
    rtol: Tensor
    atol: Tensor
    max_steps: int
    options: Held | None
    constants: list[tuple[Model, Constants]] = field(init=False)
    run: Held | None = None
    retcode: str = ""
    nf: int = 0
    finite: bool = True

    def __post_init__(self) -> None:
        self.constants = [(model, model.constants()) for part in self.layer.parts for model in part.models]

    @property
    def session(self) -> Session:
        return self.layer.parts[0].session

    def load(self) -> None:
        """Set the constants of the traced functions to what they were when the call was made."""
        for model, values in self.constants:
            if values is not None:
                self.session.call("bridge_constants", model.handle, *addresses(values))

    def solve(self, start: Tensor, p: Tensor) -> Tensor:
        """The numbers that the layer returns, one state a row."""
        self.load()
        layer = self.layer
        parts, sizes = (torch.tensor(x, dtype=torch.int64) for x in ([x.handle for x in layer.parts], layer.sizes))
        saves, more = (torch.tensor(x, dtype=torch.float64) for x in (self.saves, layer.more))
        handle, width, count, self.retcode, self.nf = self.session.call(
            "bridge_layer",
            layer.name,
            parts.data_ptr(),
            len(parts),
            self.solver,
            self.sensealg,
            self.wanted,
            start.data_ptr(),
            sizes.data_ptr(),
            len(sizes),
            p.data_ptr(),
            p.numel(),
            self.t0,
            self.t1,
            saves.data_ptr(),
            len(saves),
            self.rtol.data_ptr(),
            self.atol.data_ptr(),
            self.rtol.numel(),
            self.max_steps,
            0 if self.options is None else self.options.handle,
            more.data_ptr(),
            len(more),
        )
        self.run = Held(self.session, handle)
        found = torch.empty(count, width, dtype=start.dtype)
        self.session.call("bridge_layer_states", handle, found.data_ptr())
        self.finite = bool(found.isfinite().all())
        return found

    def gradient(self, seeds: Tensor, to_start: Tensor, to_p: Tensor) -> None:
        """Write the gradients with respect to the initial state and the parameters."""
        assert self.run is not None
        self.load()
        self.session.call(
            "bridge_layer_gradient",
            self.run.handle,
            seeds.data_ptr(),
            to_start.data_ptr(),
            to_start.numel(),
            to_p.data_ptr(),
            to_p.numel(),
        )

    def status(self) -> tuple[Status, str]:
        """How it went, and what to say of a failure."""
        if self.retcode == "Success":
            return (Status.SUCCESS, "") if self.finite else (Status.NON_FINITE, "the state became NaN or infinite")
        status, said = _STATUS.get(self.retcode, (Status.NOT_CONVERGED, "Julia's solver gave up"))
        return status, f"{said.format(max_steps=self.max_steps)} (Julia's return code: {self.retcode})"


class Called(torch.autograd.Function):
    """``(call, start, *params) -> numbers (T, m)``."""

    @staticmethod
    def forward(call: Call, start: Tensor, *params: Tensor) -> Tensor:
        flat = [x.detach().reshape(-1).to(start.dtype) for x in params]
        p = torch.cat(flat) if flat else torch.zeros(0, dtype=start.dtype)
        return call.solve(start.detach().reshape(-1).contiguous(), p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call, start, *params = inputs
        ctx.save_for_backward(start, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        start, *params = ctx.saved_tensors
        to_start = torch.zeros(start.numel(), dtype=start.dtype)
        to_p = torch.zeros(sum(x.numel() for x in params), dtype=start.dtype)
        ctx.call.gradient(grads[0].to(start.dtype).contiguous(), to_start, to_p)
        split = to_p.split([x.numel() for x in params]) if params else ()
        found = (g.reshape(x.shape).to(x) for g, x in zip(split, params, strict=True))
        return (None, *once(_NO_SECOND, (to_start.reshape(start.shape), *found), (start, *params)))
