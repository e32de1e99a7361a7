"""Delay equations on the Julia backend against the native one, on a real Julia."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DelaySensitivityError,
    GradientError,
    HistoryShapeError,
    InvalidLagError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
    UntraceableError,
)

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}
SAVES = [0.3, 1.0, 1.7, 2.0]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()


class Rising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([1.0, 2.0], dtype=D))
        self.rate = nn.Parameter(torch.tensor(0.3, dtype=D))

    def forward(self, t: Tensor) -> Tensor:
        return self.level * torch.exp(self.rate * t) + t**2


def problem(model: Any, y0: Tensor, history: Any, lags: Any = (0.5, 0.7)) -> pdf.DDEProblem:
    return pdf.DDEProblem(
        lambda t, y, p, q: model(torch.cat([y, p, q], -1)) - 0.1 * t * y, y0, (0.0, 2.0), lags=lags, history=history
    )


def start() -> Tensor:
    return torch.tensor([1.0, 2.0], dtype=D, requires_grad=True)


def histories() -> dict[str, Any]:
    return {
        "the initial state": None,
        "a state of its own": torch.tensor([0.5, 1.5], dtype=D, requires_grad=True),
        "a module": Rising(),
        "a function without parameters": lambda t: torch.stack([1 + t, 2 + torch.sin(t)]),
    }


HISTORIES = list(histories())


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "vern7") for name in HISTORIES), ("a module", "tsit5"), ("a module", "BS5()")]
)
def test_solutions_are_the_native_ones(name: str, method: str) -> None:
    model, history = net(), histories()[name]
    with torch.no_grad():
        exact = pdf.solve(problem(model, start(), history), "vern9", saveat=SAVES, backend="eager", **TIGHT)
        sol = pdf.solve(problem(model, start(), history), method, saveat=SAVES, backend="julia", **TIGHT)
    assert float((sol.ys - exact.ys).abs().max()) < 1e-8
    assert sol.stats.backend == "julia" and sol.stats.sensealg == "none" and sol.stats.naccept > 4


@pytest.mark.parametrize("name", HISTORIES)
def test_gradients_are_the_native_ones(name: str) -> None:
    model, history, found = net(), histories()[name], []
    for backend in ("eager", "julia"):
        y0 = start()
        sol = pdf.solve(problem(model, y0, history), "vern7", saveat=SAVES, backend=backend, **TIGHT)
        loss = (torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=D).reshape(sol.ys.shape) * sol.ys).sum()
        own = list(history.parameters()) if isinstance(history, nn.Module) else []
        own += [history] if isinstance(history, Tensor) else []
        found.append(torch.autograd.grad(loss, [y0, *model.parameters(), *own]))
    assert sol.stats.sensealg == "ForwardDiffSensitivity"
    for ours, julias in zip(*found, strict=True):
        assert torch.allclose(ours, julias, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_a_stiff_method() -> None:
    """Rosenbrock methods interpolate by stages that DelayDiffEq keeps only where it is told to."""
    model, found = net(), []
    for method, backend in (("vern7", "eager"), ("rodas5p", "julia")):
        y0 = start()
        sol = pdf.solve(problem(model, y0, None), method, saveat=SAVES, backend=backend, rtol=1e-9, atol=1e-9)
        found.append((sol.ys, *torch.autograd.grad(sol.ys.sum(), [y0, *model.parameters()])))
    for ours, julias in zip(*found, strict=True):
        assert torch.allclose(ours, julias, rtol=1e-5, atol=1e-6)


def test_the_end_alone_and_every_step() -> None:
    model, y0 = net(), start()
    last = [
        pdf.solve(problem(model, y0, None), "tsit5", backend=backend, save_everystep=False, **TIGHT).ys
        for backend in ("eager", "julia")
    ]
    assert last[1].shape == (1, 2) and torch.allclose(last[0], last[1], atol=1e-8)
    grads = [torch.autograd.grad(ys.sum(), y0)[0] for ys in last]
    assert torch.allclose(*grads, rtol=1e-7)
    every = pdf.solve(problem(model, y0, None), "tsit5", backend="julia", rtol=1e-8, atol=1e-8)
    assert {0.0, 0.5, 0.7, 2.0} <= {round(t, 12) for t in every.ts.tolist()}
    native = pdf.solve(problem(model, y0, None), "tsit5", backend="eager", **TIGHT)
    with torch.no_grad():
        assert torch.allclose(every(1.234), native(1.234), atol=1e-6)
    (slope,) = torch.autograd.grad(every.ys[-1].sum(), y0)
    assert torch.allclose(slope, grads[0], rtol=1e-5)


def test_structures_and_single_precision() -> None:
    y0 = {"a": torch.ones(2), "b": (torch.full((1,), 2.0),)}

    def func(t: Tensor, y: Any, past: Any) -> Any:
        return {"a": -past["a"], "b": (-past["b"][0] * y["a"].sum(),)}

    sols = [
        pdf.solve(pdf.DDEProblem(func, y0, (0.0, 1.5), lags=0.6), saveat=[1.0], rtol=1e-6, backend=b)
        for b in ("eager", "julia")
    ]
    assert sols[1].ys["a"].dtype == torch.float32
    for pick in (lambda s: s.ys["a"], lambda s: s.ys["b"][0]):
        assert torch.allclose(pick(sols[0]), pick(sols[1]), atol=1e-5)


def test_layer_trains_with_julia() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    layers = [
        pdf.NeuralDDE(model, (0.0, 1.0), 0.4, saveat=[0.5, 1.0], backend=backend, **TIGHT)
        for backend in ("eager", "julia")
    ]
    y0 = torch.randn(3, 2, dtype=D)
    grads = [torch.autograd.grad(layer(y0).square().sum(), list(model.parameters())) for layer in layers]
    for ours, julias in zip(*grads, strict=True):
        assert torch.allclose(ours, julias, rtol=1e-6)
    with torch.no_grad():
        model.weight += 0.1  # parameters are read anew
        assert torch.allclose(layers[0](y0), layers[1](y0), atol=1e-8)


def decay(**options: Any) -> pdf.DDEProblem:
    return pdf.DDEProblem(
        **{"func": lambda t, y, past: -past, "y0": torch.ones(1, dtype=D), "t_span": (0.0, 1.0), "lags": 0.5, **options}
    )


def branching(t: Tensor, y: Tensor, past: Tensor) -> Tensor:
    return -past if y[0] > 0 else past


TAU = torch.tensor(0.5, requires_grad=True)
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "negative lag": (
        lambda: decay(lags=lambda t, y: y[0] - 0.9), {}, InvalidLagError, ("number 1 is -0.", "must be positive")
    ),
    "moving jump": (
        lambda: decay(lags=lambda t, y: 0.5 + 0.1 * y[0] ** 2, history=torch.zeros(1, dtype=D), y0=start()[:1]), {},
        UnsupportedError, ("history ends elsewhere", "history(t0)"),
    ),
    "lag that is none": (lambda: decay(lags=lambda t, y: y.expand(2)), {}, ShapeError, ("lags(t, y) returned (2,)",)),
    "lag's gradient": (lambda: decay(lags=TAU), {}, UnsupportedError, ("lags=0.5 requires a gradient", "detach")),
    "time's gradient": (
        lambda: decay(t_span=(0.0, TAU)), {}, UnsupportedError, ("t_span requires a gradient", "backend='torch'")
    ),
    "event": (decay, {"event": lambda t, y: y[0]}, UnsupportedError, ("event with a DDEProblem",)),
    "dose": (
        decay, {"callbacks": pdf.PresetTimeCallback([0.5], lambda t, y: y)}, UnsupportedError, ("callbacks with a",)
    ),
    "sensealg": (
        decay, {"sensealg": "GaussAdjoint"}, DelaySensitivityError, ("GaussAdjoint", "ForwardDiffSensitivity")
    ),
    "method": (decay, {"method": "NoSuchSolver"}, UnknownNameError, ("method='NoSuchSolver'",)),
    "method of this package": (decay, {"method": "leapfrog", "dt": 0.1}, UnsupportedError, ("leapfrog",)),
    "branch": (lambda: decay(func=branching), {}, UntraceableError, ("decides by the value", "backend='torch'")),
    "history": (
        lambda: decay(history=lambda t: torch.ones(2, dtype=D)), {}, HistoryShapeError, ("history(0)", "(2,)")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_julia_does_not_do(name: str) -> None:
    make, options, error, says = BAD[name]
    with pytest.raises(error) as caught:
        pdf.solve(make(), **{"backend": "julia", **options})
    assert type(caught.value) is error
    for piece in says:
        assert piece in str(caught.value)


def test_lags_that_depend_on_the_state() -> None:
    """Paul's equation, whose delayed time leaves the history at t = 2, and one whose lags are trained."""
    root = 2**0.5
    paul = pdf.DDEProblem(
        lambda t, y, past: past / (2 * t.sqrt()), torch.ones(1, dtype=D), (1.0, 5.0),
        lags=lambda t, y: t - (y[0] - root + 1),
    )  # fmt: skip
    ts = torch.linspace(1, 5, 21, dtype=D)
    with torch.no_grad():
        sol = pdf.solve(paul, saveat=ts, rtol=1e-9, atol=1e-9, backend="julia")
    exact = torch.where(ts <= 2, ts.sqrt(), ts / 4 + 0.5 + (1 - root / 2) * ts.sqrt())
    assert float((sol.ys[:, 0] - exact).abs().max()) < 1e-6


