"""``NeuralODE``: a model as the right-hand side, as a layer like any other."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidTimesError, SignatureError
from pydiffeqflux.layers.calling import takes_time

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(features: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, features))


class Driven(nn.Module):
    """A model of time and state: dy/dt = rate * 2 t y."""

    def __init__(self, rate: float = 1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * 2 * t * y


def linear_decay(y: Tensor) -> Tensor:
    return -y


# -- as a layer ---------------------------------------------------------------------------------


def test_sits_in_a_sequential() -> None:
    net = nn.Sequential(nn.Linear(3, 2), pdf.NeuralODE(small(), (0.0, 1.0)), nn.ReLU(), nn.Linear(2, 1))
    x = torch.randn(7, 3)
    out = net(x)
    assert out.shape == (7, 1) and out.dtype == torch.float32
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert any((p.grad != 0).any() for p in net[1].parameters())


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 5, 2)])
def test_the_final_state_has_the_shape_of_the_first(shape: tuple[int, ...]) -> None:
    y0 = torch.randn(shape)
    node = pdf.NeuralODE(small(), (0.0, 1.0))
    assert node(y0).shape == shape
    assert pdf.NeuralODE(small(), (0.0, 1.0), saveat=[0.0, 0.5, 1.0])(y0).shape == (3, *shape)


def test_saveat_gives_the_trajectory() -> None:
    times = torch.linspace(0, 1, 5, dtype=F64)
    node = pdf.NeuralODE(linear_decay, (0.0, 1.0), saveat=times, rtol=1e-9, atol=1e-9)
    ys = node(torch.ones(2, dtype=F64))
    torch.testing.assert_close(ys, (-times).exp()[:, None].expand(5, 2), rtol=1e-7, atol=0)
    assert pdf.NeuralODE(linear_decay, (0.0, 1.0), saveat=0.5)(torch.ones(2)).shape == (3, 2)
    assert pdf.NeuralODE(linear_decay, (0.0, 1.0), saveat=[0.5])(torch.ones(2)).shape == (1, 2)


def test_structured_states() -> None:
    def model(y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"q": y["p"], "p": -y["q"]}

    y0 = {"q": torch.ones(1, dtype=F64), "p": torch.zeros(1, dtype=F64)}
    end = pdf.NeuralODE(model, (0.0, math.pi), rtol=1e-9, atol=1e-9)(y0)
    assert end["q"].shape == (1,) and abs(float(end["q"]) + 1) < 1e-7


def test_solve_gives_the_solution() -> None:
    node = pdf.NeuralODE(linear_decay, (0.0, 1.0), "dopri5", rtol=1e-8, atol=1e-8)
    y0 = torch.ones(2, dtype=F64)
    sol = node.solve(y0)
    assert isinstance(sol, pdf.Solution) and sol.success and sol.stats.method == "dopri5"
    assert len(sol.ts) == sol.stats.naccept + 1
    assert abs(float(sol(0.5)[0]) - math.exp(-0.5)) < 1e-7
    assert torch.equal(sol.ys[-1], node(y0))


def test_options_reach_the_solver() -> None:
    y0 = torch.ones(1, dtype=F64)
    node = pdf.NeuralODE(linear_decay, (0.0, 1.0), "rk4", dt=0.25, backend="torch", sensealg="gauss")
    stats = node.solve(y0).stats
    assert (stats.naccept, stats.backend, stats.sensealg) == (4, "torch", "GaussAdjoint")
    with pytest.raises(pdf.errors.MaxStepsError, match="max_steps=2"):
        pdf.NeuralODE(linear_decay, (0.0, 1.0), rtol=1e-10, atol=1e-10, max_steps=2)(y0)
    half = pdf.Event(lambda t, y: y[0] - 0.5)
    torch.testing.assert_close(pdf.NeuralODE(linear_decay, (0.0, 9.0), event=half)(y0), y0 / 2)


def test_rows_that_step_for_themselves() -> None:
    node = pdf.NeuralODE(small(), (0.0, 1.0), batched=True, per_sample=True, rtol=1e-6)
    y0 = torch.randn(4, 2)
    stats = node.solve(y0).stats
    assert stats.naccept.shape == (4,)
    alone = pdf.NeuralODE(node.model, (0.0, 1.0), rtol=1e-6)(y0[1])
    torch.testing.assert_close(node(y0)[1], alone, rtol=1e-5, atol=1e-6)


def test_says_what_it_is() -> None:
    shown = repr(pdf.NeuralODE(small(), (0.0, torch.tensor(2.0, requires_grad=True)), pdf.Vern7(), rtol=1e-4))
    assert "t_span=(0.0, 2.0), method=vern7, rtol=0.0001, atol=1e-06" in shown and "Linear" in shown


# -- model(y) or model(t, y) --------------------------------------------------------------------


class Callables:
    def of_state(self, y: Tensor) -> Tensor:
        return -y

    def of_both(self, t: Tensor, y: Tensor) -> Tensor:
        return -y * t

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -y * t


def scaled(y: Tensor, scale: float = 2.0) -> Tensor:
    return -scale * y


def scaled_in_time(t: Tensor, y: Tensor, scale: float = 2.0, *, shift: float = 0.0) -> Tensor:
    return -scale * t * y + shift


SIGNATURES: dict[str, tuple[Callable[..., Any], bool]] = {
    "module of y": (small(), False),
    "module of t, y": (Driven(), True),
    "function of y": (linear_decay, False),
    "function with a default": (scaled, False),
    "function of t, y with defaults": (scaled_in_time, True),
    "partial leaving one": (functools.partial(scaled_in_time, torch.tensor(1.0)), False),
    "partial with keywords": (functools.partial(scaled_in_time, scale=1.0), True),
    "lambda": (lambda t, y: y, True),
    "bound method of y": (Callables().of_state, False),
    "bound method of t, y": (Callables().of_both, True),
    "callable object": (Callables(), True),
    "compiled module of y": (torch.compile(small(), backend="eager"), False),
    "compiled module of t, y": (torch.compile(Driven(), backend="eager"), True),
    "compiled function": (torch.compile(scaled_in_time, backend="eager"), True),
    "data parallel": (nn.DataParallel(Driven()), True),
    "compiled data parallel": (torch.compile(nn.DataParallel(small()), backend="eager"), False),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    model, timed = SIGNATURES[name]
    assert takes_time(model) is timed
    y0 = torch.rand(3, 2)
    end = pdf.NeuralODE(model, (0.0, 1.0))(y0)
    stated = pdf.NeuralODE(model, (0.0, 1.0), time_dependent=timed)(y0)
    assert torch.equal(end, stated)
    func = model if timed else (lambda t, y: model(y))
    assert torch.equal(end, pdf.solve(pdf.ODEProblem(func, y0, (0.0, 1.0))).ys[-1])


def anything(*args: Any) -> Tensor:
    return -args[-1] * len(args)


@pytest.mark.parametrize(
    "model", [anything, lambda: 0, lambda a, b, c: a, torch.sin], ids=["*args", "0", "3", "builtin"]
)
def test_a_signature_that_does_not_tell(model: Any) -> None:
    with pytest.raises(SignatureError, match=r"time_dependent=True for model\(t, y\)"):
        pdf.NeuralODE(model, (0.0, 1.0))


def test_stated_instead() -> None:
    y0 = torch.ones(1, dtype=F64)
    options = {"rtol": 1e-9, "atol": 1e-9}
    once = pdf.NeuralODE(anything, (0.0, 1.0), time_dependent=False, **options)(y0)
    twice = pdf.NeuralODE(anything, (0.0, 1.0), time_dependent=True, **options)(y0)
    torch.testing.assert_close(once, y0 * math.exp(-1))
    torch.testing.assert_close(twice, y0 * math.exp(-2))
    torch.testing.assert_close(
        pdf.NeuralODE(torch.sin, (0.0, 1e-6), time_dependent=False)(y0), y0 * (1 + 1e-6 * math.sin(1))
    )


# -- a good module ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [small(), Driven()], ids=["y", "t, y"])
@pytest.mark.parametrize("stated", [False, True])
def test_the_state_dict_is_the_models(model: nn.Module, stated: bool) -> None:
    node = pdf.NeuralODE(model, (0.0, 1.0), time_dependent=takes_time(model) if stated else None)
    assert list(node.state_dict()) == [f"model.{key}" for key in model.state_dict()]
    assert len(list(node.parameters())) == len(list(model.parameters()))
    twin = pdf.NeuralODE(copy.deepcopy(model), (0.0, 1.0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    y0 = torch.rand(2)
    assert not torch.equal(twin(y0), node(y0))
    twin.load_state_dict(node.state_dict())
    assert torch.equal(twin(y0), node(y0))


def test_deepcopy_is_independent() -> None:
    node = pdf.NeuralODE(small(), (0.0, nn.Parameter(torch.tensor(1.0))), "vern7", saveat=[0.5, 0.75])
    twin = copy.deepcopy(node)
    y0 = torch.rand(2)
    before = node(y0)
    assert torch.equal(before, twin(y0))
    with torch.no_grad():
        for p in twin.model.parameters():
            p.zero_()
    assert torch.equal(before, node(y0))
    assert torch.equal(twin(y0), y0.expand(2, 2))


def test_pickle_and_torch_save() -> None:
    node = pdf.NeuralODE(small(), (0.0, nn.Parameter(torch.tensor(1.0))), "AutoTsit5(Rosenbrock23)", sensealg="gauss")
    y0 = torch.rand(2)
    for twin in (pickle.loads(pickle.dumps(node)), _through_file(node)):
        assert torch.equal(twin(y0), node(y0)) and twin.method == node.method and twin.sensealg == node.sensealg
        assert twin.t_span[1] is twin.t1 and isinstance(twin.t1, nn.Parameter)


def _through_file(node: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_to_another_dtype() -> None:
    t1 = nn.Parameter(torch.tensor(1.0))
    node = pdf.NeuralODE(small(), (0.0, t1), rtol=1e-8, atol=1e-8)
    y0 = torch.rand(2)
    single = node(y0)
    double = node.double()(y0.double())
    assert double.dtype == F64 and node.t1.dtype == F64 and node.t1 is t1
    torch.testing.assert_close(double.float(), single, rtol=1e-5, atol=1e-6)
    node.float()
    assert node(y0).dtype == torch.float32
    with pytest.raises(pdf.errors.DtypeError, match="model"):
        node(y0.double())


def test_the_model_can_be_replaced() -> None:
    node = pdf.NeuralODE(small(), (0.0, 1.0), rtol=1e-8, atol=1e-8)
    node.model = nn.Identity()
    torch.testing.assert_close(node(torch.ones(2)), torch.full((2,), math.e), rtol=1e-5, atol=0)
    assert not list(node.state_dict())


def test_parameters_by_functional_call() -> None:
    node = pdf.NeuralODE(Driven(), (0.0, nn.Parameter(torch.tensor(1.0))), rtol=1e-8, atol=1e-8).double()
    y0 = torch.ones(1, dtype=F64)
    new = {"model.rate": torch.tensor(0.5, dtype=F64), "t1": torch.tensor(2.0, dtype=F64, requires_grad=True)}
    assert set(new) == set(dict(node.named_parameters()))
    end = torch.func.functional_call(node, new, (y0,))
    torch.testing.assert_close(end, torch.full((1,), math.exp(0.5 * 4), dtype=F64), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(end.sum(), new["t1"])
    torch.testing.assert_close(grad, 0.5 * 4 * end.detach().sum(), rtol=1e-6, atol=0)


def test_train_and_eval_reach_the_model() -> None:
    node = pdf.NeuralODE(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), (0.0, 1.0), "euler", dt=0.5)
    y0 = torch.rand(50, 2)
    assert not torch.equal(node(y0), node(y0))
    node.eval()
    assert torch.equal(node(y0), node(y0))


# -- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sensealg", [None, "GaussAdjoint", "BacksolveAdjoint"])
def test_training_reduces_the_loss(sensealg: str | None) -> None:
    times = torch.linspace(0, 1, 6)
    angle = 2 * times
    target = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
    node = pdf.NeuralODE(small(), (0.0, 1.0), saveat=times, sensealg=sensealg)
    optimiser = torch.optim.Adam(node.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = (node(torch.tensor([[1.0, 0.0]])) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_time_span_is_trained() -> None:
    """y = y0 exp(t1^2 - t0^2)."""
    t0, t1 = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (0.5, 1.0))
    node = pdf.NeuralODE(Driven(), (t0, t1), rtol=1e-9, atol=1e-9).double()
    assert {id(t0), id(t1)} < {id(p) for p in node.parameters()}
    node(torch.ones(1, dtype=F64)).backward()
    value = math.exp(0.75)
    torch.testing.assert_close(t0.grad, torch.tensor(-value, dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(t1.grad, torch.tensor(2 * value, dtype=F64), rtol=1e-6, atol=0)

    span = nn.Parameter(torch.tensor([0.5, 1.0], dtype=F64))
    whole = pdf.NeuralODE(Driven(), span, rtol=1e-9, atol=1e-9).double()
    assert "span" in whole.state_dict()
    whole(torch.ones(1, dtype=F64)).backward()
    torch.testing.assert_close(span.grad, torch.tensor([-value, 2 * value], dtype=F64), rtol=1e-6, atol=0)


def test_a_trained_end_time_finds_its_value() -> None:
    node = pdf.NeuralODE(linear_decay, (0.0, nn.Parameter(torch.tensor(0.3, dtype=F64))), rtol=1e-8, atol=1e-8)
    optimiser = torch.optim.SGD(node.parameters(), lr=1.0)
    for _ in range(60):
        optimiser.zero_grad()
        (node(torch.ones(1, dtype=F64)) - 0.5).square().sum().backward()
        optimiser.step()
    assert abs(float(node.t1.detach()) - math.log(2)) < 1e-4


def test_a_span_that_training_has_emptied_is_an_error() -> None:
    t1 = nn.Parameter(torch.tensor(1.0))
    node = pdf.NeuralODE(linear_decay, (0.0, t1))
    with torch.no_grad():
        t1.zero_()
    with pytest.raises(InvalidTimesError, match="must differ"):
        node(torch.ones(1))


# -- residual networks --------------------------------------------------------------------------


def test_a_residual_network_with_shared_weights_is_eulers_method() -> None:
    block = small()
    x = torch.randn(6, 2)
    residual = x
    for _ in range(5):
        residual = residual + block(residual)
    node = pdf.NeuralODE(block, (0.0, 5.0), method="euler", dt=1.0)
    assert torch.equal(node(x), residual)
    mine = torch.autograd.grad(node(x).square().sum(), list(block.parameters()))
    theirs = torch.autograd.grad(residual.square().sum(), list(block.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)


class Stacked(nn.Module):
    """The k-th block between the times k and k + 1."""

    def __init__(self, blocks: nn.ModuleList):
        super().__init__()
        self.blocks = blocks

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.blocks[int(t)](y)


@pytest.mark.parametrize("depth", [1, 4, 33])
def test_a_residual_network_is_eulers_method(depth: int) -> None:
    blocks = nn.ModuleList(small() for _ in range(depth))
    x = torch.randn(6, 2)
    residual = x
    for block in blocks:
        residual = residual + block(residual)
    # Without dense output: that would want the slope at the end of the span, where there is no block any more.
    node = pdf.NeuralODE(Stacked(blocks), (0.0, float(depth)), method="euler", dt=1.0, dense=False)
    assert torch.equal(node(x), residual)
    sol = node.solve(x)
    assert sol.stats.nf == depth
    assert sol.ts.tolist() == list(range(depth + 1)) and torch.equal(sol.ys[-1], residual)
    mine = torch.autograd.grad(node(x).square().sum(), list(blocks.parameters()))
    theirs = torch.autograd.grad(residual.square().sum(), list(blocks.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_its_limit_as_the_steps_grow() -> None:
    """Twice the blocks, each half as strong: the distance to the ODE halves."""
    block, x = small().double(), torch.randn(3, 2, dtype=F64)
    limit = pdf.NeuralODE(block, (0.0, 2.0), "vern9", rtol=1e-12, atol=1e-12)(x)
    errors = []
    for steps in (8, 16, 32, 64):
        residual = x
        for _ in range(steps):
            residual = residual + 2.0 / steps * block(residual)
        node = pdf.NeuralODE(block, (0.0, 2.0), "euler", dt=2.0 / steps)
        torch.testing.assert_close(node(x), residual, rtol=1e-14, atol=1e-14)
        errors.append(float((residual - limit).abs().max().detach()))
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
