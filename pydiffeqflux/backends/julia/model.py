"""A traced right-hand side as Julia knows it."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import UntraceableError
from ...graph import Kernels
from ...graph.cache import TraceCache
from ...graph.trace import Evaluate
from .emit import source
from .session import Session

log = logging.getLogger("pydiffeqflux")

#: Compiling for longer than this many seconds is worth a word.
PATIENCE = 1.0

#: Numbers and integers, flat; None where there are none.
Constants = tuple[Tensor, Tensor] | None


class Model:
    """The functions of one right-hand side, compiled in Julia when first wanted."""

    def __init__(self, session: Session, kernels: Kernels):
        self.session, self.kernels = session, kernels
        n, m, sizes = kernels.y.numel(), math.prod(kernels.graphs.shape), kernels.sizes
        self.dtype, self.np = kernels.y.dtype, sizes["p"]
        name = str(self.dtype).removeprefix("torch.")
        self.handle: int = session.call("bridge_kernels", name, n, m, sizes["p"], sizes["c"], sizes["i"])
        self._has: set[str] = set()
        weakref.finalize(self, session.drop, self.handle)

    @property
    def params(self) -> list[Tensor]:
        """The tensors that gradients go to."""
        return self.kernels.graphs.externals[: self.kernels.graphs.params]

    def need(self, *names: str) -> None:
        """Have these programs compiled.

        Raises:
            UntraceableError: one of them uses an operator that has no translation.
        """
        began = time.perf_counter()
        for name in names:
            if name not in self._has:
                program = self.kernels.program(name)
                self.session.call("bridge_add", self.handle, name, source([program]), program.workspace)
                self._has.add(name)
        took = time.perf_counter() - began
        if took > PATIENCE:
            log.info("Julia compiled %s of a new right-hand side in %.1f s", ", ".join(names), took)

    def constants(self) -> Constants:
        """The values, as they are now, of the tensors that are not differentiated."""
        sizes = self.kernels.sizes
        if not (sizes["c"] or sizes["i"]):
            return None
        c, i = (self.kernels.pack(self.kernels.graphs.externals, name) for name in "ci")
        return c, i

    def load(self, constants: Constants) -> None:
        """Tell Julia these values; a gradient needs those of its own solve, whatever was solved since."""
        if constants is not None:
            c, i = constants
            self.session.call("bridge_constants", self.handle, c.data_ptr(), i.data_ptr())

    def evaluate(self, t: float, y: Tensor, p: Tensor) -> Tensor:
        """``f(t, y)`` of a flat state, by Julia."""
        y, out = y.contiguous(), torch.empty(math.prod(self.kernels.graphs.shape), dtype=y.dtype)
        self.session.call("bridge_evaluate", self.handle, y.data_ptr(), p.data_ptr(), float(t), out.data_ptr())
        return out


class Models:
    """The models of the last few right-hand sides."""

    def __init__(self, session: Session):
        self._session = session
        self._traces = TraceCache()
        self._known: OrderedDict[int, tuple[Kernels, Model]] = OrderedDict()

    def get(self, func: Callable[..., Any], evaluate: Evaluate, t0: Tensor, y0: Tensor, what: str) -> Model:
        """The model of a function, checked against the function itself at ``(t0, y0)``.

        Args:
            func: the user's function, by which its model is remembered.
            evaluate: the function of a packed state.
            what: it is, for messages.

        Raises:
            UntraceableError: it cannot be traced, or translated; or is not the same function from call to call.
        """
        for _ in range(2):
            traced = self._traces.get(func, evaluate, t0, y0)
            model = self._model(traced.kernels)
            model.need("f")
            model.load(model.constants())
            if traced.start is None:  # compared before, and unchanged since
                return model
            p = traced.kernels.pack(traced.kernels.graphs.externals, "p")
            value = model.evaluate(float(t0), y0.reshape(-1), p)
            if traced.agrees(value.reshape(traced.start.shape)):
                return model
            self._traces.forget(func)
        assert traced.start is not None
        raise UntraceableError(
            f"{what} does not give the same value twice, or its translation is wrong: at t={float(t0)} torch has"
            f" {traced.start.reshape(-1)[:4].tolist()}, Julia {value[:4].tolist()}. Solve it with backend='torch'."
        )

    def _model(self, kernels: Kernels) -> Model:
        if id(kernels) not in self._known:
            self._known[id(kernels)] = kernels, Model(self._session, kernels)
            while len(self._known) > 32:
                self._known.popitem(last=False)
        self._known.move_to_end(id(kernels))
        return self._known[id(kernels)][1]
