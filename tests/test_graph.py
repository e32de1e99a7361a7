"""Tracing: a module's graphs, as programs, say what the module says. Run as the compiled engine runs them."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from problems.modules import MODULES
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.compiled import toolchain
from pydiffeqflux.backends.compiled.emit import LanguagePrinter, emit
from pydiffeqflux.errors import UntraceableError
from pydiffeqflux.graph import Kernels, kernels
from pydiffeqflux.graph.cache import TraceCache, Traced, agree
from pydiffeqflux.graph.expr import WORDS, call, number
from pydiffeqflux.graph.printer import arguments

T = torch.tensor(0.37, dtype=torch.float64)


def run(
    traced: Kernels,
    name: str,
    t: Tensor,
    y: Tensor,
    v: Tensor | None = None,
    externals: Sequence[Tensor] | None = None,
) -> dict[str, np.ndarray]:
    """One program's results, by the name of the buffer that they are written to."""
    program = traced.program(name)
    single = y.dtype == torch.float32
    text, work = emit(program)
    code = toolchain.kernels([text], single)
    time, dtype = (ctypes.c_float, np.float32) if single else (ctypes.c_double, np.float64)
    given = {"t": float(t), "y": y.reshape(-1).numpy(), "w": np.full(work, np.nan, dtype)}
    tensors = traced.graphs.externals if externals is None else externals
    given |= {b: traced.pack(tensors, b).numpy() for b in "pci"}
    if v is not None:
        given["v"] = v.reshape(-1).numpy()
    results = {n: np.full(b.size, np.nan, dtype) for n, b in program.outputs.items()}
    names = [a for a in arguments(program) if a != "t"]
    call = ctypes.CFUNCTYPE(None, time, *[ctypes.c_void_p] * len(names))(code.address(name))
    call(float(t), *[(results[a] if a in results else given[a]).ctypes.data for a in names])
    return results


def close(got: np.ndarray, want: Tensor | None) -> bool:
    expected = np.zeros_like(got) if want is None else want.detach().reshape(-1).numpy()
    return bool(np.allclose(got, expected, rtol=1e-10, atol=1e-12))


@pytest.mark.parametrize("name", MODULES)
def test_programs_agree_with_torch(name: str) -> None:
    torch.manual_seed(0)
    func, y = MODULES[name]()
    traced = kernels(func, T, y)
    v = torch.randn_like(y)
    t, state = T.clone().requires_grad_(), y.clone().requires_grad_()
    out = func(t, state)
    params = traced.graphs.externals[: traced.graphs.params]
    to_t, to_y, *to_params = torch.autograd.grad(out, [t, state, *params], v, allow_unused=True)

    assert close(run(traced, "f", T, y)["out"], out)
    pulled = run(traced, "vjp", T, y, v)
    assert close(pulled["gt"], to_t)
    assert close(pulled["gy"], to_y)
    expected = [torch.zeros_like(p) if g is None else g for p, g in zip(params, to_params, strict=True)]
    assert close(pulled["gp"], torch.cat([g.reshape(-1) for g in expected]) if expected else torch.zeros(0))
    assert close(run(traced, "vjp_y", T, y, v)["gy"], to_y)


@pytest.mark.parametrize("name", ["spiral_batch", "time", "elementary", "in_place", "conv_circular", "lotka_volterra"])
def test_jacobian(name: str) -> None:
    torch.manual_seed(0)
    func, y = MODULES[name]()
    traced = kernels(func, T, y)
    found = run(traced, "jac", T, y)
    jacobian = torch.autograd.functional.jacobian(lambda x: func(T, x), y)
    assert close(found["J"], jacobian)
    assert close(found["ft"], torch.autograd.functional.jacobian(lambda s: func(s, y), T))


def test_every_parameter_is_found_once() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    net[0].bias.requires_grad_(False)
    traced = kernels(lambda t, y: net(net(y)), T, torch.ones(2, dtype=torch.float64))
    found = traced.graphs.externals[: traced.graphs.params]
    assert {id(p) for p in found} == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(found) == 3
    assert traced.sizes["p"] == 6 + 6 + 2
    assert traced.sizes["c"] == 3


def test_numbers_that_nobody_needs_are_not_computed() -> None:
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
    traced = kernels(lambda t, y: net(y), torch.tensor(0.0), torch.ones(2))
    text = emit(traced.program("vjp_y"))[0]
    assert text.count("tanh(") == 1  # and the second layer's output, which no gradient looks at, not at all
    assert traced.program("vjp_y").workspace < 4 * 50


def test_float32_stays_float32() -> None:
    traced = kernels(lambda t, y: y * 0.1 + torch.sin(t), torch.tensor(0.5), torch.ones(2))
    assert traced.program("f").dtype == "float32"
    assert "real(0.1)" in emit(traced.program("f"))[0]


