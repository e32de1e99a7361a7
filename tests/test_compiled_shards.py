"""A large batch shared among threads: which functions treat rows apart, and the same results as by one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffeqflux import DiscreteAdjoint, ODEProblem, solve
from pydiffeqflux.backends.compiled import shards
from pydiffeqflux.backends.compiled.model import Model, model_of
from pydiffeqflux.graph.separate import separate

D = torch.float64


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shards, "MANY", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(width: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Softplus(), nn.Linear(width, 3), nn.Tanh()).to(D)


NET = network()
SHIFT = torch.linspace(0, 1, 8, dtype=D)[:, None]
KERNEL = torch.randn(3, 3, dtype=D)

APART: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "network": lambda t, y: NET(y**3),
    "time": lambda t, y: NET(torch.cat([y[:, :2], t.expand(len(y), 1)], 1)),
    "oscillator": lambda t, y: torch.stack([y[:, 1], -y[:, 0], -y[..., 2] * torch.exp(-t)], -1),
    "normalised": lambda t, y: y / y.norm(dim=1, keepdim=True) - y.mean(-1, keepdim=True),
    "attention": lambda t, y: torch.softmax(y, -1) @ KERNEL + torch.ones(len(y), 3, dtype=D),
    "outer": lambda t, y: (y.unsqueeze(2) * y.unsqueeze(1) @ KERNEL).sum(-1),
    "transposed": lambda t, y: (KERNEL @ y.T).T,
    "views": lambda t, y: y.reshape(len(y), 3, 1).squeeze(-1).flatten(1) * torch.full((len(y), 1), 2.0, dtype=D),
}
MIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean over rows": lambda t, y: y - y.mean(0, keepdim=True),
    "mean over all": lambda t, y: y * y.mean(),
    "number of rows": lambda t, y: y / len(y),
    "own constants": lambda t, y: y * SHIFT,
    "constants made": lambda t, y: y * torch.arange(len(y), dtype=D)[:, None],
    "constants folded": lambda t, y: y * torch.tensor(1.0 / len(y), dtype=D),
    "neighbours": lambda t, y: y.roll(1, 0),
    "rows of rows": lambda t, y: y @ y.T @ y,
    "row by row": lambda t, y: torch.cat([y[:1], y[1:] * 2]),
    "columns": lambda t, y: y.T.reshape(len(y), 3),
    "cumulative": lambda t, y: y.cumsum(0),
}  # fmt: skip


def apart(func: Callable[[Tensor, Tensor], Tensor]) -> bool:
    y = torch.randn(8, 3, dtype=D, generator=torch.Generator().manual_seed(1))
    return shards._part(ODEProblem(func, y, (0.0, 1.0)), modelled(func, y), 8, 4) is not None


def modelled(func: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> Model:
    model, _ = model_of(ODEProblem(func, y, (0.0, 1.0)))
    assert isinstance(model, Model), model
    return model


@pytest.mark.parametrize("name", APART)
def test_rows_apart(name: str) -> None:
    assert apart(APART[name])


@pytest.mark.parametrize("name", MIXED)
def test_rows_mixed(name: str) -> None:
    assert not apart(MIXED[name])


def test_not_the_same_function() -> None:
    """A function that looks at how many rows there are, and does something else then."""
    y = torch.randn(8, 3, dtype=D)
    whole, part = (
        modelled(f, x).traced.graphs for f, x in ((lambda t, y: y.sin(), y), (lambda t, y: y.cos(), y[:4]))
    )
    assert separate(whole, whole, 8, 8) and not separate(whole, part, 8, 4)


def solved(threads: int, method: str = "tsit5", **options: Any) -> list[Tensor]:
    """States, and gradients of parameters and initial state."""
    torch.set_num_threads(threads)
    net = network()
    y0 = torch.randn(12, 3, dtype=D, generator=torch.Generator().manual_seed(2), requires_grad=True)
    options = {"saveat": torch.linspace(0, 2, 5, dtype=D), "rtol": 1e-6, "dense": False} | options
    sol = solve(ODEProblem(lambda t, y: net(torch.sin(t) + y), y0, (0.0, 2.0)), method, backend="compiled", **options)
    ways = torch.linspace(1, 2, sol.ys.numel(), dtype=D).view(sol.ys.shape)
    (sol.ys**2 * ways).sum().backward()
    return [sol.ts, sol.ys.detach(), y0.grad, *(p.grad for p in net.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tsit5", {}), ("vern7", {}), ("rk4", {"dt": 0.1}), ("bosh3", {"saveat": None, "save_everystep": False}),
        ("dopri8", {"rtol": 1e-9}), ("tsit5", {"dt": 0.2}),
    ],
)  # fmt: skip
def test_as_one_thread(method: str, options: dict[str, Any]) -> None:
    one, two = solved(1, method, **options), solved(2, method, **options)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_threads_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    plain = shards.solve
    monkeypatch.setattr(shards, "solve", lambda *args: (parts.append(len(args)), plain(*args))[1])
    solved(2)
    assert parts
    solved(1)
    solved(2, dense=True)
    solved(2, sensealg=DiscreteAdjoint(checkpoints="sqrt"))
    assert len(parts) == 1


def test_the_same_from_run_to_run() -> None:
    first = solved(2)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, solved(2), strict=True))


def test_without_a_gradient() -> None:
    net, y0 = network(), torch.randn(12, 3, dtype=D)
    with torch.no_grad():
        ys = [
            solve(ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0)), rtol=1e-6, backend=b, saveat=0.25, dense=False).ys
            for b in ("compiled", "eager")
        ]
    torch.testing.assert_close(*ys, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("where", ["start", "one row", "steps"])
def test_failures(where: str) -> None:
    """Said in the words of one thread, and nobody waits for ever."""
    y0 = torch.ones(8, 3, dtype=D)
    if where == "start":
        y0[5, 1] = torch.nan
    if where == "one row":
        y0[6] = 50.0  # blows up
    options = {"max_steps": 3, "dt": 1e-3} if where == "steps" else {}
    said = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sol = solve(
            ODEProblem(lambda t, y: y * y, y0 / 10, (0.0, 1.0)), saveat=[0.001, 1.0], dense=False, throw=False,
            rtol=1e-8, backend="compiled", **options,
        )  # fmt: skip
        said.append((sol.status, sol.ts.tolist(), sol.stats.naccept))
    assert said[0] == said[1] and not said[0][0].ok


def test_second_derivatives() -> None:
    y0 = torch.randn(4, 2, dtype=D, requires_grad=True)

    def end(y0: Tensor) -> Tensor:
        problem = ODEProblem(lambda t, y: torch.sin(y), y0, (0.0, 1.0))
        return solve(problem, "rk4", dt=0.1, saveat=[1.0], dense=False, backend="compiled").ys

    assert torch.autograd.gradcheck(end, y0)
    assert torch.autograd.gradgradcheck(end, y0)
