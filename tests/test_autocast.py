"""Under torch.autocast a model computes in half precision; what the solver itself computes keeps the state's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf

ADJOINTS = [
    pdf.DiscreteAdjoint(),
    pdf.DiscreteAdjoint(checkpoints="sqrt"),
    pdf.GaussAdjoint(),
    pdf.QuadratureAdjoint(),
    pdf.InterpolatingAdjoint(),
    pdf.BacksolveAdjoint(),
    pdf.ForwardSensitivity(),
]
METHODS = ["tsit5", "vern7", "rosenbrock23", "rodas5p", "kencarp4", "qndf", "radauiia5", "gl4", "abm4"]


def low() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def plain(t: Tensor, y: Tensor) -> Tensor:
    """Nothing that autocast would do in another dtype."""
    return -y * y.flip(-1) * torch.cos(t)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize("method", METHODS)
def test_the_solver_s_own_products_are_not_rounded(method: str) -> None:
    fixed: Any = {"dt": 0.1} if method in ("radauiia5", "gl4", "abm4") else {}

    def solved(mode: Callable[[], Any]) -> tuple[Tensor, Tensor, Tensor]:
        y0 = torch.linspace(0.2, 1.4, 12).reshape(4, 3).requires_grad_()
        with mode():
            sol = pdf.solve(pdf.ODEProblem(plain, y0, (0.0, 1.0)), method, backend="eager", **fixed)
            between = sol(0.43) if sol.dense is not None else sol.ys[-1]
        sol.ys[-1].square().sum().backward()
        assert y0.grad is not None
        return sol.ys[-1], between, y0.grad

    for got, want in zip(solved(low), solved(torch.enable_grad), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sensealg", ADJOINTS, ids=str)
def test_models_compute_in_half_precision_forwards_and_backwards(sensealg: Any) -> None:
    dtypes = set()
    net = network()
    net[0].register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))

    def gradient(outside: Callable[[], Any], inside: Callable[[], Any]) -> Tensor:
        net.zero_grad()
        with outside():
            ys = pdf.NeuralODE(net, (0.0, 1.0), saveat=[0.5, 1.0], sensealg=sensealg)(torch.ones(4, 3))
            assert ys.dtype == torch.float32
        with inside():
            ys.square().sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])

    want = gradient(torch.enable_grad, torch.enable_grad)
    assert dtypes == {torch.float32}
    dtypes.clear()
    for inside in (torch.enable_grad, low):  # the backward pass where it belongs, and where people put it, too
        got = gradient(low, inside)
        assert dtypes == {torch.bfloat16}
        assert 0 < (got - want).norm() < 0.03 * want.norm()


@pytest.mark.parametrize("interface", [pdf.odeint, pdf.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_torchdiffeq_s_interface(interface: Any, method: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)

    model, y0, t = Model(), torch.ones(4, 3), torch.linspace(0.0, 1.0, 11)
    want = interface(model, y0, t, method=method, rtol=1e-3, atol=1e-4)
    with low():
        got = interface(model, y0, t, method=method, rtol=1e-3, atol=1e-4)
        same = interface(plain, y0, t, method=method) if interface is pdf.odeint else None
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().max() < 0.03
    if same is not None:
        assert torch.allclose(same, pdf.odeint(plain, y0, t, method=method), rtol=1e-5)


def test_states_of_several_tensors_noise_delays_and_residuals() -> None:
    net, y0 = network(), torch.ones(4, 3)
    with low():
        found = pdf.solve(pdf.ODEProblem(lambda t, y: {"a": net(y["a"])}, {"a": y0}, (0.0, 1.0))).ys["a"]
        noise = pdf.SDEProblem(lambda t, y: net(y), lambda t, y: net(y), y0, (0.0, 1.0), seed=1)
        noisy = pdf.solve(noise, "em", dt=0.1)
        late = pdf.solve(pdf.DDEProblem(lambda t, y, past: net(past), y0, (0.0, 1.0), lags=[0.5], history=y0))
        implicit = pdf.solve(
            pdf.DAEProblem(lambda t, y, dy: dy - net(y), y0, net(y0).float(), (0.0, 1.0), [True] * 3),
            initialise="solve",
        )
        rows = pdf.solve(pdf.ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0), batched=True), per_sample=True)
    for ys in (found, noisy.ys, late.ys, implicit.ys, rows.ys):
        assert ys.dtype == torch.float32


def test_what_a_model_solves_itself_is_under_its_autocast() -> None:
    seen = []
    net = network()

    def inner(t: Tensor, y: Tensor) -> Tensor:
        seen.append(net[0](y).dtype)
        return -y

    def outer(t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            pdf.solve(pdf.ODEProblem(inner, y, (0.0, 0.1)), "euler", dt=0.1, backend="eager")
        middle = len(seen)
        pdf.solve(pdf.ODEProblem(inner, y, (0.0, 0.1)), "euler", dt=0.1, backend="eager")
        assert set(seen[:middle]) == {torch.float32} and set(seen[middle:]) == {torch.bfloat16}
        seen.clear()
        return -y

    with low():
        assert pdf.solve(pdf.ODEProblem(outer, torch.ones(4, 3), (0.0, 1.0)), "euler", dt=0.5, backend="eager").success


def test_compiled_code_is_not_used() -> None:
    with low(), pytest.raises(pdf.errors.UnsupportedError, match="autocast"):
        pdf.NeuralODE(network(), (0.0, 1.0), backend="compiled")(torch.ones(4, 3))


@pytest.mark.julia
def test_julia_computes_in_the_state_s_dtype() -> None:
    net, y0 = network(), torch.ones(4, 3)
    node = pdf.NeuralODE(net, (0.0, 1.0), backend="julia")
    with low():
        first = node(y0)
    first.sum().backward()
    assert torch.equal(first, node(y0))
    assert net[0].weight.grad is not None and net[0].weight.grad.abs().sum() > 0