WORDS_TESTED = [w for w in WORDS if w not in ("int", "float", "bool")]


def word_points(word: str) -> list[tuple[float, ...]]:
    points = [(0.3, 0.7, -0.2), (0.9, 0.2, 1.4)]
    if word == "acosh":
        points = [(1.3,), (2.5,)]
    if word in ("floordiv", "mod"):
        points = [(7, 3), (-7, 3)]
    return [point[: WORDS[word][0]] for point in points]


@pytest.fixture(scope="module")
def spoken() -> dict[str, list[float]]:
    """Every word at its points, all compiled as one kernel."""
    lines, values = [], []
    for word in WORDS_TESTED:
        for point in word_points(word):
            args = [f"y[{len(values) + k}]" for k in range(len(point))]
            if word in ("floordiv", "mod"):
                args = [f"int({a})" for a in args]
            if word in ("and", "or", "not"):
                args = [f"bool({a})" for a in args]
            if word == "where":
                args[0] = f"({args[0]} > real(0.5))"
            lines.append(f"    out[{len(lines)}] = real({LanguagePrinter.words[word].format(*args)})")
            values += point
    code = toolchain.kernels(["def f(y: Reals, out: Reals) -> None:\n" + "\n".join(lines) + "\n"], False)
    y, out = np.array(values, dtype=float), np.zeros(len(lines))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.address("f"))(y.ctypes.data, out.ctypes.data)
    return {word: list(out[2 * k : 2 * k + 2]) for k, word in enumerate(WORDS_TESTED)}


@pytest.mark.parametrize("word", WORDS_TESTED)
def test_words_mean_in_the_compiled_language_what_the_table_says(word: str, spoken: dict[str, list[float]]) -> None:
    _, meaning = WORDS[word]
    for got, point in zip(spoken[word], word_points(word), strict=True):
        given: tuple[object, ...] = point
        if word == "where":
            given = (point[0] > 0.5, *point[1:])
        elif word in ("and", "or", "not"):
            given = tuple(map(bool, point))
        assert math.isclose(got, float(meaning(*given)), rel_tol=1e-15, abs_tol=1e-15)


def test_index_arithmetic_is_folded() -> None:
    assert call("add", call("mul", number(3), number(4)), number(0)) == number(12)
    assert call("where", number(True), number(1.0), number(2.0)) == number(1.0)


# -- what cannot be traced ------------------------------------------------------------------------


def test_a_branch_on_a_value() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return y if y.sum() > 0 else -y

    with pytest.raises(UntraceableError, match=r"decides by the value of a tensor.*y if y\.sum\(\) > 0.*torch\.where"):
        kernels(func, T, torch.ones(2, dtype=torch.float64))


LOOKS = {
    "numpy": lambda y: torch.from_numpy(np.sin(y.detach().numpy())),
    "array": lambda y: torch.from_numpy(np.asarray(y.detach()) + 1.0),
    "list": lambda y: torch.tensor(y.tolist(), dtype=torch.float64),
    "item": lambda y: y * y[0].item(),
    "float": lambda y: y * float(y.sum()),
    "int of a buffer": lambda y: y * int(COUNT),
}
COUNT = torch.tensor(3)


@pytest.mark.parametrize("kind", LOOKS)
def test_looking_at_a_value_in_any_other_way(kind: str) -> None:
    with pytest.raises(UntraceableError, match=r"decides by the value of a tensor.*test_graph\.py"):
        kernels(lambda t, y: LOOKS[kind](y), T, torch.ones(2, dtype=torch.float64))


def test_a_value_that_is_always_the_same_may_be_looked_at() -> None:
    y = torch.ones(2, dtype=torch.float64)
    traced = kernels(lambda t, y: y * float(torch.tensor(2.0) + torch.ones(3).sum()), T, y)
    assert list(run(traced, "f", T, y)["out"]) == [5.0, 5.0]


def test_functions_that_torch_has_compiled_are_traced_as_they_were_written() -> None:
    layer = torch.nn.Linear(2, 2).double()
    wrapped, y = torch.compile(layer, backend="eager"), torch.ones(2, dtype=torch.float64)
    expected = wrapped(y)
    traced = kernels(lambda t, y: wrapped(y), T, y)
    assert traced.graphs.params == 2
    assert close(run(traced, "f", T, y)["out"], expected)


def test_random_numbers() -> None:
    drop = nn.Dropout(0.5)
    with pytest.raises(UntraceableError, match=r"bernoulli.*random numbers"):
        kernels(lambda t, y: drop(y), T, torch.ones(2, dtype=torch.float64))


