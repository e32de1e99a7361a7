"""Gradients: every sensealg on every kind of method, against the others and against finite differences."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.common.capture import captured_tensors
from pydiffeqflux.errors import GradientError, UnsupportedError

F64 = torch.float64
CONTINUOUS = ["BacksolveAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "GaussAdjoint", "ForwardSensitivity"]
TIGHT = {
    "BacksolveAdjoint": pdf.BacksolveAdjoint(),
    "InterpolatingAdjoint": pdf.InterpolatingAdjoint(),
    "InterpolatingAdjoint-checkpointing": pdf.InterpolatingAdjoint(checkpointing=True),
    "QuadratureAdjoint": pdf.QuadratureAdjoint(abstol=1e-10, reltol=1e-10),
    "GaussAdjoint": pdf.GaussAdjoint(),
    "GaussAdjoint-checkpointing": pdf.GaussAdjoint(checkpointing=True),
    "ForwardSensitivity": pdf.ForwardSensitivity(),
    "DiscreteAdjoint-sqrt": pdf.DiscreteAdjoint(checkpoints="sqrt"),
    "DiscreteAdjoint-3": pdf.DiscreteAdjoint(checkpoints=3),
}
EXPLICIT = ["tsit5", "dopri5", "dopri8", "bosh3", "heun", "vern7", "vern9"]
STIFF = ["rosenbrock23", "rodas5p", "kencarp4", "kvaerno5", "qndf", "AutoTsit5(Rosenbrock23)"]


class Driven(nn.Module):
    """A small network, driven in time, with a linear part: nothing about it is symmetric."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y) + torch.sin(3 * t) * y.flip(-1)


def gradients(method, sensealg, *, tol, **options):
    """The gradients of one loss in y0, both ends, the save times and the parameters."""
    func = Driven()
    y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=F64, requires_grad=True)
    t0 = torch.tensor(0.1, dtype=F64, requires_grad=True)
    t1 = torch.tensor(1.1, dtype=F64, requires_grad=True)
    ts = torch.tensor([0.1, 0.35, 0.6, 1.1], dtype=F64, requires_grad=True)
    sol = pdf.solve(
        pdf.ODEProblem(func, y0, (t0, t1)), method, saveat=ts, rtol=tol, atol=tol, sensealg=sensealg, **options
    )
    weights = torch.linspace(-1, 1, sol.ys.numel(), dtype=F64).reshape(sol.ys.shape)
    loss = (weights * sol.ys).sum() + sol.ys.square().sum()
    wanted = (y0, t0, t1, ts, *func.parameters())
    return [g.detach() for g in torch.autograd.grad(loss, wanted)]


@pytest.fixture(scope="module")
def reference():
    return gradients("vern9", pdf.DiscreteAdjoint(), tol=1e-12)


def assert_close(got, wanted, rtol, times_rtol=None):
    """Entries 1 to 3 are gradients in times; see the second tolerance's uses."""
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        scale = max(float(w.abs().max()), 1.0)
        limit = times_rtol if times_rtol is not None and i in (1, 2, 3) else rtol
        assert float((g - w).abs().max()) <= limit * scale, f"entry {i}: {g} against {w}"


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("method", ["tsit5", "vern9"])
def test_explicit_methods_agree_with_the_discrete_gradient(method, name, reference):
    assert_close(gradients(method, TIGHT[name], tol=1e-9), reference, 2e-6)


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("method", ["rodas5p", "kvaerno5"])
def test_stiff_methods_agree_with_the_discrete_gradient(method, name, reference):
    # The discrete gradient in a save time is the slope of the interpolant, an order or two below the method's.
    times = 2e-2 if name.startswith("Discrete") else None
    assert_close(gradients(method, TIGHT[name], tol=1e-6), reference, 2e-4, times)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("method", EXPLICIT + STIFF)
