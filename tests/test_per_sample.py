"""Per-sample mode: every row steps for itself, and is what it would be alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    ConvergenceError,
    DenseOutputError,
    InvalidTimesError,
    MaxStepsError,
    NonFiniteError,
    ShapeError,
    StepUnderflowError,
    UnsupportedError,
)

D = torch.float64
G = 9.81


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


MU = numbers(0.5, 2.0, 5.0, 25.0)


def van_der_pol(mu: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def f(t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(1)
        return torch.stack([v, mu * (1 - x * x) * v - x], dim=1)

    return f


def batch(func: Any, y0: Any, span: Any, method: str | None = None, **options: Any) -> pdf.Solution:
    return pdf.solve(pdf.ODEProblem(func, y0, span, batched=True), method, per_sample=True, **options)


def ball(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], dim=1)


# -- rows are independent -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "bosh3", "vern7", "dopri8", "rodas5p"])
def test_each_row_is_what_it_would_be_alone(method: str) -> None:
    y0 = torch.stack([torch.full_like(MU, 2.0), torch.linspace(-1.0, 1.0, 4, dtype=D)], dim=1)
    saves = torch.linspace(0.0, 5.0, 11, dtype=D)
    tol = {"rtol": 1e-4, "atol": 1e-6}
    together = batch(van_der_pol(MU), y0, (0.0, 5.0), method, saveat=saves, **tol)
    assert together.status is pdf.Status.SUCCESS
    assert together.statuses == [pdf.Status.SUCCESS] * 4
    assert together.ys.shape == (11, 4, 2)
    assert len(set(together.stats.naccept.tolist())) >= 3, "every row has steps of its own"
    for row in range(4):
        problem = pdf.ODEProblem(van_der_pol(MU[row : row + 1]), y0[row : row + 1], (0.0, 5.0), batched=True)
        alone = pdf.solve(problem, method, saveat=saves, per_sample=True, **tol)
        joint = pdf.solve(problem, method, saveat=saves, **tol)
        assert together.stats.naccept[row] == alone.stats.naccept[0] == joint.stats.naccept
        assert together.stats.nreject[row] == alone.stats.nreject[0] == joint.stats.nreject
        torch.testing.assert_close(together.ys[:, row], alone.ys[:, 0], rtol=1e-12, atol=1e-12)
        # Up to rounding, which the steps feel where an error estimate is all cancellation.
        torch.testing.assert_close(together.ys[:, row], joint.ys[:, 0], rtol=1e-5, atol=1e-6)


def test_joint_mode_needs_more_steps_than_any_row() -> None:
    y0 = numbers(2.0, 0.0).repeat(4, 1)
    problem = pdf.ODEProblem(van_der_pol(MU), y0, (0.0, 10.0), batched=True)
    rows = pdf.solve(problem, per_sample=True, rtol=1e-6, save_everystep=False)
    joint = pdf.solve(problem, rtol=1e-6, save_everystep=False)
    assert isinstance(joint.stats.naccept, int)
    assert int(rows.stats.naccept.max()) < joint.stats.naccept
    assert int(rows.stats.naccept.min()) * 2 < joint.stats.naccept


@pytest.mark.parametrize("method", ["kencarp4", "kvaerno5"])
def test_implicit_methods_step_row_by_row(method: str) -> None:
    """Van der Pol, stiff on some rows: to the tolerance what an explicit method gives at a tight one."""
    mu = numbers(1.0, 30.0)
    y0 = numbers(2.0, 0.0).repeat(2, 1)
    problem = pdf.ODEProblem(van_der_pol(mu), y0, (0.0, 3.0), batched=True)
    sol = pdf.solve(problem, method, per_sample=True, rtol=1e-7, atol=1e-9, save_everystep=False)
    reference = pdf.solve(problem, "vern9", rtol=1e-11, atol=1e-12, save_everystep=False)
    torch.testing.assert_close(sol.ys[-1], reference.ys[-1], rtol=1e-5, atol=1e-5)
    assert sol.stats.naccept[0] != sol.stats.naccept[1]


def test_methods_whose_rows_cannot_part_say_so() -> None:
    for method in ("qndf", "AutoTsit5(Rosenbrock23)"):
        with pytest.raises(UnsupportedError, match="per_sample"):
            batch(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), method)


@pytest.mark.parametrize("controller", [pdf.IController(), pdf.PIController(), pdf.PIDController(0.2, 0.3, 0.05)])
def test_controllers_have_the_joint_mode_s_arithmetic(controller: pdf.PIDController) -> None:
    y0 = numbers(2.0, 0.0).reshape(1, 2)
    problem = pdf.ODEProblem(van_der_pol(MU[2:3]), y0, (0.0, 10.0), batched=True)
    rows = pdf.solve(problem, per_sample=True, controller=controller, rtol=1e-5)
    joint = pdf.solve(problem, controller=controller, rtol=1e-5)
    assert joint.stats.nreject, "a controller is told apart by what it does after rejections, too"
    torch.testing.assert_close(rows.ts[:, 0], joint.ts, rtol=1e-8, atol=1e-8)


# -- what is returned ---------------------------------------------------------------------------


def test_every_step_of_every_row_without_saveat() -> None:
    sol = batch(lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 2.0), rtol=1e-6)
    longest = int(sol.stats.naccept.max())
    assert sol.ts.shape == (longest + 1, 4)
    assert sol.ys.shape == (longest + 1, 4, 1)
    torch.testing.assert_close(sol.ys[..., 0], (-MU * sol.ts).exp(), rtol=1e-4, atol=1e-5)
    for row, count in enumerate(sol.stats.naccept.tolist()):
        assert bool((sol.ts[: count + 1, row].diff() > 0).all())
        assert bool((sol.ts[count:, row] == 2.0).all()), "a row that took fewer steps repeats its end"


def test_end_only() -> None:
    sol = batch(lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 2.0), rtol=1e-6, save_everystep=False)
    assert sol.ts.tolist() == [[2.0] * 4]
    assert sol.ys.shape == (1, 4, 1)
    torch.testing.assert_close(sol.ys[0, :, 0], (-2 * MU).exp(), rtol=1e-4, atol=1e-6)


def test_saves_at_both_ends_and_between() -> None:
    saves = numbers(0.0, 0.3, 0.30001, 1.7, 2.0)
    y0 = torch.ones(4, 1, dtype=D)
    sol = batch(lambda t, y: -MU[:, None] * y, y0, (0.0, 2.0), saveat=saves, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sol.ys[..., 0], (-saves[:, None] * MU).exp(), rtol=1e-6, atol=1e-8)
    assert torch.equal(sol.ys[0], y0)


def test_time_has_one_entry_a_row() -> None:
    seen: set[tuple[int, ...]] = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(tuple(t.shape))
        return torch.cos(t).expand_as(y)

    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((3,), (3,)), ((3, 2), (3, 1)), ((3, 2, 4), (3, 1, 1))]
    for shape, expected in shapes:
        seen.clear()
        sol = batch(f, torch.zeros(shape, dtype=D), (0.0, 1.0), rtol=1e-8, atol=1e-10, save_everystep=False)
        assert seen == {expected}
        torch.testing.assert_close(sol.ys[-1], torch.full(shape, math.sin(1.0), dtype=D), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_dense_output_per_row(span: tuple[float, float]) -> None:
    y0 = torch.stack([(-MU * span[0]).exp(), (MU * span[0]).cos()], dim=1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-MU * y[:, 0], -MU * (MU * t[:, 0]).sin()], dim=1)

    sol = batch(f, y0, span, "vern7", rtol=1e-9, atol=1e-11, save_everystep=False)
    times = torch.rand(40, dtype=D) * 2
    exact = torch.stack([(-times[:, None] * MU).exp(), (times[:, None] * MU).cos()], dim=2)
    # Backwards the decaying component grows, with the errors.
    torch.testing.assert_close(sol(times), exact, rtol=1e-4, atol=1e-6)
    assert sol(0.5).shape == (4, 2)
    assert sol([0.5, 0.75]).shape == (2, 4, 2)
    torch.testing.assert_close(sol(span[1]), sol.ys[-1])
    with pytest.raises(DenseOutputError, match=r"2\.5"):
        sol(2.5)
    with pytest.raises(InvalidTimesError, match="1-D"):
        sol(times.reshape(2, 20))


def test_dense_output_is_differentiable_in_time_and_state() -> None:
    rate = numbers(0.3, 1.0, 2.0)

    def at(y0: Tensor, times: Tensor) -> Any:
        sol = batch(lambda t, y: -rate[:, None] * y, y0, (0.0, 1.5), rtol=1e-8, atol=1e-10, save_everystep=False)
        return sol(times)

    y0 = torch.rand(3, 2, dtype=D, requires_grad=True)
    times = numbers(0.1, 0.9, 1.4).requires_grad_()
    assert torch.autograd.gradcheck(at, (y0, times))


def test_dense_output_can_be_left_out() -> None:
    sol = batch(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), dense=False)
    with pytest.raises(DenseOutputError, match="dense=True"):
        sol(0.5)


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_float32(method: str) -> None:
    mu = MU.float()
    sol = batch(lambda t, y: -mu[:, None] * y, torch.ones(4, 1), (0.0, 2.0), method, rtol=1e-5, saveat=0.25)
    assert sol.ys.dtype == torch.float32
    exact = (-sol.ts[:, None] * MU).exp()
    torch.testing.assert_close(sol.ys[..., 0].double(), exact, rtol=1e-3, atol=2e-5)


def test_float32_steps_do_not_lead_beyond_the_end() -> None:
    """The model is undefined after t = 1 (and, backwards, before 0): rounding must not take it there."""
    seen: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.detach())
        return torch.ones_like(y) * torch.linspace(0.3, 3.0, 7)[:, None]

    for span in [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7), (-0.3, -0.1)]:
        seen.clear()
        batch(f, torch.ones(7, 1), span, rtol=1e-6)
        low, high = sorted(torch.tensor(span).tolist())
        every = torch.cat(seen)
        assert low <= float(every.min())
        assert float(every.max()) <= high


def test_complex_states() -> None:
    omega = numbers(1.0, 4.0, 9.0)
    y0 = torch.ones(3, 1, dtype=torch.complex128)
    sol = batch(lambda t, y: 1j * omega[:, None] * y, y0, (0.0, 1.0), rtol=1e-9, atol=1e-11, saveat=0.5)
    torch.testing.assert_close(sol.ys[..., 0], torch.exp(1j * sol.ts[:, None] * omega), rtol=1e-7, atol=1e-7)
    assert len(set(sol.stats.naccept.tolist())) == 3


def test_structured_states() -> None:
    rate = numbers(1.0, 3.0)

    def f(t: Tensor, y: Any) -> Any:
        assert t.shape == (2, 1)
        a, rest = y
        return (-rate[:, None] * a, {"b": t * torch.ones_like(rest["b"])})

    y0 = (torch.ones(2, 3, dtype=D), {"b": torch.zeros(2, 1, dtype=D)})
    hit = pdf.Event(lambda t, y: y[0][:, 0] - 0.5, terminal=False)
    sol = batch(f, y0, (0.0, 2.0), saveat=[1.0, 2.0], rtol=1e-8, atol=1e-10, event=hit)
    a, rest = sol.ys
    assert a.shape == (2, 2, 3)
    torch.testing.assert_close(a[1], (-2 * rate).exp()[:, None].expand(2, 3), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(rest["b"], numbers(0.5, 2.0).reshape(2, 1, 1).expand(2, 2, 1))
    first, inner = sol.events[0].ys[1]
    assert first.shape == (1, 3)
    assert inner["b"].shape == (1, 1)
    torch.testing.assert_close(sol.events[0].ts[1], numbers(math.log(2) / 3), rtol=1e-5, atol=1e-6)


def test_the_two_ranks_of_a_mixed_structure() -> None:
    """Leaves of different rank get t as (B, 1)."""
    shapes = []

    def f(t: Tensor, y: Any) -> Any:
        shapes.append(tuple(t.shape))
        return (-y[0], -y[1])

    batch(f, (torch.ones(2), torch.ones(2, 3, 4)), (0.0, 1.0), save_everystep=False)
    assert set(shapes) == {(2, 1)}


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_fixed_steps(method: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: -MU[:3, None] * y, torch.ones(3, 2, dtype=D), (0.0, 1.0), batched=True)
    for options in ({"dt": 0.125}, {"dt": 0.3}, {"saveat": [0.0, 0.2, 0.7, 1.0]}, {"dt": 0.15, "saveat": [0.2, 1.0]}):
        rows = pdf.solve(problem, method, per_sample=True, save_everystep=False, **options)
        joint = pdf.solve(problem, method, save_everystep=False, **options)
        torch.testing.assert_close(rows.ys, joint.ys, rtol=1e-13, atol=1e-13)
        assert rows.stats.naccept.tolist() == [joint.stats.naccept] * 3


def test_stops_are_met_by_every_row() -> None:
    """A short pulse that every row's steps would jump over."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where((t >= 0.77) & (t < 0.771), 1000.0, 0.0) * MU[:, None] * torch.ones_like(y)

    y0 = torch.zeros(4, 1, dtype=D)
    sol = batch(f, y0, (0.0, 2.0), tstops=[0.77, 0.771], rtol=1e-8, atol=1e-8, saveat=[0.77, 0.771, 2.0])
    torch.testing.assert_close(sol.ys[..., 0], numbers(0.0, 1.0, 1.0)[:, None] * MU, rtol=1e-6, atol=1e-6)
    # Each side of a jump is seen as it is: the steps that end there are as good as any.
    assert sol.stats.nreject.tolist() == [0, 0, 0, 0]
    assert float(batch(f, y0, (0.0, 2.0), saveat=[2.0]).ys.abs().max()) == 0.0


