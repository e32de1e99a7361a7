"""The compiled engine against the eager one: the same steps, states and gradients to rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems.modules import MODULES
from torch import Tensor, nn
from torch.autograd import gradcheck

import pydiffeqflux as pdf
from pydiffeqflux import DiscreteAdjoint, ODEProblem, Status, solve

D = torch.float64
ADAPTIVE = ("tsit5", "dopri5", "dopri8", "vern7", "vern9", "bosh3", "heun", "fehlberg2")
FIXED = ("euler", "midpoint", "rk4", "heun2", "heun3")
#: Both engines take the same steps; what differs is the order of sums within a step.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def pendulum(k: Tensor) -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -k[0] * torch.sin(y[0]) - k[1] * y[1] + torch.cos(2.0 * t)])

    return func


def both(make: Any, *, inputs: Any = None, **options: Any) -> tuple[Any, Any]:
    """The solution and gradients by each engine: ``make()`` gives a problem and what to differentiate it by."""
    found = []
    for backend in ("compiled", "eager"):
        problem, wanted, extra = make()
        sol = solve(problem, backend=backend, **{"rtol": 1e-7, "atol": 1e-9, **options, **extra})
        weights = torch.cos(torch.arange(sol.ys.numel(), dtype=sol.ys.dtype)).view_as(sol.ys)
        loss = (sol.ys * weights).sum()
        found.append((sol, torch.autograd.grad(loss, wanted, allow_unused=True)))
    return found[0], found[1]


def compare(ours: Any, theirs: Any, close: Any = CLOSE) -> None:
    (sol, grads), (ref, expected) = ours, theirs
    assert sol.stats.backend == "compiled" and ref.stats.backend == "torch"
    assert (sol.stats.naccept, sol.stats.nreject) == (ref.stats.naccept, ref.stats.nreject)
    # The eager engine looks once more at the slope at a differentiable end of time; the compiled one going backwards.
    assert ref.stats.nf - sol.stats.nf in (0, 1)
    assert sol.status is ref.status
    torch.testing.assert_close(sol.ts, ref.ts, **close)
    torch.testing.assert_close(sol.ys, ref.ys, **close)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, **close)


def differentiable(*, saves: bool = True) -> Any:
    """A problem, everything that it can be differentiated by, and the save times among it."""

    def make() -> Any:
        k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        t0, t1 = torch.tensor(0.1, dtype=D, requires_grad=True), torch.tensor(2.3, dtype=D, requires_grad=True)
        problem = ODEProblem(pendulum(k), y0, (t0, t1))
        if not saves:
            return problem, [y0, k, t0, t1], {}
        times = torch.tensor([0.1, 0.4, 0.41, 1.7, 2.3], dtype=D, requires_grad=True)
        return problem, [y0, k, t0, t1, times], {"saveat": times}

    return make


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods(method: str) -> None:
    # Verner's weights are large and of both signs: sums in another order differ in more digits.
    compare(*both(differentiable(), method=method), {"rtol": 1e-7, "atol": 1e-9} if method == "vern9" else CLOSE)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("dt", [None, 0.07])
def test_fixed_step_methods(method: str, dt: float | None) -> None:
    compare(*both(differentiable(), method=method, dt=dt))


@pytest.mark.parametrize("method", ["tsit5", "bosh3", "rk4"])
@pytest.mark.parametrize("every", [True, False])
def test_without_save_times(method: str, every: bool) -> None:
    # Step sizes follow from the estimated error, a small difference of large numbers: they agree to fewer digits.
    close = {"rtol": 1e-4, "atol": 1e-6} if every and method != "rk4" else CLOSE
    compare(*both(differentiable(saves=False), method=method, save_everystep=every, dt=0.05), close)


@pytest.mark.parametrize("checkpoints", ["sqrt", 1, 3, 50])
@pytest.mark.parametrize("method", ["tsit5", "dopri8", "bosh3", "rk4"])
def test_checkpoints(method: str, checkpoints: Any) -> None:
    sense = DiscreteAdjoint(checkpoints=checkpoints)
    compare(*both(differentiable(), method=method, dt=0.02, sensealg=sense, dense=False))


@pytest.mark.parametrize(
    "options",
    [
        {"dense": False},
        {"controller": pdf.PIController()},
        {"controller": pdf.PIDController(pcoeff=0.2, icoeff=0.4, dcoeff=0.1)},
        {"dt": 1.5},
        {"dt_max": 0.03},
        {"dt_min": 0.3},
        {"rtol": torch.tensor([1e-3, 1e-8], dtype=D), "atol": torch.tensor(1e-7, dtype=D)},
        {"rtol": 1e-13, "atol": 0.0},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    compare(*both(differentiable(), method="tsit5", **options))


def test_backwards_in_time() -> None:
    def make() -> Any:
        k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        return ODEProblem(pendulum(k), y0, (2.0, -1.0)), [y0, k], {"saveat": [1.5, 0.0, -1.0]}

    compare(*both(make))


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_many_kinds(name: str) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        func, y = MODULES[name]()
        y0 = y.clone().requires_grad_()
        held = [x for x in func.parameters()] if isinstance(func, nn.Module) else []
        return ODEProblem(func, y0, (0.0, 0.05)), [y0, *held], {"saveat": [0.01, 0.04, 0.05]}

    compare(*both(make, rtol=1e-5, atol=1e-6))


def test_single_precision_is_as_close_as_it_can_be() -> None:
    def make() -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        y0 = torch.randn(20, 2, requires_grad=True)
        return ODEProblem(lambda t, y: net(y**3), y0, (0.0, 1.5)), [y0, *net.parameters()], {"saveat": 0.1}

    (sol, grads), (ref, expected) = both(make, rtol=1e-4, atol=1e-4)
    assert sol.stats.naccept == ref.stats.naccept
    torch.testing.assert_close(sol.ys, ref.ys, rtol=1e-4, atol=1e-5)
    for got, want in zip(grads, expected, strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-4


def test_states_with_structure() -> None:
    def make() -> Any:
        a = torch.tensor(0.7, dtype=D, requires_grad=True)
        x, v = torch.ones(2, 3, dtype=D, requires_grad=True), torch.zeros(4, dtype=D, requires_grad=True)

        def func(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"x": -a * y["x"] * y["v"].sum(), "v": torch.cos(t) - y["v"]}

        return ODEProblem(func, {"x": x, "v": v}, (0.0, 2.0)), [a, x, v]

    results = []
    for backend in ("compiled", "eager"):
        problem, inputs = make()
        sol = solve(problem, saveat=[0.5, 2.0], rtol=1e-8, atol=1e-8, backend=backend)
        loss = sol.ys["x"].square().sum() + sol.ys["v"].sum()
        results.append([sol.ys["x"], sol.ys["v"], *torch.autograd.grad(loss, inputs), sol(1.1)["x"]])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_gradcheck() -> None:
    times = torch.tensor([0.3, 0.8, 0.9], dtype=D, requires_grad=True)
    k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    t0 = torch.tensor(0.0, dtype=D, requires_grad=True)

    def states(y0: Tensor, k: Tensor, t0: Tensor, times: Tensor) -> Tensor:
        # With fixed steps the computed solution is a smooth function of everything, step sizes included.
        return solve(ODEProblem(pendulum(k), y0, (t0, 1.0)), "rk4", dt=0.1, saveat=times, backend="compiled").ys

    assert gradcheck(states, (y0, k, t0, times), atol=1e-6)


def test_second_derivatives_are_the_eager_engines() -> None:
    results = []
    for backend in ("compiled", "eager"):
        k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        sol = solve(ODEProblem(pendulum(k), y0, (0.0, 1.0)), saveat=[0.5, 1.0], rtol=1e-8, backend=backend)
        (first,) = torch.autograd.grad(sol.ys.square().sum(), k, create_graph=True)
        results.append([first, *torch.autograd.grad(first.sum(), [k, y0])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_dense_output_and_its_gradient() -> None:
    results = []
    for backend in ("compiled", "eager"):
        k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        t = torch.tensor([1.9, 0.2, 0.7], dtype=D, requires_grad=True)
        sol = solve(ODEProblem(pendulum(k), y0, (0.0, 2.0)), "vern7", rtol=1e-8, backend=backend)
        values = sol(t)
        results.append([values, *torch.autograd.grad(values.square().sum() + sol(0.35)[0], [k, y0, t])])
        with torch.no_grad():
            results[-1].append(sol([0.1, 1.0]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    with pytest.raises(pdf.PyDiffEqFluxError, match="outside the solved span"):
        sol(2.5)


def test_bitwise_the_same_from_run_to_run() -> None:
    def once() -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 33), nn.GELU(), nn.Linear(33, 3))
        y0 = torch.randn(7, 3, requires_grad=True)
        sol = solve(ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0)), rtol=1e-6, backend="compiled")
        return [sol.ys, *torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()])]

    first, second = once(), once()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_is_recorded_without_gradients() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        sol = solve(ODEProblem(lambda t, y: net(y), torch.ones(2), (0.0, 1.0)), backend="compiled")
    assert not sol.ys.requires_grad and sol.stats.sensealg == "none"
    sol = solve(ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0)), backend="compiled")
    assert not sol.ys.requires_grad


def test_parameters_are_read_anew_at_every_solve() -> None:
    net = nn.Linear(2, 2).double()
    problem = ODEProblem(lambda t, y: net(y), torch.ones(2, dtype=D), (0.0, 1.0))
    first = solve(problem, save_everystep=False, backend="compiled").ys[-1]
    with torch.no_grad():
        net.weight.mul_(0.5)
    second = solve(problem, save_everystep=False, backend="compiled").ys[-1]
    torch.testing.assert_close(second, solve(problem, save_everystep=False, backend="torch").ys[-1], **CLOSE)
    assert not torch.allclose(first, second)


# -- failures -------------------------------------------------------------------------------------


def failing(kind: str) -> tuple[Any, dict[str, Any]]:
    if kind == "steps":
        return lambda t, y: torch.cos(50.0 * t) * y, {"max_steps": 7}
    if kind == "blow-up":
        return lambda t, y: y * y, {"max_steps": 10_000}
    if kind == "nan inside":
        return lambda t, y: torch.sqrt(0.5 - t) * y, {}
    if kind == "nan at once":
        return lambda t, y: torch.log(t - 1.0) * y, {}
    assert kind == "overflow"
    return lambda t, y: y * y * y * 50.0, {"method": "euler", "dt": 0.1}


@pytest.mark.parametrize("kind", ["steps", "blow-up", "nan inside", "nan at once", "overflow"])
@pytest.mark.parametrize("saveat", [None, [0.1, 0.2, 1.0]])
def test_failures_are_the_eager_engines(kind: str, saveat: Any) -> None:
    func, options = failing(kind)
    problem = ODEProblem(func, torch.full((2,), 1.7, dtype=D), (0.0, 1.0))
    partial, errors = [], []
    for backend in ("compiled", "eager"):
        options = {"saveat": saveat, "rtol": 1e-6, "atol": 1e-6, **options}
        partial.append(solve(problem, throw=False, backend=backend, **options))
        with pytest.raises(pdf.PyDiffEqFluxError) as caught:
            solve(problem, backend=backend, **options)
        errors.append(caught.value)
    ours, theirs = partial
    assert ours.status is theirs.status and ours.status is not Status.SUCCESS
    assert type(errors[0]) is type(errors[1])
    if kind != "nan inside" or saveat is not None:  # how many steps fit in before the NaN is a matter of rounding
        torch.testing.assert_close(ours.ts, theirs.ts, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-5, atol=1e-9)
    if kind != "blow-up":  # where the last digits of the step decide how far it comes
        assert str(errors[0]) == str(errors[1])


def test_memory_of_checkpoints_grows_as_the_square_root() -> None:
    """Counted, not measured: the states and slopes that are kept."""
    from pydiffeqflux.backends.compiled import forward

    problem = ODEProblem(lambda t, y: torch.cos(t) * y, torch.ones(3, dtype=D, requires_grad=True), (0.0, 1.0))
    kept = []
    seen = forward.Forward.run
    runs: list[Any] = []
    forward.Forward.run = lambda self, y0: (runs.append(self), seen(self, y0))[1]  # type: ignore[method-assign]
    try:
        for steps in (100, 10_000):
            solve(problem, "rk4", dt=1.0 / steps, save_everystep=False, dense=False, backend="compiled",
                  sensealg=DiscreteAdjoint(checkpoints="sqrt"), max_steps=10**6)  # fmt: skip
            points = runs[-1].checkpoints
            kept.append(len(points.shots) + points.spacing)
    finally:
        forward.Forward.run = seen  # type: ignore[method-assign]
    assert math.log(kept[1] / kept[0]) / math.log(100) < 0.55


def test_a_model_first_solved_in_inference_mode_can_be_trained() -> None:
    net = nn.Sequential(nn.Linear(2, 11), nn.Tanh(), nn.Linear(11, 2)).double()
    y = torch.ones(3, 2, dtype=torch.float64)
    node = pdf.NeuralODE(net, (0.0, 1.0), backend="compiled")
    with torch.inference_mode():
        before = node(y)
    node(y).square().sum().backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    pdf.NeuralODE(net, (0.0, 1.0), backend="eager")(y).square().sum().backward()
    assert torch.allclose(before, node(y))
    for got, parameter in zip(found, net.parameters(), strict=True):
        assert parameter.grad.abs().sum() > 0
        assert torch.allclose(got, parameter.grad)
