"""``torch.func`` and ``torch.compile``: solves are transformed like any other torch code."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import pydiffeqflux as pdf
from pydiffeqflux.errors import GradientError, UnsupportedError

D = torch.float64
G = 9.81
W = torch.tensor([[0.4, -1.1], [0.9, 0.3]], dtype=D)
METHODS = ["tsit5", "vern7", "rk4", "rodas5p", "kencarp4", "qndf"]
NEWTON = {"kencarp4", "qndf"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def flow(y0: Tensor, weights: Tensor = W, method: str = "tsit5", end: float = 1.0, **options: Any) -> Any:
    """The end of a small nonlinear solve."""
    tol = {"rtol": 1e-8, "atol": 1e-10} if method in ("tsit5", "vern7", "rk4") else {"rtol": 1e-5, "atol": 1e-7}
    options = {**tol, "save_everystep": False, **options}
    if method == "rk4":
        options["dt"] = 0.1
    problem = pdf.ODEProblem(lambda t, y: torch.tanh(y @ weights) * torch.cos(t), y0, (0.0, end))
    return pdf.solve(problem, method, **options).ys[-1]


START = numbers(0.7, -0.4)
SEVERAL = torch.stack([START * k for k in (0.5, 1.0, -2.0)])


def jacobian(f: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """By autograd outside any transform."""
    found = torch.autograd.functional.jacobian(f, x)
    assert isinstance(found, Tensor)
    return found


# -- torch.func over the state and the parameters -----------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_reverse_mode(method: str) -> None:
    f = functools.partial(flow, method=method)
    exact = jacobian(f, START)
    torch.testing.assert_close(jacrev(f)(START), exact)
    torch.testing.assert_close(grad(lambda y: f(y)[0])(START), exact[0])
    over_weights = lambda w: flow(START, w, method)[1]  # noqa: E731
    torch.testing.assert_close(grad(over_weights)(W), jacobian(over_weights, W))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("enabled", [True, False])
def test_forward_mode(method: str, enabled: bool) -> None:
    f = functools.partial(flow, method=method)
    exact, by_weights = jacobian(f, START), jacobian(lambda w: flow(START, w, method), W)
    with torch.set_grad_enabled(enabled):  # which is about reverse mode only
        torch.testing.assert_close(jacfwd(f)(START), exact, rtol=1e-10, atol=1e-10)
        value, tangent = jvp(lambda w: flow(START, w, method), (W,), (torch.ones_like(W),))
    torch.testing.assert_close(tangent, by_weights.sum((1, 2)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value, f(START))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_initial_states(method: str) -> None:
    """Samples step together, by the one that needs the smallest steps: right to the tolerance."""
    f = functools.partial(flow, method=method)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    alone = torch.stack([f(y) for y in SEVERAL])
    close(vmap(f)(SEVERAL), alone)
    with torch.no_grad():
        close(vmap(f)(SEVERAL), alone)
    slopes = torch.stack([jacobian(f, y)[0] for y in SEVERAL])
    close(vmap(grad(lambda y: f(y)[0]))(SEVERAL), slopes)


def test_vmap_is_no_less_accurate_than_its_most_difficult_sample() -> None:
    rates = numbers(0.1, 1.0, 40.0)
    counts: list[int] = []

    def end(rate: Tensor) -> Any:
        problem = pdf.ODEProblem(lambda t, y: -rate * (y - torch.cos(t)), torch.ones(1, dtype=D), (0.0, 1.0))
        sol = pdf.solve(problem, rtol=1e-7, atol=1e-9, save_everystep=False)
        assert isinstance(sol.stats.naccept, int)
        counts.append(sol.stats.naccept)
        return sol.ys[-1]

    alone = torch.stack([end(rate) for rate in rates])
    torch.testing.assert_close(vmap(end)(rates), alone, rtol=1e-6, atol=1e-6)
    assert counts[-1] >= max(counts[:-1])


def test_vmap_with_saves_dense_output_and_structures() -> None:
    def f(a: Tensor) -> Any:
        y0 = {"a": a, "b": torch.ones(1, dtype=D)}
        problem = pdf.ODEProblem(lambda t, y: {"a": -y["a"], "b": y["a"].sum()[None]}, y0, (0.0, 1.0))
        sol = pdf.solve(problem, saveat=[0.25, 1.0], rtol=1e-8, atol=1e-10)
        return sol.ys["a"], sol.ys["b"], sol(0.6)["a"]

    a, b, inside = vmap(f)(SEVERAL)
    torch.testing.assert_close(a[:, 1], SEVERAL * math.exp(-1.0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(b[:, 1, 0], 1 + SEVERAL.sum(1) * (1 - math.exp(-1.0)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(inside, SEVERAL * math.exp(-0.6), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("second_order", [False, True])
def test_second_derivatives_are_right_or_refused(method: str, second_order: bool) -> None:
    def f(y: Tensor) -> Any:
        return flow(y, method=method, end=0.2, sensealg=pdf.DiscreteAdjoint(second_order=second_order))[0]

    exact = torch.autograd.functional.hessian(lambda y: flow(y, method="vern7", end=0.2)[0], START)
    nested = {
        "hessian": hessian(f),
        "reverse in reverse": jacrev(jacrev(f)),
        "forward in reverse": jacrev(jacfwd(f)),
        "forward in forward": jacfwd(jacfwd(f)),
    }
    for name, second in nested.items():
        if method in NEWTON and (name == "forward in forward" or not second_order):
            with pytest.raises(GradientError):
                second(START)
        else:
            torch.testing.assert_close(second(START), exact, rtol=1e-3, atol=1e-4)


def test_rosenbrock_with_a_large_jacobian() -> None:
    """Beyond some size the linear solves have a derivative of our own in reverse mode, torch's in forward mode."""
    n = 70
    y0 = torch.linspace(0.1, 1.0, n, dtype=D)
    shift = lambda y: -y.square() + 0.1 * y.roll(1)  # noqa: E731

    def f(y: Tensor) -> Any:
        problem = pdf.ODEProblem(lambda t, y: shift(y), y, (0.0, 0.3))
        return pdf.solve(problem, "rodas5p", rtol=1e-4, save_everystep=False).ys[-1]

    direction = torch.sin(torch.arange(n, dtype=D))
    _, forward = jvp(f, (y0,), (direction,))
    reverse = grad(lambda y: f(y) @ direction)(y0) @ direction
    assert float(forward @ direction) == pytest.approx(float(reverse), rel=1e-9)