def test_step_bounds() -> None:
    sol = batch(lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 1.0), dt_max=0.05)
    assert float(sol.ts.diff(dim=0).max()) <= 0.05 * (1 + 1e-9)
    assert int(sol.stats.naccept.min()) >= 20
    rough = batch(
        lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 1.0), dt_min=0.02, rtol=1e-13, atol=1e-15
    )
    assert int(rough.stats.naccept.max()) <= 51


def test_first_step() -> None:
    sol = batch(lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 1.0), dt=1e-3)
    assert sol.ts[1].tolist() == [1e-3] * 4


def test_tolerances_of_each_row() -> None:
    atol = numbers(1e-3, 1e-9).reshape(2, 1)
    rate = numbers(3.0, 3.0)
    sol = batch(lambda t, y: -rate[:, None] * y, torch.ones(2, 1, dtype=D), (0.0, 1.0), rtol=0.0, atol=atol)
    error = (sol.ys[-1, :, 0] - math.exp(-3.0)).abs()
    assert error[0] < 1e-2
    assert error[1] < 1e-7 < error[0]
    assert sol.stats.naccept[0] < sol.stats.naccept[1]


def test_a_norm_gives_one_number_a_row() -> None:
    problem = pdf.ODEProblem(lambda t, y: -MU[:, None] * y, torch.ones(4, 2, dtype=D), (0.0, 1.0), batched=True)
    largest = pdf.solve(problem, per_sample=True, norm=lambda x: x.abs().amax(1), save_everystep=False)
    torch.testing.assert_close(largest.ys[-1], (-MU).exp()[:, None].expand(4, 2), rtol=1e-2, atol=1e-4)
    with pytest.raises(ShapeError, match="one number a row"):
        pdf.solve(problem, per_sample=True, norm=lambda x: x.abs().amax())


