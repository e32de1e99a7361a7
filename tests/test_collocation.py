"""Collocation: kernels by their integrals, estimates by regressions made with numpy, pre-training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DataError,
    InvalidArgumentError,
    InvalidStateError,
    InvalidTimesError,
    ShapeError,
    UnknownNameError,
)
from pydiffeqflux.training.collocation import KERNELS, Collocation, default_bandwidth

D = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def weight(name: str, x: float) -> float:
    return float(KERNELS[name](torch.tensor(x, dtype=D)))


def test_there_are_eleven() -> None:
    assert len(KERNELS) == 11


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_even_and_integrate_to_one(name: str) -> None:
    half = sum(quad(lambda x: weight(name, x), a, b, limit=200)[0] for a, b in ((0, 1), (1 + 1e-12, 60)))
    assert 2 * half == pytest.approx(1.0, abs=1e-7)
    for x in (0.2, 0.7, 1.5):
        assert weight(name, x) == weight(name, -x)


#: Values at 0, 1/2 and 3/2, worked out from the kernels' formulas in the literature.
VALUES = {
    "epanechnikov": (0.75, 0.5625, 0),
    "uniform": (0.5, 0.5, 0),
    "triangular": (1, 0.5, 0),
    "quartic": (15 / 16, 15 / 16 * 9 / 16, 0),
    "triweight": (35 / 32, 35 / 32 * 27 / 64, 0),
    "tricube": (70 / 81, 70 / 81 * (7 / 8) ** 3, 0),
    "gaussian": (0.3989422804, 0.3520653268, 0.1295175957),
    "cosine": (math.pi / 4, math.pi / 4 / math.sqrt(2), 0),
    "logistic": (0.25, 0.2350037122, 0.1491464521),
    "sigmoid": (1 / math.pi, 1 / math.pi / math.cosh(0.5), 1 / math.pi / math.cosh(1.5)),
    "silverman": (0.3535533906, 0.3188621032, 0.1665965517),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_values(name: str) -> None:
    np.testing.assert_allclose([weight(name, x) for x in (0.0, 0.5, 1.5)], VALUES[name], atol=2e-6)


def series(n: int = 60, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.sort(torch.rand(n, dtype=D) * 3).values
    u = torch.stack([torch.sin(2 * t), torch.exp(-t)], -1)
    du = torch.stack([2 * torch.cos(2 * t), -torch.exp(-t)], -1)
    return t, u + noise * torch.randn_like(u), du


@pytest.mark.parametrize("name", KERNELS)
def test_estimates_are_weighted_regressions(name: str) -> None:
    """Against numpy's polyfit, which takes the square roots of the weights."""
    t, u, _ = series(noise=0.1)
    share = 0.3
    du, smooth = pdf.collocate_data(u, t, name, share)
    width = share * float(t[-1] - t[0])
    for i in range(0, len(t), 7):
        x = (t - t[i]).numpy()
        w = np.array([weight(name, float(v)) for v in x / width])
        if (w < 0).any():
            fits = [_normal_equations(x, w, u.numpy(), degree) for degree in (1, 2)]
        else:
            fits = [np.polyfit(x, u.numpy(), degree, w=np.sqrt(w))[::-1] for degree in (1, 2)]
        np.testing.assert_allclose(smooth[i], fits[0][0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(du[i], fits[1][1], rtol=1e-7, atol=1e-8)


def _normal_equations(x: np.ndarray, w: np.ndarray, u: np.ndarray, degree: int) -> np.ndarray:
    basis = np.vander(x, degree + 1, increasing=True)
    return np.linalg.solve(basis.T @ (w[:, None] * basis), basis.T @ (w[:, None] * u))


@pytest.mark.parametrize("name", KERNELS)
def test_a_parabola_s_slope_is_exact(name: str) -> None:
    t = torch.linspace(0, 2, 21, dtype=D)
    du, _ = pdf.collocate_data((1 + t - 3 * t**2)[:, None], t, name)
    torch.testing.assert_close(du[:, 0], 1 - 6 * t, rtol=1e-8, atol=1e-8)
    _, u = pdf.collocate_data((2 - 5 * t)[:, None], t, name)
    torch.testing.assert_close(u[:, 0], 2 - 5 * t, rtol=1e-8, atol=1e-8)


def test_more_data_come_closer() -> None:
    wrong = []
    for n in (50, 800):
        t = torch.linspace(0, 3, n, dtype=D)
        u = torch.sin(2 * t)[:, None] + 0.02 * torch.randn(n, 1, dtype=D)
        du, _ = pdf.collocate_data(u, t, "epanechnikov", 0.4 * n ** (-1 / 5))
        wrong.append(float((du[:, 0] - 2 * torch.cos(2 * t)).abs()[n // 10 : -n // 10].mean()))
    assert wrong[1] < 0.5 * wrong[0]


def test_forms_of_the_arguments() -> None:
    t, u, _ = series()
    found = pdf.collocate_data(u, t)
    assert found.du.shape == found.u.shape == u.shape and isinstance(found, Collocation)
    arrays = pdf.collocate_data(u.numpy(), t.numpy(), "TriangularKernel", default_bandwidth(60))
    assert torch.equal(arrays.du, found.du) and torch.equal(arrays.u, found.u)
    assert pdf.collocate_data(u.reshape(60, 1, 2), t).du.shape == (60, 1, 2)
    assert pdf.collocate_data(u[:, 0], t).du.shape == (60,)
    torch.testing.assert_close(pdf.collocate_data(u[:, 0], t).du, found.du[:, 0])
    elsewhere = pdf.collocate_data(u, t, at=t[5:8])
    torch.testing.assert_close(elsewhere.du, found.du[5:8])
    assert default_bandwidth(100) == pytest.approx(100 ** (-0.2) * 100 ** (-3 / 35) * math.log(100) ** (-1 / 16))
    # The unit of time does not matter.
    torch.testing.assert_close(pdf.collocate_data(u, 1000 * t).du * 1000, found.du)


def test_gradients() -> None:
    t, u, _ = series(12)
    assert torch.autograd.gradcheck(lambda x: tuple(pdf.collocate_data(x, t, "gaussian", 0.3)), u.requires_grad_())


# -- pre-training -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["node", "model", "timed"])
def test_pretraining_finds_the_field(form: str) -> None:
    """After it, without any solve, the trajectory is near the data already."""
    times = torch.linspace(0, 3, 120, dtype=D)

    def truth(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-0.1 * y[1], y[0]]) * 3

    data = pdf.solve(pdf.ODEProblem(truth, torch.tensor([1.0, 0.0], dtype=D), (0.0, 3.0)), saveat=times, rtol=1e-8).ys
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y) * torch.cos(0 * t)

    model: Any = Timed() if form == "timed" else net
    node = pdf.NeuralODE(model, (0.0, 3.0), saveat=times)
    before = float((node(data[0]) - data).square().mean())
    losses = pdf.collocation_pretrain(model if form == "model" else node, data, times, "tricube", 0.1, steps=200)
    after = float((node(data[0]) - data).square().mean())
    assert len(losses) == 200 and losses[-1] < 1e-2 * losses[0]
    assert after < 0.02 * before


# -- mistakes -----------------------------------------------------------------------------------


def test_mistakes() -> None:
    t, u, _ = series()
    with pytest.raises(UnknownNameError, match=r"kernel='triangle' is not known\. Did you mean 'triangular'"):
        pdf.collocate_data(u, t, "triangle")
    for wrong in (0.0, -1.0, math.nan, "wide", True):
        with pytest.raises(InvalidArgumentError, match="bandwidth"):
            pdf.collocate_data(u, t, "triangular", wrong)
    with pytest.raises(InvalidArgumentError, match="choose a larger one"):
        pdf.collocate_data(u, t, "triangular", 1e-3)
    with pytest.raises(InvalidTimesError, match="strictly increasing"):
        pdf.collocate_data(u, t.flip(0))
    with pytest.raises(ShapeError, match="60 points"):
        pdf.collocate_data(u, t[:-1])
    with pytest.raises(InvalidArgumentError, match="at least 3"):
        pdf.collocate_data(u[:2], t[:2])
    with pytest.raises(InvalidStateError, match="floating"):
        pdf.collocate_data(u.long(), t)
    with pytest.raises(DataError, match="NaN"):
        pdf.collocate_data(u / 0, t)


def test_pretraining_mistakes() -> None:
    t, u, _ = series()
    with pytest.raises(InvalidArgumentError, match="no parameter to train"):
        pdf.collocation_pretrain(lambda y: -y, u, t)
    with pytest.raises(ShapeError, match="rates have shape"):
        pdf.collocation_pretrain(nn.Linear(2, 1), u, t)
    for wrong in ({"steps": 0}, {"lr": -1.0}):
        with pytest.raises(InvalidArgumentError, match="positive"):
            pdf.collocation_pretrain(nn.Linear(2, 2), u, t, **wrong)
