"""Methods for SDEs: Roessler's order conditions, and the orders that are measured on paths with known solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux import sde_methods
from pydiffeqflux.backends.common.tree import Tree
from pydiffeqflux.backends.eager.sde.catalogue import scheme_for
from pydiffeqflux.backends.eager.sde.sra import Sra, SraTableau
from pydiffeqflux.backends.eager.sde.sri import Sri, SriTableau

F64 = torch.float64
SRA = [pdf.SRA1(), pdf.SRA3(), pdf.SOSRA()]
SRI = [pdf.SRIW1(), pdf.SRIW2(), pdf.SOSRI()]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- order conditions ---------------------------------------------------------------------------


def square(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        assert len(row) == i
        full[i, :i] = row
    return full


def tableau(method: pdf.SDEMethod) -> SraTableau | SriTableau:
    stepper = scheme_for(method)
    assert isinstance(stepper, Sra | Sri)
    return stepper.tableau


@pytest.mark.parametrize("method", SRA, ids=str)
def test_sra_order_conditions(method: pdf.SDEMethod) -> None:
    # Roessler (2010), theorem 6.1, for strong order 1.5 (which for additive noise is order 2 of the drift's part).
    tab = tableau(method)
    alpha, beta1, beta2, c1 = (np.array(x, float) for x in (tab.alpha, tab.beta1, tab.beta2, tab.c1))
    a0, b0 = square(tab.a0).sum(1), square(tab.b0).sum(1)
    found = [alpha.sum(), beta1.sum(), beta2.sum(), alpha @ b0, alpha @ a0, alpha @ b0**2, beta1 @ c1, beta2 @ c1]
    assert found == pytest.approx([1, 1, 0, 1, 1 / 2, 3 / 2, 1, -1], abs=1e-12)
    assert np.array(tab.c0) == pytest.approx(a0, abs=1e-12)


@pytest.mark.parametrize("method", SRI, ids=str)
def test_sri_order_conditions(method: pdf.SDEMethod) -> None:
    # Roessler (2010), theorem 5.1: 25 conditions for strong order 1.5.
    tab = tableau(method)
    alpha = np.array(tab.alpha, float)
    betas = [np.array(x, float) for x in (tab.beta1, tab.beta2, tab.beta3, tab.beta4)]
    a0, a1, b0, b1 = (square(x) for x in (tab.a0, tab.a1, tab.b0, tab.b1))
    one = np.ones(4)
    for weights, wanted in zip(betas, (1, 0, 0, 0), strict=True):
        assert weights.sum() == pytest.approx(wanted, abs=1e-12)
    for weights, wanted in zip(betas, (0, 1, 0, 0), strict=True):
        assert weights @ b1 @ one == pytest.approx(wanted, abs=1e-12)
    for weights, wanted in zip(betas, (1, 0, -1, 0), strict=True):
        assert weights @ a1 @ one == pytest.approx(wanted, abs=1e-12)
    for weights, wanted in zip(betas, (1, 0, -1, 2), strict=True):
        assert weights @ (b1 @ one) ** 2 == pytest.approx(wanted, abs=1e-12)
    for weights, wanted in zip(betas, (0, 0, 0, 1), strict=True):
        assert weights @ b1 @ b1 @ one == pytest.approx(wanted, abs=1e-12)
    drift = [alpha.sum(), alpha @ a0 @ one, alpha @ b0 @ one, alpha @ (b0 @ one) ** 2]
    assert drift == pytest.approx([1, 1 / 2, 1, 3 / 2], abs=1e-12)
    mixed = betas[0] @ a1 @ b0 @ one / 2 + betas[2] @ a1 @ b0 @ one / 3
    assert mixed == pytest.approx(0, abs=1e-12)
    assert np.array(tab.c0) == pytest.approx(a0 @ one, abs=1e-12)
    assert np.array(tab.c1) == pytest.approx(a1 @ one, abs=1e-12)


# -- strong order -------------------------------------------------------------------------------

RATE, VOLATILITY = 0.6, 0.8


def growth(paths: int, interpretation: str, noise: str = "diagonal", seed: int = 5) -> pdf.SDEProblem:
    """Geometric Brownian motion, whose solution is ``exp((r - v^2 / 2) t + v W)`` (without v^2 / 2: Stratonovich)."""
    lift = (lambda g: g) if noise == "diagonal" else (lambda g: g.unsqueeze(-1))
    return pdf.SDEProblem(
        lambda t, y: RATE * y,
        lambda t, y: lift(VOLATILITY * y),
        torch.ones(paths, 1, dtype=F64),
        (0.0, 1.0),
        noise=noise,
        interpretation=interpretation,
        seed=seed,
    )


def grown(sol: pdf.Solution, interpretation: str, t: float = 1.0) -> Tensor:
    drift = RATE - (VOLATILITY**2 / 2 if interpretation == "ito" else 0.0)
    return torch.exp(drift * t + VOLATILITY * sol.brownian(0.0, t))


def fixed(method: pdf.SDEMethod | str) -> pdf.SDEMethod:
    return replace(sde_methods.resolve(method), adaptive=False)


@torch.no_grad()
def slope(
    problem: pdf.SDEProblem, method: pdf.SDEMethod, exact: Callable[[pdf.Solution], Tensor], steps: tuple[int, ...]
) -> float:
    """The order in dt at which the root mean square error at the end decreases."""
    errors = []
    for n in steps:
        sol = pdf.solve(problem, method, dt=(problem.t1.value - problem.t0.value) / n, save_everystep=False)
        assert sol.stats.naccept == n
        errors.append(float((sol.ys[-1] - exact(sol)).square().mean().sqrt()))
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0]) * -1


BY_INTERPRETATION = [
    (method, interpretation, noise)
    for interpretation, methods in {
        "ito": ["em", "milstein", "sriw1", "sriw2", "sosri"],
        "stratonovich": ["milstein", "euler_heun", "heun", "midpoint", "reversible_heun", "log_ode"],
    }.items()
    for method in methods
    for noise in ("diagonal", "scalar")
]


@pytest.mark.parametrize(("name", "interpretation", "noise"), BY_INTERPRETATION)
def test_strong_order_on_geometric_brownian_motion(name: str, interpretation: str, noise: str) -> None:
    method = fixed(name)
    found = slope(growth(500, interpretation, noise), method, lambda sol: grown(sol, interpretation), (16, 32, 64, 128))
    wanted = method.strong_order(noise)
    if name == "reversible_heun":
        assert found > wanted  # 0.5 is what is proved; with a linear diffusion it is 1
    else:
        assert found == pytest.approx(wanted, abs=0.17)


def decaying(paths: int, noise: str = "additive") -> pdf.SDEProblem:
    """Rackauckas & Nie (2017), example 3: ``y(t) = (1 + b (t + a W)) / sqrt(1 + t)``."""
    a, b = 0.1, 0.05
    return pdf.SDEProblem(
        lambda t, y: b / (1 + t).sqrt() - y / (2 * (1 + t)),
        lambda t, y: (a * b / (1 + t).sqrt()).expand(paths, 1, 1),
        torch.ones(paths, 1, dtype=F64),
        (0.0, 2.0),
        noise=noise,
        seed=3,
    )


@pytest.mark.parametrize("name", ["em", "milstein"])
def test_order_one_for_additive_noise(name: str) -> None:
    exact = lambda sol: (1 + 0.05 * (2 + 0.1 * sol.brownian(0.0, 2.0))) / math.sqrt(3)  # noqa: E731
    assert slope(decaying(300), fixed(name), exact, (8, 16, 32, 64)) == pytest.approx(1.0, abs=0.12)


def tilted(paths: int, interpretation: str = "ito") -> pdf.SDEProblem:
    """A double well, pushed by two Brownian motions through a matrix that changes with time."""
    matrix = torch.tensor([[0.6, 0.2], [0.1, 0.9]], dtype=F64)
    return pdf.SDEProblem(
        lambda t, y: 2 * y - y**3 + 0.5 * y.flip(-1),
        lambda t, y: (matrix * (1 + 0.5 * torch.sin(3 * t))).expand(paths, 2, 2),
        torch.full((paths, 2), 0.5, dtype=F64),
        (0.0, 1.0),
        noise="additive",
        interpretation=interpretation,
        seed=4,
    )


@pytest.mark.parametrize(("name", "wanted"), [("em", 1.0), ("sra1", 1.5), ("sra3", 1.5), ("sosra", 1.5)])
def test_strong_order_for_additive_noise(name: str, wanted: float) -> None:
    with torch.no_grad():
        reference = pdf.solve(tilted(200), fixed("sra3"), dt=1 / 1024, save_everystep=False).ys[-1]
    found = slope(tilted(200), fixed(name), lambda sol: reference, (16, 32, 64, 128))
    assert wanted - 0.15 < found < wanted + 0.3  # with little noise the order without it shows through


@pytest.mark.parametrize("name", ["heun", "midpoint", "euler_heun", "reversible_heun"])
def test_strong_order_one_half_for_noise_that_does_not_commute(name: str) -> None:
    def diffusion(t: Tensor, y: Tensor) -> Tensor:  # columns (1, 0) and (0, y_0): their bracket is (0, 1)
        one, zero = torch.ones_like(y[:, :1]), torch.zeros_like(y[:, :1])
        return torch.stack([torch.cat([one, zero], 1), torch.cat([zero, y[:, :1]], 1)], dim=-1)

    problem = pdf.SDEProblem(
        lambda t, y: torch.zeros_like(y),
        diffusion,
        torch.zeros(400, 2, dtype=F64),
        (0.0, 1.0),
        noise="general",
        interpretation="stratonovich",
        seed=8,
    )
    with torch.no_grad():
        reference = pdf.solve(problem, "heun", dt=1 / 2048, save_everystep=False).ys[-1]
    found = slope(problem, fixed(name), lambda sol: reference, (8, 16, 32, 64))
    assert found == pytest.approx(0.5, abs=0.12)
    assert fixed(name).strong_order("general") == 0.5


def test_log_ode_adds_the_levy_area() -> None:
    # y_1 = integral of W_0 dW_1, of variance 1/2; one step without the area is W_0 W_1 / 2, of variance 1/4.
    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        one, zero = torch.ones_like(y[:, :1]), torch.zeros_like(y[:, :1])
        return torch.stack([torch.cat([one, zero], 1), torch.cat([zero, y[:, :1]], 1)], dim=-1)

    paths = 40_000
    problem = pdf.SDEProblem(
        lambda t, y: torch.zeros_like(y),
        diffusion,
        torch.zeros(paths, 2, dtype=F64),
        (0.0, 1.0),
        noise="general",
        interpretation="stratonovich",
        seed=1,
    )
    with torch.no_grad():
        area = pdf.solve(problem, "log_ode", dt=1.0).ys[-1, :, 1]
        none = pdf.solve(problem, "midpoint", dt=1.0).ys[-1, :, 1]
    # Four standard deviations of the mean square of products of normal numbers.
    assert float(area.square().mean()) == pytest.approx(1 / 2, abs=0.03)
    assert float(none.square().mean()) == pytest.approx(1 / 4, abs=0.02)
    # Given W and H = U - W / 2, the area's mean is H_0 W_1 - W_0 H_1 (Foster, Lyons & Oberhauser 2020): sign and all.
    w, u = Tree(1, 0.0, 1.0, (paths, 2), F64, torch.device("cpu"))(0.0, 1.0, return_U=True)
    h = u - w / 2
    known = h[:, 0] * w[:, 1] - w[:, 0] * h[:, 1]
    assert float((area * known).mean()) == pytest.approx(2 / 12, abs=0.01)


# -- weak order ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "interpretation", "wanted"),
    [("em", "ito", 1.0), ("milstein", "ito", 1.0), ("heun", "stratonovich", 1.0), ("sriw1", "ito", 2.0)],
)
@torch.no_grad()
def test_weak_order(name: str, interpretation: str, wanted: float) -> None:
    # The error of the mean; the exact solution on the same paths takes most of the scatter away.
    errors, steps = [], (2, 4, 8)
    for n in steps:
        sol = pdf.solve(growth(200_000, interpretation), fixed(name), dt=1 / n, save_everystep=False)
        errors.append(abs(float((sol.ys[-1] - grown(sol, interpretation)).mean())))
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(wanted, abs=0.3)
    assert fixed(name).weak_order == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "interpretation"),
    [
        ("sriw2", "ito"),
        ("sosri", "ito"),
        *((name, "stratonovich") for name in ("milstein", "euler_heun", "midpoint", "reversible_heun", "log_ode")),
    ],
)
def test_weak_order_of_the_others(name: str, interpretation: str) -> None:
    test_weak_order(name, interpretation, fixed(name).weak_order)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sra1", "sra3", "sosra"])
@torch.no_grad()
def test_weak_order_for_additive_noise(name: str) -> None:
    """As above, of the second moment, for Rackauckas & Nie's example with much noise."""
    a, b, paths, errors, steps = 4.0, 0.25, 200_000, [], (2, 4, 8)
    problem = pdf.SDEProblem(
        lambda t, y: b / (1 + t).sqrt() - y / (2 * (1 + t)),
        lambda t, y: (a * b / (1 + t).sqrt()).expand(paths, 1, 1),
        torch.ones(paths, 1, dtype=F64),
        (0.0, 2.0),
        noise="additive",
        seed=3,
    )
    for n in steps:
        sol = pdf.solve(problem, fixed(name), dt=2 / n, save_everystep=False)
        exact = (1 + b * (2 + a * sol.brownian(0.0, 2.0))) / math.sqrt(3)
        errors.append(abs(float((sol.ys[-1].square() - exact.square()).mean())))
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2.0, abs=0.35)
    assert fixed(name).weak_order == 2.0


