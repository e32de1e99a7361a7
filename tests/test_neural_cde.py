"""Neural controlled differential equations: controls, exact solutions of linear ones, training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DataError,
    InvalidArgumentError,
    InvalidStateError,
    InvalidTimesError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)

D = torch.float64
KINDS = ("linear", "cubic", "hermite")
TIMES = torch.tensor([0.0, 0.5, 0.8, 1.7, 2.0], dtype=D)
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "tstops": TIMES[1:-1]}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def linear_field(matrices: Tensor) -> Any:
    """``dz = sum_i A_i z dX_i``, with ``matrices`` ``(channels, h, h)``."""
    return lambda z: torch.einsum("cij,...j->...ic", matrices, z)


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_only_counts_by_its_ends(kind: str) -> None:
    """dz = A z dX: z(T) = exp(A (X(T) - X(0))) z(0), whatever the path between."""
    a = 0.5 * torch.randn(3, 3, dtype=D)
    x, z0 = torch.randn(4, 5, 1, dtype=D), torch.randn(4, 3, dtype=D)
    layer = pdf.NeuralCDE(linear_field(a[None]), (0.0, 2.0), **TIGHT)
    found = layer(z0, pdf.SplineControl(TIMES, x, kind))
    rise = x[:, -1] - x[:, 0]
    exact = (torch.matrix_exp(a * rise[..., None]) @ z0[..., None])[..., 0]
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_matter(kind: str) -> None:
    """Matrices that do not commute: along straight lines the solution is a product of exponentials."""
    matrices = 0.5 * torch.randn(2, 3, 3, dtype=D)
    x, z0 = torch.randn(5, 2, dtype=D), torch.randn(3, dtype=D)
    found = pdf.NeuralCDE(linear_field(matrices), (0.0, 2.0), **TIGHT)(z0, pdf.SplineControl(TIMES, x, kind))
    product = z0
    for step in x.diff(dim=0):
        product = torch.matrix_exp(torch.einsum("cij,c->ij", matrices, step)) @ product
    if kind == "linear":
        torch.testing.assert_close(found, product, rtol=1e-7, atol=1e-8)
    else:  # another path between the same points: another end
        assert float((found - product).norm()) > 1e-3
        control = pdf.SplineControl(TIMES, x, kind)
        rhs = lambda t, z: torch.einsum("cij,j,c->i", matrices, z, control.derivative(t))  # noqa: E731
        exact = pdf.solve(pdf.ODEProblem(rhs, z0, (0.0, 2.0)), "vern7", **TIGHT).ys[-1]
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_controls(kind: str) -> None:
    x = torch.randn(3, 4, 5, 2, dtype=D)
    control = pdf.SplineControl(TIMES, x, kind)
    assert control.channels == 2 and control.interval == (0.0, 2.0)
    torch.testing.assert_close(control(TIMES).movedim(0, -2), x)
    t = torch.tensor([0.3, 1.1], dtype=D)
    assert control(t).shape == control.derivative(t).shape == (2, 3, 4, 2) and control(t[0]).shape == (3, 4, 2)
    slope = (control(t + 1e-6) - control(t - 1e-6)) / 2e-6
    torch.testing.assert_close(control.derivative(t), slope, rtol=1e-6, atol=1e-7)
    single = control.float()
    assert single(0.3).dtype == torch.float32
    assert control.jumps == ([0.5, pytest.approx(0.8), pytest.approx(1.7)] if kind == "linear" else [])


def test_backward_differences_do_not_look_ahead() -> None:
    """A change of the last observation changes the path in the last piece only; the natural spline's throughout."""
    x = torch.randn(5, 1, dtype=D)
    other = x.clone()
    other[-1] += 1.0
    early = torch.linspace(0.0, 1.69, 20, dtype=D)
    for kind, same in (("hermite", True), ("linear", True), ("cubic", False)):
        a, b = (pdf.SplineControl(TIMES, v, kind)(early) for v in (x, other))
        assert torch.equal(a, b) is same


