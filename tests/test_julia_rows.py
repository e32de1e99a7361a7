"""Per-sample mode by Julia: every row is what it would be alone, in the shapes of the native backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import DenseOutputError, ShapeError, SolveError

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


# -- events and doses --------------------------------------------------------------------------------

G = 9.81


def ball(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], 1)


def both(solve: Callable[[str, list[Tensor]], pdf.Solution], *wanted: Tensor) -> tuple[pdf.Solution, pdf.Solution]:
    """Two solutions whose states, events and gradients are the same, on either backend."""
    found = []
    for backend in ("julia", "torch"):
        leaves = [x.clone().requires_grad_() for x in wanted]
        sol = solve(backend, leaves)
        events = [x for e in sol.events for pair in (e.ts, e.ys) for x in pair]
        numbers = torch.cat([x.reshape(-1) for x in (sol.ys, *events)])
        loss = (numbers * torch.linspace(0.5, 1.5, len(numbers), dtype=D)).sum()
        found.append((sol, events, torch.autograd.grad(loss, leaves)))
    (one, events, to_one), (other, more, to_other) = found
    assert one.statuses == other.statuses and one.status == other.status
    assert [x.shape for x in events] == [x.shape for x in more]
    for a, b in zip((one.ys, *events, *to_one), (other.ys, *more, *to_other), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    return one, other


def test_terminal_events_end_each_row_at_its_own_time() -> None:
    """Three balls that land, and one that does not; after its end a row keeps its state."""
    heights = torch.tensor([1.0, 5.0, 20.0, 1e4], dtype=D)

    def solve(backend: str, leaves: list[Tensor]) -> pdf.Solution:
        y0 = torch.stack([leaves[0], torch.zeros_like(leaves[0])], 1)
        ground = pdf.Event(lambda t, y: y[:, 0], direction=-1)
        saves = torch.tensor([0.0, 0.2, 1.0, 10.0], dtype=D)
        return batch(ball, y0, backend, (0.0, 10.0), event=ground, saveat=saves, **TIGHT)

    sol, native = both(solve, heights)
    exact = (2 * heights / G).sqrt()
    assert sol.statuses == [pdf.Status.EVENT] * 3 + [pdf.Status.SUCCESS]
    assert torch.allclose(torch.cat(sol.events[0].ts), exact[:3], rtol=1e-8)
    assert torch.equal(sol.ys[3, 0], sol.ys[2, 0])
    at = torch.tensor([0.3, 9.0], dtype=D)
    assert torch.allclose(sol(at), native(at), rtol=1e-6, atol=1e-6)
    ends = batch(
        ball, torch.stack([heights, 0 * heights], 1), "julia", (0.0, 10.0), event=lambda t, y: y[:, 0],
        save_everystep=False, **TIGHT,
    )  # fmt: skip
    assert torch.allclose(ends.ts[0, :3], exact[:3]) and ends.ys.shape == (1, 4, 2)


def test_rows_bounce_for_themselves() -> None:
    """Event, affect and level tell the rows apart; so does the number of bounces."""
    floors = torch.tensor([0.0, 0.1, 0.2], dtype=D)

    def solve(backend: str, leaves: list[Tensor]) -> pdf.Solution:
        heights, restitution, floor = leaves
        bounce = pdf.Event(
            lambda t, y: y[:, 0] - floor,
            terminal=False,
            direction=-1,
            affect=lambda t, y: torch.stack([floor + 0 * y[:, 0], -restitution * y[:, 1]], 1),
        )
        y0 = torch.stack([heights, torch.zeros_like(heights)], 1)
        return batch(ball, y0, backend, (0.0, 2.0), event=bounce, saveat=[0.1, 1.9, 2.0], **TIGHT)

    start = torch.tensor([0.5, 1.0, 5.0], dtype=D)
    sol, _ = both(solve, start, torch.tensor([0.8, 0.9, 0.7], dtype=D), floors)
    counts = [len(ts) for ts in sol.events[0].ts]
    assert counts[0] > counts[1] > counts[2] > 0


def test_recorded_events_and_doses_of_structured_states() -> None:
    """A condition that knows the time alone, a dose that each row takes in its own amount, and states in a dict."""
    amounts, times = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([0.4, 1.1], dtype=D)

    def solve(backend: str, leaves: list[Tensor]) -> pdf.Solution:
        amount, when = leaves
        dose = pdf.PresetTimeCallback(when, lambda t, y: {"a": y["a"] + amount[:, None], "b": y["b"]})
        seen = pdf.Event(lambda t, y: torch.cos(3 * t[:, 0]) - y["b"][:, 0], terminal=False)
        y0 = {"a": torch.ones(2, 1, dtype=D), "b": torch.zeros(2, 1, dtype=D)}
        f = lambda t, y: {"a": -MU[:2, None] * y["a"], "b": 0.1 * y["a"]}  # noqa: E731
        sol = batch(f, y0, backend, (0.0, 2.0), saveat=[0.2, 1.0, 2.0], callbacks=dose, event=seen, **TIGHT)
        record = sol.events[0]
        record.ys = [torch.cat([y["a"], y["b"]], -1) for y in record.ys]
        sol.ys = torch.cat([sol.ys["a"], sol.ys["b"]], -1)
        return sol

    sol, _ = both(solve, amounts, times)
    end = torch.exp(-2 * MU[:2]) + amounts * sum(torch.exp(-MU[:2] * (2 - t)) for t in times)
    assert torch.allclose(sol.ys[-1, :, 0], end, atol=1e-8)


def test_a_dose_passes_by_rows_that_an_event_ended() -> None:
    heights = torch.tensor([1.0, 50.0], dtype=D)
    y0 = torch.stack([heights, torch.zeros_like(heights)], 1)
    kick = pdf.PresetTimeCallback([1.0], lambda t, y: y + torch.tensor([0.0, 100.0], dtype=D))
    sol = batch(ball, y0, "julia", (0.0, 2.0), event=lambda t, y: y[:, 0], callbacks=kick, save_everystep=False)
    assert sol.statuses == [pdf.Status.EVENT, pdf.Status.SUCCESS]
    assert float(sol.ys[-1, 0, 1]) < 0
    assert float(sol.ys[-1, 1, 1]) == pytest.approx(100 - 2 * G)


def test_what_events_of_rows_must_return() -> None:
    y0 = torch.ones(2, 1, dtype=D)
    with pytest.raises(ShapeError, match=r"one real number a row, shape \(2,\); got torch.float64, \(1,\)"):
        batch(lambda t, y: -y, y0, event=lambda t, y: y[:1, 0] + y[1:, 0])
    dose = pdf.PresetTimeCallback([0.5], lambda t, y: y.sum())
    with pytest.raises(ShapeError, match=r"affect returned \(\); .* all 2 rows"):
        batch(lambda t, y: -y, y0, callbacks=dose)
    with pytest.raises(DenseOutputError, match="outside the solved span"):
        batch(lambda t, y: -y, y0)(1.5)