# -- without noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sde_methods.CATALOGUE, ids=lambda kind: kind.name)
@torch.no_grad()
def test_order_without_noise(kind: type[pdf.SDEMethod]) -> None:
    noise, interpretation = kind.noises[0], kind.interpretations[0]
    none = lambda t, y: torch.zeros_like(y) if noise == "diagonal" else torch.zeros(*y.shape, 1, dtype=F64)  # noqa: E731
    problem = pdf.SDEProblem(
        lambda t, y: torch.cos(t) * y,
        none,
        torch.ones(1, 2, dtype=F64),
        (0.0, 2.0),
        noise=noise,
        interpretation=interpretation,
        seed=0,
    )
    found = slope(problem, kind(adaptive=False), lambda sol: torch.tensor(math.exp(math.sin(2.0))), (16, 32, 64))
    assert found == pytest.approx(kind.order, abs=0.25)


# -- the catalogue ------------------------------------------------------------------------------


def test_names() -> None:
    for kind in sde_methods.CATALOGUE:
        for name in (kind.name, *kind.aliases, kind.__name__, f"{kind.__name__}()"):
            if name.lower().replace("()", "") in (kind.name, *kind.aliases):
                assert type(sde_methods.resolve(name)) is kind
        assert type(sde_methods.resolve(kind)) is kind


