"""The Julia backend against the native one, on a real Julia."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from problems.modules import MODULES
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DenseOutputError,
    DtypeError,
    GradientError,
    JuliaForkError,
    MaxStepsError,
    UnknownNameError,
    UnsupportedError,
    UntraceableError,
)

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SAVES = [0.0, 0.1, 0.25]


def solve_and_pull(func: Any, y0: Tensor, params: list[Tensor], backend: str, method: Any, **options: Any) -> Any:
    """The solution's states, and the gradients of a loss that sees all of them."""
    start = y0.clone().requires_grad_()
    problem = pdf.ODEProblem(func, start, (0.0, 0.25))
    sol = pdf.solve(problem, method, saveat=SAVES, backend=backend, dense=False, **{**TIGHT, **options})
    weight = torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=y0.dtype).reshape(sol.ys.shape)
    grads = torch.autograd.grad((weight * sol.ys).sum(), [start, *params], allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip([start, *params], grads, strict=True)]
    return sol, found


def params_of(func: Any, y0: Tensor) -> list[Tensor]:
    from pydiffeqflux.graph import kernels

    traced = kernels(func, torch.tensor(0.0, dtype=y0.dtype), y0)
    return traced.graphs.externals[: traced.graphs.params]


def agree(one: list[Tensor], other: list[Tensor], tol: float) -> bool:
    return all(
        float((a - b).detach().abs().max()) <= tol * (1 + float(b.detach().abs().max()))
        for a, b in zip(one, other, strict=True)
    )


#: Those whose right-hand side, or its slope, has a kink on the way.
KINKS = ("relu", "leakyrelu", "softsign", "selu", "relu6")
#: Solutions to compare tightly: "einsum" blows up before the end.
SMOOTH = [n for n in MODULES if n not in ("own_gradients", "reductions", "elementary", "einsum")]


@pytest.mark.parametrize("name", ["spiral_batch", "time", "lotka_volterra", "conv_circular", "in_place", "outside"])
def test_modules_of_many_kinds(name: str) -> None:
    torch.manual_seed(0)
    func, y0 = MODULES[name]()
    params = params_of(func, y0)
    julia, to_julia = solve_and_pull(func, y0, params, "julia", "tsit5")
    native, to_native = solve_and_pull(func, y0, params, "torch", "tsit5", sensealg="GaussAdjoint")
    assert julia.stats.backend == "julia"
    assert julia.ys.shape == native.ys.shape
    assert agree([julia.ys], [native.ys], 1e-8)
    assert agree(to_julia, to_native, 1e-6)


@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"])
def test_sensitivity_algorithms(sensealg: str) -> None:
    torch.manual_seed(0)
    func, y0 = MODULES["time"]()
    params = params_of(func, y0)
    chosen = pdf.QuadratureAdjoint(abstol=1e-10, reltol=1e-10) if sensealg == "QuadratureAdjoint" else sensealg
    julia, to_julia = solve_and_pull(func, y0, params, "julia", "tsit5", sensealg=chosen)
    _, to_native = solve_and_pull(func, y0, params, "torch", "tsit5", sensealg="DiscreteAdjoint")
    assert julia.stats.sensealg == sensealg
    assert agree(to_julia, to_native, 1e-6)


