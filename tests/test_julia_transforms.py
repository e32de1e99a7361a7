"""``torch.func`` and Julia: what joins, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia.engine import _Tools
from pydiffeqflux.backends.julia.session import session
from pydiffeqflux.errors import GradientError, UnsupportedError

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10, "saveat": [0.5, 1.0], "dense": False}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("structured", [False, True])
def test_vmap_joins_the_initial_states(structured: bool) -> None:
    model = net()
    found = []
    for backend in ("julia", "torch"):
        many = torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()

        def solved(y0: Tensor, backend: str = backend) -> Tensor:
            func = (lambda t, y: {"y": model(y["y"])}) if structured else (lambda t, y: model(y))
            problem = pdf.ODEProblem(func, {"y": y0} if structured else y0, (0.0, 1.0))
            ys = pdf.solve(problem, "tsit5", backend=backend, **TIGHT).ys
            return (ys["y"] if structured else ys) ** 2  # (2, 2), inside

        ys = torch.func.vmap(solved, in_dims=0, out_dims=1)(many)
        found.append([ys.detach(), *torch.autograd.grad(ys.sum(), [many, *model.parameters()])])
    assert found[0][0].shape == (2, 3, 2)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_tensors_that_func_uses_may_be_mapped_over_too() -> None:
    found = []
    for backend in ("julia", "torch"):
        many = torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        rates = torch.tensor([0.5, 1.0, 2.0], dtype=D, requires_grad=True)

        def solved(y0: Tensor, rate: Tensor, backend: str = backend) -> Tensor:
            problem = pdf.ODEProblem(lambda t, y: -rate * y * torch.cos(y), y0, (0.0, 1.0))
            return pdf.solve(problem, "tsit5", backend=backend, **TIGHT).ys

        for _ in range(2):
            ys = torch.func.vmap(solved)(many, rates)
            rates = (2 * rates.detach()).requires_grad_()
            ys = torch.func.vmap(solved)(many, rates)
        found.append([ys.detach(), *torch.autograd.grad(ys.square().sum(), [many, rates])])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


# -- grad, vjp, jacrev, and all of them together ----------------------------------------------------


def both(compute: Callable[[str], Any], atol: float = 1e-7) -> None:
    """``compute(backend)`` gives the same on Julia as natively."""
    found = [torch.utils._pytree.tree_flatten(compute(backend))[0] for backend in ("julia", "torch")]
    assert len(found[0]) == len(found[1]) > 0
    assert any(float(x.detach().abs().max()) > 1e-3 for x in found[0])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=atol)


Y0 = torch.tensor([0.4, -0.2], dtype=D)


def loss_of(model: nn.Module, backend: str) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(weights: dict[str, Tensor], y0: Tensor) -> Tensor:
        func = lambda t, y: torch.func.functional_call(model, weights, (y,)) * torch.cos(t)  # noqa: E731
        return pdf.solve(pdf.ODEProblem(func, y0, (0.0, 1.0)), "vern7", backend=backend, **TIGHT).ys.square().sum()

    return loss


def test_grad_of_parameters_and_state() -> None:
    model = net()
    weights = {k: v.detach() for k, v in model.named_parameters()}
    both(lambda backend: torch.func.grad(loss_of(model, backend), argnums=(0, 1))(weights, Y0))


def test_grad_and_what_autograd_records_around_it() -> None:
    """The gradient by ``torch.func``, and the value's by ``backward`` of parameters that it did not name."""
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)

    def compute(backend: str) -> Any:
        def loss(y0: Tensor) -> tuple[Tensor, Tensor]:
            problem = pdf.ODEProblem(lambda t, y: {"y": -rate * y["y"]}, {"y": y0}, (0.0, 1.0))
            ys = pdf.solve(problem, "vern7", backend=backend, **TIGHT).ys["y"]
            return ys.sum(), ys

        slope, ys = torch.func.grad(loss, has_aux=True)(Y0)
        return slope, torch.autograd.grad(ys.square().sum(), rate)

    both(compute)


NESTED = ["vmap of grad", "grad of vmap", "vmap of jacrev", "vmap of vmap"]


@pytest.mark.parametrize("transform", ["jacrev", "vjp", *NESTED])
def test_transforms_in_any_order(transform: str) -> None:
    rates = torch.tensor([0.5, 1.5], dtype=D)
    many = torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(1))

    def compute(backend: str) -> Any:
        def last(rates: Tensor, y0: Tensor) -> Tensor:
            problem = pdf.ODEProblem(lambda t, y: -rates * y * torch.cos(y.sum() + t), y0, (0.0, 1.0))
            return pdf.solve(problem, "vern7", backend=backend, **TIGHT).ys[-1]

        def loss(rates: Tensor, y0: Tensor) -> Tensor:
            return last(rates, y0).square().sum()

        if transform == "jacrev":
            return torch.func.jacrev(last, argnums=(0, 1))(rates, Y0)
        if transform == "vjp":
            return torch.func.vjp(last, rates, Y0)[1](torch.tensor([1.0, -2.0], dtype=D))
        if transform == "vmap of grad":  # each sample's own gradient, also of the rates that they share
            return torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(rates, many)
        if transform == "vmap of jacrev":
            return torch.func.vmap(torch.func.jacrev(last, argnums=(0, 1)), in_dims=(None, 1))(rates, many.T)
        if transform == "grad of vmap":
            batch = torch.func.vmap(loss, in_dims=(None, 0))
            return torch.func.grad(lambda r, y: batch(r, y).sum(), argnums=(0, 1))(rates, many)
        nested = torch.func.vmap(torch.func.vmap(last, in_dims=(None, 0)), in_dims=(0, None))
        return nested(torch.stack([rates, 2 * rates]), many)

    both(compute)