def test_flattened_matrices_and_time_dependent_fields() -> None:
    control = pdf.SplineControl(TIMES, torch.randn(4, 5, 2, dtype=D))
    z0 = torch.randn(4, 3, dtype=D)
    net = nn.Linear(3, 6).double()
    flat = pdf.NeuralCDE(net, (0.0, 2.0), saveat=[1.0, 2.0])(z0, control)
    square = pdf.NeuralCDE(lambda z: net(z).unflatten(-1, (3, 2)), (0.0, 2.0), saveat=[1.0, 2.0])(z0, control)
    assert torch.equal(flat, square) and flat.shape == (2, 4, 3)
    timed = pdf.NeuralCDE(lambda t, z: (0 * z + 2 * t)[..., None], (0.0, 2.0), **TIGHT)
    clock = pdf.SplineControl(TIMES, TIMES[:, None])  # dz = 2t dt
    torch.testing.assert_close(timed(torch.zeros(1, dtype=D), clock), torch.tensor([4.0], dtype=D))
    sol = timed.solve(torch.zeros(1, dtype=D), clock)
    assert float(sol(1.5)) == pytest.approx(2.25)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    layer = pdf.NeuralCDE(net, (0.0, 2.0), "rk4", dt=0.1)

    def end(z0: Tensor, x: Tensor) -> Tensor:
        return layer(z0, pdf.SplineControl(TIMES, x, kind))

    z0, x = torch.randn(2, 2, dtype=D, requires_grad=True), torch.randn(2, 5, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(end, (z0, x), atol=1e-6)


@pytest.mark.parametrize("sensealg", ["gauss", "backsolve", "interpolating", "quadrature", "forward"])
def test_every_sensitivity_algorithm(sensealg: str) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    x, z0 = torch.randn(3, 5, 2, dtype=D), torch.randn(3, 2, dtype=D)

    def grads(how: str | None) -> list[Tensor]:
        values = x.clone().requires_grad_()
        control = pdf.SplineControl(TIMES, values, "linear")
        end = pdf.NeuralCDE(net, (0.0, 2.0), sensealg=how, **TIGHT)(z0, control)
        return list(torch.autograd.grad(end.square().sum(), [values, *net.parameters()]))

    for mine, exact in zip(grads(sensealg), grads(None), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)


def test_tells_which_way_spirals_turn() -> None:
    """A label that no single observation shows."""
    times = torch.linspace(0, 1, 20)
    way = torch.randint(0, 2, (64,)) * 2.0 - 1.0
    angle = 2 * math.pi * (torch.rand(64, 1) + way[:, None] * 0.6 * times)
    x = torch.stack([angle.cos(), angle.sin()], -1) + 0.05 * torch.randn(64, 20, 2)
    control = pdf.SplineControl(times, x)
    field = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
    embed, read = nn.Linear(2, 4), nn.Linear(4, 1)
    layer = pdf.NeuralCDE(field, (0.0, 1.0), "rk4", dt=0.1)
    model = nn.ModuleList([layer, embed, read])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        logits = read(layer(embed(control(0.0)), control))[:, 0]
        loss = nn.functional.softplus(-way * logits).mean()
        loss.backward()
        optimiser.step()
    assert float((logits.sign() == way).float().mean()) > 0.95


# -- mistakes -----------------------------------------------------------------------------------


def test_controls_that_are_none() -> None:
    x = torch.randn(5, 2, dtype=D)
    with pytest.raises(UnknownNameError, match=r"kind='hermit' is not known\. Did you mean 'hermite'"):
        pdf.SplineControl(TIMES, x, "hermit")
    with pytest.raises(ShapeError, match="4 times for 5 points"):
        pdf.SplineControl(TIMES[:4], x)
    with pytest.raises(InvalidTimesError, match="strictly increasing"):
        pdf.SplineControl(TIMES.flip(0), x)
    with pytest.raises(InvalidStateError, match="floating tensor"):
        pdf.SplineControl(TIMES, x.long())
    with pytest.raises(ShapeError, match=r"\(\.\.\., n, channels\)"):
        pdf.SplineControl(TIMES, x[:, 0])
    with pytest.raises(DataError, match="NaN"):
        pdf.SplineControl(TIMES, torch.full((5, 2), math.nan))


def test_times_outside_the_control() -> None:
    control = pdf.SplineControl(TIMES, torch.randn(5, 2, dtype=D))
    for t in (-0.1, 2.1, torch.tensor([1.0, 3.0])):
        with pytest.raises(InvalidTimesError, match="known from t=0 to t=2"):
            control(t)
    with pytest.raises(InvalidTimesError, match=r"asked for at t=2\.5"):
        pdf.NeuralCDE(nn.Linear(3, 6).double(), (0.0, 2.5))(torch.zeros(3, dtype=D), control)


def test_other_mistakes() -> None:
    control = pdf.SplineControl(TIMES, torch.randn(5, 2, dtype=D))
    with pytest.raises(ShapeError, match=r"a control with 2 channels it must be \(3, 2\)"):
        pdf.NeuralCDE(nn.Linear(3, 5).double(), (0.0, 2.0))(torch.zeros(3, dtype=D), control)
    with pytest.raises(InvalidArgumentError, match="not a SplineControl"):
        pdf.NeuralCDE(nn.Linear(3, 6), (0.0, 2.0))(torch.zeros(3), TIMES)
    with pytest.raises(UnsupportedError, match="per_sample"):
        pdf.NeuralCDE(nn.Linear(3, 6), (0.0, 2.0), batched=True, per_sample=True)
    with pytest.raises(InvalidArgumentError, match="not callable"):
        pdf.NeuralCDE(None, (0.0, 2.0))
