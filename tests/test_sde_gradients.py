"""Gradients of SDE solves: exact ones against finite differences, the stochastic adjoint against exact ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import BacksolveAdjoint, DiscreteAdjoint, sde_methods
from pydiffeqflux.errors import GradientError, MethodNoiseError, UnsupportedError
from pydiffeqflux.sensealg import SenseAlg

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Model(nn.Module):
    """A drift, and a diffusion of any kind of noise; diagonal noise whose entries depend on one another, too."""

    def __init__(self, noise: str, d: int = 2, m: int = 3):
        super().__init__()
        self.noise, self.d, self.m = noise, d, {"scalar": 1, "diagonal": d}.get(noise, m)
        width = d if noise == "diagonal" else d * self.m
        self.f = nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, d)).double()
        self.g = nn.Sequential(nn.Linear(1 if noise == "additive" else d, 4), nn.Tanh(), nn.Linear(4, width)).double()

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(y)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        g = 0.5 * self.g(t.expand(len(y), 1) if self.noise == "additive" else y)
        return g if self.noise == "diagonal" else g.view(-1, self.d, self.m)

    def problem(self, y0: Tensor, interpretation: str, seed: int = 3) -> pdf.SDEProblem:
        return pdf.SDEProblem(
            self.drift, self.diffusion, y0, (0.0, 1.0), noise=self.noise, interpretation=interpretation, seed=seed
        )


def start(paths: int = 3) -> Tensor:
    return torch.randn(paths, 2, dtype=F64, requires_grad=True)


def gradient(model: Model, y0: Tensor, interpretation: str, method, sensealg: SenseAlg | None, **options) -> Tensor:
    """Of a loss of several saved states, the first among them, with respect to everything."""
    options.setdefault("saveat", [0.0, 0.4, 1.0])
    sol = pdf.solve(model.problem(y0, interpretation), method, sensealg=sensealg, dense=False, **options)
    loss = sum((i + 1) * y.square().sum() for i, y in enumerate(sol.ys))
    found = torch.autograd.grad(loss, [y0, *model.parameters()])
    return torch.cat([g.flatten() for g in found])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


FIXED = [
    (kind(adaptive=False), noise, interpretation)
    for kind in sde_methods.CATALOGUE
    for noise in kind.noises
    for interpretation in kind.interpretations
]
IDS = [f"{method}-{noise}-{interpretation}" for method, noise, interpretation in FIXED]


# -- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "noise", "interpretation"), FIXED, ids=IDS)
def test_gradcheck_with_fixed_noise(method: pdf.SDEMethod, noise: str, interpretation: str) -> None:
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    b = torch.tensor(0.4, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[0.3, -0.5]], dtype=F64, requires_grad=True)

    def end(y0: Tensor, a: Tensor, b: Tensor) -> Tensor:
        def diffusion(t: Tensor, y: Tensor) -> Tensor:
            if noise == "additive":
                return (b * torch.cos(t) * torch.tensor([[1.0, 0.3], [0.2, 1.0]], dtype=F64))[None]
            g = b * torch.cos(y)
            return {"diagonal": g, "scalar": g[..., None], "general": torch.stack([g, b * y.flip(-1)], -1)}[noise]

        problem = pdf.SDEProblem(
            lambda t, y: torch.sin(a * y), diffusion, y0, (0.0, 0.5), noise=noise, interpretation=interpretation, seed=1
        )
        return pdf.solve(problem, method, dt=0.25, saveat=[0.25, 0.5]).ys

    assert torch.autograd.gradcheck(end, (y0, a, b))


@pytest.mark.parametrize("method", [pdf.SOSRI(), pdf.Milstein(adaptive=True)], ids=str)
def test_adaptive_steps_are_constants(method: pdf.SDEMethod) -> None:
    # Along the steps that were taken, the gradient is that of the same steps taken as fixed ones.
    model, y0 = Model("diagonal"), start()
    sol = pdf.solve(model.problem(y0, "ito"), method, rtol=1e-2, atol=1e-2)
    got = torch.autograd.grad(sol.ys[-1].sum(), y0)[0]
    if isinstance(method, pdf.Milstein):  # two half steps each
        points = torch.cat([torch.stack([a, (a + b) / 2]) for a, b in zip(sol.ts, sol.ts[1:], strict=False)])
        times = torch.cat([points, sol.ts[-1:]])
    else:
        times = sol.ts
    again = pdf.solve(model.problem(y0, "ito"), replace(method, adaptive=False), saveat=times)
    assert torch.allclose(again.ys[-1], sol.ys[-1], atol=1e-6)
    assert torch.allclose(torch.autograd.grad(again.ys[-1].sum(), y0)[0], got, atol=1e-6)


@pytest.mark.parametrize("checkpoints", [2, "sqrt"])
@pytest.mark.parametrize("method", [pdf.SOSRI(), pdf.ReversibleHeun(), pdf.SDEHeun(adaptive=True), pdf.EM()], ids=str)
def test_checkpoints_change_nothing(method: pdf.SDEMethod, checkpoints) -> None:
    model, y0, interpretation = Model("diagonal"), start(), method.interpretations[0]
    options = {"rtol": 1e-2, "atol": 1e-2, "dt": 0.07}
    exact = gradient(model, y0, interpretation, method, DiscreteAdjoint(), **options)
    kept = gradient(model, y0, interpretation, method, DiscreteAdjoint(checkpoints=checkpoints), **options)
    assert torch.allclose(kept, exact, rtol=1e-10, atol=1e-12)


def test_second_derivatives() -> None:
    y0 = torch.tensor([[0.4]], dtype=F64, requires_grad=True)
    v = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def end(y0: Tensor, v: Tensor) -> Tensor:
        problem = pdf.SDEProblem(lambda t, y: -v * y, lambda t, y: v * torch.sin(y), y0, (0.0, 0.5), seed=1)
        return pdf.solve(problem, "milstein", dt=0.25, saveat=[0.5]).ys

    assert torch.autograd.gradgradcheck(end, (y0, v))


# -- the stochastic adjoint ---------------------------------------------------------------------

NOISES = ["diagonal", "scalar", "additive", "general"]


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
@pytest.mark.parametrize("noise", NOISES)
def test_the_adjoint_converges_to_the_discrete_gradient(noise: str, interpretation: str) -> None:
    model, y0 = Model(noise), start()
    method = {"ito": "em", "stratonovich": "heun"}[interpretation]
    errors = []
    for n in (8, 64):
        exact = gradient(model, y0, interpretation, method, DiscreteAdjoint(), dt=1 / n)
        errors.append(distance(gradient(model, y0, interpretation, method, BacksolveAdjoint(), dt=1 / n), exact))
    assert errors[1] < (0.04 if interpretation == "ito" else 2e-3)
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("noise", ["diagonal", "general"])
@pytest.mark.parametrize("backward", ["midpoint", "heun", pdf.EulerHeun()], ids=str)
def test_methods_of_the_backward_solve(backward, noise: str) -> None:
    model, y0 = Model(noise), start()
    exact = gradient(model, y0, "stratonovich", "heun", DiscreteAdjoint(), dt=1 / 64)
    found = gradient(model, y0, "stratonovich", "heun", BacksolveAdjoint(method=backward), dt=1 / 64)
    assert distance(found, exact) < (0.05 if str(backward) == "euler_heun" else 5e-3)


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
def test_adaptive_steps_backwards(interpretation: str) -> None:
    model, y0 = Model("diagonal"), start()
    method = {"ito": pdf.SOSRI(), "stratonovich": pdf.SDEHeun(adaptive=True)}[interpretation]
    options = {"rtol": 1e-3, "atol": 1e-3}
    exact = gradient(model, y0, interpretation, method, DiscreteAdjoint(), **options)
    along = gradient(model, y0, interpretation, method, BacksolveAdjoint(), **options)
    own = gradient(model, y0, interpretation, method, BacksolveAdjoint(rtol=1e-3, atol=1e-3), **options)
    assert distance(along, exact) < 0.03
    assert distance(own, exact) < 0.03


def test_seminorm_and_checkpointing() -> None:
    model, y0 = Model("diagonal"), start()
    exact = gradient(model, y0, "stratonovich", "heun", DiscreteAdjoint(), dt=1 / 128)
    for sense in (BacksolveAdjoint(checkpointing=False), BacksolveAdjoint(rtol=1e-3, atol=1e-3, seminorm=True)):
        assert distance(gradient(model, y0, "stratonovich", "heun", sense, dt=1 / 128), exact) < 0.02


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_reversible_heun_has_the_exact_gradient(noise: str, adaptive: bool) -> None:
    model, y0, method = Model(noise), start(), pdf.ReversibleHeun(adaptive=adaptive)
    options = {"dt": 0.15, "rtol": 1e-2, "atol": 1e-2}
    exact = gradient(model, y0, "stratonovich", method, DiscreteAdjoint(), **options)
    reverse = gradient(model, y0, "stratonovich", method, BacksolveAdjoint(), **options)
    assert torch.allclose(reverse, exact, rtol=1e-9, atol=1e-11)


def test_the_adjoint_finds_closures_and_plain_tensors() -> None:
    raw = torch.tensor(-0.5, dtype=F64, requires_grad=True)
    volatility = raw.exp()  # computed before the solve
    rate = nn.Parameter(torch.tensor(0.4, dtype=F64))
    problem = pdf.SDEProblem(
        lambda t, y: rate * y, lambda t, y: volatility * y, torch.ones(50, 1, dtype=F64), (0.0, 1.0), seed=2
    )
    found = {}
    for sense in (DiscreteAdjoint(), BacksolveAdjoint()):
        sol = pdf.solve(problem, "milstein", dt=1 / 64, saveat=[1.0], sensealg=sense)
        found[sense.name] = torch.stack(torch.autograd.grad(sol.ys.log().mean(), [raw, rate], retain_graph=True))
    # log y(1) = rate - v^2 / 2 + v W(1)
    w = sol.brownian(0.0, 1.0)
    v = volatility.detach()
    exact = torch.stack([v * (w.mean() - v), torch.ones((), dtype=F64)])
    assert torch.allclose(found["DiscreteAdjoint"], exact, atol=2e-2)
    assert torch.allclose(found["BacksolveAdjoint"], exact, atol=2e-2)


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_without_a_gradient_in_the_diffusion(noise: str) -> None:
    scale = torch.full((3, 2) if noise == "diagonal" else (3, 2, 1), 0.2, dtype=F64)
    y0 = start()
    grads = []
    for sense in (DiscreteAdjoint(), BacksolveAdjoint()):
        problem = pdf.SDEProblem(lambda t, y: -(y**3), lambda t, y: scale, y0, (0.0, 1.0), noise=noise, seed=1)
        sol = pdf.solve(problem, "milstein", dt=1 / 256, sensealg=sense, saveat=[1.0], dense=False)
        grads.append(torch.autograd.grad(sol.ys[-1].sum(), y0)[0])
    assert distance(grads[1], grads[0]) < 0.02


# -- torch.func ---------------------------------------------------------------------------------

RATE = torch.tensor(0.5, dtype=F64)


def end(y0: Tensor, rate: Tensor, method: str = "sriw1", seed: int | None = 1) -> Tensor:
    sense = "stratonovich" if method == "heun" else "ito"
    problem = pdf.SDEProblem(
        lambda t, y: -rate * y, lambda t, y: rate * torch.cos(y), y0, (0.0, 1.0), interpretation=sense, seed=seed
    )
    return pdf.solve(problem, method, dt=0.1, saveat=[1.0], rtol=0.1, atol=0.1).ys[-1]


@pytest.mark.parametrize("method", ["em", "sriw1", "heun"])
def test_torch_func_derivatives(method: str) -> None:
    y0, rate = torch.ones(2, 2, dtype=F64), RATE.clone().requires_grad_()
    (exact,) = torch.autograd.grad(end(y0, rate, method).sum(), rate)
    of_rate = lambda rate: end(y0, rate, method)  # noqa: E731
    assert torch.allclose(torch.func.grad(lambda rate: of_rate(rate).sum())(RATE), exact)
    assert torch.allclose(torch.func.jacrev(of_rate)(RATE).sum(), exact)
    assert torch.allclose(torch.func.jacfwd(of_rate)(RATE).sum(), exact)


def test_torch_func_vmap_gives_all_samples_one_path() -> None:
    starts = torch.randn(3, 2, 2, dtype=F64)
    assert torch.allclose(
        torch.func.vmap(lambda y: end(y, RATE, "em"))(starts), torch.stack([end(y, RATE, "em") for y in starts])
    )
    with pytest.raises(UnsupportedError, match=r"vmap over an SDEProblem without a seed: give it one"):
        torch.func.vmap(lambda y: end(y, RATE, seed=None))(starts)


def test_torch_func_and_methods_that_use_autograd_themselves() -> None:
    with pytest.raises(UnsupportedError, match=r"differentiates the diffusion by autograd.*sosri"):
        torch.func.grad(lambda rate: end(torch.ones(1, 2, dtype=F64), rate, "milstein").sum())(RATE)
    problem = lambda rate: pdf.SDEProblem(  # noqa: E731
        lambda t, y: -rate * y, lambda t, y: y, torch.ones(1, 2, dtype=F64), (0.0, 1.0), seed=1
    )
    with pytest.raises(UnsupportedError, match=r"sensealg=BacksolveAdjoint inside a torch\.func transform"):
        torch.func.grad(lambda r: pdf.solve(problem(r), "em", dt=0.5, sensealg="backsolve").ys[-1].sum())(RATE)


# -- what there is not --------------------------------------------------------------------------


def test_refusals() -> None:
    model, y0 = Model("diagonal"), start()
    for sense in (pdf.GaussAdjoint(), pdf.QuadratureAdjoint(), pdf.InterpolatingAdjoint(), pdf.ForwardSensitivity()):
        with pytest.raises(UnsupportedError, match=f"{sense.name} is for ODEs.*BacksolveAdjoint"):
            gradient(model, y0, "ito", "em", sense, dt=0.5)
    with pytest.raises(UnsupportedError, match="midpoint, heun, euler_heun"):
        gradient(model, y0, "ito", "em", BacksolveAdjoint(method="em"), dt=0.5)
    with pytest.raises(UnsupportedError, match="a method for ODEs"):
        gradient(model, y0, "ito", "em", BacksolveAdjoint(method=pdf.Tsit5()), dt=0.5)
    with pytest.raises(UnsupportedError, match="tstops"):
        gradient(model, y0, "stratonovich", "reversible_heun", BacksolveAdjoint(), dt=0.5, tstops=[0.3])
    with pytest.raises(MethodNoiseError, match="converges"):
        gradient(model, y0, "ito", pdf.EM(adaptive=True), None)


def test_the_adjoint_has_no_second_derivative() -> None:
    model, y0 = Model("diagonal"), start()
    sol = pdf.solve(model.problem(y0, "ito"), "em", dt=0.25, sensealg=BacksolveAdjoint())
    (first,) = torch.autograd.grad(sol.ys[-1].square().sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="no second derivative"):
        first.sum().backward()
