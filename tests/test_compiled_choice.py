"""Which engine solves what: ``backend="torch"`` picks, ``backend="compiled"`` insists."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import ODEProblem, solve
from pydiffeqflux.backends import native
from pydiffeqflux.errors import BackendUnavailableError, UnsupportedError
from pydiffeqflux.graph.reach import reach

SCALE = 2.0


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WARM_UP", 0)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -SCALE * y


def problem(**kwargs: Any) -> ODEProblem:
    return ODEProblem(decay, torch.ones(3, 2), (0.0, 1.0), **kwargs)


# -- backend="torch" ------------------------------------------------------------------------------


def test_compiled_after_the_first_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WARM_UP", 50)
    model = nn.Linear(2, 2)
    y0 = torch.ones(2)
    seen = []
    for _ in range(3):
        problem = ODEProblem(lambda t, y: model(y), y0, (0.0, 1.0))
        seen.append(solve(problem, "rk4", dt=0.1, dense=False).stats)
    assert [s.backend for s in seen] == ["torch", "torch", "compiled"]  # 40 evaluations each
    assert "so far 40" in seen[1].fallback and seen[2].fallback == ""


def test_layers_are_compiled(at_once: None) -> None:
    node = pdf.NeuralODE(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), (0.0, 1.0))
    assert node.solve(torch.ones(5, 2)).stats.backend == "compiled"
    node(torch.ones(5, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in node.parameters())


FALLBACKS: dict[str, tuple[Callable[[], ODEProblem], dict[str, Any]]] = {
    "events with sensealg": (problem, {"event": lambda t, y: y[0, 0] - 0.5, "sensealg": "gauss"}),
    "callbacks with gradients of a Rosenbrock method is not compiled": (
        problem, {"callbacks": pdf.PresetTimeCallback([0.5], lambda t, y: y + 1), "method": "rodas5p"},
    ),
    "tstops is not compiled": (problem, {"tstops": [0.5]}),
    "a norm of one's own is not compiled": (problem, {"norm": lambda x: x.abs().max()}),
    "sensealg=QuadratureAdjoint is not compiled": (problem, {"sensealg": "quadrature"}),
    "method=kvaerno5 is not compiled": (problem, {"method": "kvaerno5"}),
    "complex64, not float32 or float64": (
        lambda: ODEProblem(decay, torch.ones(2, dtype=torch.complex64), (0.0, 1.0)), {},
    ),
    "decides by the value of a tensor": (
        lambda: ODEProblem(lambda t, y: -y if y.sum() > 0 else y, torch.ones(2), (0.0, 1.0)), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", FALLBACKS)
def test_falls_back_and_says_why(why: str, at_once: None) -> None:
    make, options = FALLBACKS[why]
    stats = solve(make(), **options).stats
    assert stats.backend == "torch" and why in stats.fallback


@pytest.mark.parametrize("why", FALLBACKS)
def test_compiled_or_an_error(why: str) -> None:
    make, options = FALLBACKS[why]
    with pytest.raises(UnsupportedError, match=f"(?s)backend='compiled' cannot .*{why}.*backend='torch' can"):
        solve(make(), backend="compiled", **options)


def test_transforms_stay_eager(at_once: None) -> None:
    def end(y0: Tensor) -> Tensor:
        sol = solve(ODEProblem(decay, y0, (0.0, 1.0)), save_everystep=False, dense=False)
        assert "torch.func" in sol.stats.fallback
        return sol.ys[-1].sum()

    assert torch.func.grad(end)(torch.ones(2)).shape == (2,)


def test_large_products_are_left_to_blas(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE_PRODUCTS", 100)
    net = nn.Linear(8, 8)
    stats = solve(ODEProblem(lambda t, y: net(y), torch.ones(4, 8), (0.0, 1.0))).stats
    assert stats.fallback == "products and convolutions (512 operations, sums four times) are as fast in eager torch"


def test_large_convolutions_are_left_to_torch(at_once: None) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    y = torch.ones(200, 8, 8, 8)  # a state that is not large
    stats = solve(ODEProblem(lambda t, y: layer(y), y, (0.0, 0.1))).stats
    assert "convolutions (58,982,400 operations, sums four times) are as fast in eager torch" in stats.fallback


def test_large_states_are_left_to_torch(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE_STATE", 5)
    assert solve(problem()).stats.fallback == "a state of 6 entries is as fast in eager torch"


def test_functions_that_keep_changing_are_given_up(at_once: None) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = 0.0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.k * y

    model, backends = Counting(), []
    for step in range(native.TRACES + 2):
        model.k = float(step)
        sol = solve(ODEProblem(model, torch.ones(2), (0.0, 1.0)), rtol=1e-6)
        torch.testing.assert_close(sol.ys[-1], torch.full((2,), -step).exp(), rtol=1e-4, atol=1e-6)
        backends.append(sol.stats.backend)
    assert backends == ["compiled"] * native.TRACES + ["torch"] * 2


def test_without_llvmlite(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    assert solve(problem()).stats.fallback == "llvmlite is not installed"
    with pytest.raises(BackendUnavailableError, match=r"needs llvmlite: pip install llvmlite"):
        solve(problem(), backend="compiled")


# -- a traced model is used only for what it is the model of --------------------------------------


def end(func: Any, backend: str = "compiled") -> Tensor:
    return solve(ODEProblem(func, torch.ones(2), (0.0, 1.0)), rtol=1e-5, save_everystep=False, backend=backend).ys[-1]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.factor, self.options, self.table = 1.0, {"power": 1}, [0.5]
        self.inner: Any = None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = self.linear(y) * self.factor * self.table[0] * SCALE
        y = y ** self.options["power"]
        return y if self.training else -y


def _swap(model: Scaled) -> None:
    model.linear = nn.Linear(2, 2)


def _swap_weight(model: Scaled) -> None:
    model.linear.weight = nn.Parameter(torch.randn(2, 2))


def _hook(model: Scaled) -> None:
    model.linear.register_forward_hook(lambda module, args, out: 2 * out)


CHANGES: dict[str, Callable[[Scaled], Any]] = {
    "number": lambda model: setattr(model, "factor", 0.3),
    "mode": lambda model: model.eval(),
    "dict": lambda model: model.options.update(power=2),
    "list": lambda model: model.table.__setitem__(0, 0.1),
    "module": _swap,
    "parameter": _swap_weight,
    "frozen": lambda model: model.linear.weight.requires_grad_(False),
    "values": lambda model: nn.init.normal_(model.linear.weight),
    "hook": _hook,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_module_are_seen(change: str) -> None:
    torch.manual_seed(0)
    model = Scaled()
    before = end(model)
    torch.testing.assert_close(before, end(model, "torch"), rtol=1e-4, atol=1e-5)
    CHANGES[change](model)
    after = end(model)
    torch.testing.assert_close(after, end(model, "torch"), rtol=1e-4, atol=1e-5)
    if change != "frozen":
        assert not torch.allclose(before, after)


def test_changes_of_a_global_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = end(decay)
    monkeypatch.setitem(decay.__globals__, "SCALE", 3.0)
    assert not torch.allclose(end(decay), before)


def test_functions_made_anew_share_a_model() -> None:
    from pydiffeqflux.backends.compiled import model as models

    def make(weight: Tensor) -> Any:
        scaled = torch.tanh(weight)  # not a leaf
        return lambda t, y: -scaled * y

    weight = torch.ones(2, requires_grad=True)
    end(make(weight))
    traced = len(models._models)
    for k in range(3):
        found = torch.autograd.grad(end(make(weight * k)).sum(), weight)[0]
        expected = torch.autograd.grad(end(make(weight * k), "torch").sum(), weight)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(models._models) == traced


def test_a_walk_is_repeated_only_where_something_changed() -> None:
    model = Scaled()
    found = reach(model)
    assert found.unchanged() and len(found.tensors) == 2
    model.factor = 5.0
    assert not found.unchanged()
    assert reach(model).facts != found.facts


def test_tensors_that_cannot_be_followed() -> None:
    w = torch.ones(2)
    hidden = weakref.ref(w)
    with pytest.raises(UnsupportedError, match="could not be found among its attributes"):
        end(lambda t, y: -hidden() * y)


def test_functions_that_are_not_what_was_traced() -> None:
    """Python's own random numbers leave no mark in a trace."""
    with pytest.raises(UnsupportedError, match="traced is not the one that runs"):
        end(lambda t, y: -y * random.random())
