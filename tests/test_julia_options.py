"""The options of ``solve`` on ``backend="julia"``: step sizes, progress, complex states, and how it ended."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DtypeError,
    JuliaError,
    MaxStepsError,
    NonFiniteError,
    StepUnderflowError,
    UnsupportedError,
)

pytestmark = pytest.mark.julia

D = torch.float64


def pendulum(end: float = 10.0) -> pdf.ODEProblem:
    return pdf.ODEProblem(
        lambda t, y: torch.stack([y[1], -torch.sin(y[0])]), torch.tensor([1.0, 0.0], dtype=D), (0.0, end)
    )


def steps(**options: Any) -> Tensor:
    """The sizes of the steps that were taken."""
    return pdf.solve(pendulum(), "tsit5", backend="julia", rtol=1e-6, **options).ts.diff()


def test_bounds_of_the_step() -> None:
    assert float(steps(dt=1e-4)[0]) == pytest.approx(1e-4)
    assert float(steps(dt_max=0.05).max()) <= 0.05 + 1e-12
    assert float(steps(dt_min=0.5)[1:-1].min()) >= 0.5 - 1e-12
    assert len(steps(dt_max=0.05)) >= 200 > 2 * len(steps())


def test_steps_end_at_tstops() -> None:
    ts = pdf.solve(pendulum(), "tsit5", backend="julia", tstops=[3.25, 7.5]).ts
    assert {3.25, 7.5} <= set(ts.tolist())


def test_fixed_steps() -> None:
    sol = pdf.solve(pendulum(1.0), "rk4", dt=0.125, backend="julia")
    native = pdf.solve(pendulum(1.0), "rk4", dt=0.125, backend="torch")
    assert torch.equal(sol.ts, native.ts)
    assert torch.allclose(sol.ys, native.ys, rtol=0, atol=1e-14)


def test_step_size_control() -> None:
    own = steps()
    damped = steps(controller=pdf.PIDController(pcoeff=0.4, icoeff=0.3))
    careful = steps(controller=pdf.PIDController(safety=0.5))
    assert len(careful) > 1.15 * len(own)
    growth = steps(dt=1e-5, controller=pdf.PIDController(pcoeff=0.4, icoeff=0.3, factor_max=2.0))
    assert float((growth[1:] / growth[:-1])[:8].max()) <= 2.0 + 1e-9
    reference = pdf.solve(pendulum(), "vern9", rtol=1e-12, atol=1e-12, save_everystep=False).ys[-1]
    for controller in (pdf.PIController(), pdf.PIDController(pcoeff=0.1, icoeff=0.3, dcoeff=0.1)):
        end = pdf.solve(
            pendulum(), "tsit5", backend="julia", controller=controller, rtol=1e-8, atol=1e-8, save_everystep=False
        ).ys[-1]
        assert torch.allclose(end, reference, atol=1e-5)
    assert len(damped) < 2 * len(own)


@pytest.mark.slow
def test_a_controller_for_a_solver_that_has_its_own() -> None:
    with pytest.raises(UnsupportedError, match=r"controller does not go with this method.*FBDF.*leave it out"):
        pdf.solve(pendulum(), "FBDF", backend="julia", controller=pdf.PIController())
    with pytest.raises(UnsupportedError, match=r"solvers that switch.*leave it out"):
        pdf.solve(pendulum(), "AutoTsit5(Rosenbrock23())", backend="julia", controller=pdf.PIController())


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    problem = pdf.ODEProblem(lambda t, y: -1e5 * (y - torch.cos(t)), torch.zeros(1, dtype=D), (0.0, 40.0))
    sol = pdf.solve(problem, "tsit5", backend="julia", saveat=[40.0], progress=True, max_steps=10**8, dense=False)
    assert sol.success
    said = capsys.readouterr().err
    shown = [float(part.split("%")[0]) for part in said.split("solve:")[1:]]
    assert shown == sorted(shown) and shown[-1] == 100.0
    assert any(0 < percent < 100 for percent in shown)  # told on the way
    again = pdf.solve(pendulum(), "tsit5", backend="julia")
    assert again.success and capsys.readouterr().err == ""


# -- complex states -------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
def test_complex_states_are_called_back(structured: bool) -> None:
    found = []
    for backend in ("julia", "torch"):
        rate = torch.tensor([0.3, 1.7], dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0 + 0.5j, -0.5j, 2.0 + 0j], dtype=torch.complex128, requires_grad=True)

        def field(t: Tensor, y: Tensor, rate: Tensor = rate) -> Tensor:
            return torch.complex(-rate[0], rate[1]) * y * torch.exp(-t * y.abs() ** 2)

        func = (lambda t, y: {"z": field(t, y["z"])}) if structured else field
        problem = pdf.ODEProblem(func, {"z": y0} if structured else y0, (0.0, 1.0))
        tol = torch.full((3,), 1e-10, dtype=D)
        sol = pdf.solve(
            problem, "tsit5", saveat=[0.5, 1.0], rtol=tol, atol=tol, backend=backend,
            fallback="callback" if backend == "julia" else None,
        )  # fmt: skip
        ys = sol.ys["z"] if structured else sol.ys
        found.append([ys.detach(), *torch.autograd.grad(ys.abs().square().sum() + ys.imag.sum(), [y0, rate])])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-7)


def test_complex_states_are_not_translated() -> None:
    problem = pdf.ODEProblem(lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex64), (0.0, 1.0))
    with pytest.raises(DtypeError, match=r"y0 is torch\.complex64.*fallback='callback'.*backend='torch'"):
        pdf.solve(problem, backend="julia")


def test_complex_parameters() -> None:
    rate = torch.tensor(1j, dtype=torch.complex128, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: rate * y, torch.ones(1, dtype=torch.complex128), (0.0, 1.0))
    with pytest.raises(DtypeError, match="complex parameters"):
        pdf.solve(problem, backend="julia", fallback="callback")


# -- what does not exist, and how it ended --------------------------------------------------------


def test_return_codes() -> None:
    blows_up = pdf.ODEProblem(lambda t, y: y * y, torch.ones(1, dtype=D), (0.0, 2.0))
    with pytest.raises((StepUnderflowError, NonFiniteError), match=r"Julia's return code: \w+"):
        pdf.solve(blows_up, "tsit5", backend="julia")
    part = pdf.solve(blows_up, "tsit5", backend="julia", throw=False)
    assert not part.success and 0.9 < float(part.ts[-1]) <= 1.1
    with pytest.raises(MaxStepsError, match="Julia's return code: MaxIters"):
        pdf.solve(pendulum(), "tsit5", backend="julia", max_steps=2)
    no_number = pdf.ODEProblem(lambda t, y: torch.log(y - 2 * t), torch.ones(1, dtype=D), (0.0, 2.0))
    with pytest.raises((NonFiniteError, StepUnderflowError)):
        pdf.solve(no_number, "tsit5", backend="julia")


def test_an_error_of_julia_s_own_has_its_message_inside() -> None:
    with pytest.raises(JuliaError, match=r"Julia raised .*no_such_keyword"):
        pdf.solve(pendulum(), "Tsit5(no_such_keyword = 1)", backend="julia")


def test_statistics() -> None:
    sol = pdf.solve(pendulum(), "tsit5", backend="julia", rtol=1e-6)
    stats = sol.stats
    assert stats.naccept == len(sol.ts) - 1
    assert stats.nf >= 6 * stats.naccept
    assert (stats.backend, stats.method, stats.sensealg) == ("julia", "tsit5", "none")
    assert stats.time > 0


@pytest.mark.parametrize("name", ["RK4", pytest.param("TRBDF2", marks=pytest.mark.slow)])
def test_a_name_as_julia_spells_it_is_julia_s_solver(name: str) -> None:
    """It controls its error; in small letters it takes fixed steps, as everywhere."""
    problem = pdf.ODEProblem(lambda t, y: -y * torch.cos(t), torch.ones(2, dtype=torch.float64), (0.0, 2.0))
    exact = torch.exp(-torch.sin(torch.tensor(2.0, dtype=torch.float64)))
    errors = []
    for tol in (1e-4, 1e-8):
        sol = pdf.solve(problem, name, saveat=[2.0], rtol=tol, atol=tol, backend="julia")
        errors.append(float((sol.ys[-1] - exact).abs().max()))
    assert errors[1] < min(5e-5, errors[0] / 10)
    assert sol.stats.naccept > 20
    assert pdf.solve(problem, name.lower(), dt=0.5, saveat=[2.0], backend="julia").stats.naccept == 4


@pytest.mark.parametrize("with_event", [False, True])
def test_one_function_of_two_structures(with_event: bool) -> None:
    """The packed states have the same shape, and the same values at the start."""

    def func(t: torch.Tensor, y: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"a": -y["a"], "b": -2 * y["b"]}

    def condition(t: torch.Tensor, y: dict[str, torch.Tensor]) -> torch.Tensor:
        return y["b"][0] - 0.5

    for sizes in ((2, 1), (1, 2)):
        y0 = {name: torch.ones(n, dtype=torch.float64) for name, n in zip("ab", sizes, strict=True)}
        problem = pdf.ODEProblem(func, y0, (0.0, 1.0))
        event = pdf.Event(condition) if with_event else None
        sol = pdf.solve(problem, "vern7", saveat=[1.0], event=event, rtol=1e-9, atol=1e-9, backend="julia")
        end = float(sol.ts[-1])
        assert end == pytest.approx(0.5 * math.log(2) if with_event else 1.0, abs=1e-8)
        for name, rate in (("a", -1.0), ("b", -2.0)):
            assert torch.allclose(sol.ys[name][-1], torch.full_like(y0[name], math.exp(rate * end)), atol=1e-8)
