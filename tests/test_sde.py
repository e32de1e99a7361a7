"""Solving SDEs: paths, seeds, save times, rejected steps, moments."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux import Status, sde_methods

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def wavy(paths: int = 5, interpretation: str = "ito", noise: str = "diagonal", **options) -> pdf.SDEProblem:
    """Two coupled entries; the diffusion of entry i depends on entry i only."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y.flip(-1)) - 0.5 * y

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        if noise == "additive":
            return (0.3 + 0.1 * torch.cos(t)) * torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64).expand(paths, 2, 2)
        g = 0.3 * torch.cos(y) + 0.1 * t
        return {"diagonal": g, "scalar": g.unsqueeze(-1), "general": torch.stack([g, 0.2 * y], -1)}[noise]

    y0 = torch.linspace(-1, 1, 2 * paths, dtype=F64).reshape(paths, 2)
    return pdf.SDEProblem(drift, diffusion, y0, (0.0, 1.0), interpretation=interpretation, noise=noise, **options)


ADAPTIVE = [
    kind(adaptive=True) for kind in sde_methods.CATALOGUE if kind not in (pdf.EM, pdf.LogODE)
]  # EM: additive noise only, below; LogODE: not at all


# -- what comes back ----------------------------------------------------------------------------


def test_a_solution_has_its_shapes_and_says_what_it_is() -> None:
    sol = pdf.solve(wavy(seed=4), "sriw1", saveat=0.25)
    assert sol.ys.shape == (5, 5, 2) and sol.ts.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert sol.status is Status.SUCCESS
    assert (sol.stats.method, sol.stats.backend, sol.stats.seed) == ("sriw1", "torch", 4)
    steps = sol.stats.naccept + sol.stats.nreject
    assert (sol.stats.nf, sol.stats.ng) == (2 * steps + 1, 4 * steps + 1)  # and the check at the start
    assert torch.equal(sol.ys[0], wavy().y0)
    assert sol.brownian(0.0, 1.0).shape == (5, 2)


def test_every_step_is_kept_without_save_times() -> None:
    sol = pdf.solve(wavy(seed=0), "em", dt=0.1)
    assert sol.ts.shape == (11,)
    # The method by hand, along the same path.
    y, problem = wavy().y0, wavy()
    for i in range(10):
        t = torch.tensor(i / 10, dtype=F64)
        w = sol.brownian(i / 10, (i + 1) / 10)
        y = y + problem.drift(t, y) * 0.1 + problem.diffusion(t, y) * w
    assert torch.allclose(y, sol.ys[-1], atol=1e-12)


def test_one_row_without_a_batch() -> None:
    problem = pdf.SDEProblem(lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(2), (0.0, 1.0), seed=1)
    assert pdf.solve(problem, "sosri").ys[-1].shape == (2,)


def test_a_batch_of_batches() -> None:
    problem = pdf.SDEProblem(
        lambda t, y: -y,
        lambda t, y: 0.1 * y.unsqueeze(-1).expand(4, 3, 2, 5),
        torch.ones(4, 3, 2),
        (0.0, 1.0),
        noise="general",
    )
    sol = pdf.solve(problem, "em", dt=0.5)
    assert sol.ys.shape == (3, 4, 3, 2) and sol.brownian(0.0, 1.0).shape == (4, 3, 5)


def test_dense_output_is_a_straight_line() -> None:
    sol = pdf.solve(wavy(seed=0), "milstein", dt=0.25)
    assert torch.allclose(sol(0.3), sol.ys[1] + 0.2 * (sol.ys[2] - sol.ys[1]))


def test_doses() -> None:
    dose = pdf.PresetTimeCallback([0.5], lambda t, y: y + 1.0)
    sol = pdf.solve(wavy(seed=2), "sosri", callbacks=dose, saveat=[0.5, 1.0], rtol=1e-2, atol=1e-2)
    before = pdf.solve(replace(wavy(seed=2)), "sosri", saveat=[0.5], rtol=1e-2, atol=1e-2).ys[0]
    assert torch.allclose(sol.ys[0], before)
    assert (sol.ys[1] - sol.ys[0]).abs().max() < 3


