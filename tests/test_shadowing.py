"""Least-squares shadowing: Lorenz's averages against the literature, and regular systems against exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, InvalidStateError, InvalidTimesError, ShapeError

D = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=D, requires_grad=True)


def lorenz(rho: Any, sigma: Any = 10.0, beta: Any = 8 / 3) -> Callable[[Tensor, Tensor], Tensor]:
    def field(t: Tensor, state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)

    return field


def height(state: Tensor) -> Tensor:
    return state[..., 2]


def problem(func: Any, span: float, seed: int = 0) -> pdf.ODEProblem:
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.tensor([1.0, 1.0, 28.0], dtype=D) + torch.randn(3, dtype=D, generator=generator)
    return pdf.ODEProblem(func, y0, (0.0, span))


def test_the_lorenz_attractor_s_height() -> None:
    """d<z>/d rho is 1.01 (Wang, Hu & Blonigan 2014, section 5); the ordinary adjoint's has no digit right."""
    rho = number(28.0)
    mean = pdf.shadowing_average(problem(lorenz(rho), 30.0), height, dt=0.02, transient=10.0)
    mean.backward()
    assert float(mean.detach()) == pytest.approx(23.55, abs=0.6)
    assert float(rho.grad) == pytest.approx(1.01, abs=0.05)
    other = number(28.0)
    times = torch.linspace(0, 20, 1001, dtype=D)
    path = pdf.solve(problem(lorenz(other), 20.0), "rk4", saveat=times, dense=False).ys
    height(path).mean().backward()
    assert abs(float(other.grad)) > 100


@pytest.mark.slow
def test_the_gradient_is_that_of_the_average() -> None:
    """Differences of averages over many long runs, with their statistical error; and every parameter at once."""
    values = (28.0, 10.0, 8 / 3)
    found = []
    for seed in range(8):
        parameters = [number(v) for v in values]
        pdf.shadowing_average(problem(lorenz(*parameters), 60.0, seed), height, dt=0.01, transient=10.0).backward()
        found.append([float(p.grad) for p in parameters])
    shadowed = torch.tensor(found).mean(0)
    starts = torch.tensor([1.0, 1.0, 28.0], dtype=D) + torch.randn(2000, 3, dtype=D)

    def average(*at: float) -> tuple[float, float]:
        with torch.no_grad():
            problem = pdf.ODEProblem(lorenz(*at), starts, (0.0, 60.0))
            times = torch.arange(0, 60.01, 0.01, dtype=D)
            z = height(pdf.solve(problem, "rk4", saveat=times, dense=False).ys)[1000:].mean(0)
        return float(z.mean()), float(z.std()) / math.sqrt(len(z))

    for index, step in enumerate((1.0, 1.0, 0.2)):
        up, down = (list(values) for _ in range(2))
        up[index] += step
        down[index] -= step
        (a, da), (b, db) = average(*up), average(*down)
        slope, spread = (a - b) / (2 * step), math.hypot(da, db) / (2 * step)
        # Shadowing has a bias of its own where the attractor is not hyperbolic: a few hundredths here.
        assert abs(slope - float(shadowed[index])) < 4 * spread + 0.08


def test_a_system_that_settles() -> None:
    """y' = A y + b settles at -A^-1 b: the gradient of any average is that of the steady state."""
    a = torch.tensor([[-1.0, 2.0], [-2.0, -0.5]], dtype=D)
    b = torch.tensor([1.0, -0.3], dtype=D, requires_grad=True)
    settled = pdf.ODEProblem(lambda t, y: y @ a.T + b, torch.zeros(2, dtype=D), (0.0, 250.0))
    mean = pdf.shadowing_average(settled, lambda y: y[0] + y[1] ** 2, dt=0.05, transient=50.0)
    (grad,) = torch.autograd.grad(mean, b)
    c = b.detach().clone().requires_grad_()
    y = -torch.linalg.solve(a, c)
    exact = y[0] + y[1] ** 2
    (expected,) = torch.autograd.grad(exact, c)
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(grad, expected, rtol=0.01, atol=0.01)  # 1/T: the ends of the time span


def test_a_limit_cycle() -> None:
    """Radius sqrt(m), turning at w: <r^2> = m and <x^2> = m / 2, whatever w."""
    m, w = number(2.0), number(1.7)

    def hopf(t: Tensor, y: Tensor) -> Tensor:
        x, y = y.unbind(-1)
        growth = m - x**2 - y**2
        return torch.stack([growth * x - w * y, growth * y + w * x], -1)

    cycle = pdf.ODEProblem(hopf, torch.tensor([1.0, 0.0], dtype=D), (0.0, 130.0))
    mean = pdf.shadowing_average(cycle, lambda y: y[0] ** 2, dt=0.05, transient=20.0)
    mean.backward()
    assert float(mean.detach()) == pytest.approx(1.0, abs=0.02)
    assert float(m.grad) == pytest.approx(0.5, abs=0.02)
    assert float(w.grad) == pytest.approx(0.0, abs=0.02)


def test_parameters_of_modules_and_objectives() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    scale = number(3.0)
    relax = pdf.ODEProblem(lambda t, y: net(y) - 2 * y, torch.zeros(1, 2, dtype=D), (0.0, 60.0))
    mean = pdf.shadowing_average(relax, lambda y: scale * y.sum(), dt=0.1, transient=20.0, rtol=1e-6)
    mean.backward()
    assert float(scale.grad) == pytest.approx(float(mean.detach()) / 3, rel=1e-9)
    root = pdf.SteadyState(lambda u: net(u) - 2 * u)(torch.zeros(1, 2, dtype=D))
    torch.testing.assert_close(mean.detach(), 3 * root.sum().detach(), rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(3 * root.sum(), list(net.parameters()))
    for parameter, exact in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, exact, rtol=0.03, atol=0.03)


def test_mistakes() -> None:
    good = problem(lorenz(28.0), 1.0)
    for name in ("dt", "alpha"):
        for wrong in (0.0, -1.0, math.inf, True, None):
            with pytest.raises(InvalidArgumentError, match=f"{name}="):
                pdf.shadowing_average(good, height, **{"dt": 0.1, name: wrong})
    for wrong in (-1.0, 1.0):
        with pytest.raises(InvalidTimesError, match="transient"):
            pdf.shadowing_average(good, height, dt=0.1, transient=wrong)
    with pytest.raises(InvalidTimesError, match="leaves 1 intervals"):
        pdf.shadowing_average(good, height, dt=1.0)
    with pytest.raises(ShapeError, match="objective returned"):
        pdf.shadowing_average(good, lambda y: y, dt=0.1)
    with pytest.raises(InvalidStateError, match="one real tensor"):
        pair = pdf.ODEProblem(lambda t, y: y, (torch.ones(1), torch.ones(1)), (0.0, 1.0))
        pdf.shadowing_average(pair, lambda y: y[0], dt=0.1)