def test_grad_of_times() -> None:
    def compute(backend: str) -> Any:
        def loss(t0: Tensor, t1: Tensor, saves: Tensor) -> Tensor:
            problem = pdf.ODEProblem(lambda t, y: torch.sin(3 * t) * y, Y0, (t0, t1))
            return pdf.solve(problem, "vern7", saveat=saves, backend=backend, rtol=1e-10, atol=1e-10).ys.square().sum()

        times = torch.tensor(0.1, dtype=D), torch.tensor(0.9, dtype=D), torch.tensor([0.3, 0.9], dtype=D)
        return torch.func.grad(loss, argnums=(0, 2))(*times)

    both(compute)


def test_steps_with_new_tensors_are_not_compiled_anew() -> None:
    model, models = net(), _Tools.of(session()).models
    weights = {k: v.detach() for k, v in model.named_parameters()}
    slope = torch.func.grad(loss_of(model, "julia"))
    before = slope(weights, Y0)
    known = set(models._known)
    for _ in range(3):
        weights = {k: v - 0.1 * before[k] for k, v in weights.items()}
        before = slope(weights, Y0)
    assert set(models._known) == known


def end(y0: Tensor) -> Tensor:
    return pdf.solve(pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), saveat=[1.0], backend="julia").ys.sum()


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
def test_forward_mode_is_refused(transform: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"inside forward mode.*take torch\.func\.jacrev"):
        transform(end)(torch.ones(2))


def test_a_second_derivative_is_refused_inside_transforms_too() -> None:
    with pytest.raises(GradientError, match=r"no second derivative"):
        torch.func.grad(lambda y0: torch.func.grad(end)(y0).sum())(torch.ones(2))


class Times(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, y: Tensor) -> Tensor:
        return w * y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        w, y = ctx.saved_tensors
        return grads[0] * y, grads[0] * w


def test_what_cannot_be_replaced_is_refused() -> None:
    def loss(rate: Tensor) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: -Times.apply(rate, y), torch.ones(2), (0.0, 1.0))
        return pdf.solve(problem, saveat=[1.0], backend="julia").ys.sum()

    with pytest.raises(UnsupportedError, match=r"to an\s+autograd\.Function"):
        torch.func.grad(loss)(torch.ones(2))


def test_what_has_no_place_inside_transforms() -> None:
    def with_event(y0: Tensor) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0))
        return pdf.solve(problem, event=lambda t, y: y[0] - 0.5, backend="julia").ys

    with pytest.raises(UnsupportedError, match=r"no events, callbacks"):
        torch.func.vmap(with_event)(torch.ones(3, 2))


# -- as an autograd function ----------------------------------------------------------------------


def test_only_what_needs_a_gradient_gets_one() -> None:
    model = net()
    y0 = torch.ones(2, dtype=D)
    for p in model.parameters():
        p.requires_grad_(False)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: model(y), y0, (0.0, 1.0)), "tsit5", backend="julia", **TIGHT)
    assert not sol.ys.requires_grad
    assert (sol.stats.sensealg, sol.stats.reason) == ("none", "nothing requires a gradient")
    bias = model[2].bias.requires_grad_()
    found = []
    for backend in ("julia", "torch"):
        sol = pdf.solve(pdf.ODEProblem(lambda t, y: model(y), y0, (0.0, 1.0)), "tsit5", backend=backend, **TIGHT)
        found.append(torch.autograd.grad(sol.ys.sum(), bias, retain_graph=True)[0])
        assert torch.equal(torch.autograd.grad(sol.ys.sum(), bias)[0], found[-1])  # once more
    assert torch.allclose(*found, atol=1e-8)
    with torch.no_grad():
        assert not pdf.solve(pdf.ODEProblem(lambda t, y: model(y), y0, (0.0, 1.0)), backend="julia").ys.requires_grad


def test_results_are_torch_s_own() -> None:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(2, dtype=D), (0.0, 1.0)), backend="julia")
    for x in (sol.ts, sol.ys):
        assert type(x) is Tensor
    for name, value in vars(sol.stats).items():
        assert type(value).__module__ == "builtins", name
    node, seen = [sol.ys.grad_fn], 0
    while node:
        one = node.pop()
        seen += 1
        kept = getattr(one, "__dict__", {}).values()
        assert not any(type(x).__module__.startswith("juliacall") for x in kept)
        node += [following for following, _ in one.next_functions if following is not None]
    assert seen > 1


def test_a_second_derivative_is_an_error_that_says_so() -> None:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(2, dtype=D), (0.0, 1.0)), backend="julia")
    (slope,) = torch.autograd.grad(sol.ys[-1].sum(), rate, create_graph=True)
    with pytest.raises(GradientError, match=r"no second derivative.*DiscreteAdjoint\(\)"):
        slope.backward()
