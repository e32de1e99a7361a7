"""Universal and second-order ODEs: against hand-written right-hand sides, and what they recover from data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    InvalidArgumentError,
    NotSeparableError,
    ShapeError,
    SignatureError,
    UnknownNameError,
    UnknownOptionError,
)

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Decay(nn.Module):
    def __init__(self, rate: float = 0.5):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=D))

    def forward(self, y: Tensor) -> Tensor:
        return -self.rate * y


class Forced(nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) + 0 * y


def net(features: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, features)).double()


# -- universal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["add", "multiply", lambda known, unknown: known - 2 * unknown])
def test_is_the_combination_of_its_parts(combine: Any) -> None:
    known, network, y0 = Forced(), net(), torch.randn(3, 2, dtype=D)
    how = {"add": lambda a, b: a + b, "multiply": lambda a, b: a * b}.get(combine, combine)
    ude = pdf.UniversalODE(known, network, (0.0, 2.0), combine=combine, saveat=[1.0, 2.0], **TIGHT)
    problem = pdf.ODEProblem(lambda t, y: how(known(t, y), network(y)), y0, (0.0, 2.0))
    torch.testing.assert_close(ude(y0), pdf.solve(problem, saveat=[1.0, 2.0], **TIGHT).ys)
    assert torch.equal(ude.solve(y0).ys, ude(y0)) and ude.time_dependent


def test_parameters_of_both() -> None:
    ude = pdf.UniversalODE(Decay(), net(), (0.0, 1.0), **TIGHT)
    assert {name.split(".")[0] for name, _ in ude.named_parameters()} == {"known", "network"}
    y0 = torch.randn(3, 2, dtype=D)
    ude(y0).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in ude.parameters())
    rate = ude.known.rate
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            rate += sign * 1e-6
            ends.append(float(ude(y0).square().sum()))
            rate -= sign * 1e-6
    assert float(rate.grad) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
    assert not ude.time_dependent


@pytest.mark.parametrize("sensealg", ["gauss", "backsolve", "forward"])
def test_sensitivity_algorithms_find_both(sensealg: str) -> None:
    known, network, y0 = Decay(), net(), torch.randn(3, 2, dtype=D)

    def grads(how: str | None) -> list[Tensor]:
        ude = pdf.UniversalODE(known, network, (0.0, 1.0), sensealg=how, **TIGHT)
        return list(torch.autograd.grad(ude(y0).square().sum(), list(ude.parameters())))

    for mine, exact in zip(grads(sensealg), grads(None), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)


def test_recovers_a_known_rate_and_an_unknown_term() -> None:
    """u' = -a u + b sin(v), v' = -v + u: a and the form of the sine's term are found together."""
    times = torch.linspace(0, 4, 21, dtype=D)
    starts = torch.tensor([[1.0, 0.5], [-0.5, 2.0], [2.0, -1.0]], dtype=D)

    def truth(t: Tensor, y: Tensor) -> Tensor:
        u, v = y.unbind(-1)
        return torch.stack([-0.7 * u + torch.sin(v), u - v], -1)

    data = pdf.solve(pdf.ODEProblem(truth, starts, (0.0, 4.0)), saveat=times, **TIGHT).ys

    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.2, dtype=D))

        def forward(self, y: Tensor) -> Tensor:
            u, v = y.unbind(-1)
            return torch.stack([-self.a * u, u - v], -1)

    class Term(nn.Module):
        """An odd function of v alone."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

        def forward(self, y: Tensor) -> Tensor:
            v = y[..., 1:]
            return torch.cat([self.net(v) - self.net(-v), 0 * v], -1)

    ude = pdf.UniversalODE(Known(), Term(), (0.0, 4.0), "rk4", saveat=times)
    pdf.collocation_pretrain(ude, data, times, "tricube", 0.15, steps=100)
    optimiser = torch.optim.LBFGS(ude.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (ude(starts) - data).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    assert float(loss().detach()) < 1e-4
    assert float(ude.known.a.detach()) == pytest.approx(0.7, abs=0.1)
    v = torch.linspace(-1, 2, 7, dtype=D)
    found = ude.network(torch.stack([0 * v, v], -1))[:, 0].detach()
    torch.testing.assert_close(found, torch.sin(v), rtol=0, atol=0.15)


def test_universal_mistakes() -> None:
    with pytest.raises(UnknownNameError, match=r"combine='sum' is not known.*add, multiply"):
        pdf.UniversalODE(Decay(), net(), (0.0, 1.0), combine="sum")
    with pytest.raises(ShapeError, match=r"\(3, 2\) and the network's \(3, 1\)"):
        pdf.UniversalODE(Decay(), nn.Linear(2, 1).double(), (0.0, 1.0))(torch.ones(3, 2, dtype=D))
    with pytest.raises(InvalidArgumentError, match="known=3 is not callable"):
        pdf.UniversalODE(3, net(), (0.0, 1.0))
    with pytest.raises(UnknownOptionError, match=r"UniversalODE\(\) takes no argument 'combined'"):
        pdf.UniversalODE(Decay(), net(), (0.0, 1.0), combined="add")


# -- second order -------------------------------------------------------------------------------


def test_an_oscillator_with_friction() -> None:
    """u'' = -u - 0.4 u': exp(-0.2 t) times sines."""
    w = math.sqrt(1 - 0.04)
    times = torch.linspace(0, 5, 11, dtype=D)
    exact = torch.exp(-0.2 * times) * (torch.cos(w * times) + 0.2 / w * torch.sin(w * times))
    layer = pdf.SecondOrderNeuralODE(lambda u, v: -u - 0.4 * v, (0.0, 5.0), saveat=times, **TIGHT)
    u, v = layer(torch.ones(1, dtype=D), torch.zeros(1, dtype=D))
    torch.testing.assert_close(u[:, 0], exact, rtol=1e-7, atol=1e-8)
    assert v.shape == (11, 1)
    sol = layer.solve(torch.ones(1, dtype=D), torch.zeros(1, dtype=D))
    torch.testing.assert_close(sol.ys[0], u)


