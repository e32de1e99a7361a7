"""``backend="captured"``: the same numbers as eager torch, and one graph for all steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffeqflux import Event, ODEProblem, solve
from pydiffeqflux.backends.eager import captured
from pydiffeqflux.errors import UnsupportedError

D = torch.float64


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Traced as ever, but run operator by operator: compiling takes a minute."""
    torch._dynamo.reset()
    if "slow" not in request.keywords:
        monkeypatch.setattr(captured, "COMPILER", "aot_eager")
    yield
    torch._dynamo.reset()


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(D)

    def forward(self, t: Tensor, y: Any) -> Any:
        if isinstance(y, dict):
            return {"a": self.net(y["a"]), "b": -t * y["b"]}
        return self.net(y) * torch.cos(t)


def solved(backend: str, method: str, field: Field, structured: bool = False, **options: Any) -> list[Any]:
    start = torch.linspace(-1, 1, 6, dtype=D).view(2, 3).requires_grad_()
    y0: Any = {"a": start, "b": torch.ones(2, dtype=D)} if structured else start
    options = {"saveat": torch.linspace(0, 2, 5, dtype=D), "rtol": 1e-7, "atol": 1e-9} | options
    sol = solve(ODEProblem(field, y0, (0.0, 2.0)), method, backend=backend, **options)
    ys = sol.ys["a"] if structured else sol.ys
    grads = torch.autograd.grad(ys.square().sum(), (start, *field.parameters()), allow_unused=True)
    assert sol.stats.backend == ("captured" if backend == "captured" else "torch")
    return [sol.stats.nf, sol.stats.naccept, ys.detach(), *grads]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tsit5", {}), ("vern7", {"dense": False}), ("dopri8", {"structured": True}), ("rk4", {"dt": 0.1}),
        ("bosh3", {"rtol": 1e-5, "sensealg": "gauss"}), ("dopri5", {"tstops": [0.7], "sensealg": "interpolating"}),
    ],
)  # fmt: skip
def test_as_eager(method: str, options: dict[str, Any]) -> None:
    field = Field()
    for ours, theirs in zip(*(solved(b, method, field, **options) for b in ("captured", "eager")), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_one_graph_for_all_steps() -> None:
    counters = torch._dynamo.utils.counters
    counters.clear()
    field = Field()
    for _ in range(3):
        nf = solved("captured", "tsit5", field)[0]
    assert nf > 30 and counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_events() -> None:
    times = []
    for backend in ("captured", "eager"):
        rate = torch.tensor(2.0, dtype=D, requires_grad=True)
        problem = ODEProblem(lambda t, y, rate=rate: -rate * y, torch.ones(1, dtype=D), (0.0, 5.0))
        sol = solve(problem, event=Event(lambda t, y: y[0] - 0.5), rtol=1e-8, atol=1e-10, backend=backend)
        times += [sol.events[0].ts[0].detach(), torch.autograd.grad(sol.events[0].ts[0], rate)[0]]
    exact = 0.5 * torch.log(torch.tensor(2.0, dtype=D))
    torch.testing.assert_close(times[0], exact, rtol=1e-7, atol=0)
    torch.testing.assert_close(times[:2], times[2:])


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("rodas5p", {}, r"only explicit methods, and rodas5p"),
        ("abm4", {"dt": 0.1}, r"only explicit methods, and abm4"),
        ("tsit5", {"per_sample": True}, r"no per_sample=True: leave it out, or take backend='eager'"),
    ],
)
def test_not_captured(method: str, options: dict[str, Any], match: str) -> None:
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), batched=True)
    with pytest.raises(UnsupportedError, match=match):
        solve(problem, method, backend="captured", **options)


def test_mass_matrix() -> None:
    problem = ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0), mass_matrix=torch.ones(1, 1))
    with pytest.raises(UnsupportedError, match="only ODEProblems without a mass matrix"):
        solve(problem, "rodas5p", backend="captured")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_by_torchs_compiler() -> None:
    field = Field()
    for ours, theirs in zip(*(solved(b, "tsit5", field) for b in ("captured", "eager")), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