def slow(name: str) -> Any:
    """Julia compiles a solver at its first use: half a minute for a stiff one."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "method", ["rodas5p", "FBDF", slow("kencarp4"), slow("Rodas4"), slow("vern9"), slow("AutoTsit5(Rosenbrock23)")]
)
def test_solvers(method: str) -> None:
    func, y0 = MODULES["lotka_volterra"]()
    params = params_of(func, y0)
    tol = {"rtol": 1e-8, "atol": 1e-8}
    julia, to_julia = solve_and_pull(func, y0, params, "julia", method, **tol)
    native, to_native = solve_and_pull(func, y0, params, "torch", "vern7")
    assert agree([julia.ys], [native.ys], 1e-6)
    assert agree(to_julia, to_native, 1e-5)
    if method in ("rodas5p", "Rodas4"):
        assert julia.stats.njac > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_every_module_with_every_solver_and_sensealg(name: str) -> None:
    torch.manual_seed(0)
    func, y0 = MODULES[name]()
    params = params_of(func, y0)
    # Both differentiate the equation: where that has kinks (relu), the derivative of the steps is another, by 1e-5.
    tight: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12, "sensealg": "GaussAdjoint"}
    native, to_native = solve_and_pull(func, y0, params, "torch", "vern7", **tight)
    for method in ("tsit5", "vern7", "dopri5", "rodas5p", "kencarp4", "FBDF"):
        # Gauss quadrature on a BDF's dense output is what limits that gradient: 1e-6 takes 1e-12.
        tol = {"FBDF": 1e-12}.get(method, 1e-11)
        # OrdinaryDiffEq's KenCarp4 steps over kinks: its states are off by 5e-7 there at a tolerance of 1e-10.
        loose = 1e3 if method == "kencarp4" and name in KINKS else 1.0
        for sensealg in ("GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint"):
            julia, to_julia = solve_and_pull(func, y0, params, "julia", method, sensealg=sensealg, rtol=tol, atol=tol)
            assert agree([julia.ys], [native.ys], 1e-8 * loose), (method, sensealg)
            assert agree(to_julia, to_native, 1e-6 * loose), (method, sensealg)


def test_gradcheck() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def end(y0: Tensor, t1: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip((n for n, _ in net.named_parameters()), weights, strict=True))
        func = lambda t, y: torch.func.functional_call(net, named, (y * torch.cos(t),))  # noqa: E731
        problem = pdf.ODEProblem(func, y0, (0.0, t1))
        return pdf.solve(problem, "vern7", saveat=[0.3], backend="julia", rtol=1e-11, atol=1e-11).ys

    y0 = torch.tensor([0.5, -0.3], dtype=D, requires_grad=True)
    t1 = torch.tensor(1.0, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(end, (y0, t1, *net.parameters()), atol=1e-6)


def test_gradients_of_times() -> None:
    t0, t1 = (torch.tensor(x, dtype=D, requires_grad=True) for x in (0.1, 0.9))
    saves = torch.tensor([0.2, 0.5], dtype=D, requires_grad=True)
    found = []
    for backend in ("julia", "torch"):
        problem = pdf.ODEProblem(lambda t, y: torch.sin(3 * t) * y, torch.ones(2, dtype=D), (t0, t1))
        at_saves = pdf.solve(problem, "vern7", saveat=saves, backend=backend, **TIGHT).ys
        at_end = pdf.solve(problem, "vern7", save_everystep=False, backend=backend, **TIGHT).ys
        found.append(torch.autograd.grad(at_saves[0].sum() + 2 * at_saves[1].sum() + at_end.sum(), (t0, t1, saves)))
    assert agree(list(found[0]), list(found[1]), 1e-7)
    assert float(found[0][1]) != 0


def test_backwards_in_time() -> None:
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=D), (1.0, 0.0))
    sol = pdf.solve(problem, "tsit5", saveat=[0.5, 0.0], backend="julia", **TIGHT)
    assert torch.allclose(sol.ys[:, 0], torch.exp(rate * torch.tensor([0.5, 1.0], dtype=D)), atol=1e-8)
    (slope,) = torch.autograd.grad(sol.ys[-1], rate)
    assert float(slope) == pytest.approx(float(torch.exp(rate)), abs=1e-7)


def test_without_save_times_every_step_comes_back() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 2.0))
    sol = pdf.solve(problem, backend="julia")
    assert len(sol.ts) == sol.stats.naccept + 1
    assert (float(sol.ts[0]), float(sol.ts[-1])) == (0.0, 2.0)
    assert torch.allclose(sol.ys[:, 0], torch.exp(-sol.ts), atol=1e-3)


def test_dense_output_and_its_missing_gradient() -> None:
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(2, dtype=D), (0.0, 1.0))
    sol = pdf.solve(problem, "tsit5", backend="julia", **TIGHT)
    assert float(sol(0.35)[0]) == pytest.approx(0.7046880897, abs=1e-8)
    assert sol([0.1, 0.2]).shape == (2, 2)
    with pytest.raises(GradientError, match="give these times as saveat"):
        sol(0.5).sum().backward()
    with pytest.raises(DenseOutputError, match=r"t=1\.5 lies outside"):
        sol(1.5)


def test_structures_of_tensors() -> None:
    y0 = {"q": torch.ones(2, 3), "p": torch.zeros(3)}
    problem = pdf.ODEProblem(lambda t, y: {"q": -y["q"], "p": y["q"].sum(0)}, y0, (0.0, 1.0))
    julia, native = (pdf.solve(problem, saveat=[1.0], rtol=1e-6, backend=b).ys for b in ("julia", "torch"))
    assert julia["p"].shape == (1, 3)
    assert torch.allclose(julia["p"], native["p"], atol=1e-5)


def test_float32_and_scattered_memory() -> None:
    net = nn.Linear(3, 3)
    wide = torch.randn(3, 5).t()  # (5, 3), not contiguous
    problem = pdf.ODEProblem(lambda t, y: torch.tanh(net(y)), wide, (0.0, 1.0))
    julia, native = (pdf.solve(problem, saveat=[0.5, 1.0], rtol=1e-5, atol=1e-6, backend=b) for b in ("julia", "torch"))
    assert julia.ys.dtype == torch.float32
    assert torch.allclose(julia.ys, native.ys, atol=1e-4)
    (g,) = torch.autograd.grad(julia.ys[-1].sum(), net.bias, retain_graph=True)
    (again,) = torch.autograd.grad(julia.ys[-1].sum(), net.bias)
    assert torch.equal(g, again)


def test_neural_ode_trains() -> None:
    torch.manual_seed(0)
    node = pdf.NeuralODE(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), (0.0, 1.0), backend="julia")
    optimizer = torch.optim.Adam(node.parameters(), 0.05)
    y0, goal = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (node(y0) - goal).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


# -- events and doses -----------------------------------------------------------------------------


def ball(gravity: Tensor, backend: str, **options: Any) -> pdf.Solution:
    func = lambda t, y: torch.stack([y[1], -gravity])  # noqa: E731
    problem = pdf.ODEProblem(func, torch.tensor([1.0, 0.0], dtype=D), (0.0, 2.0))
    return pdf.solve(problem, "tsit5", backend=backend, **TIGHT, **options)


def test_a_terminal_event() -> None:
    gravity = torch.tensor(9.81, dtype=D, requires_grad=True)
    sol = ball(gravity, "julia", event=pdf.Event(lambda t, y: y[0], direction=-1))
    assert sol.status is pdf.Status.EVENT
    assert float(sol.events[0].ts[0]) == pytest.approx((2 / 9.81) ** 0.5, abs=1e-9)
    (slope,) = torch.autograd.grad(sol.events[0].ts[0], gravity)
    assert float(slope) == pytest.approx(-0.5 * (2 / 9.81**3) ** 0.5, abs=1e-7)


def test_bounces() -> None:
    gravity = torch.tensor(9.81, dtype=D, requires_grad=True)
    bounce = pdf.Event(
        lambda t, y: y[0], terminal=False, direction=-1, affect=lambda t, y: torch.stack([0 * y[0], -0.8 * y[1]])
    )
    found = []
    for backend in ("julia", "torch"):
        sol = ball(gravity, backend, event=bounce, saveat=[0.4, 0.9, 1.4])
        found.append((sol.ys, sol.events[0].ts, *torch.autograd.grad(sol.ys[-1, 0], gravity)))
    assert found[0][1].shape == found[1][1].shape
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_event_that_is_only_recorded() -> None:
    problem = pdf.ODEProblem(lambda t, y: torch.stack([y[1], -y[0]]), torch.tensor([1.0, 0.0], dtype=D), (0.0, 10.0))
    sol = pdf.solve(problem, "vern7", backend="julia", event=pdf.Event(lambda t, y: y[0], terminal=False), **TIGHT)
    assert torch.allclose(sol.events[0].ts, torch.pi * torch.tensor([0.5, 1.5, 2.5], dtype=D), atol=1e-7)
    assert float(sol.ts[-1]) == 10.0
    assert bool((sol.ts.diff() > 0).all())


def test_doses() -> None:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    found = []
    for backend in ("julia", "torch"):
        dose = pdf.PresetTimeCallback([1.0, 2.0], lambda t, y: y + 1.0)
        problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=D), (0.0, 3.0))
        sol = pdf.solve(problem, callbacks=dose, saveat=[0.5, 1.0, 2.5, 3.0], backend=backend, **TIGHT)
        found.append((sol.ys, *torch.autograd.grad(sol.ys.sum(), rate)))
    assert agree(list(found[0]), list(found[1]), 1e-7)


# -- what goes wrong ------------------------------------------------------------------------------


def test_too_many_steps() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 100.0))
    with pytest.raises(MaxStepsError, match=r"max_steps=3 steps.*MaxIters"):
        pdf.solve(problem, backend="julia", max_steps=3)
    part = pdf.solve(problem, backend="julia", max_steps=3, throw=False)
    assert part.status is pdf.Status.MAX_STEPS
    assert 0 < float(part.ts[-1]) < 100


def test_an_unknown_solver() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(UnknownNameError, match=r"method='Rodas55'.*Did you mean 'Rodas5"):
        pdf.solve(problem, "Rodas55", backend="julia")


def test_what_julia_does_not_do() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1, requires_grad=True), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match=r"method=gl4 does not exist in OrdinaryDiffEq"):
        pdf.solve(problem, "gl4", dt=0.1, backend="julia")
    with pytest.raises(DtypeError, match=r"y0 is torch\.float16: convert it, or use"):
        pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(1).half(), (0.0, 1.0)), backend="julia")


def test_a_branch_on_a_value() -> None:
    problem = pdf.ODEProblem(lambda t, y: y if y.sum() > 0 else -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(UntraceableError, match=r"torch\.where"):
        pdf.solve(problem, backend="julia")


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_on_request_python_is_called_back(method: str) -> None:
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)

    def func(t: Tensor, y: Tensor) -> Tensor:
        return -rate * y if float(y.detach().sum()) > 0 else rate * y

    problem = pdf.ODEProblem(func, torch.ones(2, dtype=D), (0.0, 1.0))
    sol = pdf.solve(problem, method, saveat=[1.0], backend="julia", fallback="callback", rtol=1e-8, atol=1e-8)
    assert torch.allclose(sol.ys, torch.exp(-rate).expand(1, 2), atol=1e-7)
    (slope,) = torch.autograd.grad(sol.ys.sum(), rate)
    assert float(slope) == pytest.approx(-2 * float(torch.exp(-rate)), abs=1e-6)


def test_an_error_in_a_function_that_is_called_back_comes_back() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        if float(t) > 0.5:
            raise ZeroDivisionError("half way")
        return -y

    problem = pdf.ODEProblem(func, torch.ones(2, dtype=D), (0.0, 1.0))
    with pytest.raises(ZeroDivisionError, match="half way"):
        pdf.solve(problem, backend="julia", fallback="callback")
    healthy = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 1.0))
    assert pdf.solve(healthy, backend="julia").success


def test_second_derivatives() -> None:
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=D), (0.0, 1.0)), backend="julia")
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), rate, create_graph=True)
    with pytest.raises(GradientError, match="no second derivative"):
        torch.autograd.grad(g, rate)


def test_numbers_that_change_between_solves() -> None:
    class Decay(nn.Module):
        scale = 1.0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.scale * y

    func = Decay()
    problem = pdf.ODEProblem(func, torch.ones(1, dtype=D), (0.0, 1.0))
    first = pdf.solve(problem, saveat=[1.0], backend="julia", **TIGHT).ys
    func.scale = 2.0
    second = pdf.solve(problem, saveat=[1.0], backend="julia", **TIGHT).ys
    assert float(first) == pytest.approx(0.36787944, abs=1e-7)
    assert float(second) == pytest.approx(0.13533528, abs=1e-7)


def test_a_gradient_uses_the_constants_of_its_own_solve() -> None:
    weight, rate = torch.tensor([1.0], dtype=D), torch.tensor(0.5, dtype=D, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * weight * y, torch.ones(1, dtype=D), (0.0, 1.0))
    first = pdf.solve(problem, saveat=[1.0], backend="julia", **TIGHT).ys.sum()
    with torch.no_grad():
        weight.fill_(3.0)
    second = pdf.solve(problem, saveat=[1.0], backend="julia", **TIGHT).ys.sum()
    (of_second,) = torch.autograd.grad(second, rate)
    (of_first,) = torch.autograd.grad(first, rate)
    assert float(of_first) == pytest.approx(-0.60653066, abs=1e-7)
    assert float(of_second) == pytest.approx(-3 * 0.22313016, abs=1e-7)


# -- processes and threads ------------------------------------------------------------------------


def test_a_forked_process_is_told() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    pdf.solve(problem, backend="julia")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pdf.solve(problem, backend="julia")
        except JuliaForkError as why:
            os.write(write, str(why).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"spawn" in os.read(read, 4096)