@pytest.mark.parametrize("kind", sde_methods.CATALOGUE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("noise", sde_methods.NOISES)
@pytest.mark.parametrize("interpretation", sde_methods.INTERPRETATIONS)
def test_a_method_solves_what_it_declares_and_refuses_the_rest(
    kind: type[pdf.SDEMethod], noise: str, interpretation: str
) -> None:
    shape = (3, 2) if noise == "diagonal" else (3, 2, 1)
    problem = pdf.SDEProblem(
        lambda t, y: -y,
        lambda t, y: torch.full(shape, 0.1, dtype=F64),
        torch.ones(3, 2, dtype=F64),
        (0.0, 1.0),
        noise=noise,
        interpretation=interpretation,
    )
    if noise in kind.noises and interpretation in kind.interpretations:
        assert pdf.solve(problem, kind(adaptive=False), dt=0.25).ys.shape == (5, 3, 2)
        return
    with pytest.raises(pdf.errors.MethodNoiseError) as refused:
        pdf.solve(problem, kind(adaptive=False), dt=0.25)
    for name in sde_methods.known(noise, interpretation):
        assert name in str(refused.value)


def test_defaults() -> None:
    picked = {(n, i): str(sde_methods.default(n, i)) for n in sde_methods.NOISES for i in sde_methods.INTERPRETATIONS}
    assert picked[("diagonal", "ito")] == picked[("scalar", "ito")] == "sosri"
    assert picked[("additive", "ito")] == "sosra" and picked[("general", "ito")] == "em"
    assert {picked[(noise, "stratonovich")] for noise in sde_methods.NOISES} == {"heun"}
