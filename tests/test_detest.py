"""The non-stiff DETEST problems A1 to E5: the error is what the tolerance promises, up to a stated factor."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import detest
from problems.detest import END, PROBLEMS
from scipy.integrate import solve_ivp

import pydiffeqflux as pdf

Array = np.ndarray[Any, np.dtype[np.float64]]

TIMES = np.linspace(0.0, END, 41)[1:]
ORBITS = {"C5", "D1", "D2", "D3", "D4"}

#: The largest error allowed at any of the saved times, in units of the tolerance (``rtol = atol``): on ordinary
#: problems; on orbits, where errors grow with time; and on D5, an orbit of eccentricity 0.9. About twice what the
#: methods have. The Verner pairs, which carry on the higher order with much smaller constants, do far better.
FACTORS = {
    "bosh3": (600, 2000, 10_000),
    "tsit5": (100, 2000, 10_000),
    "dopri5": (100, 2500, 10_000),
    "dopri8": (1000, 500, 2000),
    "vern7": (20, 100, 300),
    "vern9": (10, 100, 1500),
}
#: Here DOP853's estimate is deceived (both parts of it vanish nearly together) and lets a step of 1.3 pass; SciPy's
#: takes the same steps and has the same error.
DECEIVED = {("dopri8", "A3", 1e-8): 5000}

QUICK = {("bosh3", 1e-4), ("tsit5", 1e-6), ("dopri8", 1e-6), ("vern9", 1e-8)}
SWEEP = [(m, tol) for m in FACTORS for tol in ((1e-4, 1e-6) if m == "bosh3" else (1e-6, 1e-8))]
CASES = [pytest.param(m, tol, marks=[] if (m, tol) in QUICK else pytest.mark.slow) for m, tol in SWEEP]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def scipy_solve(name: str, method: str, rtol: float, atol: float) -> Any:
    problem = PROBLEMS[name]

    def f(t: float, y: Array) -> Array:
        return problem.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    return solve_ivp(f, (0.0, END), problem.y0.numpy(), method=method, rtol=rtol, atol=atol, t_eval=TIMES)


@functools.cache
def reference(name: str) -> Array:
    """SciPy's DOP853 at a tolerance of 1e-12."""
    return scipy_solve(name, "DOP853", 1e-12, 1e-13).y.T


def solve(name: str, method: str, tol: float) -> pdf.Solution:
    problem = PROBLEMS[name]
    with torch.no_grad():
        return pdf.solve(
            pdf.ODEProblem(problem.f, problem.y0, (0.0, END)), method, saveat=TIMES, rtol=tol, atol=tol, dense=False
        )


def error(name: str, method: str, tol: float) -> float:
    """The largest error at a saved time, in units of the tolerance."""
    exact = reference(name)
    return float((np.abs(solve(name, method, tol).ys.numpy() - exact) / (1 + np.abs(exact))).max()) / tol


def allowed(name: str, method: str, tol: float) -> float:
    ordinary, orbit, eccentric = FACTORS[method]
    usual = eccentric if name == "D5" else orbit if name in ORBITS else ordinary
    return DECEIVED.get((method, name, tol), usual)


def test_all_the_problems_are_there() -> None:
    assert list(PROBLEMS) == [f"{family}{k}" for family in "ABCDE" for k in range(1, 6)]


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.exact])
def test_the_reference_is_the_closed_form(name: str) -> None:
    exact = np.array([PROBLEMS[name].exact(t) for t in TIMES])
    np.testing.assert_allclose(reference(name), exact, rtol=1e-8, atol=1e-8 if name == "D5" else 1e-9)


def planets_energy(y: Array) -> Array:
    """The energy of C5 about the centre of mass: y holds places and speeds in the sun's frame."""
    shape = y.shape[:-1]
    places, speeds = np.moveaxis(y.reshape(*shape, 2, 5, 3), -3, 0)
    masses = detest.MASSES.numpy()
    total = detest.SUN + masses.sum()
    drift = (masses[:, None] * speeds).sum(-2) / total
    kinetic = ((masses * (speeds**2).sum(-1)).sum(-1) - total * (drift**2).sum(-1)) / 2
    apart = np.linalg.norm(places[..., :, None, :] - places[..., None, :, :], axis=-1) + np.diag([np.inf] * 5)
    bound = detest.SUN * (masses / np.linalg.norm(places, axis=-1)).sum(-1)
    bound = bound + (np.outer(masses, masses) / apart).sum((-1, -2)) / 2
    return kinetic - detest.GRAVITY * bound


KEPT = {
    "B1": lambda y: y[..., 0] - np.log(y[..., 0]) + 2 * (y[..., 1] - np.log(y[..., 1])),
    "B2": lambda y: y.sum(-1),
    "B3": lambda y: y.sum(-1),
    "B5": lambda y: y[..., 0] ** 2 + y[..., 1] ** 2,
    "C1": lambda y: y.sum(-1),
    "C2": lambda y: y.sum(-1),
    "C5": planets_energy,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_has_no_closed_form_keeps_what_it_must(name: str) -> None:
    kept = KEPT[name](reference(name))
    np.testing.assert_allclose(kept, np.full(len(TIMES), KEPT[name](PROBLEMS[name].y0.numpy())), rtol=1e-9)


@pytest.mark.parametrize(("method", "tol"), CASES)
def test_the_error_is_what_the_tolerance_promises(method: str, tol: float) -> None:
    found = {name: (error(name, method, tol), allowed(name, method, tol)) for name in PROBLEMS}
    assert not {name: pair for name, pair in found.items() if not pair[0] <= pair[1]}


@pytest.mark.parametrize("method", [m if m == "tsit5" else pytest.param(m, marks=pytest.mark.slow) for m in FACTORS])
def test_a_hundredth_of_the_tolerance_is_about_a_hundredth_of_the_error(method: str) -> None:
    coarse, fine = sorted((tol for m, tol in SWEEP if m == method), reverse=True)
    names = ("A5", "B1", "B5", "C2", "D3", "E2", "E3")
    ratios = [100 * error(name, method, coarse) / error(name, method, fine) for name in names]
    assert 30 < math.exp(np.mean(np.log(ratios))) < 300


@pytest.mark.parametrize(("method", "theirs"), [("bosh3", "RK23"), ("dopri5", "RK45"), ("dopri8", "DOP853")])
def test_the_work_is_that_of_scipys_same_method(method: str, theirs: str) -> None:
    for name in ("A3", "B1", "C2", "D4", "E2"):
        ours, scipys = solve(name, method, 1e-5).stats.nf, scipy_solve(name, theirs, 1e-5, 1e-5).nfev
        # Dense output of DOP853 costs three evaluations a step, which SciPy leaves uncounted.
        extra = 1.35 if method == "dopri8" else 1.15
        assert 0.85 * scipys < ours < extra * scipys