def test_every_pair(method, name, reference):
    loose = method in ("heun", "bosh3", "rosenbrock23", "AutoTsit5(Rosenbrock23)", "qndf")
    tol = 1e-6 if loose else 1e-8
    times = 5e-2 if name.startswith("Discrete") else None
    assert_close(gradients(method, TIGHT[name], tol=tol), reference, 1e-2 if loose else 1e-4, times)


@pytest.mark.parametrize("name", ["GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint", "DiscreteAdjoint-sqrt"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_fixed_step_methods(method, name):
    exact = gradients(method, pdf.DiscreteAdjoint(), tol=1e-6, dt=0.005)
    # A continuous adjoint differentiates the equation, not the steps: they differ by the method's error.
    slack = {"euler": 6e-2, "midpoint": 2e-4, "rk4": 1e-6}[method]
    got = gradients(method, TIGHT[name], tol=1e-6, dt=0.005)
    assert_close(got, exact, 1e-10 if name.startswith("Discrete") else slack)


@pytest.mark.parametrize("checkpoints", ["sqrt", 1, 4])
@pytest.mark.parametrize("method", ["tsit5", "vern7", "rosenbrock23", "rodas5p"])
def test_checkpointed_gradient_is_the_discrete_one(method, checkpoints):
    exact = gradients(method, pdf.DiscreteAdjoint(), tol=1e-5)
    assert_close(gradients(method, pdf.DiscreteAdjoint(checkpoints=checkpoints), tol=1e-5), exact, 1e-10)


@pytest.mark.parametrize("sensealg", [None, *CONTINUOUS, pdf.DiscreteAdjoint(checkpoints="sqrt")])
def test_gradcheck(sensealg):
    torch.manual_seed(0)
    raw = torch.randn(2, 2, dtype=F64, requires_grad=True)
    y0 = torch.randn(2, dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.3, 0.7], dtype=F64, requires_grad=True)

    def run(y0, raw, ts):
        matrix = torch.tanh(raw)  # computed outside the right-hand side, which closes over it
        problem = pdf.ODEProblem(lambda t, y: torch.sin(t) + torch.tanh(matrix @ y), y0, (ts[0], ts[-1]))
        sense = pdf.QuadratureAdjoint(abstol=1e-10, reltol=1e-10) if sensealg == "QuadratureAdjoint" else sensealg
        return pdf.solve(problem, "dopri8", saveat=ts, rtol=1e-10, atol=1e-11, sensealg=sense).ys

    assert torch.autograd.gradcheck(run, (y0, raw, ts))


@pytest.mark.parametrize("checkpoints", [None, "sqrt", 2])
def test_double_backward_of_the_discrete_adjoint(checkpoints):
    y0 = torch.tensor([0.6, -0.4], dtype=F64, requires_grad=True)
    w = torch.tensor([[0.1, -0.9], [0.8, -0.2]], dtype=F64, requires_grad=True)
    t1 = torch.tensor(0.8, dtype=F64, requires_grad=True)

    def run(y0, w, t1):
        problem = pdf.ODEProblem(lambda t, y: torch.tanh(w @ y) * torch.cos(t), y0, (0.0, t1))
        sense = pdf.DiscreteAdjoint(checkpoints=checkpoints)
        return pdf.solve(problem, "tsit5", rtol=1e-7, atol=1e-7, sensealg=sense, save_everystep=False).ys

    assert torch.autograd.gradgradcheck(run, (y0, w, t1), atol=1e-4)


@pytest.mark.parametrize("checkpoints", ["sqrt", 2])
def test_double_backward_where_a_captured_tensor_was_made_of_another(checkpoints):
    y0 = torch.tensor([0.6, -0.4], dtype=F64)
    raw = torch.tensor([0.3, 0.5], dtype=F64, requires_grad=True)

    def run(raw):
        made = raw**2
        problem = pdf.ODEProblem(lambda t, y: -made * y * torch.cos(raw * t), y0, (0.0, 1.0))
        sense = pdf.DiscreteAdjoint(checkpoints=checkpoints)
        return pdf.solve(problem, "tsit5", rtol=1e-7, atol=1e-7, sensealg=sense, save_everystep=False).ys

    assert torch.autograd.gradgradcheck(run, (raw,), atol=1e-4)


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, y):
        ctx.save_for_backward(w, y)
        return w * y

    @staticmethod
    def backward(ctx, g):
        w, y = ctx.saved_tensors
        return g * y, g * w