# -- times, events, doses -----------------------------------------------------------------------


def over_end(t1: Tensor) -> Any:
    problem = pdf.ODEProblem(lambda t, y: torch.tanh(y @ W) * torch.cos(t), START, (0.0, t1))
    return pdf.solve(problem, rtol=1e-8, atol=1e-10, save_everystep=False).ys[-1]


def over_start(t0: Tensor) -> Any:
    problem = pdf.ODEProblem(lambda t, y: torch.tanh(y @ W) * torch.cos(t), START, (t0, 2.0))
    return pdf.solve(problem, rtol=1e-8, atol=1e-10, saveat=[1.5, 2.0]).ys


def over_saves(saves: Tensor) -> Any:
    return flow_at(saves, saveat=saves).ys


def over_queries(times: Tensor) -> Any:
    return flow_at(times)(times)


def over_doses(times: Tensor) -> Any:
    return flow_at(times, callbacks=pdf.PresetTimeCallback(times, lambda t, y: y + t)).ys[-1]


def flow_at(times: Tensor, **options: Any) -> pdf.Solution:
    problem = pdf.ODEProblem(lambda t, y: torch.tanh(y @ W) * torch.cos(t), START, (0.0, 2.0))
    return pdf.solve(problem, rtol=1e-8, atol=1e-10, **options)


def dropped(height: Tensor, **options: Any) -> pdf.Solution:
    y0 = torch.stack([height[0], 0 * height[0]])
    ball = lambda t, y: torch.stack([y[1], -G + 0 * y[1]])  # noqa: E731
    return pdf.solve(pdf.ODEProblem(ball, y0, (0.0, 3.0)), rtol=1e-8, atol=1e-10, **options)


def over_event(height: Tensor) -> Any:
    sol = dropped(height, event=lambda t, y: y[0])
    return torch.stack([sol.events[0].ts[0], sol.ys[-1, 1]])


def over_bounce(height: Tensor) -> Any:
    bounce = pdf.Event(
        lambda t, y: y[0], terminal=False, direction=-1, affect=lambda t, y: torch.stack([0 * y[0], -0.8 * y[1]])
    )
    return dropped(height, event=bounce).ys[-1]


TIMED: list[tuple[Callable[[Tensor], Any], Tensor]] = [
    (over_end, numbers(1.2)[0]),
    (over_start, numbers(0.3)[0]),
    (over_saves, numbers(0.5, 1.0, 2.0)),
    (over_queries, numbers(0.5, 1.0, 2.0)),
    (over_doses, numbers(0.5, 1.0)),
    (over_event, numbers(5.0)),
    (over_bounce, numbers(5.0)),
]