def test_an_operator_without_a_row_is_named_with_its_line() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(y)

    with pytest.raises(UntraceableError, match=r"linalg_matrix_exp.*test_graph\.py, line \d+.*backend='torch'"):
        kernels(func, T, torch.eye(2, dtype=torch.float64)).program("f")


def test_a_buffer_changed_in_place() -> None:
    count = torch.zeros(2, dtype=torch.float64)

    def func(t: Tensor, y: Tensor) -> Tensor:
        count.add_(1.0)
        return y * count

    with pytest.raises(UntraceableError, match="lives on after the evaluation"):
        kernels(func, T, torch.ones(2, dtype=torch.float64))


def test_two_precisions() -> None:
    w = torch.ones(2, dtype=torch.float32)
    with pytest.raises(UntraceableError, match=r"mixes torch\.float32 with a state of torch\.float64"):
        kernels(lambda t, y: y * w, T, torch.ones(2, dtype=torch.float64))


def test_complex_states() -> None:
    with pytest.raises(UntraceableError, match="complex state"):
        kernels(lambda t, y: 1j * y, T, torch.ones(2, dtype=torch.complex128))


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(w, y)
        return w * y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        w, y = ctx.saved_tensors
        return grads[0] * y, grads[0] * w


def test_a_computed_tensor_in_an_autograd_function_would_lose_its_gradient() -> None:
    raw, y = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    leaf = kernels(lambda t, y: Times.apply(raw, y), T, y)
    assert torch.equal(torch.from_numpy(run(leaf, "vjp", T, y, y)["gp"]), y)
    computed = 2 * raw
    with pytest.raises(UntraceableError, match=r"computed outside.*autograd\.Function"):
        kernels(lambda t, y: Times.apply(computed, y), T, y)
    problem = pdf.ODEProblem(lambda t, y: -Times.apply(computed, y), y, (0.0, 1.0))
    (slope,) = torch.autograd.grad(pdf.solve(problem, "vern7", rtol=1e-9, atol=1e-9).ys[-1].sum(), raw)
    assert torch.allclose(slope, -2 * torch.exp(-2 * raw), atol=1e-8)


# -- tracing once ---------------------------------------------------------------------------------


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.scale = 1.0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.scale * self.rate * y


def value_of(traced: Traced, y: Tensor) -> Tensor:
    return torch.from_numpy(run(traced.kernels, "f", T, y, externals=traced.externals)["out"])


def test_a_trace_is_kept_while_parameters_train() -> None:
    cache, func, y = TraceCache(), Decay(), torch.ones(2, dtype=torch.float64)
    first, _ = cache.get(func, func, T, y)
    with torch.no_grad():
        func.rate += 1.0
    second, _ = cache.get(func, func, T, y)
    assert second.kernels is first.kernels
    assert agree(value_of(second, y), func(T, y).detach())


def test_nothing_is_evaluated_while_nothing_has_changed() -> None:
    cache, func, y = TraceCache(), Decay(), torch.ones(2, dtype=torch.float64)
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return func(t, y)

    first, start = cache.get(func, counted, T, y)
    assert start is not None
    calls.clear()
    with torch.no_grad():
        func.rate += 1.0
    again, start = cache.get(func, counted, T, y)
    assert not calls
    assert start is None
    assert again.kernels is first.kernels


def test_a_changed_number_is_noticed() -> None:
    cache, func, y = TraceCache(), Decay(), torch.ones(2, dtype=torch.float64)
    cache.get(func, func, T, y)
    func.scale = 2.0
    stale, start = cache.get(func, func, T, y)
    assert start is not None
    assert not agree(value_of(stale, y), start)
    cache.forget(func)
    fresh, start = cache.get(func, func, T, y)
    assert start is not None
    assert agree(value_of(fresh, y), start)


def made_anew(rate: Tensor, forcing: Tensor, power: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: -rate * y**power + forcing


def test_a_function_made_anew_has_the_trace_of_the_one_before() -> None:
    cache, y, rate = TraceCache(), torch.ones(2, dtype=torch.float64), Decay().rate
    func = made_anew(rate, torch.zeros(2, dtype=torch.float64))
    first, _ = cache.get(func, func, T, y)
    for k in range(40):  # more than are remembered
        func = made_anew(rate, torch.full((2,), float(k), dtype=torch.float64))
        again, start = cache.get(func, func, T, y)
        assert again.kernels is first.kernels
        assert again.params[0] is rate
        assert start is not None
        assert agree(value_of(again, y), start)
        assert len(cache._known) == 1  # the others are gone, and their tensors with them
    other = made_anew(rate, torch.zeros(2, dtype=torch.float64), 2)
    different, _ = cache.get(other, other, T, y)
    assert different.kernels is not first.kernels
    larger = made_anew(rate, torch.zeros(1, dtype=torch.float64))
    assert cache.get(larger, larger, T, y)[0].kernels is not first.kernels
    weights = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))  # gradients go to another tensor
    func = made_anew(weights, torch.zeros(2, dtype=torch.float64))
    theirs, _ = cache.get(func, func, T, y)
    assert theirs.kernels is first.kernels
    assert theirs.params[0] is weights