def test_double_backward_of_checkpoints_past_a_function_is_refused():
    raw = torch.tensor([0.3], dtype=F64, requires_grad=True)
    made = raw**2
    problem = pdf.ODEProblem(lambda t, y: -Times.apply(made, y) * raw, torch.ones(1, dtype=F64), (0.0, 1.0))
    sol = pdf.solve(problem, sensealg=pdf.DiscreteAdjoint(checkpoints=2))
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), raw, create_graph=True)
    with pytest.raises(GradientError, match=r"autograd\.Function"):
        torch.autograd.grad(first, raw)


def test_a_third_derivative_through_checkpoints_is_refused():
    y0 = torch.tensor([0.5], dtype=F64, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: y.sin(), y0, (0.0, 1.0)), sensealg=pdf.DiscreteAdjoint(checkpoints=2))
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="without checkpoints"):
        (second,) = torch.autograd.grad(first.sum(), y0, create_graph=True)
        torch.autograd.grad(second.sum(), y0)


@pytest.mark.parametrize("sensealg", CONTINUOUS)
def test_a_second_derivative_of_a_continuous_adjoint_is_refused(sensealg):
    y0 = torch.tensor([0.5], dtype=F64, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: y.sin(), y0, (0.0, 1.0)), sensealg=sensealg)
    (first,) = torch.autograd.grad(sol.ys.square().sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="DiscreteAdjoint"):
        torch.autograd.grad(first, y0)


def test_forward_sensitivity_refuses_what_it_cannot_do():
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, requires_grad=True), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match="events"):
        pdf.solve(problem, event=lambda t, y: y[0] - 0.5, sensealg="forward")


