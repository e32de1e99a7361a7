"""Per-sample mode by Julia: every row is what it would be alone, in the shapes of the native backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import SolveError, UnsupportedError

pytestmark = pytest.mark.julia

D = torch.float64
MU = torch.tensor([0.5, 2.0, 20.0], dtype=D)
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def batch(func: Any, y0: Any, backend: str = "julia", span: Any = (0.0, 1.0), **options: Any) -> pdf.Solution:
    problem = pdf.ODEProblem(func, y0, span, batched=True)
    return pdf.solve(problem, "tsit5", backend=backend, per_sample=True, **options)


@pytest.mark.parametrize("apart", [False, True], ids=["alike", "each its own rate"])
def test_rows_and_their_gradients(apart: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    found = []
    for backend in ("julia", "torch"):
        y0 = torch.linspace(-1, 1, 6, dtype=D).reshape(3, 2).requires_grad_()
        saves = torch.tensor([0.3, 1.0], dtype=D, requires_grad=True)
        rates = MU.clone().requires_grad_()
        func = (lambda t, y: net(y) * torch.cos(rates[:, None] * t)) if apart else (lambda t, y: net(y) * torch.cos(t))
        sol = batch(func, y0, backend, saveat=saves, **TIGHT)
        assert sol.ys.shape == (2, 3, 2)
        assert sol.stats.naccept.shape == (3,)
        assert sol.statuses == [pdf.Status.SUCCESS] * 3
        wanted = [y0, saves, *net.parameters(), *([rates] if apart else [])]
        found.append([sol.ys, *torch.autograd.grad(sol.ys.square().sum(), wanted)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_each_row_steps_for_itself() -> None:
    sol = batch(lambda t, y: -MU[:, None] * y, torch.ones(3, 1, dtype=D), rtol=1e-6)
    counts = sol.stats.naccept
    assert int(counts[0]) < int(counts[2])
    assert sol.ts.shape == (int(counts.max()) + 1, 3)
    torch.testing.assert_close(sol.ys[..., 0], (-MU * sol.ts).exp(), rtol=1e-4, atol=1e-5)
    at = torch.tensor([0.2, 0.7], dtype=D)
    torch.testing.assert_close(sol(at)[..., 0], (-MU * at[:, None]).exp(), rtol=1e-3, atol=1e-4)
    assert sol(0.5).shape == (3, 1)
    ends = batch(lambda t, y: -MU[:, None] * y, torch.ones(3, 1, dtype=D), save_everystep=False)
    assert (ends.ts.tolist(), ends.ys.shape) == ([[1.0] * 3], (1, 3, 1))


def test_structured_states() -> None:
    y0 = {"a": torch.ones(3, 2, dtype=D), "b": torch.ones(3, 1, dtype=D)}

    def func(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": -y["a"] * y["b"] * torch.cos(t), "b": -MU[:, None] * y["b"]}

    found = [batch(func, y0, backend, saveat=[0.5, 1.0], **TIGHT).ys for backend in ("julia", "torch")]
    for name in y0:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-8)


def test_a_row_that_fails() -> None:
    y0 = torch.tensor([[0.1], [2.0]], dtype=D)  # y' = y^2 blows up at 1 / y0
    sol = batch(lambda t, y: y * y, y0, saveat=[0.25, 1.0], throw=False)
    assert sol.statuses is not None
    assert sol.statuses[0].ok and not sol.statuses[1].ok
    assert sol.status == sol.statuses[1]
    assert torch.allclose(sol.ys[:, 0, 0], torch.tensor([0.1 / 0.975, 0.1 / 0.9], dtype=D), atol=1e-4)
    assert torch.allclose(sol.ys[0, 1], torch.tensor([4.0], dtype=D), rtol=1e-2)
    assert bool(sol.ys[1, 1].isnan().all())
    with pytest.raises(SolveError, match="1 of 2 rows failed, the first of them row 1"):
        batch(lambda t, y: y * y, y0, saveat=[0.25, 1.0])


def test_events_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="per_sample=True on backend='julia' has no events and callbacks"):
        batch(lambda t, y: -y, torch.ones(2, 1, dtype=D), event=lambda t, y: y[:, 0] - 0.5)