def test_one_function_in_two_roles() -> None:
    cache, func, y = TraceCache(), Decay(), torch.ones(2, dtype=torch.float64)
    first, _ = cache.get(func, func, T, y, "drift")
    second, _ = cache.get(func, lambda t, y: 2 * func(t, y), T, y, "twice the drift")
    assert torch.equal(value_of(second, y), 2 * value_of(first, y))


@pytest.mark.parametrize("kind", ["attribute", "object", "slot", "list", "method", "module's global", "closure"])
def test_whatever_a_function_reaches_for_is_noticed_when_it_changes(kind: str) -> None:
    """Each change gives an equal or a different value; the walk has to see it either way."""
    source = types.ModuleType("somebody_elses")
    exec("scale = 1.0\ndef scaled(y): return scale * y", vars(source))

    class Slotted:
        __slots__ = ("value",)

    class Func:
        def __init__(self) -> None:
            self.k, self.other = torch.ones(()), types.SimpleNamespace(k=1.0)
            self.slotted, self.several = Slotted(), [1.0]
            self.slotted.value = 1.0

        def rate(self) -> float:
            return 1.0

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.k * self.other.k * self.slotted.value * self.several[0] * self.rate() * free * scaled(y)

    free = torch.ones(())
    scaled = source.scaled
    func, cache, y = Func(), TraceCache(), torch.ones(2, dtype=torch.float64)
    _, before = cache.get(func, func, T, y)
    assert before is not None
    if kind == "attribute":
        func.k = torch.ones(())  # equal, but another tensor
    elif kind == "object":
        func.other.k = 2.0
    elif kind == "slot":
        func.slotted.value = 2.0
    elif kind == "list":
        func.several[0] = 2.0
    elif kind == "method":
        Func.rate = lambda self: 2.0  # type: ignore[method-assign]
    elif kind == "module's global":
        source.scale = 2.0
    else:
        free = torch.ones(())
    _, after = cache.get(func, func, T, y)
    assert after is not None
    if kind not in ("attribute", "closure"):
        assert torch.equal(after, 2 * before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("layer", [nn.Linear, lambda n, m: nn.TransformerEncoderLayer(n, 1, 4, batch_first=True)])
def test_a_trace_made_where_nothing_is_recorded_has_gradients(mode: Any, layer: Any) -> None:
    """It serves the training afterwards. (In these modes, torch runs some modules as operators of their own.)"""
    net = layer(2, 2).double().eval()
    with mode():
        y = torch.ones(3, 4, 2, dtype=torch.float64)
        found = kernels(lambda t, y: net(y), torch.zeros(()), y)
    assert found.graphs.params == len(list(net.parameters()))
    target = next(n for n in found.graphs.backward.nodes if n.op == "output")
    assert all(gradient is not None for gradient in target.args[0][1:])


def test_ctrl_c_waits_for_the_end_of_a_recording() -> None:
    seen = []

    def func(t: Tensor, y: Tensor) -> Tensor:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(1)
        return torch.sin(y)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        kernels(func, torch.zeros(()), torch.ones(2))
    assert len(seen) == 1 and signal.getsignal(signal.SIGINT) is before
    assert kernels(func, torch.zeros(()), torch.ones(2)).graphs.shape == (2,)
    assert float(torch.ones(()) + 1) == 2  # nothing is recorded any more


def test_two_interrupts_end_a_recording_at_once() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        while True:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        kernels(func, torch.zeros(()), torch.ones(2))


def test_a_replaced_parameter_is_noticed() -> None:
    cache, func, y = TraceCache(), Decay(), torch.ones(2, dtype=torch.float64)
    cache.get(func, func, T, y)
    func.rate = nn.Parameter(func.rate.detach().clone())  # the same value: only the tensor is another
    assert cache.get(func, func, T, y)[0].params[0] is func.rate


def test_another_shape_or_mode_is_another_trace() -> None:
    cache = TraceCache()
    func = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().eval()
    rhs = lambda t, y: func(y)  # noqa: E731
    rhs.model = func
    one = cache.get(rhs, rhs, T, torch.ones(3, 2, dtype=torch.float64))[0].kernels
    assert cache.get(rhs, rhs, T, torch.ones(4, 2, dtype=torch.float64))[0].kernels is not one
    assert cache.get(rhs, rhs, T, torch.ones(3, 2, dtype=torch.float64))[0].kernels is one