def test_gradients_of_lags_that_depend_on_the_state() -> None:
    """Beside a constant lag and a history with parameters."""
    width, past, model = torch.tensor(0.3, dtype=D, requires_grad=True), Rising(), net()
    found = []
    for backend in ("eager", "julia"):
        y0 = start()
        lags = (0.5, lambda t, y: 0.4 + width * torch.sigmoid(y[0] + t))
        sol = pdf.solve(problem(model, y0, past, lags), saveat=SAVES, rtol=1e-9, atol=1e-10, backend=backend)
        wanted = [y0, width, *past.parameters(), *model.parameters()]
        found.append([sol.ys, *torch.autograd.grad(sol.ys.square().sum(), wanted)])
    for ours, julias in zip(*found, strict=True):
        assert torch.allclose(ours, julias, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("saveat", [[0.1, 0.3, 1.9], None], ids=["save times", "every step"])
def test_a_solve_that_stops_on_the_way(saveat: Any) -> None:
    """The last state is behind those that were asked for, and its gradient is that of a solve up to there."""
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)

    def made(y0: Tensor, end: float) -> pdf.DDEProblem:
        return pdf.DDEProblem(lambda t, y, past: -rate * y * past, y0, (0.0, end), lags=[0.2])

    y0 = start()
    options: dict[str, Any] = {"saveat": saveat, "max_steps": 8, "throw": False}
    sol = pdf.solve(made(y0, 2.0), backend="julia", rtol=1e-6, atol=1e-6, **options)
    assert sol.status is pdf.Status.MAX_STEPS
    reached = float(sol.ts[-1])
    assert 0.3 < reached < 1.9 and len(sol.ys) == len(sol.ts)
    if saveat:
        assert sol.ts.tolist() == [0.1, 0.3, reached]
    again = pdf.solve(made(y0, reached), "vern9", saveat=sol.ts.tolist(), backend="eager", rtol=1e-11, atol=1e-11)
    weights = torch.linspace(1, 2, sol.ys.numel(), dtype=D).reshape(sol.ys.shape)
    found = [[s.ys, *torch.autograd.grad((weights * s.ys).sum(), [y0, rate])] for s in (sol, again)]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_second_derivative() -> None:
    y0 = start()
    sol = pdf.solve(problem(net(), y0, None), saveat=SAVES, backend="julia")
    (slope,) = torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="no second derivative"):
        torch.autograd.grad(slope.sum(), y0)
