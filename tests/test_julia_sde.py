"""Stochastic equations on Julia: on one Brownian path to rounding, on paths of Julia's own in distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    GradientError,
    MaxStepsError,
    MethodNoiseError,
    StepSizeRequiredError,
    UnknownNameError,
    UnsupportedError,
    UntraceableError,
)

pytestmark = pytest.mark.julia

D = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


class Model(nn.Module):
    """A drift, and a diffusion of any kind of noise; diagonal noise whose entries depend on one another, too."""

    def __init__(self, noise: str, d: int = 2, m: int = 3):
        super().__init__()
        self.noise, self.d, self.m = noise, d, {"scalar": 1, "diagonal": d}.get(noise, m)
        width = d if noise == "diagonal" else d * self.m
        self.f = nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, d)).double()
        self.g = nn.Sequential(nn.Linear(1 if noise == "additive" else d, 4), nn.Tanh(), nn.Linear(4, width)).double()

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(y) + torch.sin(t)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        g = 0.5 * self.g(t.expand(*y.shape[:-1], 1) if self.noise == "additive" else y)
        return g if self.noise == "diagonal" else g.unflatten(-1, (self.d, self.m))


def solved(problem: pdf.SDEProblem, model: nn.Module, method: Any, backend: str, **options: Any) -> Any:
    """The solution, and the gradients of a loss of several saved states, the first among them."""
    sol = pdf.solve(problem, method, backend=backend, **{"saveat": [0.0, 0.4, 1.0], "dense": False, **options})
    loss = sum((i + 1) * y.square().sum() for i, y in enumerate(sol.ys))
    grads = torch.autograd.grad(loss, [problem.y0, *model.parameters()], allow_unused=True)
    return sol, torch.cat([g.flatten() for g in grads if g is not None])


def slow(*case: Any) -> Any:
    """Julia compiles each solver at its first use, forwards and on the tape."""
    return pytest.param(*case, marks=pytest.mark.slow)


PATHWISE = [
    ("diagonal", "em", "ito"),
    ("scalar", "em", "ito"),
    ("general", "em", "ito"),
    ("diagonal", "heun", "stratonovich"),
    ("diagonal", pdf.SOSRI(adaptive=False), "ito"),
    slow("general", "heun", "stratonovich"),
    slow("scalar", "heun", "stratonovich"),
    slow("additive", "em", "ito"),
    slow("scalar", pdf.SRIW1(adaptive=False), "ito"),
    slow("diagonal", pdf.SRIW2(adaptive=False), "ito"),
    slow("additive", pdf.SOSRA(adaptive=False), "ito"),
    slow("additive", pdf.SRA3(adaptive=False), "ito"),
]


@pytest.mark.parametrize(("noise", "method", "interpretation"), PATHWISE)
def test_on_the_native_path(noise: str, method: Any, interpretation: str) -> None:
    """With fixed steps a seed is one path, whoever solves: states and gradients agree to rounding."""
    model, y0 = Model(noise), torch.randn(3, 2, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(
        model.drift, model.diffusion, y0, (0.0, 1.0), noise=noise, interpretation=interpretation, seed=3
    )
    julia, to_julia = solved(problem, model, method, "julia", dt=0.07)
    native, to_native = solved(problem, model, method, "torch", dt=0.07)
    assert julia.stats.backend == "julia" and julia.stats.sensealg == "TrackerAdjoint" and julia.stats.seed == 3
    assert julia.stats.naccept == native.stats.naccept
    assert torch.allclose(julia.ys, native.ys, rtol=1e-11, atol=1e-12)
    assert torch.allclose(to_julia, to_native, rtol=1e-9, atol=1e-10)
    assert torch.equal(julia.brownian(0.0, 0.4), native.brownian(0.0, 0.4))


@pytest.mark.slow
def test_sra1_takes_one_motion_for_each_state() -> None:
    model = Model("additive", m=2)
    y0 = torch.randn(2, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(model.drift, model.diffusion, y0, (0.0, 1.0), noise="additive", seed=3)
    with torch.no_grad():
        julia, native = (pdf.solve(problem, pdf.SRA1(adaptive=False), dt=0.1, backend=b) for b in ("julia", "torch"))
    assert torch.allclose(julia.ys, native.ys, rtol=1e-11, atol=1e-12)
    with pytest.raises(MethodNoiseError, match="sra1 on backend='julia' has no gradient"):
        pdf.solve(problem, pdf.SRA1(adaptive=False), dt=0.1, backend="julia")


def test_heun_chooses_its_steps_with_diagonal_noise_only() -> None:
    model = Model("general", m=2)
    problem = pdf.SDEProblem(
        model.drift, model.diffusion, torch.randn(3, 2, dtype=D), (0.0, 1.0), noise="general",
        interpretation="stratonovich", seed=3,
    )  # fmt: skip
    with pytest.raises(MethodNoiseError, match="noise='diagonal' only"):
        pdf.solve(problem, pdf.SDEHeun(adaptive=True), backend="julia")


def test_the_users_own_path() -> None:
    model, y0 = Model("diagonal"), torch.randn(3, 2, dtype=D, requires_grad=True)
    motion = pdf.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=D, entropy=7, tol=0.0)
    problem = pdf.SDEProblem(model.drift, model.diffusion, y0, (0.0, 1.0), brownian=motion)
    julia, to_julia = solved(problem, model, "em", "julia", dt=0.125)
    native, to_native = solved(problem, model, "em", "torch", dt=0.125)
    assert torch.allclose(julia.ys, native.ys, rtol=1e-11, atol=1e-12)
    assert torch.allclose(to_julia, to_native, rtol=1e-9, atol=1e-10)


def test_milstein_is_of_order_one() -> None:
    """StochasticDiffEq's has differences in the place of the derivative: another method of the same order."""
    a, b = 0.3, 0.5
    errors = []
    for steps in (32, 512):
        y0 = torch.ones(200, 1, dtype=D)
        problem = pdf.SDEProblem(lambda t, y: a * y, lambda t, y: b * y, y0, (0.0, 1.0), seed=2)
        sol = pdf.solve(problem, "milstein", dt=1 / steps, saveat=[1.0], backend="julia", dense=False)
        exact = torch.exp((a - b**2 / 2) + b * sol.brownian(0.0, 1.0))
        errors.append(float((sol.ys[-1] - exact).abs().mean()))
    assert math.log(errors[0] / errors[1]) / math.log(16) == pytest.approx(1.0, abs=0.15)


