"""What a function computes, written down operator by operator while it runs.

A dispatch mode sees every ATen operator below autograd, ``torch.func`` and functionalisation, so what they do for a
function is what is written down. Tensors are followed by identity: one that nobody here has made is reached for from
outside, and is held by the recording. (``make_fx`` writes the same graphs; it imports torch's whole compiler first, for
more than a second.)
"""

from __future__ import annotations

import functools
import linecache
import operator
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UntraceableError
from ..tracking import traced

_lift = torch.ops.aten.lift_fresh.default


class TensorMeta(NamedTuple):
    """What is known of a node's value; in its ``meta`` under ``"tensor_meta"``."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Line:
    """A line of somebody's code."""

    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: {linecache.getline(self.path, self.number).strip()}"


@dataclass(eq=False)
class Recording:
    """A graph, and the tensors that it reaches for, by the targets of its ``get_attr`` nodes."""

    graph: fx.Graph
    held: dict[str, Tensor]

    @property
    def nodes(self) -> Any:
        return self.graph.nodes


def record(
    function: Callable[..., Any], example: Sequence[Tensor], table: Mapping[Any, Callable[..., Any]] | None = None
) -> Recording:
    """Run ``function`` on ``example`` and write down what it does.

    Args:
        table: operators to take apart, and how.

    Raises:
        UntraceableError: what is done next depends on the value of a tensor.
    """
    with _interrupts_later(), _as_when_trained():
        example = [x.clone() if x.is_inference() else x for x in example]
        recorder = Recorder(example, {} if table is None else table)
        Recorder.line = None
        with traced(), _as_written(), _NoValues(recorder), recorder:
            out = function(*example)
    recorder.finish(out)
    return Recording(recorder.graph, recorder.held)


def replay(recording: Recording, *args: Tensor) -> Any:
    """Run a recording again; what a recorder writes down meanwhile keeps the lines that it came from."""
    env: dict[fx.Node, Any] = {}
    given = iter(args)
    for node in recording.nodes:
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "get_attr":
            env[node] = recording.held[node.target]
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], env.__getitem__)
        else:
            Recorder.line = node.meta.get("said")
            inputs, keywords = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*inputs, **keywords)
    raise AssertionError("a recording without an output")


class Recorder(TorchDispatchMode):
    """Writes operators into a graph."""

    #: The line that whatever is run now comes from, where it is not on the stack.
    line: Line | None = None

    def __init__(self, example: Sequence[Tensor], table: Mapping[Any, Callable[..., Any]]):
        super().__init__()
        self.graph = fx.Graph()
        self.table = table
        self.held: dict[str, Tensor] = {}
        self._nodes: dict[int, fx.Node] = {}
        #: Whatever has a node stays alive: only so an id means one tensor.
        self._alive: list[Any] = []
        #: Nodes that are the same whatever the arguments and the tensors outside are.
        self._fixed: set[fx.Node] = set()
        for k, x in enumerate(example):
            self._know(x, self.graph.placeholder(f"arg_{k}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks. To keep its compiler out (which no mode lets in anyway), it would first import all of it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.table.get(func, func.decompose)
        with self:
            out = rule(*args, **kwargs)
        if out is not NotImplemented:
            return out
        if func is _lift:  # a tensor made of numbers: it begins here
            self._hold(args[0], fixed=True)
            func = torch.ops.aten.lift_fresh_copy.default
        inputs, keywords = fx.node.map_aggregate((args, kwargs), self._named)
        node = self.graph.call_function(func, inputs, keywords)
        fixed = all(n in self._fixed for n in node.all_input_nodes)
        if torch.Tag.data_dependent_output in func.tags:
            self.graph.erase_node(node)
            if not fixed:
                raise self.decided()
            return func(*args, **kwargs)
        if fixed:
            self._fixed.add(node)
        node.meta["said"] = self.said()
        out = func(*args, **kwargs)
        self._made(out, node)
        return out

    def finish(self, out: Any) -> None:
        """Write the results down."""
        self.graph.output(fx.node.map_aggregate(out, self._named))

    def fixed(self, x: Tensor) -> bool:
        """Whether ``x`` does not depend on anything that may change."""
        node = self._nodes.get(id(x))
        return node is not None and node in self._fixed

    def decided(self) -> UntraceableError:
        """The error for what looks at a value."""
        line = self.said()
        return UntraceableError(
            f"the right-hand side decides by the value of a tensor{f' ({line})' if line else ''}: say it with"
            f" torch.where, or solve it with backend='torch', which runs it as it is."
        )

    def said(self) -> Line | None:
        """The user's line that is being run."""
        return Recorder.line or _line()

    def _named(self, x: Any) -> Any:
        return self._node(x) if isinstance(x, Tensor) else x

    def _node(self, x: Tensor) -> fx.Node:
        return self._nodes.get(id(x)) or self._hold(x, fixed=False)

    def _hold(self, x: Tensor, *, fixed: bool) -> fx.Node:
        known = self._nodes.get(id(x))
        if known is not None:
            return known
        name = f"held_{len(self.held)}"
        self.held[name] = x
        node = self.graph.create_node("get_attr", name)
        if fixed:
            self._fixed.add(node)
        self._know(x, node)
        return node

    def _know(self, x: Tensor, node: fx.Node) -> None:
        self._nodes[id(x)] = node
        self._alive.append(x)
        node.meta["tensor_meta"] = TensorMeta(x.shape, x.dtype)

    def _made(self, out: Any, node: fx.Node) -> None:
        if isinstance(out, Tensor):
            self._know(out, node)
        elif isinstance(out, tuple | list):
            for k, x in enumerate(out):
                if isinstance(x, Tensor):
                    part = self.graph.call_function(operator.getitem, (node, k))
                    part.meta["said"] = node.meta["said"]
                    if node in self._fixed:
                        self._fixed.add(part)
                    self._know(x, part)


class _NoValues(TorchFunctionMode):
    """Refuses what looks into a tensor behind the dispatcher's back."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKING and not (args and isinstance(args[0], Tensor) and self.recorder.fixed(args[0])):
            raise self.recorder.decided()
        return func(*args, **(kwargs or {}))


_LOOKING = frozenset((
    Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__,
))  # fmt: skip


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C until the recording is over (a second one is not kept).

    Inside torch's dispatch an exception out of nowhere can leave the mode switched on, for whatever comes after.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    kept: list[tuple[int, Any]] = []

    def keep(number: int, frame: Any) -> None:
        if kept:
            signal.signal(signal.SIGINT, before)
            before(number, frame)
        kept.append((number, frame))

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if kept:
        before(*kept[0])


@contextmanager
def _as_when_trained() -> Iterator[None]:
    """One recording serves all later solves, whatever the mode that this one is made in.

    In inference mode nothing has a gradient; without one, some of torch's modules run as single operators of their own,
    and so does attention, which is to be written down as products. Autocast would change dtypes.
    """
    plain = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), plain:
        yield


@contextmanager
def _as_written() -> Iterator[None]:
    """Functions that ``torch.compile`` has wrapped run as they were written: nobody sees into what it makes of them."""
    stance: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:  # otherwise nothing has been compiled
        stance = torch.compiler.set_stance("force_eager")
    with stance:
        yield


def _line() -> Line | None:
    """The innermost line of the function being recorded that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not record.__code__:
        if not foreign(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


@functools.cache
def foreign(path: str) -> bool:
    """Whether a file is torch's or this package's, or nobody's."""
    return re.search(r"[/\\](torch|pydiffeqflux)[/\\]", path) is not None or path.startswith("<")
