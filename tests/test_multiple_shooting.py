"""Multiple shooting: losses against solves made one by one, and what it is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, InvalidTimesError, ShapeError, UnknownOptionError

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_groups() -> None:
    assert pdf.group_ranges(10, 5) == [range(0, 5), range(4, 9), range(8, 10)]  # DiffEqFlux's own example, from 0
    assert pdf.group_ranges(5, 5) == [range(0, 5)]
    assert pdf.group_ranges(3, 2) == [range(0, 2), range(1, 3)]
    for wrong in (1, 11, 2.5, True):
        with pytest.raises(InvalidArgumentError, match="from 2 to 10"):
            pdf.group_ranges(10, wrong)


def times(even: bool, n: int = 11) -> Tensor:
    return torch.linspace(0.5, 3.0, n, dtype=D) if even else torch.sort(0.5 + 2.5 * torch.rand(n, dtype=D)).values


def driven(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[..., 1:], -y[..., :1] + torch.sin(3 * t)], -1)


def autonomous(y: Tensor) -> Tensor:
    return torch.cat([y[..., 1:], -torch.sin(y[..., :1])], -1)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("model", [autonomous, driven], ids=["y", "t, y"])
@pytest.mark.parametrize("group_size", [2, 4, 11])
@pytest.mark.parametrize("trailing", [(2,), (3, 2)])
def test_the_loss_is_that_of_separate_solves(
    even: bool, model: Any, group_size: int, trailing: tuple[int, ...]
) -> None:
    t, data = times(even), torch.randn(11, *trailing, dtype=D)
    shot = pdf.multiple_shoot(model, data, t, None, "dopri5", group_size, continuity_term=7.0, **TIGHT)
    func = model if model is driven else lambda t, y: model(y)
    total, before = 0.0, None
    for r, found in zip(pdf.group_ranges(11, group_size), shot.predictions, strict=True):
        span = (float(t[r.start]), float(t[r.stop - 1]))
        path = pdf.solve(pdf.ODEProblem(func, data[r.start], span), saveat=t[r.start : r.stop], **TIGHT).ys
        torch.testing.assert_close(found, path, rtol=1e-6, atol=1e-7)
        total = total + float((path - data[r.start : r.stop]).square().sum())
        if before is not None:
            total = total + 7.0 * float((before - data[r.start]).abs().sum())
        before = path[-1]
    assert float(shot.loss) == pytest.approx(total, rel=1e-5)


def test_losses_of_one_s_own() -> None:
    t, data = times(True), torch.randn(11, 2, dtype=D)
    plain = pdf.multiple_shoot(autonomous, data, t, group_size=4, continuity_term=0.0)
    joined = pdf.multiple_shoot(
        autonomous,
        data,
        t,
        lambda u, prediction: (u - prediction).abs().amax(),
        "tsit5",
        4,
        continuity_loss=lambda end, start: (end - start).square().sum(),
        continuity_term=2.0,
    )
    worst = sum(
        float((data[r.start : r.stop] - p).abs().max())
        for r, p in zip(pdf.group_ranges(11, 4), plain.predictions, strict=True)
    )
    gaps = sum(
        float((p[-1] - data[r.start]).square().sum())
        for p, r in zip(plain.predictions, pdf.group_ranges(11, 4)[1:], strict=False)
    )
    assert float(joined.loss) == pytest.approx(worst + 2 * gaps, rel=1e-9)


def test_layers_and_fixed_steps() -> None:
    t, data = times(True), torch.randn(11, 2, dtype=D)
    net = nn.Linear(2, 2).double()
    shot = pdf.multiple_shoot(net, data, t, group_size=3, **TIGHT)
    node = pdf.multiple_shoot(pdf.NeuralODE(net, (0.0, 1.0)), data, t, group_size=3, **TIGHT)
    fixed = pdf.multiple_shoot(net, data, t, None, "rk4", 3, dt=0.05)
    assert float(shot.loss) == float(node.loss)
    assert float(fixed.loss) == pytest.approx(float(shot.loss), rel=1e-4)
    shot.loss.backward()
    assert net.weight.grad is not None and bool((net.weight.grad != 0).all())


def test_gradients() -> None:
    t, data = times(False, 6), torch.randn(6, 2, dtype=D)
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)

    def loss(rate: Tensor, data: Tensor) -> Tensor:
        return pdf.multiple_shoot(lambda y: rate * autonomous(y), data, t, group_size=3, rtol=1e-10, atol=1e-10).loss

    assert torch.autograd.gradcheck(loss, (rate, data.requires_grad_()), atol=1e-5)


def test_finds_a_frequency_that_a_single_solve_does_not() -> None:
    """Six cycles: the single solve's loss is flat but for ripples, the groups' has one valley."""
    t = torch.linspace(0, 6, 61, dtype=D)
    true, start = 2 * math.pi, 4.0
    data = torch.stack([torch.cos(true * t), -torch.sin(true * t)], -1)

    def turn(rate: Tensor) -> Any:
        return lambda y: rate * torch.cat([y[..., 1:], -y[..., :1]], -1)

    def descend(loss: Any) -> float:
        rate = torch.tensor(start, dtype=D, requires_grad=True)
        optimiser = torch.optim.Adam([rate], lr=0.15)
        for _ in range(60):
            optimiser.zero_grad()
            loss(rate).backward()
            optimiser.step()
        return float(rate.detach())

    def single(rate: Tensor) -> Tensor:
        node = pdf.NeuralODE(turn(rate), (0.0, 6.0), "rk4", saveat=t, dense=False)
        return (node(data[0]) - data).square().sum()

    shot = descend(lambda rate: pdf.multiple_shoot(turn(rate), data, t, None, "rk4", 4).loss)
    assert shot == pytest.approx(true, abs=0.1)
    assert abs(descend(single) - true) > 0.5


def test_mistakes() -> None:
    t, data = times(True), torch.randn(11, 2, dtype=D)
    with pytest.raises(InvalidArgumentError, match="group_size=12"):
        pdf.multiple_shoot(autonomous, data, t, group_size=12)
    with pytest.raises(ShapeError, match="10 times for 11"):
        pdf.multiple_shoot(autonomous, data, t[:10])
    with pytest.raises(InvalidTimesError, match="strictly increasing"):
        pdf.multiple_shoot(autonomous, data, t.flip(0))
    with pytest.raises(ShapeError, match=r"a tensor \(n, \*state\)"):
        pdf.multiple_shoot(autonomous, data[:, 0], t)
    with pytest.raises(InvalidArgumentError, match="continuity_term=-1"):
        pdf.multiple_shoot(autonomous, data, t, continuity_term=-1)
    with pytest.raises(UnknownOptionError, match="'continuity_term'"):
        pdf.multiple_shoot(autonomous, data, t, continuity=3)
    with pytest.raises(InvalidArgumentError, match="data's own times"):
        pdf.multiple_shoot(autonomous, data, t, saveat=0.1)
    with pytest.raises(InvalidArgumentError, match="not callable"):
        pdf.multiple_shoot(3, data, t)
