"""``NeuralDSDE`` and ``NeuralSDE``: stochastic equations as layers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def drift() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def matrix(m: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2 * m), nn.Unflatten(-1, (2, m)))


def test_shapes() -> None:
    y0 = torch.ones(7, 2)
    layers = {
        "diagonal": lambda **options: pdf.NeuralDSDE(drift(), nn.Linear(2, 2), (0.0, 1.0), "sosri", **options),
        "general": lambda **options: pdf.NeuralSDE(drift(), matrix(), (0.0, 1.0), 3, "em", dt=0.1, **options),
    }
    for layer in layers.values():
        assert layer()(y0).shape == (7, 2)
        assert layer(saveat=[0.0, 0.5, 1.0])(y0).shape == (3, 7, 2)
        assert layer()(torch.ones(2)).shape == (2,)
        sol = layer().solve(y0)
        assert isinstance(sol, pdf.Solution) and sol.ys.shape[1:] == (7, 2) and len(sol.ts) > 2


def test_it_solves_the_problem_that_it_says() -> None:
    f, g = drift(), nn.Linear(2, 2)
    layer = pdf.NeuralDSDE(f, g, (0.0, 1.0), "milstein", dt=0.1, seed=4)
    y0 = torch.randn(5, 2)
    problem = pdf.SDEProblem(lambda t, y: f(y), lambda t, y: g(y), y0, (0.0, 1.0), seed=4)
    assert torch.equal(layer(y0), pdf.solve(problem, "milstein", dt=0.1).ys[-1])
    k = matrix()
    general = pdf.NeuralSDE(f, k, (0.0, 1.0), 3, "heun", dt=0.1, seed=4, interpretation="stratonovich")
    problem = pdf.SDEProblem(
        lambda t, y: f(y), lambda t, y: k(y), y0, (0.0, 1.0), noise="general", interpretation="stratonovich", seed=4
    )
    assert torch.equal(general(y0), pdf.solve(problem, "heun", dt=0.1).ys[-1])


def test_defaults() -> None:
    assert str(pdf.NeuralDSDE(drift(), nn.Linear(2, 2), (0, 1)).method) == "sosri"
    assert str(pdf.NeuralSDE(drift(), matrix(), (0, 1), 3, dt=0.1).method) == "em"
    assert str(pdf.NeuralSDE(drift(), matrix(), (0, 1), 3, interpretation="stratonovich").method) == "heun"


def test_models_of_time() -> None:
    def timed(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) * torch.ones_like(y)

    for one, other in [(timed, nn.Linear(2, 2)), (nn.Linear(2, 2), timed), (timed, timed)]:
        assert pdf.NeuralDSDE(one, other, (0.0, 1.0))(torch.ones(3, 2)).shape == (3, 2)
    quiet = pdf.NeuralDSDE(timed, lambda t, y: 0 * y, (0.0, 1.0), pdf.SRIW2(adaptive=False), dt=0.1)
    assert torch.allclose(quiet(torch.zeros(3, 2)), torch.tensor(1.0).sin(), atol=1e-5)
    stated = pdf.NeuralDSDE(lambda *a: -a[1], lambda *a: 0.1 * a[1], (0.0, 1.0), time_dependent=True)
    assert stated(torch.ones(3, 2)).shape == (3, 2)


def test_every_call_draws_a_path_unless_one_is_fixed() -> None:
    f, g, y0 = drift(), nn.Linear(2, 2), torch.ones(4, 2)
    free = pdf.NeuralDSDE(f, g, (0.0, 1.0))
    assert not torch.allclose(free(y0), free(y0))
    torch.manual_seed(3)
    one = free(y0)
    torch.manual_seed(3)
    assert torch.equal(one, free(y0))
    fixed = pdf.NeuralDSDE(f, g, (0.0, 1.0), seed=1)
    assert torch.equal(fixed(y0), fixed(y0))
    motion = pdf.BrownianInterval(0.0, 1.0, (4, 2), torch.float32, entropy=1)
    given = pdf.NeuralDSDE(f, g, (0.0, 1.0), "em", dt=0.1, brownian=motion)
    assert torch.equal(given(y0), given(y0))


@pytest.mark.parametrize("sensealg", [None, pdf.DiscreteAdjoint(checkpoints="sqrt"), pdf.BacksolveAdjoint()])
def test_it_trains(sensealg) -> None:
    # Towards an Ornstein-Uhlenbeck process's mean at two times, on fixed noise.
    layer = pdf.NeuralDSDE(
        nn.Linear(1, 1), nn.Linear(1, 1), (0.0, 1.0), "em", dt=0.1, saveat=[0.5, 1.0], sensealg=sensealg, seed=0
    )
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    y0, wanted = torch.ones(64, 1), torch.tensor([0.6, 0.4])
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = (layer(y0).mean(1).squeeze(-1) - wanted).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in layer.parameters())
    assert losses[-1] < losses[0] / 10


def test_it_is_an_ordinary_module() -> None:
    layer = pdf.NeuralSDE(drift(), matrix(), (0.0, 1.0), 3, "em", dt=0.1, seed=1)
    assert {name.split(".")[0] for name, _ in layer.named_parameters()} == {"drift", "diffusion"}
    y0 = torch.ones(4, 2)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = pdf.NeuralSDE(drift(), matrix(), (0.0, 1.0), 3, "em", dt=0.1, seed=1)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(y0), layer(y0))
    assert torch.equal(copy.deepcopy(layer)(y0), layer(y0))
    assert layer.double()(y0.double()).dtype == torch.float64
    assert "nbrown=3" in repr(layer) and "method=em" in repr(layer) and "noise=general" in repr(layer)
    assert nn.Sequential(layer, nn.Linear(2, 1).double())(y0.double()).shape == (4, 1)
