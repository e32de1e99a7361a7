"""The native backend on a GPU: the same numbers as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pydiffeqflux as pdf

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def run(device, method, dtype, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(device, dtype)
    y0 = torch.linspace(-1, 1, 8, dtype=dtype, device=device).reshape(4, 2).requires_grad_()
    saveat = torch.linspace(0, 1, 5, dtype=dtype, device=device)
    tol = 1e-4 if dtype == torch.float32 else 1e-8
    problem = pdf.ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0), batched=options.get("per_sample", False))
    sol = pdf.solve(problem, method, saveat=saveat, rtol=tol, atol=tol, **options)
    assert sol.ys.device.type == device
    grads = torch.autograd.grad(sol.ys.square().sum(), (y0, *net.parameters()))
    return [sol.ys.detach().cpu(), *(g.cpu() for g in grads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["tsit5", "dopri8", "vern7", "rosenbrock23", "rodas5p", "kencarp4", "qndf"])
def test_methods(method, dtype):
    for cpu, gpu in zip(run("cpu", method, dtype), run("cuda", method, dtype), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3 if dtype == torch.float32 else 1e-6, atol=1e-4)


@pytest.mark.parametrize(
    "sensealg", ["backsolve", "interpolating", "quadrature", "gauss", "forward", pdf.DiscreteAdjoint("sqrt")]
)
def test_sensealgs(sensealg):
    exact = run("cpu", "tsit5", torch.float64)
    for cpu, gpu in zip(exact, run("cuda", "tsit5", torch.float64, sensealg=sensealg), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-4)


def test_per_sample():
    for cpu, gpu in zip(
        run("cpu", "tsit5", torch.float64, per_sample=True),
        run("cuda", "tsit5", torch.float64, per_sample=True),
        strict=True,
    ):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-8)
