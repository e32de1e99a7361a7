"""Augmented neural ODEs: zeros appended, and what they buy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, InvalidStateError, ShapeError, UnknownOptionError

D = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, features)).double()


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 5, 2)])
def test_is_a_neural_ode_on_the_padded_state(shape: tuple[int, ...]) -> None:
    net, y0 = small(5), torch.randn(shape, dtype=D)
    padded = torch.nn.functional.pad(y0, (0, 3))
    layer = pdf.AugmentedNeuralODE(net, (0.0, 1.0), 3, "dopri5", saveat=[0.5, 1.0], rtol=1e-8)
    node = pdf.NeuralODE(net, (0.0, 1.0), "dopri5", saveat=[0.5, 1.0], rtol=1e-8)
    assert torch.equal(layer(y0), node(padded))
    assert layer(y0).shape == (2, *shape[:-1], 5)
    assert torch.equal(layer.solve(y0).ys, node.solve(padded).ys)
    assert torch.equal(pdf.AugmentedNDELayer(node, 3)(y0), node(padded))


def test_channels_of_images() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 6, 6, dtype=D)
    for layer in (
        pdf.AugmentedNeuralODE(conv, (0.0, 1.0), 1, dim=1),
        pdf.AugmentedNDELayer(pdf.NeuralODE(conv, (0.0, 1.0)), 1, dim=1),
    ):
        assert layer(x).shape == (2, 4, 6, 6)
    still = pdf.AugmentedNeuralODE(torch.zeros_like, (0.0, 1.0), 1, dim=1, time_dependent=False)(x)
    assert torch.equal(still[:, :3], x) and not still[:, 3].any()


def test_gradients() -> None:
    layer = pdf.AugmentedNeuralODE(small(3), (0.0, 1.0), 1, rtol=1e-10, atol=1e-10)
    y0 = torch.randn(2, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, y0, atol=1e-6)


def test_does_what_no_flow_in_its_own_dimension_can() -> None:
    """x -> -x swaps two points of the line, whose trajectories would have to cross; a rotation of the plane does it."""
    x = torch.tensor([[-1.0], [1.0]])

    def end_loss(layer: nn.Module) -> float:
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
        for _ in range(100):
            optimiser.zero_grad()
            loss = (layer(x)[:, :1] + x).square().mean()
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    plane = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    assert end_loss(pdf.NeuralODE(net, (0.0, 1.0))) > 0.9  # both points in the middle: the best there is
    assert end_loss(pdf.AugmentedNeuralODE(plane, (0.0, 1.0), 1)) < 0.01


def test_parameters_are_the_models() -> None:
    net = small(3)
    assert set(pdf.AugmentedNeuralODE(net, (0.0, 1.0), 1).state_dict()) == {f"model.{k}" for k in net.state_dict()}
    assert "extra_dims=2" in repr(pdf.AugmentedNeuralODE(net, (0.0, 1.0), 2))
    assert "adim=2" in repr(pdf.AugmentedNDELayer(net, 2))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
def test_a_number_of_channels_that_is_none(wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"extra_dims={wrong!r}"):
        pdf.AugmentedNeuralODE(small(3), (0.0, 1.0), wrong)
    with pytest.raises(InvalidArgumentError, match=f"adim={wrong!r}"):
        pdf.AugmentedNDELayer(small(3), wrong)


def test_other_mistakes() -> None:
    layer = pdf.AugmentedNeuralODE(small(3), (0.0, 1.0), 1, dim=1)
    with pytest.raises(ShapeError, match="no dimension dim=1"):
        layer(torch.ones(2, dtype=D))
    with pytest.raises(InvalidStateError, match="appended to a tensor"):
        layer((torch.ones(2, dtype=D),))
    with pytest.raises(UnknownOptionError, match=r"AugmentedNeuralODE\(\) takes no argument 'dims'.*'dim'"):
        pdf.AugmentedNeuralODE(small(3), (0.0, 1.0), 1, dims=1)
    with pytest.raises(InvalidArgumentError, match=r"not an nn\.Module"):
        pdf.AugmentedNDELayer(lambda y: y, 1)


def test_model_that_drops_the_channels() -> None:
    with pytest.raises(ShapeError, match="returned shape"):
        pdf.AugmentedNeuralODE(lambda y: y[..., :2], (0.0, 1.0), 1)(torch.ones(4, 2))


def test_forwards_further_arguments() -> None:
    class Two(nn.Module):
        def forward(self, y: Tensor, scale: float) -> Tensor:
            return y * scale

    assert torch.equal(pdf.AugmentedNDELayer(Two(), 1)(torch.ones(2), scale=3.0), torch.tensor([3.0, 3.0, 0.0]))