def test_additive_noise_may_be_diagonal() -> None:
    scale = torch.tensor([0.1, 0.4], dtype=F64)
    short = pdf.SDEProblem(lambda t, y: -y, lambda t, y: scale.expand(5, 2), wavy().y0, (0.0, 1.0), noise="additive")
    long = replace(short, diffusion=lambda t, y: torch.diag(scale).expand(5, 2, 2), seed=3)
    for method in ("em", "milstein", "sra1", "sosra"):
        one = pdf.solve(replace(short, seed=3), method, dt=0.1, saveat=[1.0])
        two = pdf.solve(long, method, dt=0.1, saveat=[1.0])
        assert torch.allclose(one.ys, two.ys)


# -- seeds --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_path_to_every_method() -> None:
    paths = {}
    for method in (pdf.EM(), pdf.SRIW1(), pdf.SDEHeun(), pdf.LogODE()):
        sol = pdf.solve(wavy(seed=9, interpretation=method.interpretations[0]), method, dt=0.05)
        paths[str(method)] = sol.brownian(0.2, 0.7)
    first = paths.pop("em")
    assert all(torch.equal(first, w) for w in paths.values())


def test_a_seed_reproduces_and_none_draws_a_new_one() -> None:
    ends = [pdf.solve(wavy(seed=seed), "sosri").ys[-1] for seed in (5, 5, 6)]
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[0], ends[2])
    torch.manual_seed(1)
    one, two = (pdf.solve(wavy(), "sosri") for _ in range(2))
    assert one.stats.seed != two.stats.seed
    torch.manual_seed(1)
    again = pdf.solve(wavy(), "sosri")
    assert torch.equal(again.ys[-1], one.ys[-1])
    assert torch.equal(pdf.solve(wavy(seed=two.stats.seed), "sosri").ys[-1], two.ys[-1])


def test_a_path_of_the_users() -> None:
    motion = pdf.BrownianInterval(0.0, 1.0, (5, 2), F64, entropy=3, levy_area_approximation="space-time", dt=0.01)
    sol = pdf.solve(wavy(brownian=motion), "sriw1", saveat=0.1)
    assert torch.equal(sol.brownian(0.2, 0.4), motion(0.2, 0.4))
    assert sol.stats.seed is None
    fine = pdf.solve(wavy(brownian=motion), pdf.SRIW1(adaptive=False), dt=0.01, saveat=[1.0])
    assert torch.allclose(sol.ys[-1], fine.ys[-1], atol=2e-2)


# -- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTIVE, ids=str)
def test_rejected_steps_leave_the_path_as_it_is(method: pdf.SDEMethod) -> None:
    noise, interpretation = method.noises[0], method.interpretations[0]
    problem = wavy(interpretation=interpretation, noise=noise, seed=21)
    options = {"rtol": 1e-3, "atol": 1e-3, "saveat": [0.35, 1.0]}
    with torch.no_grad():
        hopeful = pdf.solve(problem, method, dt=0.5, **options)  # has to reject
        careful = pdf.solve(problem, method, dt=1e-3, **options)
        reference = pdf.solve(problem, replace(method, adaptive=False), dt=1 / 512, saveat=[0.35, 1.0])
    assert hopeful.stats.nreject > 0 and hopeful.stats.naccept != careful.stats.naccept
    for a, b in [(0.0, 0.35), (0.35, 1.0), (0.1, 0.9)]:
        assert torch.equal(hopeful.brownian(a, b), careful.brownian(a, b))
        assert torch.equal(hopeful.brownian(a, b), reference.brownian(a, b))
    assert torch.allclose(hopeful.ys, reference.ys, atol=3e-2)
    assert torch.allclose(careful.ys, reference.ys, atol=3e-2)


