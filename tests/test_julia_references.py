"""Layers against those of DiffEqFlux and Boltz themselves, run in the same Julia on the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems.in_julia import columns, julia, matrix, vector
from torch import Tensor, nn

import pydiffeqflux as pdf

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp(inputs: int, outputs: int, hidden: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).to(D)


def lux(net: nn.Sequential) -> str:
    """``model``, ``ps`` and ``st``: the same network in Lux, with the same weights."""
    first, last = net[0], net[2]
    return f"""
    model = Lux.Chain(
        Lux.Dense({first.in_features} => {first.out_features}, tanh),
        Lux.Dense({last.in_features} => {last.out_features})
    )
    ps = (
        layer_1 = (weight = {matrix(first.weight)}, bias = {vector(first.bias)}),
        layer_2 = (weight = {matrix(last.weight)}, bias = {vector(last.bias)}),
    )
    st = Lux.initialstates(P.Xoshiro(0), model)
    """


KERNELS = "epanechnikov uniform triangular quartic triweight tricube gaussian cosine logistic sigmoid".split()


@pytest.mark.parametrize("kernel", KERNELS)
def test_collocation(kernel: str) -> None:
    """All of DiffEqFlux's kernels but Silverman's, which it has wrong (its integral is not one)."""
    t = torch.linspace(0, 2, 15, dtype=D) ** 1.2
    data = torch.stack([torch.sin(t), torch.exp(-t)], -1) + 0.01 * torch.randn(15, 2, dtype=D)
    found = julia(
        f"du, u = DiffEqFlux.collocate_data({matrix(data.T)}, {vector(t)}, DiffEqFlux.{kernel.title()}Kernel(), 0.4)\n"
        "[vec(du); vec(u)]"
    )
    du, u = pdf.collocate_data(data, t, kernel, 0.4)
    expected = columns(found, 2)
    assert torch.allclose(du, expected[:15], rtol=1e-7, atol=1e-8)
    assert torch.allclose(u, expected[15:], rtol=1e-7, atol=1e-8)


def test_hamiltonian() -> None:
    """Boltz's field is ``(dH/dp, dH/dq)``; the motion is that with its second half turned round."""
    net, y = mlp(4, 1), torch.randn(3, 4, dtype=D)
    found = julia(
        lux(net)
        + f"""
        hnn = DiffEqFlux.Boltz.Layers.HamiltonianNN{{true}}(model; autodiff = DiffEqFlux.AutoZygote())
        state = (; model = st, first_call = false)
        vec(first(hnn({matrix(y.T)}, ps, state)))
        """
    )
    expected = columns(found, 4) * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=D)
    assert torch.allclose(pdf.HamiltonianNN(net)(y), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("legendre", "Legendre"), ("polynomial", "Polynomial"), ("sine", "Sin")])
def test_tensor_products(name: str, theirs: str) -> None:
    layer, x = pdf.TensorProductLayer([(name, 3), (name, 4)], 2).to(D), 0.5 * torch.randn(5, 2, dtype=D)
    found = julia(
        f"""
        basis = DiffEqFlux.Boltz.Basis.{theirs}
        layer = DiffEqFlux.Boltz.Layers.TensorProductLayer([basis(3), basis(4)], 2)
        ps, st = Lux.setup(P.Xoshiro(0), layer)
        vec(first(layer({matrix(x.T)}, (; weight = {matrix(layer.weight)}), st)))
        """
    )
    assert torch.allclose(layer(x), columns(found, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_ffjord() -> None:
    """DiffEqFlux's flow with the exact trace, its network in Lux: the same log-densities."""
    net, x = mlp(2, 2), torch.randn(4, 2, dtype=D)
    found = julia(
        lux(net)
        + f"""
        flow = DiffEqFlux.FFJORD(
            model, (0.0, 1.0), (2,), P.algorithm("Tsit5"); ad = DiffEqFlux.AutoZygote(), reltol = 1e-10, abstol = 1e-10
        )
        vec(first(first(flow({matrix(x.T)}, ps, (; model = st, regularize = false, monte_carlo = false)))))
        """
    )
    for backend in ("torch", "julia"):
        ours = pdf.FFJORD(net, (0.0, 1.0), 2, backend=backend, **TIGHT)(x).log_prob
        assert torch.allclose(ours, torch.tensor(found, dtype=D), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_multiple_shooting() -> None:
    net, t = mlp(2, 2), torch.linspace(0, 2, 9, dtype=D)
    data = torch.randn(9, 2, dtype=D)
    found = julia(
        lux(net)
        + f"""
        f(u, p, t) = first(model(u, p, st))
        problem = P.ODEProblem{{false}}(f, {vector(data[0])}, (0.0, 2.0), ps)
        loss, _ = DiffEqFlux.multiple_shoot(
            ps, {matrix(data.T)}, {vector(t)}, problem, (u, v) -> sum(abs2, u .- v), P.algorithm("Tsit5"), 4;
            continuity_term = 100, reltol = 1e-10, abstol = 1e-10
        )
        loss
        """
    )
    ours = pdf.multiple_shoot(net, data, t, group_size=4, continuity_term=100.0, backend="julia", **TIGHT).loss
    assert float(ours) == pytest.approx(found, rel=1e-8)


# -- DiffEqFlux's own NeuralODE on the traced module ------------------------------------------------


class Driven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.cos(3 * t).expand(*y.shape[:-1], 1)], -1))