def test_forms() -> None:
    u0, v0 = torch.randn(3, 2, dtype=D), torch.randn(3, 2, dtype=D)

    def end(model: Any, **options: Any) -> Tensor:
        return pdf.SecondOrderNeuralODE(model, (0.0, 1.0), **options, **TIGHT)(u0, v0)[0]

    expected = end(lambda u: -torch.sin(u))
    torch.testing.assert_close(end(lambda u, v: -torch.sin(u) + 0 * v), expected)
    torch.testing.assert_close(end(lambda t, u, v: -torch.sin(u) + 0 * t), expected)
    torch.testing.assert_close(end(lambda t, u: -torch.sin(u) + 0 * t, takes="tu"), expected)
    torch.testing.assert_close(end(lambda *args: -torch.sin(args[0]), takes="u"), expected)
    assert not torch.allclose(end(lambda t, u: -torch.sin(u) + 0 * t), expected)  # read as (u, v)


@pytest.mark.parametrize("method", ["velocity_verlet", "mcate4", "yoshida6"])
def test_symplectic_methods(method: str) -> None:
    model = net()
    u0, v0 = torch.randn(3, 2, dtype=D), torch.randn(3, 2, dtype=D)
    layer = pdf.SecondOrderNeuralODE(model, (0.0, 1.0), method, dt=0.01)
    exact = pdf.SecondOrderNeuralODE(model, (0.0, 1.0), **TIGHT)(u0, v0)
    for mine, theirs in zip(layer(u0, v0), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    grads = []
    for m, options in ((method, {"dt": 0.01}), ("tsit5", TIGHT)):
        u, _ = pdf.SecondOrderNeuralODE(model, (0.0, 1.0), m, **options)(u0, v0)
        grads.append(torch.autograd.grad(u.sum(), list(model.parameters())))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    with pytest.raises(NotSeparableError):
        pdf.SecondOrderNeuralODE(lambda u, v: -v, (0.0, 1.0), method, dt=0.1)(u0, v0)


def test_second_order_gradients() -> None:
    layer = pdf.SecondOrderNeuralODE(net(), (0.0, 1.0), rtol=1e-10, atol=1e-10)
    state = [torch.randn(2, 2, dtype=D, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda u, v: layer(u, v), state, atol=1e-6)
    assert len(list(layer.parameters())) == 4


def test_second_order_mistakes() -> None:
    with pytest.raises(SignatureError, match="takes='u', 'tu', 'uv' or 'tuv'"):
        pdf.SecondOrderNeuralODE(lambda *args: args[0], (0.0, 1.0))
    with pytest.raises(UnknownNameError, match="takes='vu'"):
        pdf.SecondOrderNeuralODE(net(), (0.0, 1.0), takes="vu")
    for pair in ((torch.ones(2), torch.ones(3)), (torch.ones(2), 0.0)):
        with pytest.raises(ShapeError, match="tensors of one shape"):
            pdf.SecondOrderNeuralODE(lambda u: -u, (0.0, 1.0))(*pair)
    with pytest.raises(InvalidArgumentError, match="not callable"):
        pdf.SecondOrderNeuralODE(None, (0.0, 1.0))