def test_a_progress_bar_runs_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    batch(lambda t, y: -MU[:, None] * y, torch.ones(4, 1, dtype=D), (0.0, 1.0), progress=True)
    assert "100.0%" in capsys.readouterr().err


def test_needs_a_batched_problem_and_autograd() -> None:
    with pytest.raises(UnsupportedError, match="batched=True"):
        pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0)), per_sample=True)
    for sensealg in ("GaussAdjoint", "BacksolveAdjoint", pdf.DiscreteAdjoint(checkpoints="sqrt")):
        with pytest.raises(UnsupportedError, match=r"DiscreteAdjoint\(\) without checkpoints"):
            batch(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), sensealg=sensealg)


def test_as_a_layer() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(D)
    node = pdf.NeuralODE(net, (0.0, 1.0), batched=True, per_sample=True, rtol=1e-7, atol=1e-9)
    joint = pdf.NeuralODE(net, (0.0, 1.0), rtol=1e-9, atol=1e-11)
    y0 = torch.randn(5, 2, dtype=D)
    grads = []
    for layer in (node, joint):
        net.zero_grad()
        out = layer(y0)
        assert out.shape == y0.shape
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == 4
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "vern7", "rodas5p", "kencarp4"])
def test_gradcheck_in_everything(method: str) -> None:
    weights = torch.randn(2, 2, dtype=D, requires_grad=True)
    y0 = torch.randn(3, 2, dtype=D, requires_grad=True)
    rate = numbers(0.5, 1.0, 2.0)
    t0, t1 = numbers(0.1)[0].requires_grad_(), numbers(0.9)[0].requires_grad_()
    saves = numbers(0.2, 0.45, 0.8).requires_grad_()

    def at_saves(y0: Tensor, weights: Tensor, t0: Tensor, t1: Tensor, saves: Tensor) -> Any:
        def f(t: Tensor, y: Tensor) -> Tensor:
            return rate[:, None] * (t.sin() + torch.tanh(y @ weights))

        return batch(f, y0, (t0, t1), method, saveat=saves, rtol=1e-7, atol=1e-9).ys

    # Step sizes are constants of the gradient; tight tolerances keep what that leaves out small.
    check = functools.partial(torch.autograd.gradcheck, atol=1e-4, rtol=1e-3, fast_mode=method != "tsit5")
    assert check(at_saves, (y0, weights, t0, t1, saves))

    def tied(saves: Tensor) -> Any:
        return at_saves(y0.detach(), weights.detach(), saves[0], saves[-1], saves)

    assert check(tied, (saves,))

    def at_end(y0: Tensor, t1: Tensor) -> Any:
        f = lambda t, y: rate[:, None] * (t.sin() + torch.tanh(y @ weights.detach()))  # noqa: E731
        return batch(f, y0, (0.9, t1 - 0.9), method, rtol=1e-7, atol=1e-9, save_everystep=False).ys

    assert check(at_end, (y0, t1))