@pytest.mark.parametrize("sensealg", [*CONTINUOUS[:-1], pdf.DiscreteAdjoint(checkpoints="sqrt")])
def test_event_time_and_state(sensealg):
    # y' = -k y crosses 1/2 at log(2 y0) / k; later it goes on from there to time 2 at a state known in closed form.
    k = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.5], dtype=F64, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -k * y, y0, (0.0, 4.0))
    event = pdf.Event(lambda t, y: y[0] - 0.5, terminal=False, affect=lambda t, y: y + 1.0)
    sol = pdf.solve(problem, "dopri8", rtol=1e-9, atol=1e-10, event=event, sensealg=sensealg, saveat=[1.0, 2.0])
    when = torch.log(2 * y0) / k
    after = 1.5 * torch.exp(-k * (2.0 - when))
    torch.testing.assert_close(sol.events[0].ts[:1].reshape(1), when, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(sol.ys[-1], after, rtol=1e-7, atol=1e-9)
    got = torch.autograd.grad(sol.ys[-1].sum() + 2 * sol.events[0].ts[0], (k, y0))
    wanted = torch.autograd.grad(after.sum() + 2 * when.sum(), (k, y0))
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sensealg", [None, "gauss", "interpolating", "backsolve", "quadrature"])
def test_complex_state(sensealg):
    y0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
    w = torch.tensor([[0.2j, 1.0], [-1.0, -0.1]], dtype=torch.complex128, requires_grad=True)

    def run(y0, w):
        problem = pdf.ODEProblem(lambda t, y: w @ y, y0, (0.0, 1.0))
        return pdf.solve(problem, "dopri8", rtol=1e-10, atol=1e-11, sensealg=sensealg, save_everystep=False).ys

    torch.testing.assert_close(run(y0, w)[-1], torch.linalg.matrix_exp(w) @ y0, rtol=1e-8, atol=1e-9)
    assert torch.autograd.gradcheck(run, (y0, w))


@pytest.mark.parametrize("sensealg", [None, "gauss", "interpolating", "backsolve", "forward"])
def test_structured_state(sensealg):
    k = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    x0 = torch.tensor(1.0, dtype=F64, requires_grad=True)

    def func(t, state):
        return {"x": -k[0] * state["x"], "pair": (state["x"] * state["pair"][0] * k[1],)}

    state = {"x": x0, "pair": (torch.ones(3, dtype=F64),)}
    sol = pdf.solve(pdf.ODEProblem(func, state, (0.0, 1.0)), "dopri8", rtol=1e-10, atol=1e-11, sensealg=sensealg)
    last = sol.ys["pair"][0][-1].sum()
    exact = 3 * torch.exp(k[1] * x0 * (1 - torch.exp(-k[0])) / k[0])
    torch.testing.assert_close(last, exact, rtol=1e-8, atol=0)
    for g, w in zip(torch.autograd.grad(last, (k, x0)), torch.autograd.grad(exact, (k, x0)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-8)


def test_backsolve_seminorm_takes_fewer_evaluations_for_the_same_gradient():
    def run(seminorm):
        calls = 0
        net = Driven()

        def counting(t, y):
            nonlocal calls
            calls += 1
            return net(t, y)

        y0 = torch.tensor([[1.0, 0.5]], dtype=F64, requires_grad=True)
        sense = pdf.BacksolveAdjoint(seminorm=seminorm)
        ys = pdf.solve(pdf.ODEProblem(counting, y0, (0.0, 5.0)), rtol=1e-6, atol=1e-9, sensealg=sense, saveat=[5.0]).ys
        forward = calls
        (g,) = torch.autograd.grad(ys.sum(), net.net[0].weight)
        return g, calls - forward

    full, calls = run(False)
    semi, fewer = run(True)
    assert fewer < calls, (fewer, calls)
    torch.testing.assert_close(full, semi, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [64, 1024])
def test_checkpoints_grow_as_the_square_root_of_the_steps(steps):
    from pydiffeqflux.backends.eager.adjoints.checkpointed import Recorder

    class Now:
        t, y, carry, next_save = 0.0, None, None, 0

        class out:
            saved: list = []
            step_states: list = []

    recorder = Recorder(None)
    largest = 0
    for _ in range(steps):
        recorder(Now, 0.1, None)
        largest = max(largest, len(recorder.snapshots))
    assert len(recorder.steps) == steps
    assert [s.step for s in recorder.snapshots] == list(range(0, steps, recorder.spacing))
    assert largest + recorder.spacing <= 4 * steps**0.5


def test_captured_tensors_finds_modules_closures_and_tensors_computed_before():
    module = nn.Linear(2, 2).double()
    unused = nn.Linear(2, 2).double()
    raw = torch.ones(2, dtype=F64, requires_grad=True)
    scale = raw.exp()
    constant = torch.ones(2, dtype=F64)

    def func(t, y):
        if t > 100:  # a branch that the probe does not take
            return unused(y)
        return module(y) * scale + constant

    y = torch.ones(2, dtype=F64, requires_grad=True)
    found = captured_tensors(func, lambda: func(torch.tensor(0.0), y), [y])
    assert {id(x) for x in found} == {id(x) for x in (*module.parameters(), *unused.parameters(), scale)}


def test_parameters_of_a_branch_that_is_taken_later_get_their_gradient():
    early = torch.tensor(0.3, dtype=F64, requires_grad=True)
    late = torch.tensor(0.9, dtype=F64, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: (early if t < 0.5 else late) * y, torch.ones(1, dtype=F64), (0.0, 1.0))
    ys = pdf.solve(problem, rtol=1e-8, atol=1e-8, tstops=[0.5], sensealg="gauss").ys
    got = torch.autograd.grad(ys[-1].sum(), (early, late))
    exact = torch.exp(0.5 * early + 0.5 * late)
    for g, w in zip(got, torch.autograd.grad(exact, (early, late)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_unknown_parameter_use_is_never_silently_zero():
    # A plain list of tensors inside an object that is not a module: found by the probe.
    class Holder:
        def __init__(self):
            self.weights = [torch.tensor(0.5, dtype=F64, requires_grad=True)]

        def __call__(self, t, y):
            return -self.weights[0] * y

    holder = Holder()
    sol = pdf.solve(pdf.ODEProblem(holder, torch.ones(1, dtype=F64), (0.0, 1.0)), sensealg="gauss", rtol=1e-8)
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), holder.weights[0])
    assert abs(float(g) + torch.exp(torch.tensor(-0.5)).item()) < 1e-4


def test_gradient_does_not_outlive_a_parameter_changed_in_place():
    w = torch.tensor(0.5, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -w * y, torch.ones(1), (0.0, 1.0)), sensealg="gauss")
    with torch.no_grad():
        w.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.ys.sum().backward()


PEAK = """
import resource, sys, torch, pydiffeqflux as pdf
torch.set_num_threads(1)
steps = int(sys.argv[1])
w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
y0 = torch.linspace(0, 1, 100_000, dtype=torch.float64)
def run(n):
    problem = pdf.ODEProblem(lambda t, y: torch.sin(w * y), y0, (0.0, 1.0))
    sense = pdf.DiscreteAdjoint(checkpoints="sqrt")
    ys = pdf.solve(problem, "rk4", dt=1.0 / n, sensealg=sense, dense=False, save_everystep=False).ys
    ys.sum().backward()
run(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(steps)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_of_the_checkpointed_adjoint_grows_as_the_square_root():
    def peak(steps):
        out = subprocess.run([sys.executable, "-c", PEAK, str(steps)], capture_output=True, text=True, check=True)
        return float(out.stdout)

    few, many = peak(64), peak(64 * 16)
    # The square root of 16 is 4; keeping every step would be 16.
    assert many < 6 * few, (few, many)


@pytest.mark.parametrize("sensealg", ["gauss", pdf.DiscreteAdjoint("sqrt")])
def test_torch_func_with_an_adjoint_that_cannot_be_transformed_says_what_can(sensealg):
    def loss(y0):
        return pdf.solve(pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), sensealg=sensealg).ys.sum()

    with pytest.raises(UnsupportedError, match=r"DiscreteAdjoint\(\)"):
        torch.func.grad(loss)(torch.ones(2))


COMPILED = [pdf.DiscreteAdjoint(), pdf.GaussAdjoint(), pdf.InterpolatingAdjoint(), pdf.BacksolveAdjoint()]


@pytest.mark.parametrize(
    ("sensealg", "backend"), [*((s, "eager") for s in TIGHT.values()), *((s, "compiled") for s in COMPILED)]
)
def test_a_tensor_that_was_made_of_another_counts_once(sensealg, backend):
    raw = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def loss(raw):
        first = 2 * raw
        second, third = first + 1, first * raw
        problem = pdf.ODEProblem(
            lambda t, y: -first * y + torch.sin(second * y) * third * raw, torch.ones(2, dtype=F64), (0.0, 1.0)
        )
        return pdf.solve(problem, sensealg=sensealg, backend=backend, rtol=1e-9, atol=1e-9, saveat=[1.0]).ys.sum()

    (found,) = torch.autograd.grad(loss(raw), raw)
    with torch.no_grad():
        step = 1e-5
        expected = (loss(raw + step) - loss(raw - step)) / (2 * step)
    assert abs(float(found - expected)) < 1e-6
