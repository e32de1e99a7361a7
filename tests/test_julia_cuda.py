"""``backend="julia"`` on a GPU, by CUDA.jl: the same numbers as on the CPU, whatever ``test_julia_arrays.py`` asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems.arrays import MANY, products, solved

from pydiffeqflux.errors import BackendUnavailableError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.julia,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(autouse=True)
def _cuda() -> None:
    from pydiffeqflux.backends.julia.engine import _Tools
    from pydiffeqflux.backends.julia.session import session

    try:
        _Tools.of(session()).places.of(torch.device("cuda", 0))
    except BackendUnavailableError as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("name", ["spiral_batch", "time", "indexing", "graph_sum", "attention", "wide", "long"])
def test_values_and_products(name: str) -> None:
    func, _ = MANY[name]()
    if not isinstance(func, torch.nn.Module):
        pytest.skip("its tensors are the CPU's")
    for found, expected in products(name, "cuda"):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "sensealg"),
    [
        ("tsit5", "GaussAdjoint"),
        ("tsit5", "InterpolatingAdjoint"),
        ("tsit5", "BacksolveAdjoint"),
        ("tsit5", "QuadratureAdjoint"),
        ("vern7", "GaussAdjoint"),
        ("rodas5p", "GaussAdjoint"),
    ],
)
def test_solves_and_gradients(method: str, sensealg: Any) -> None:
    for gpu, cpu in zip(solved("cuda", method, sensealg), solved("cpu", method, sensealg), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-7, atol=1e-8)


def test_work_that_is_still_under_way() -> None:
    """What torch's stream has not finished when Julia is called is waited for, and what Julia was told, too."""
    y0 = torch.zeros(1000, dtype=torch.float64, device="cuda")
    late = torch.randn(4000, 4000, device="cuda")
    for _ in range(20):
        late = torch.tanh(late @ late)
    y0 += late.double().mean() + 1
    import pydiffeqflux as pdf

    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), "tsit5", saveat=[1.0], backend="julia")
    again = sol.ys.clone()
    torch.cuda.synchronize()
    torch.testing.assert_close(again[0], y0 * torch.exp(torch.tensor(-1.0)).item(), rtol=1e-3, atol=1e-6)