@pytest.mark.parametrize("method", [pdf.SRIW1(), pdf.SOSRI(), pdf.SDEHeun(adaptive=True)], ids=str)
def test_the_error_follows_the_tolerance(method: pdf.SDEMethod) -> None:
    problem = wavy(20, interpretation=method.interpretations[0], seed=13)
    with torch.no_grad():
        exact = pdf.solve(problem, replace(method, adaptive=False), dt=1 / 512, saveat=[1.0]).ys
        errors = [
            float((pdf.solve(problem, method, rtol=tol, atol=tol, saveat=[1.0]).ys - exact).square().mean().sqrt())
            for tol in (1e-1, 1e-2, 1e-3)
        ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < errors[0] / 8
    assert errors[2] < 1e-2


def test_adaptive_euler_maruyama_for_additive_noise() -> None:
    problem = wavy(noise="additive", seed=2)
    with torch.no_grad():
        sol = pdf.solve(problem, pdf.EM(adaptive=True), rtol=1e-3, atol=1e-3, saveat=[1.0])
        fine = pdf.solve(problem, pdf.SRA3(adaptive=False), dt=1 / 512, saveat=[1.0])
    assert torch.allclose(sol.ys, fine.ys, atol=2e-2)


def test_steps_end_at_save_times() -> None:
    problem = wavy(seed=3)
    sol = pdf.solve(problem, "em", dt=0.4, saveat=[0.3, 0.55, 1.0])
    ends = [0.0, 0.3, 0.55, 0.95, 1.0]
    y = problem.y0
    for a, b in pairwise(ends):
        t = torch.tensor(a, dtype=F64)
        y = y + problem.drift(t, y) * (b - a) + problem.diffusion(t, y) * sol.brownian(a, b)
    assert sol.stats.naccept == 4
    assert torch.allclose(sol.ys[-1], y, atol=1e-7)  # times are resolved to 1.5e-8


def test_a_fixed_step_method_steps_along_the_save_times() -> None:
    sol = pdf.solve(wavy(seed=3), "milstein", saveat=torch.linspace(0, 1, 9))
    assert sol.stats.naccept == 8


def test_tstops() -> None:
    sol = pdf.solve(wavy(seed=3), "em", dt=0.3, tstops=[0.5])
    assert sol.ts.tolist() == pytest.approx([0.0, 0.3, 0.5, 0.8, 1.0])


def test_a_failed_solve_says_so() -> None:
    start = torch.full((2, 1), 5.0, dtype=F64)
    explosive = pdf.SDEProblem(lambda t, y: y**3, lambda t, y: y, start, (0.0, 1.0), seed=0)
    with pytest.raises(pdf.errors.StepUnderflowError, match="Brownian path is resolved to"):
        pdf.solve(explosive, "sosri", saveat=[1.0])
    with pytest.raises(pdf.errors.NonFiniteError):
        pdf.solve(explosive, "em", dt=0.1)
    part = pdf.solve(explosive, "sosri", throw=False)
    assert not part.success and len(part.ts) > 1
    with pytest.raises(pdf.errors.MaxStepsError, match="dt"):
        pdf.solve(wavy(), "em", dt=0.01, max_steps=10)


# -- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pdf.EM(), pdf.SRA1(), pdf.SOSRA(), pdf.SRA3(adaptive=False)], ids=str)
def test_moments_of_the_ornstein_uhlenbeck_process(method: pdf.SDEMethod) -> None:
    rate, mean, noise, t, paths = 1.5, 0.7, 0.6, 1.0, 20_000
    problem = pdf.SDEProblem(
        lambda t, y: rate * (mean - y),
        lambda t, y: torch.full((paths, 1, 1), noise, dtype=F64),
        torch.full((paths, 1), 2.0, dtype=F64),
        (0.0, t),
        noise="additive",
        seed=31,
    )
    with torch.no_grad():
        y = pdf.solve(problem, method, dt=1 / 64, rtol=1e-2, atol=1e-2, saveat=[t]).ys[-1]
    expected = mean + (2.0 - mean) * math.exp(-rate * t)
    variance = noise**2 * (1 - math.exp(-2 * rate * t)) / (2 * rate)
    # Five standard errors, and (for EM) the bias of its first order.
    bias = 0.012 if str(method) == "em" else 0.0
    assert float(y.mean()) == pytest.approx(expected, abs=5 * math.sqrt(variance / paths) + bias)
    assert float(y.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / paths) + 2 * bias)


def test_ito_and_stratonovich_differ_by_the_correction() -> None:
    # dy = v y dW has the mean 1 in Ito's sense, and exp(v^2 t / 2) in Stratonovich's.
    paths, v = 40_000, 0.5
    start = torch.ones(paths, 1, dtype=F64)
    make = lambda sense: pdf.SDEProblem(  # noqa: E731
        lambda t, y: 0.0 * y, lambda t, y: v * y, start, (0.0, 1.0), interpretation=sense, seed=8
    )
    with torch.no_grad():
        ito = pdf.solve(make("ito"), "milstein", dt=1 / 16, save_everystep=False).ys[-1]
        stratonovich = pdf.solve(make("stratonovich"), "heun", dt=1 / 16, save_everystep=False).ys[-1]
    error = 5 * math.sqrt((math.exp(v**2) - 1) / paths)
    assert float(ito.mean()) == pytest.approx(1.0, abs=error)
    assert float(stratonovich.mean()) == pytest.approx(math.exp(v**2 / 2), abs=error * math.exp(v**2 / 2) + 2e-3)