def test_second_derivatives() -> None:
    rate = numbers(0.5, 2.0)

    def f(y0: Tensor, a: Tensor) -> Any:
        rhs = lambda t, y: rate[:, None] * torch.tanh(y * a)  # noqa: E731
        return batch(rhs, y0, (0.0, 0.5), saveat=[0.2, 0.5], rtol=1e-7, atol=1e-9).ys

    y0 = torch.rand(2, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradgradcheck(f, (y0, numbers(1.3).requires_grad_()), atol=1e-4, rtol=1e-3)


def test_gradients_agree_with_joint_mode() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 10), torch.nn.Tanh(), torch.nn.Linear(10, 2)).to(D)
    y0 = torch.randn(6, 2, dtype=D, requires_grad=True)
    saves = torch.linspace(0.0, 3.0, 30, dtype=D)
    found = []
    for per_sample in (True, False):
        problem = pdf.ODEProblem(lambda t, y: MU.repeat(2)[:6, None].sqrt() * net(y), y0, (0.0, 3.0), batched=True)
        sol = pdf.solve(problem, "vern7", saveat=saves, per_sample=per_sample, rtol=1e-10, atol=1e-12)
        assert sol.stats.sensealg == "DiscreteAdjoint"
        found.append(torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()]))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


def test_gradient_of_every_step() -> None:
    y0 = torch.rand(3, 1, dtype=D, requires_grad=True)
    rate = numbers(0.3, 1.0, 4.0)
    sol = batch(lambda t, y: -rate[:, None] * y, y0, (0.0, 1.0), rtol=1e-6)
    (grad,) = torch.autograd.grad(sol.ys.sum(), y0)
    torch.testing.assert_close(grad[:, 0], (-rate * sol.ts).exp().sum(0), rtol=1e-4, atol=1e-4)


def test_an_attempt_out_of_the_domain_of_one_row_leaves_no_nan() -> None:
    """The square root gives NaN beyond zero: rejected there, it must not reach anybody's gradient."""
    rate = numbers(1.0, 2.0).requires_grad_()
    y0 = numbers(1.0, 100.0).reshape(2, 1).requires_grad_()
    sol = batch(lambda t, y: -rate[:, None] * y.sqrt(), y0, (0.0, 1.9), dt=1.9, rtol=1e-9, atol=1e-11)
    assert sol.success
    assert int(sol.stats.nreject[0]) > 0
    grads = torch.autograd.grad(sol.ys[-1].sum(), [rate, y0])
    # y(t) = (sqrt(y0) - rate t / 2)^2
    root = y0.detach()[:, 0].sqrt() - rate.detach() * 0.95
    torch.testing.assert_close(sol.ys[-1, :, 0], root**2, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grads[0], -1.9 * root, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads[1][:, 0], root / y0.detach()[:, 0].sqrt(), rtol=1e-4, atol=1e-6)