ADJOINT = [
    ("diagonal", "em", "ito"),
    ("diagonal", "heun", "stratonovich"),
    slow("scalar", "heun", "stratonovich"),
    slow("general", "heun", "stratonovich"),
    slow("general", "em", "ito"),
    slow("scalar", "em", "ito"),
    slow("additive", "em", "ito"),
]


@pytest.mark.parametrize(("noise", "method", "interpretation"), ADJOINT)
def test_the_stochastic_adjoint(noise: str, method: Any, interpretation: str) -> None:
    """It approaches the derivative of the computed path as steps shrink: the equation's, on one path."""
    model, y0 = Model(noise), torch.randn(2, 2, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(
        model.drift, model.diffusion, y0, (0.0, 1.0), noise=noise, interpretation=interpretation, seed=3
    )
    errors = []
    for dt in (0.05, 0.0005):
        sol, found = solved(problem, model, method, "julia", dt=dt, sensealg="BacksolveAdjoint")
        _, expected = solved(problem, model, method, "torch", dt=dt)
        assert sol.stats.sensealg == "BacksolveAdjoint"
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 4


def test_the_adjoint_along_adaptive_steps() -> None:
    model, y0 = Model("diagonal"), torch.randn(2, 2, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(model.drift, model.diffusion, y0, (0.0, 1.0), seed=3)
    limits = {"rtol": 1e-4, "atol": 1e-4}
    one, to_one = solved(problem, model, "sosri", "julia", sensealg="BacksolveAdjoint", **limits)
    other, to_other = solved(problem, model, "sosri", "julia", sensealg="DiscreteAdjoint", **limits)
    assert torch.equal(one.ys, other.ys)
    assert float((to_one - to_other).norm() / to_other.norm()) < 0.02


# -- in distribution ------------------------------------------------------------------------------

A, B, PATHS = -0.5, 0.4, 2000

MOMENTS = [
    ("sosri", "diagonal", "ito"),
    ("sosri", "scalar", "ito"),
    ("LambaEM", "diagonal", "ito"),
    slow(pdf.SDEHeun(adaptive=True), "diagonal", "stratonovich"),
    slow("SOSRI2", "diagonal", "ito"),
    slow("RKMilCommute", "diagonal", "ito"),
]


@pytest.mark.parametrize(("method", "noise", "interpretation"), MOMENTS)
def test_moments_with_adaptive_steps(method: Any, noise: str, interpretation: str) -> None:
    """Geometric Brownian motion: mean and variance are known, and so is the derivative of the mean in the rate."""
    paths = 60 if noise == "general" else PATHS
    rate = torch.tensor(A, dtype=D, requires_grad=True)
    diffusion = (lambda t, y: B * y) if noise == "diagonal" else (lambda t, y: (B * y)[..., None])
    problem = pdf.SDEProblem(
        lambda t, y: rate * y,
        diffusion,
        torch.ones(paths, 1, dtype=D),
        (0.0, 1.0),
        noise=noise,
        interpretation=interpretation,
        seed=5,
    )
    # The derivative of the steps is the path's as steps go to zero: with order 1 they have to be shorter.
    tol = 1e-5 if method == "RKMilCommute" else 1e-3
    sol = pdf.solve(problem, method, saveat=[1.0], rtol=tol, atol=tol, backend="julia", dense=False)
    y = sol.ys[-1].detach()
    drift = A + (B**2 / 2 if interpretation == "stratonovich" else 0.0)
    mean, variance = math.exp(drift), math.exp(2 * drift) * math.expm1(B**2)
    # Four standard errors; the variance of a squared deviation comes from the sample.
    assert abs(float(y.mean()) - mean) < 4 * math.sqrt(variance / paths)
    spread = float((y - y.mean()).square().std()) / math.sqrt(paths)
    assert abs(float(y.var()) - variance) < 4 * spread + 0.02 * variance
    (found,) = torch.autograd.grad(sol.ys[-1].mean(), rate)
    assert abs(float(found) - float(y.mean())) < 1e-2  # d y / d rate = t y, on every path


def test_native_and_julia_agree_in_distribution() -> None:
    model = Model("diagonal")
    means, variances = [], []
    for backend in ("torch", "julia"):
        problem = pdf.SDEProblem(model.drift, model.diffusion, torch.zeros(PATHS, 2, dtype=D), (0.0, 1.0), seed=11)
        with torch.no_grad():
            y = pdf.solve(problem, "sosri", saveat=[1.0], rtol=1e-2, atol=1e-2, backend=backend, dense=False).ys[-1]
        means.append(y.mean(0))
        variances.append(y.var(0))
    error = (sum(variances) / PATHS).sqrt()
    assert bool(((means[0] - means[1]).abs() < 4 * error).all())
    assert bool(((variances[0] / variances[1]).log().abs() < 4 * math.sqrt(4 / PATHS)).all())


def test_a_seed_of_adaptive_steps_is_one_path_of_julia() -> None:
    model, y0 = Model("diagonal"), torch.zeros(4, 2, dtype=D)

    def end(seed: int | None) -> Tensor:
        problem = pdf.SDEProblem(model.drift, model.diffusion, y0, (0.0, 1.0), seed=seed)
        with torch.no_grad():
            sol = pdf.solve(problem, "sosri", saveat=[1.0], backend="julia", dense=False, rtol=1e-2, atol=1e-2)
        assert sol.brownian is None
        return sol.ys[-1]

    assert torch.equal(end(4), end(4))
    assert not torch.equal(end(4), end(5))
    torch.manual_seed(0)
    first = end(None)
    assert not torch.equal(first, end(None))
    torch.manual_seed(0)
    assert torch.equal(first, end(None))


# -- layers, doses, steps -------------------------------------------------------------------------


def test_layers() -> None:
    drift, diffusion = nn.Linear(2, 2).to(D), nn.Linear(2, 2).to(D)
    matrix = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(-1, (2, 3))).to(D)
    y0 = torch.randn(4, 2, dtype=D)
    for make in (
        lambda backend: pdf.NeuralDSDE(drift, diffusion, (0.0, 1.0), "em", dt=0.1, seed=3, backend=backend),
        lambda backend: pdf.NeuralSDE(drift, matrix, (0.0, 1.0), 3, "em", dt=0.1, seed=3, backend=backend),
    ):
        found = {}
        for backend in ("torch", "julia"):
            layer = make(backend)
            out = layer(y0)
            found[backend] = out, torch.autograd.grad(out.square().sum(), drift.weight)[0]
        assert torch.allclose(found["torch"][0], found["julia"][0], rtol=1e-11, atol=1e-12)
        assert torch.allclose(found["torch"][1], found["julia"][1], rtol=1e-9, atol=1e-10)


def test_every_step_and_doses() -> None:
    model, y0 = Model("diagonal"), torch.randn(2, 2, dtype=D)
    problem = pdf.SDEProblem(model.drift, model.diffusion, y0, (0.0, 1.0), seed=3)
    dose = pdf.PresetTimeCallback([0.5], lambda t, y: y + 1.0)
    sols = [pdf.solve(problem, "em", dt=0.1, callbacks=dose, backend=b, dense=False) for b in ("torch", "julia")]
    assert torch.allclose(sols[0].ts, sols[1].ts)
    assert torch.allclose(sols[0].ys, sols[1].ys, rtol=1e-11, atol=1e-12)


def test_float32() -> None:
    drift, diffusion = nn.Linear(2, 2), nn.Linear(2, 2)
    y0 = torch.randn(4, 2)
    ends = [
        pdf.NeuralDSDE(drift, diffusion, (0.0, 1.0), "em", dt=0.1, seed=3, backend=backend)(y0)
        for backend in ("torch", "julia")
    ]
    assert ends[1].dtype == torch.float32
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)