@pytest.mark.parametrize(("f", "x"), TIMED)
def test_times_and_events_in_both_modes(f: Callable[[Tensor], Any], x: Tensor) -> None:
    exact = jacobian(f, x)
    assert float(exact.abs().max()) > 0.1
    torch.testing.assert_close(jacrev(f)(x), exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jacfwd(f)(x), exact, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        _, tangent = jvp(f, (x,), (torch.ones_like(x),))
    summed = exact.reshape(*tangent.shape, -1).sum(-1)
    torch.testing.assert_close(tangent, summed, rtol=1e-8, atol=1e-8)
    with forward_ad.dual_level():
        dual = f(forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, summed, rtol=1e-8, atol=1e-8)


def test_tensors_of_an_outer_transform_keep_their_derivative() -> None:
    """Inside an inner transform they do not look as if they required a gradient."""

    def outer(t1: Tensor) -> Any:
        end = 2 * t1

        def inner(y0: Tensor) -> Any:
            problem = pdf.ODEProblem(lambda t, y: -y.square(), y0, (0.0, end))
            return pdf.solve(problem, rtol=1e-9, atol=1e-11, save_everystep=False).ys[-1, 0]

        return grad(inner)(torch.ones(1, dtype=D))[0]

    # y = y0 / (1 + y0 t): dy/dy0 = 1 / (1 + t)^2 at y0 = 1
    t1 = numbers(0.5)[0]
    assert float(outer(t1)) == pytest.approx(0.25, rel=1e-6)
    assert float(grad(outer)(t1)) == pytest.approx(2 * -2 / 8, rel=1e-6)
    assert float(jvp(outer, (t1,), (torch.ones_like(t1),))[1]) == pytest.approx(2 * -2 / 8, rel=1e-6)


@pytest.mark.parametrize(("f", "x"), TIMED[:5])
def test_times_cannot_be_mapped(f: Callable[[Tensor], Any], x: Tensor) -> None:
    with pytest.raises(UnsupportedError, match="same times"):
        vmap(f)(torch.stack([x, 0.9 * x]))


def test_events_cannot_be_mapped() -> None:
    with pytest.raises(UnsupportedError, match="per_sample=True"):
        vmap(over_event)(numbers(5.0, 1.0).reshape(2, 1))


# -- per-sample mode ----------------------------------------------------------------------------


def rows(heights: Tensor) -> Any:
    y0 = torch.stack([heights, 0 * heights], dim=1)
    bounce = pdf.Event(
        lambda t, y: y[:, 0],
        terminal=False,
        direction=-1,
        affect=lambda t, y: torch.stack([0 * y[:, 0], -0.8 * y[:, 1]], dim=1),
    )
    ball = lambda t, y: torch.stack([y[:, 1], -G - 0.1 * y[:, 1] * y[:, 1].abs()], dim=1)  # noqa: E731
    sol = pdf.solve(
        pdf.ODEProblem(ball, y0, (0.0, 1.5), batched=True), per_sample=True, rtol=1e-6, atol=1e-8, event=bounce,
        saveat=[0.5, 1.5],
    )  # fmt: skip
    return torch.cat([sol.ys.flatten(), torch.cat(sol.events[0].ts), sol(0.9).flatten()])


def test_per_sample_mode_in_both_modes() -> None:
    heights = numbers(1.0, 4.0)
    exact = jacobian(rows, heights)
    torch.testing.assert_close(jacrev(rows)(heights), exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jacfwd(rows)(heights), exact, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(jacfwd(rows)(heights), exact, rtol=1e-8, atol=1e-8)

    def end(t1: Tensor) -> Any:
        problem = pdf.ODEProblem(lambda t, y: -heights[:, None] * y, torch.ones(2, 1, dtype=D), (0.0, t1), batched=True)
        return pdf.solve(problem, per_sample=True, rtol=1e-8, save_everystep=False).ys[-1, :, 0]

    t1 = numbers(0.7)[0]
    torch.testing.assert_close(jacfwd(end)(t1), -heights * (-heights * 0.7).exp(), rtol=1e-5, atol=1e-6)


def test_per_sample_mode_cannot_be_mapped() -> None:
    with pytest.raises(UnsupportedError, match="batched=True instead of vmap"):
        vmap(rows)(torch.ones(3, 2, dtype=D))


# -- layers -------------------------------------------------------------------------------------


def layer() -> tuple[pdf.NeuralODE, dict[str, Tensor]]:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).to(D)
    node = pdf.NeuralODE(net, (0.0, 1.0), rtol=1e-7, atol=1e-9)
    return node, {name: p.detach() for name, p in node.named_parameters()}


def test_functional_call_of_a_layer() -> None:
    node, params = layer()

    def loss(params: dict[str, Tensor], y: Tensor) -> Any:
        return functional_call(node, params, (y,)).square().sum()

    loss(dict(node.named_parameters()), SEVERAL).backward()
    found = grad(loss)(params, SEVERAL)
    assert set(found) == set(params)
    for name, p in node.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad)
    each = vmap(grad(loss), in_dims=(None, 0))(params, SEVERAL)
    for name, gradient in found.items():
        assert each[name].shape == (3, *gradient.shape)
        torch.testing.assert_close(each[name].sum(0), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("enabled", [True, False])
def test_an_ensemble_of_layers(enabled: bool) -> None:
    node, params = layer()
    stacked = {name: torch.stack([p, 0.5 * p, -p]) for name, p in params.items()}
    with torch.set_grad_enabled(enabled):
        together = vmap(lambda p, y: functional_call(node, p, (y,)), in_dims=(0, None))(stacked, SEVERAL)
    for k, factor in enumerate((1.0, 0.5, -1.0)):
        alone = functional_call(node, {name: factor * p for name, p in params.items()}, (SEVERAL,))
        torch.testing.assert_close(together[k], alone, rtol=1e-5, atol=1e-6)


def test_adjoints_that_are_autograd_s_own_say_what_to_use() -> None:
    for sensealg in ("GaussAdjoint", "ForwardSensitivity", pdf.DiscreteAdjoint(checkpoints="sqrt")):
        with pytest.raises(UnsupportedError, match=r"DiscreteAdjoint\(\)"):
            grad(lambda y, s=sensealg: flow(y, sensealg=s)[0])(START)


def test_a_large_state_is_not_checkpointed_under_a_transform() -> None:
    y0 = torch.ones(2**18 + 1)
    f = lambda y: pdf.solve(pdf.ODEProblem(lambda t, y: -y, y, (0.0, 0.5)), "euler", dt=0.5).ys[-1].sum()  # noqa: E731
    torch.testing.assert_close(grad(f)(y0), torch.full_like(y0, 0.5))


# -- torch.compile ------------------------------------------------------------------------------

BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_right_hand_side(backend: str) -> None:
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(D)
    plain = lambda t, y: net(y) * torch.cos(t)  # noqa: E731
    compiled = torch.compile(plain, backend=backend)
    y0 = torch.randn(4, 2, dtype=D, requires_grad=True)
    for options in ({}, {"batched": True, "per_sample": True}, {"method": "rodas5p", "batched": True}):
        chosen: dict[str, Any] = dict(options)
        batched = bool(chosen.pop("batched", False))
        found = []
        for f in (plain, compiled):
            problem = pdf.ODEProblem(f, y0, (0.0, 1.0), batched=batched)
            sol = pdf.solve(problem, rtol=1e-6, save_everystep=False, **chosen)
            found.append((sol.ys, *torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()])))
        for mine, reference in zip(*found, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


def test_a_compiled_module_in_a_layer() -> None:
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(D)
    y0 = torch.randn(4, 2, dtype=D)
    expected = pdf.NeuralODE(net, (0.0, 1.0))(y0)
    node = pdf.NeuralODE(torch.compile(net, backend="aot_eager"), (0.0, 1.0))
    torch.testing.assert_close(node(y0), expected)
    node(y0).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_compiled_right_hand_side_is_compiled_once() -> None:
    """Neither new times nor new step sizes may compile it again (a change of the gradient mode does)."""
    torch.compiler.reset()
    count = [0]

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        count[0] += 1
        return graph.forward

    f = torch.compile(lambda t, y: -y * torch.cos(t), backend=counting)
    for end in (1.0, 2.0):
        with torch.no_grad():
            pdf.solve(pdf.ODEProblem(f, torch.ones(3), (0.0, end)), rtol=1e-6)
    assert count[0] == 1
    for end in (1.0, 2.0):
        pdf.solve(pdf.ODEProblem(f, torch.ones(3), (0.0, end)), rtol=1e-6)
    assert count[0] == 2