MODELS: dict[str, Callable[[], nn.Module]] = {"autonomous": lambda: mlp(2, 2), "driven": Driven}


@pytest.mark.slow
@pytest.mark.parametrize("sensealg", [None, "GaussAdjoint"])
@pytest.mark.parametrize("model", MODELS)
def test_the_layer_and_the_fast_way_agree(model: str, sensealg: str | None) -> None:
    net, y0 = MODELS[model](), torch.randn(3, 2, dtype=D, requires_grad=True)
    found = {}
    for backend in ("diffeqflux", "julia"):
        node = pdf.NeuralODE(net, (0.0, 1.0), backend=backend, saveat=[0.5, 1.0], sensealg=sensealg, **TIGHT)
        ys = node(y0)
        weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=D).reshape(ys.shape)
        found[backend] = ys, torch.autograd.grad((weights * ys).sum(), [y0, *net.parameters()])
    (layer, to_layer), (fast, to_fast) = found["diffeqflux"], found["julia"]
    assert torch.allclose(layer, fast, rtol=1e-8, atol=1e-8)
    for one, other in zip(to_layer, to_fast, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    problem = pdf.ODEProblem(lambda t, y: net(t, y) if model == "driven" else net(y), y0, (0.0, 1.0))
    stats = pdf.solve(problem, saveat=[1.0], backend="diffeqflux", sensealg=sensealg).stats
    assert stats.backend == "diffeqflux" and stats.sensealg == (sensealg or "InterpolatingAdjoint")


@pytest.mark.slow
def test_a_flow_through_the_layer() -> None:
    """A right-hand side that takes derivatives of a module, inside DiffEqFlux's layer."""
    net, x = mlp(2, 2), torch.randn(3, 2, dtype=D)
    found = {}
    for backend in ("diffeqflux", "torch"):
        value = pdf.FFJORD(net, (0.0, 1.0), 2, backend=backend, **TIGHT)(x).log_prob
        found[backend] = value, torch.autograd.grad(value.sum(), list(net.parameters()))
    assert torch.allclose(found["diffeqflux"][0], found["torch"][0], rtol=1e-8, atol=1e-8)
    for one, other in zip(found["diffeqflux"][1][:-1], found["torch"][1][:-1], strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_what_the_layer_does_not_take() -> None:
    from pydiffeqflux.errors import UnsupportedError

    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, 1, dtype=D), (0.0, 1.0), batched=True)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("every step", {}),
        ("event", {"saveat": [1.0], "event": lambda t, y: y[0] - 0.5}),
        ("callbacks", {"saveat": [1.0], "callbacks": pdf.PresetTimeCallback([0.5], lambda t, y: y)}),
        ("sensealg=DiscreteAdjoint", {"saveat": [1.0], "sensealg": "DiscreteAdjoint"}),
        ("tstops", {"saveat": [1.0], "tstops": [0.5]}),
        ("fallback", {"saveat": [1.0], "fallback": "callback"}),
        ("progress", {"saveat": [1.0], "progress": True}),
        ("per_sample", {"saveat": [1.0], "per_sample": True}),
        ("controller", {"saveat": [1.0], "controller": pdf.PIController()}),
        ("a gradient of times", {"saveat": torch.tensor([1.0], dtype=D, requires_grad=True)}),
    ]
    for said, options in refused:
        with pytest.raises(UnsupportedError, match=said):
            pdf.solve(problem, backend="diffeqflux", **options)
