"""``torch.func`` and Julia: what joins, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
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


def end(y0: Tensor) -> Tensor:
    return pdf.solve(pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), saveat=[1.0], backend="julia").ys.sum()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.jacrev])
def test_transforms_that_are_refused(transform: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"inside torch\.func\.grad.*call backward\(\)"):
        transform(end)(torch.ones(2))


def test_what_vmap_cannot_join() -> None:
    with pytest.raises(UnsupportedError, match=r"map over y0 only, in one vmap"):
        torch.func.vmap(torch.func.vmap(end))(torch.ones(2, 3, 2))
    with pytest.raises(UnsupportedError, match=r"map over y0 only"):
        torch.func.vmap(lambda rate: end(torch.ones(2)) * rate)(torch.ones(3))

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