# -- failures of single rows --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "vern7", "rodas5p", "kencarp4"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_row_that_becomes_nan_leaves_the_others_right(method: str, grad: bool) -> None:
    rate = numbers(1.0, 2.0, 3.0).requires_grad_(grad)
    limit = numbers(9.0, 0.5, 9.0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -rate[:, None] * y * torch.where(t < limit[:, None], 1.0, torch.nan)

    y0 = torch.ones(3, 2, dtype=D)
    saves = [0.25, 0.75, 1.0]
    sol = batch(f, y0, (0.0, 1.0), method, saveat=saves, rtol=1e-7, atol=1e-9, throw=False)
    assert sol.statuses is not None
    assert sol.statuses[0::2] == [pdf.Status.SUCCESS] * 2
    why = pdf.Status.NOT_CONVERGED if method == "kencarp4" else pdf.Status.NON_FINITE
    assert sol.status is sol.statuses[1] is why
    exact = (-numbers(*saves)[:, None] * rate.detach()).exp()
    torch.testing.assert_close(sol.ys[:, 0::2, 0], exact[:, 0::2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sol.ys[0, 1, 0], exact[0, 1], rtol=1e-5, atol=1e-7)
    assert bool(sol.ys[1:, 1].isnan().all())
    assert bool(sol(0.75)[1].isnan().all())
    torch.testing.assert_close(sol(0.75)[0, 0], exact[1, 0], rtol=1e-5, atol=1e-7)
    if grad:
        (found,) = torch.autograd.grad(sol.ys[-1, 0::2].sum(), rate)
        torch.testing.assert_close(found[0::2], -2 * exact[-1, 0::2], rtol=1e-4, atol=1e-6)
        assert found[1] == 0


@pytest.mark.parametrize("method", ["tsit5", "euler", "rosenbrock23"])
def test_a_row_undefined_at_its_start(method: str) -> None:
    scale = numbers(1.3).requires_grad_()
    y0 = numbers(-1.0, 4.0).reshape(2, 1)
    options: dict[str, Any] = {"dt": 0.01} if method == "euler" else {"rtol": 1e-6}
    f = lambda t, y: -scale * y.sqrt()  # noqa: E731
    sol = batch(f, y0, (0.0, 1.0), method, throw=False, save_everystep=False, **options)
    assert sol.statuses == [pdf.Status.NON_FINITE, pdf.Status.SUCCESS]
    assert sol.ys[-1, 0, 0] == -1.0
    (found,) = torch.autograd.grad(sol.ys[-1, 1].sum(), scale)
    torch.testing.assert_close(found, -(2 - 0.65) * torch.ones(1, dtype=D), rtol=1e-2, atol=1e-3)
    with pytest.raises(NonFiniteError, match=r"1 of 2 rows failed \(0\).*t=0"):
        batch(f, y0, (0.0, 1.0), method, **options)


def test_all_rows_undefined() -> None:
    sol = batch(lambda t, y: y.log(), -torch.ones(2, 1), (0.0, 1.0), throw=False, saveat=[0.0, 0.5])
    assert sol.statuses == [pdf.Status.NON_FINITE] * 2
    assert bool((sol.ys[0] == -1).all()), "the start is known all the same"
    assert bool(sol.ys[1].isnan().all())


def test_fixed_steps_stop_before_nan() -> None:
    limit = numbers(9.0, 0.5).reshape(2, 1)
    f = lambda t, y: torch.where(t < limit, 1.0, torch.nan) * torch.ones_like(y)  # noqa: E731
    sol = batch(f, torch.zeros(2, 1, dtype=D), (0.0, 1.0), "euler", dt=0.25, throw=False, save_everystep=False)
    assert sol.statuses == [pdf.Status.SUCCESS, pdf.Status.NON_FINITE]
    assert sol.ys[-1, :, 0].tolist() == [1.0, 0.5]
    assert sol.ts[-1].tolist() == [1.0, 0.5]


def test_a_row_that_blows_up_underflows_alone() -> None:
    sol = batch(lambda t, y: y * y, numbers(0.5, 2.0).reshape(2, 1), (0.0, 1.0), throw=False, saveat=[0.4, 1.0])
    assert sol.statuses is not None
    assert sol.statuses[0] is pdf.Status.SUCCESS
    assert sol.statuses[1] in (pdf.Status.STEP_UNDERFLOW, pdf.Status.NON_FINITE)
    torch.testing.assert_close(sol.ys[:, 0, 0], 1 / (2 - sol.ts), rtol=1e-2, atol=1e-3)
    with pytest.raises((StepUnderflowError, NonFiniteError), match="row 1"):
        batch(lambda t, y: y * y, numbers(0.5, 2.0).reshape(2, 1), (0.0, 1.0))


def test_max_steps_of_each_row() -> None:
    y0 = numbers(2.0, 0.0).repeat(2, 1)
    mu = numbers(0.1, 25.0)
    problem = pdf.ODEProblem(van_der_pol(mu), y0, (0.0, 10.0), batched=True)
    full = pdf.solve(problem, per_sample=True, saveat=2.5)
    needed = (full.stats.naccept + full.stats.nreject).tolist()
    assert needed[0] < 100 < needed[1]
    short = pdf.solve(problem, per_sample=True, saveat=2.5, max_steps=100, throw=False)
    assert short.statuses == [pdf.Status.SUCCESS, pdf.Status.MAX_STEPS]
    assert short.status is pdf.Status.MAX_STEPS
    assert short.stats.naccept[1] + short.stats.nreject[1] == 100
    assert torch.equal(short.ys[:, 0], full.ys[:, 0])
    known = ~short.ys[:, 1, 0].isnan()
    assert 0 < int(known.sum()) < 5
    assert torch.equal(short.ys[known, 1], full.ys[known, 1])
    with pytest.raises(MaxStepsError, match=r"1 of 2 rows failed \(1\); row 1: max_steps=100"):
        pdf.solve(problem, per_sample=True, max_steps=100)
    assert pdf.solve(problem, per_sample=True, max_steps=needed[1]).success


def test_an_unsolvable_stage_ends_its_row_only() -> None:
    """dy/dt that no implicit step can follow on one row: it flips at every evaluation."""
    calls = [0]

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        wild = 1e8 * (-1.0) ** calls[0] * torch.sign(y.detach() + 2.0)
        return torch.where(numbers(0.0, 1.0)[:, None] > 0, wild, -y)

    problem = pdf.ODEProblem(f, torch.ones(2, 1, dtype=D), (0.0, 1.0), batched=True)
    options: dict[str, Any] = {"per_sample": True, "save_everystep": False, "max_steps": 30}
    with torch.no_grad():
        sol = pdf.solve(problem, "kencarp4", throw=False, **options)
        assert sol.statuses is not None
        assert sol.statuses[0] is pdf.Status.SUCCESS
        assert not sol.statuses[1].ok
        assert float(sol.ys[-1, 0]) == pytest.approx(math.exp(-1.0), rel=1e-3)
        with pytest.raises((ConvergenceError, StepUnderflowError, MaxStepsError), match="row 1"):
            pdf.solve(problem, "kencarp4", **options)


# -- events -------------------------------------------------------------------------------------

HEIGHTS = (1.0, 5.0, 20.0)


def falling(heights: Tensor, span: tuple[float, float] = (0.0, 10.0), **options: Any) -> pdf.Solution:
    y0 = torch.stack([heights, torch.zeros_like(heights)], dim=1)
    ground = pdf.Event(lambda t, y: y[:, 0], direction=-1)
    return batch(ball, y0, span, event=ground, rtol=1e-9, atol=1e-9, **options)


def test_terminal_events_end_each_row_at_its_own_time() -> None:
    heights = numbers(*HEIGHTS, 1e4)
    sol = falling(heights, saveat=numbers(0.0, 0.2, 1.0, 10.0))
    exact = (2 * heights / G).sqrt()
    assert sol.statuses == [pdf.Status.EVENT] * 3 + [pdf.Status.SUCCESS]
    assert sol.status is pdf.Status.EVENT
    assert sol.success
    for row in range(3):
        torch.testing.assert_close(sol.events[0].ts[row], exact[row : row + 1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sol.events[0].ys[row][0], torch.stack([0 * exact[row], -G * exact[row]]))
        # After its end a row keeps the state that it ended with.
        torch.testing.assert_close(sol.ys[3, row], sol.events[0].ys[row][0])
        torch.testing.assert_close(sol(9.0)[row], sol.events[0].ys[row][0])
    assert sol.events[0].ts[3].shape == (0,)
    assert sol.events[0].ys[3].shape == (0, 2)
    torch.testing.assert_close(sol.ys[1, :, 0], heights - G * 0.02)
    ends = falling(heights, save_everystep=False)
    torch.testing.assert_close(ends.ts[0, :3], exact[:3])


def test_gradients_of_event_times_and_states() -> None:
    heights = numbers(*HEIGHTS).requires_grad_()
    sol = falling(heights)
    times = torch.cat(sol.events[0].ts)
    (grad,) = torch.autograd.grad(times.sum(), heights, retain_graph=True)
    torch.testing.assert_close(grad, 1 / (2 * G * heights.detach()).sqrt(), rtol=1e-6, atol=1e-8)
    speeds = torch.stack([y[0, 1] for y in sol.events[0].ys])
    (grad,) = torch.autograd.grad(speeds.sum(), heights)
    torch.testing.assert_close(grad, -(G / (2 * heights.detach())).sqrt(), rtol=1e-6, atol=1e-8)


def test_event_times_have_second_derivatives() -> None:
    heights = numbers(*HEIGHTS).requires_grad_()
    times = torch.cat(falling(heights).events[0].ts)
    (grad,) = torch.autograd.grad(times.sum(), heights, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), heights)
    torch.testing.assert_close(second, -0.5 / (2 * G * heights.detach() ** 3).sqrt(), rtol=1e-5, atol=1e-8)


def test_event_parameters_and_spans_get_their_gradients() -> None:
    level = numbers(0.5, 0.25).requires_grad_()
    rate = numbers(1.0, 3.0).requires_grad_()
    t0 = torch.tensor(0.3, dtype=D, requires_grad=True)

    def time(level: Tensor, rate: Tensor, t0: Tensor) -> Any:
        event = pdf.Event(lambda t, y: y[:, 0] - level)
        y0 = torch.ones(2, 1, dtype=D)
        sol = batch(lambda t, y: -rate[:, None] * y, y0, (t0, 9.0), event=event, rtol=1e-9, atol=1e-11)
        return torch.cat(sol.events[0].ts)

    torch.testing.assert_close(time(level, rate, t0), t0 - level.log() / rate, rtol=1e-7, atol=1e-8)
    assert torch.autograd.gradcheck(time, (level, rate, t0), atol=1e-5, rtol=1e-4)


def bounce_times(height: Tensor, restitution: Tensor, count: int) -> Tensor:
    first = (2 * height / G).sqrt()
    later = [2 * first * restitution**k for k in range(1, count)]
    return torch.stack([first, *later]).cumsum(0)


def dragged(t: Tensor, y: Tensor) -> Tensor:
    return ball(t, y) - 0.3 * torch.stack([0 * y[:, 1], y[:, 1] * y[:, 1].abs()], dim=1)


def bouncing(heights: Tensor, restitution: Tensor, f: Any = ball, **options: Any) -> pdf.Solution:
    y0 = torch.stack([heights, torch.zeros_like(heights)], dim=1)
    bounce = pdf.Event(
        lambda t, y: y[:, 0],
        terminal=False,
        direction=-1,
        affect=lambda t, y: torch.stack([0 * y[:, 0], -restitution * y[:, 1]], dim=1),
    )
    return batch(f, y0, (0.0, 2.0), event=bounce, rtol=1e-9, atol=1e-9, **options)


def test_rows_bounce_for_themselves() -> None:
    heights, restitution = numbers(0.5, 1.0, 5.0), numbers(0.8, 0.9, 0.7)
    sol = bouncing(heights, restitution, saveat=numbers(0.1, 1.9, 2.0))
    assert sol.status is pdf.Status.SUCCESS
    counts = [len(ts) for ts in sol.events[0].ts]
    assert counts[0] > counts[1] > counts[2] > 0
    for row in range(3):
        every = bounce_times(heights[row], restitution[row], 12)
        exact = every[every < 2.0]
        torch.testing.assert_close(sol.events[0].ts[row], exact, rtol=1e-8, atol=1e-8)
        # Speed at a bounce is recorded before it.
        speeds = -(2 * G * heights[row]).sqrt() * restitution[row] ** torch.arange(len(exact), dtype=D)
        torch.testing.assert_close(sol.events[0].ys[row][:, 1], speeds, rtol=1e-7, atol=1e-8)
        since, up = 2.0 - exact[-1], -speeds[-1] * restitution[row]
        end = torch.stack([up * since - 0.5 * G * since**2, up - G * since])
        torch.testing.assert_close(sol.ys[-1, row], end, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(sol(2.0)[row], end, rtol=1e-7, atol=1e-7)


def test_bouncing_rows_are_what_they_would_be_alone() -> None:
    heights, restitution = numbers(0.5, 1.0, 5.0), numbers(0.8, 0.9, 0.7)
    together = bouncing(heights, restitution, dragged)
    for row in range(3):
        pick = slice(row, row + 1)
        alone = bouncing(heights[pick], restitution[pick], dragged)
        assert together.stats.naccept[row] == alone.stats.naccept[0]
        torch.testing.assert_close(together.events[0].ts[row], alone.events[0].ts[0], rtol=1e-10, atol=1e-10)
        own = together.stats.naccept[row] + 1
        torch.testing.assert_close(together.ts[:own, row], alone.ts[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.ys[own - 1, row], alone.ys[-1, 0], rtol=1e-9, atol=1e-9)


def test_gradient_through_bounces() -> None:
    heights = numbers(0.5, 1.0, 5.0).requires_grad_()
    restitution = numbers(0.8, 0.9, 0.7).requires_grad_()
    sol = bouncing(heights, restitution, save_everystep=False)
    found = torch.autograd.grad(sol.ys[-1, :, 0].sum(), [heights, restitution])

    ends = []
    for row in range(3):
        count = len(sol.events[0].ts[row])
        since = 2.0 - bounce_times(heights[row], restitution[row], count)[-1]
        up = (2 * G * heights[row]).sqrt() * restitution[row] ** count
        ends.append(up * since - 0.5 * G * since**2)
    exact = torch.autograd.grad(torch.stack(ends).sum(), [heights, restitution])
    for mine, reference in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_recorded_crossings_may_be_many_in_one_step() -> None:
    """Euler's one step over several zeros of a condition in t: all are found between the probes."""
    omega = numbers(1.0, 2.0)
    event = pdf.Event(lambda t, y: torch.cos(math.pi * omega * t[:, 0]), terminal=False, interp_points=40)
    sol = batch(lambda t, y: torch.ones_like(y), torch.zeros(2, 1, dtype=D), (0.0, 3.0), "euler", dt=3.0, event=event)
    torch.testing.assert_close(sol.events[0].ts[0], numbers(0.5, 1.5, 2.5))
    torch.testing.assert_close(sol.events[0].ts[1], numbers(0.25, 0.75, 1.25, 1.75, 2.25, 2.75))
    torch.testing.assert_close(sol.events[0].ys[1][:, 0], sol.events[0].ts[1])
    upward = pdf.Event(event.condition, terminal=False, interp_points=40, direction=1)
    sol = batch(lambda t, y: torch.ones_like(y), torch.zeros(2, 1, dtype=D), (0.0, 3.0), "euler", dt=3.0, event=upward)
    torch.testing.assert_close(sol.events[0].ts[0], numbers(1.5))


def test_several_events_in_one_step_of_different_rows() -> None:
    """One row stops first, another is recorded first; what lies behind a stop does not happen."""
    speed = numbers(1.0, 1.0, -1.0)[:, None]
    record = pdf.Event(lambda t, y: y[:, 0] - numbers(0.3, 0.8, 9.0), terminal=False)
    stop = pdf.Event(lambda t, y: y[:, 0].abs() - 0.5)
    sol = batch(
        lambda t, y: speed * torch.ones_like(y), torch.zeros(3, 1, dtype=D), (0.0, 1.0), event=[record, stop], dt=1.0
    )
    assert [len(ts) for ts in sol.events[0].ts] == [1, 0, 0]
    torch.testing.assert_close(torch.cat(sol.events[1].ts), numbers(0.5, 0.5, 0.5))
    torch.testing.assert_close(sol.events[0].ts[0], numbers(0.3))


def test_reversed_time_and_events() -> None:
    heights = numbers(1.0, 5.0)
    y0 = torch.stack([heights, torch.zeros_like(heights)], dim=1)
    event = pdf.Event(lambda t, y: y[:, 0])
    sol = batch(ball, y0, (0.0, -3.0), event=event, rtol=1e-9, atol=1e-9, saveat=[-0.1, -3.0])
    torch.testing.assert_close(torch.cat(sol.events[0].ts), -(2 * heights / G).sqrt())
    torch.testing.assert_close(sol.ys[0, :, 1], numbers(G * 0.1, G * 0.1))


def test_an_event_at_the_very_start_is_not_one() -> None:
    """Thrown up from the ground, a ball's condition is zero at once; only the landing counts."""
    speeds = numbers(3.0, 6.0)
    y0 = torch.stack([torch.zeros_like(speeds), speeds], dim=1)
    sol = batch(ball, y0, (0.0, 9.0), event=pdf.Event(lambda t, y: y[:, 0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat(sol.events[0].ts), 2 * speeds / G)


def test_conditions_and_affects_of_the_wrong_shape() -> None:
    y0 = torch.ones(3, 2, dtype=D)
    for bad in (lambda t, y: y[0, 0], lambda t, y: y, lambda t, y: 1.0):
        with pytest.raises(ShapeError, match="one real number a row"):
            batch(ball, y0, (0.0, 1.0), event=bad)
    wrong = pdf.Event(lambda t, y: y[:, 0] - 0.5, terminal=False, affect=lambda t, y: y[:1])
    with pytest.raises(ShapeError, match=r"whole new state, of shape \(3, 2\)"):
        batch(ball, y0, (0.0, 1.0), event=wrong)


def test_a_condition_that_becomes_nan_says_so() -> None:
    y0 = numbers(1.0, 5.0).reshape(2, 1)
    for direction in (-1, 0, 1):
        event = pdf.Event(lambda t, y: y[:, 0].sqrt() - 0.1, direction=direction)
        with pytest.raises(NonFiniteError, match="condition is NaN"):
            batch(lambda t, y: -torch.ones_like(y), y0, (0.0, 3.0), event=event, dt=3.0)


def test_a_condition_may_keep_a_column() -> None:
    sol = batch(ball, torch.ones(3, 2, dtype=D), (0.0, 9.0), event=lambda t, y: y[:, :1])
    assert sol.statuses == [pdf.Status.EVENT] * 3


# -- doses --------------------------------------------------------------------------------------


def test_doses_reach_every_row_that_has_not_ended() -> None:
    rate = numbers(0.5, 1.0, 2.0)
    amount = numbers(3.0).requires_grad_()
    when = torch.tensor([0.4, 1.1], dtype=D, requires_grad=True)

    def f(amount: Tensor, when: Tensor, rate: Tensor) -> Any:
        dose = pdf.PresetTimeCallback(when, lambda t, y: y + amount)
        y0 = torch.ones(3, 1, dtype=D)
        return batch(
            lambda t, y: -rate[:, None] * y, y0, (0.0, 2.0), saveat=[0.2, 1.0, 2.0], callbacks=dose,
            rtol=1e-9, atol=1e-11,
        ).ys  # fmt: skip

    ys = f(amount, when, rate)
    with torch.no_grad():
        end = (-2 * rate).exp() + amount * ((-rate * 1.6).exp() + (-rate * 0.9).exp())
    torch.testing.assert_close(ys[-1, :, 0], end, rtol=1e-7, atol=1e-8)
    assert torch.autograd.gradcheck(f, (amount, when, rate.requires_grad_()), atol=1e-5, rtol=1e-4)


def test_a_dose_passes_by_rows_that_an_event_ended() -> None:
    heights = numbers(1.0, 50.0)
    y0 = torch.stack([heights, torch.zeros_like(heights)], dim=1)
    kick = pdf.PresetTimeCallback([1.0], lambda t, y: y + numbers(0.0, 100.0))
    sol = batch(ball, y0, (0.0, 2.0), event=lambda t, y: y[:, 0], callbacks=kick, save_everystep=False)
    assert sol.statuses == [pdf.Status.EVENT, pdf.Status.SUCCESS]
    assert float(sol.ys[-1, 0, 1]) < 0
    assert float(sol.ys[-1, 1, 1]) == pytest.approx(100 - 2 * G)


def test_a_value_saved_at_a_dose_is_the_one_before_it() -> None:
    dose = pdf.PresetTimeCallback([0.0, 1.0, 2.0], lambda t, y: y + 10.0)
    saves = [0.0, 1.0, 1.5, 2.0]
    f = lambda t, y: 0 * y  # noqa: E731
    sol = batch(f, torch.zeros(2, 1), (0.0, 2.0), saveat=saves, callbacks=dose)
    assert sol.ys[:, 0, 0].tolist() == [0.0, 10.0, 20.0, 20.0]
    end = batch(f, torch.zeros(2, 1), (0.0, 2.0), save_everystep=False, callbacks=dose)
    assert end.ys[-1, 0].tolist() == [30.0]
    steps = batch(f, torch.zeros(2, 1), (0.0, 2.0), callbacks=dose)
    assert steps.ys[-2:, 0, 0].tolist() == [20.0, 30.0]
    assert steps.ts[-2:, 1].tolist() == [2.0, 2.0]


def test_plots_rows_at_their_own_times() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    omega = numbers(1.0, 6.0)[:, None]
    y0 = {"z": torch.ones(2, 1, dtype=torch.complex128), "x": torch.zeros(2, 1, dtype=D)}
    f = lambda t, y: {"z": 1j * omega * y["z"], "x": omega * torch.ones_like(y["x"])}  # noqa: E731
    several: list[dict[str, Any]] = [{}, {"dense": False}, {"saveat": 0.25}]
    for options in several:
        sol = batch(f, y0, (0.0, 1.0), rtol=1e-6, **options)
        ax = sol.plot()
        curves = [line for line in ax.lines if len(line.get_xdata()) > 5]
        # Leaves in order: real and imaginary part of z on either row, then x.
        last = {float(line.get_ydata()[-1]) for line in curves}
        exact = [math.cos(1.0), math.sin(1.0), math.cos(6.0), math.sin(6.0), 1.0, 6.0]
        for value in exact:
            assert any(abs(value - found) < 1e-3 for found in last)
        slopes = [line for line in curves if abs(line.get_ydata()[-1] - 6.0) < 1e-3]
        for line in slopes:
            x, y = torch.as_tensor(line.get_xdata()), torch.as_tensor(line.get_ydata())
            torch.testing.assert_close(y, 6 * x, rtol=1e-5, atol=1e-5)
