"""A traced right-hand side as Julia knows it."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UntraceableError
from ...graph import Kernels
from ...graph.cache import TraceCache, Traced, agree
from ...graph.trace import Evaluate
from ...state import StateSpec
from .direct import Evaluation
from .emit import source
from .emit_arrays import array_source
from .places import Place
from .session import Session

log = logging.getLogger("pydiffeqflux")

#: Compiling for longer than this many seconds is worth a word.
PATIENCE = 1.0

#: Numbers and integers, flat; None where there are none.
Constants = tuple[Tensor, Tensor] | None


class Compiled:
    """The functions of right-hand sides of one meaning, compiled in Julia when first wanted."""

    def __init__(self, session: Session, kernels: Kernels, place: Place | None = None):
        self.session, self.kernels, self.place = session, kernels, place
        n, m, sizes = kernels.y.numel(), math.prod(kernels.graphs.shape), kernels.sizes
        name = str(kernels.y.dtype).removeprefix("torch.")
        what = name, n, m, sizes["p"], sizes["c"], sizes["i"]
        self.handle: int = (
            session.call("bridge_kernels", *what)
            if place is None
            else session.call("bridge_array_kernels", place.handle, *what)
        )
        self._has: set[str] = set()
        weakref.finalize(self, session.drop, self.handle)

    def need(self, *names: str) -> None:
        """Have these programs compiled.

        Raises:
            UntraceableError: one of them uses an operator that has no translation.
        """
        began = time.perf_counter()
        for name in names:
            if name not in self._has:
                program = self.kernels.program(name)
                code = (source([program]), program.workspace) if self.place is None else array_source(program)
                self.session.call("bridge_add", self.handle, name, *code)
                self._has.add(name)
        took = time.perf_counter() - began
        if took > PATIENCE:
            log.info("Julia compiled %s of a new right-hand side in %.1f s", ", ".join(names), took)


class Model:
    """One right-hand side: compiled functions, and the tensors that this one reaches for."""

    def __init__(self, compiled: Compiled, externals: Sequence[Tensor]):
        self._compiled, self._externals = compiled, externals
        self.kernels, self.session, self.handle = compiled.kernels, compiled.session, compiled.handle
        self.dtype, self.np = self.kernels.y.dtype, self.kernels.sizes["p"]
        self.need, self.place = compiled.need, compiled.place
        #: The main thread may call Julia itself. A GPU's packages are used to a thread of Julia's own.
        self.here = compiled.place is None
        #: The last request, and what it was made of.
        self.last: tuple[Any, Any] | None = None

    @property
    def params(self) -> Sequence[Tensor]:
        """The tensors that gradients go to."""
        return self._externals[: self.kernels.graphs.params]

    def values(self) -> Tensor:
        """Those, as they are now, one after the other."""
        return self.kernels.pack(self._externals, "p")

    def constants(self) -> Constants:
        """The values, as they are now, of the tensors that are not differentiated."""
        sizes = self.kernels.sizes
        if not (sizes["c"] or sizes["i"]):
            return None
        c, i = (self.kernels.pack(self._externals, name) for name in "ci")
        return c, i

    def evaluate(self, t: float, y: Tensor, p: Tensor, constants: Constants) -> Tensor:
        """``f(t, y)`` of a flat state, by Julia."""
        y, out = y.contiguous(), torch.empty(math.prod(self.kernels.graphs.shape), dtype=y.dtype, device=y.device)
        c, i = addresses(constants)
        one = Evaluation(
            kernels=self.handle, y=y.data_ptr(), p=p.data_ptr(), c=c, i=i, out=out.data_ptr(), t=float(t)
        )  # fmt: skip
        if self.place is not None:
            self.place.ready()
        self.session.enter(self.session.entries.evaluate, one, here=self.here)
        return out


def addresses(constants: Constants) -> tuple[int, int]:
    """Where they are; 0 where there are none."""
    return (0, 0) if constants is None else (constants[0].data_ptr(), constants[1].data_ptr())


class Models:
    """The models of the last few right-hand sides."""

    def __init__(self, session: Session):
        self.session = session
        self._traces = TraceCache()
        self._known: OrderedDict[tuple[int, Place | None], Compiled] = OrderedDict()

    def get(
        self,
        func: Callable[..., Any],
        evaluate: Evaluate,
        t0: Tensor | float,
        y0: Tensor,
        what: str,
        spec: StateSpec | None,
        place: Place | None = None,
    ) -> Model:
        """The model of a function, checked against the function itself at ``(t0, y0)``.

        Args:
            func: the user's function, by which its model is remembered.
            evaluate: the function of a packed state.
            what: it is, for messages.
            spec: the structure that ``evaluate`` gives to a packed state: another one is another model.
            place: where the state lies.

        Raises:
            UntraceableError: it cannot be traced, or translated; or is not the same function from call to call.
        """
        role = what if spec is None else f"{what}, {spec!r}"
        if place is not None:
            role = f"{role}, on {place}"
        same = self._traces.same(func, y0, role)
        if same is not None and same.made is not None:
            known: Model = same.made
            return known
        y0 = y0.detach()
        t0 = t0 if isinstance(t0, Tensor) else torch.scalar_tensor(t0, dtype=y0.dtype, device=y0.device)
        for _ in range(2):
            traced, start = self._traces.get(func, evaluate, t0, y0, role)
            model = self._model(traced, place)
            model.need("f")
            if start is None:  # nothing that the function can reach has changed
                return model
            value = model.evaluate(float(t0), y0.reshape(-1), model.values(), model.constants())
            if agree(value.reshape(start.shape), start):
                return model
            self._traces.forget(func)
        assert start is not None
        raise UntraceableError(
            f"{what} does not give the same value twice, or its translation is wrong: at t={float(t0)} torch has"
            f" {start.reshape(-1)[:4].tolist()}, Julia {value[:4].tolist()}. Solve it with backend='torch'."
        )

    def _model(self, traced: Traced, place: Place | None) -> Model:
        kernels, key = traced.kernels, (id(traced.kernels), place)
        if key not in self._known:
            self._known[key] = Compiled(self.session, kernels, place)
            while len(self._known) > 32:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if traced.made is None:
            traced.made = Model(self._known[key], traced.externals)
        made: Model = traced.made
        return made