def test_a_long_path_on_the_tape() -> None:
    """Tracker follows its tape by recursion, which needs more than an ordinary stack here."""
    rate = torch.tensor(-0.5, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(lambda t, y: rate * y, lambda t, y: 0.1 * y, torch.ones(1, dtype=D), (0.0, 1.0), seed=3)
    sol = pdf.solve(problem, "em", dt=1 / 8000, saveat=[1.0], backend="julia", dense=False)
    (found,) = torch.autograd.grad(sol.ys.sum(), rate)
    assert float(found) == pytest.approx(float(sol.ys.sum()), rel=1e-3)


# -- errors -----------------------------------------------------------------------------------------


def problem_of(noise: str = "diagonal", **options: Any) -> pdf.SDEProblem:
    model = Model(noise)
    return pdf.SDEProblem(model.drift, model.diffusion, torch.ones(3, 2, dtype=D), (0.0, 1.0), noise=noise, **options)


def test_methods_that_do_not_go() -> None:
    with pytest.raises(UnsupportedError, match="reversible_heun does not exist in StochasticDiffEq"):
        pdf.solve(problem_of(interpretation="stratonovich"), "reversible_heun", dt=0.1, backend="julia")
    with pytest.raises(UnknownNameError, match="method='NoSuch'"):
        pdf.solve(problem_of(), "NoSuch", backend="julia")
    with pytest.raises(MethodNoiseError, match="solves stratonovich equations"):
        pdf.solve(problem_of(), "LambaEulerHeun", backend="julia")
    with pytest.raises(MethodNoiseError, match="not for noise='general'"):
        pdf.solve(problem_of("general"), "SOSRI2", backend="julia")
    with pytest.raises(MethodNoiseError, match="as many"):
        pdf.solve(problem_of("additive"), "sra1", backend="julia")
    with pytest.raises(StepSizeRequiredError, match="dt"):
        pdf.solve(problem_of(), "WangLi3SMil_A", backend="julia")


def test_options_that_do_not_go() -> None:
    motion = pdf.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=D, levy_area_approximation="space-time")
    with pytest.raises(UnsupportedError, match="brownian with method=sosri"):
        pdf.solve(problem_of(brownian=motion), "sosri", backend="julia")
    with pytest.raises(UnsupportedError, match="no checkpoints"):
        pdf.solve(problem_of(), "em", dt=0.1, sensealg=pdf.DiscreteAdjoint("sqrt"), backend="julia")
    with pytest.raises(UnsupportedError, match="no other options"):
        pdf.solve(problem_of(), "em", dt=0.1, sensealg=pdf.BacksolveAdjoint(method="heun"), backend="julia")
    with pytest.raises(UnsupportedError, match="callback"):
        pdf.solve(problem_of(), "em", dt=0.1, fallback="callback", backend="julia")
    with pytest.raises(UnsupportedError, match="per_sample"):
        pdf.solve(problem_of(), "em", dt=0.1, per_sample=True, backend="julia")
    untraceable = pdf.SDEProblem(
        lambda t, y: y if float(y.sum()) > 0 else -y, lambda t, y: y, torch.ones(2, dtype=D), (0.0, 1.0)
    )
    with pytest.raises(UntraceableError, match="the value of a tensor"):
        pdf.solve(untraceable, "em", dt=0.1, backend="julia")


def test_transforms() -> None:
    def end(y0: Tensor) -> Tensor:
        problem = pdf.SDEProblem(lambda t, y: -y, lambda t, y: 0.1 * y, y0, (0.0, 1.0), seed=1)
        return pdf.solve(problem, "em", dt=0.1, saveat=[1.0], backend="julia", dense=False).ys.sum()

    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.grad(end)(torch.ones(2, dtype=D))


def test_too_many_steps() -> None:
    with pytest.raises(MaxStepsError, match="max_steps=5"):
        pdf.solve(problem_of(), "sosri", max_steps=5, rtol=1e-6, atol=1e-6, saveat=[1.0], backend="julia")


def test_second_derivatives() -> None:
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    problem = pdf.SDEProblem(lambda t, y: -rate * y, lambda t, y: 0.1 * y, torch.ones(2, dtype=D), (0.0, 1.0))
    sol = pdf.solve(problem, "em", dt=0.1, saveat=[1.0], backend="julia")
    (g,) = torch.autograd.grad(sol.ys.sum(), rate, create_graph=True)
    with pytest.raises(GradientError, match="no second derivative"):
        torch.autograd.grad(g, rate)
