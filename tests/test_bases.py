"""Bases, tensor products and splines: against numpy's polynomials, numpy's kron and scipy's interpolation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, legendre, polynomial
from scipy.interpolate import CubicHermiteSpline, CubicSpline, interp1d
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, InvalidTimesError, ShapeError, UnknownNameError
from pydiffeqflux.interpolation import KINDS, check_knots, interpolate

D = torch.float64
X = np.linspace(-1.3, 1.2, 23)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- bases --------------------------------------------------------------------------------------


def vander(name: str, n: int) -> np.ndarray:
    j = np.arange(1, n + 1)
    angles = X[:, None] * j
    return {
        "chebyshev": lambda: chebyshev.chebvander(X, n - 1),
        "legendre": lambda: legendre.legvander(X, n - 1),
        "polynomial": lambda: polynomial.polyvander(X, n - 1),
        "sine": lambda: np.sin(angles),
        "cosine": lambda: np.cos(angles),
        "fourier": lambda: np.where(j % 2 == 0, np.cos(angles / 2), np.sin(angles / 2)),
    }[name]()


NAMES = ("chebyshev", "legendre", "polynomial", "sine", "cosine", "fourier")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_bases_are_numpy_s(name: str, n: int) -> None:
    found = pdf.basis(name, n)(torch.as_tensor(X))
    np.testing.assert_allclose(found.numpy(), vander(name, n), rtol=1e-12, atol=1e-12)
    assert found.shape == (len(X), n)
    assert pdf.basis(name, n)(torch.ones(2, 3)).shape == (2, 3, n)


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_smooth(name: str) -> None:
    """Chebyshev's too: cos(n arccos x) has no derivative at the ends, its polynomial has."""
    x = torch.tensor([-1.0, -0.3, 0.0, 1.0, 1.5], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(pdf.basis(name, 5), x)
    assert torch.autograd.gradgradcheck(pdf.basis(name, 5), x)


def test_orthogonality() -> None:
    nodes, weights = (torch.as_tensor(a) for a in legendre.leggauss(12))
    p = pdf.LegendreBasis(6)(nodes)
    torch.testing.assert_close(p.T @ (weights[:, None] * p), torch.diag(2 / (2 * torch.arange(6, dtype=D) + 1)))


def test_names() -> None:
    assert pdf.basis("Chebyshev", 3) == pdf.basis("ChebyshevBasis", 3) == pdf.ChebyshevBasis(3)
    assert pdf.basis("sin", 2) == pdf.basis("sine", 2) == pdf.SinBasis(2)
    with pytest.raises(UnknownNameError, match=r"basis='legandre' is not known\. Did you mean 'legendre'"):
        pdf.basis("legandre", 3)
    for wrong in (0, -1, 2.5, True, None):
        with pytest.raises(InvalidArgumentError, match="positive integer"):
            pdf.FourierBasis(wrong)


# -- tensor products ----------------------------------------------------------------------------


def test_the_layer_is_a_kronecker_product() -> None:
    layer = pdf.TensorProductLayer([pdf.ChebyshevBasis(3), ("sine", 2), pdf.PolynomialBasis(4)], 5).double()
    x = torch.randn(6, 3, dtype=D)
    for row, out in zip(x, layer(x), strict=True):
        parts = [b(v).numpy() for b, v in zip(layer.bases, row, strict=True)]
        product = np.kron(np.kron(parts[0], parts[1]), parts[2])
        np.testing.assert_allclose(out.detach().numpy(), layer.weight.detach().numpy() @ product, rtol=1e-12)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer(x.reshape(2, 3, 3)).shape == (2, 3, 5)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_the_layer_fits_a_function_of_two_variables() -> None:
    """It is linear in its weights: least squares finds them at once."""
    x = 2 * torch.rand(400, 2, dtype=D) - 1
    y = torch.exp(x[:, :1]) * torch.cos(2 * x[:, 1:])
    layer = pdf.TensorProductLayer([pdf.LegendreBasis(9)] * 2, 1, init=torch.nn.init.zeros_).double()
    assert not layer(x).any()
    features = torch.stack([b for b in _features(layer, x)], -1)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.lstsq(features, y).solution.T)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-5)


def _features(layer: pdf.TensorProductLayer, x: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(layer)
    found = []
    for i in range(layer.weight.shape[1]):
        with torch.no_grad():
            twin.weight.zero_()
            twin.weight[0, i] = 1.0
            found.append(twin(x)[:, 0])
    return found


def test_the_layer_inside_a_right_hand_side() -> None:
    layer = pdf.TensorProductLayer([pdf.ChebyshevBasis(3)] * 2, 2, init=lambda w: w.fill_(0.05)).double()
    node = pdf.NeuralODE(layer, (0.0, 0.5), rtol=1e-9, atol=1e-9)
    y0 = 0.1 * torch.randn(2, 2, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(node, y0.detach().requires_grad_(), atol=1e-6)


def test_tensor_product_mistakes() -> None:
    for wrong in ([], "chebyshev", 3, [3], ["chebyshev"]):
        with pytest.raises(InvalidArgumentError, match="bases"):
            pdf.TensorProductLayer(wrong, 2)
    with pytest.raises(UnknownNameError, match="'fourier'"):
        pdf.TensorProductLayer([("fouriers", 3)], 2)
    with pytest.raises(InvalidArgumentError, match="out_dim=0"):
        pdf.TensorProductLayer([("fourier", 3)], 0)
    with pytest.raises(ShapeError, match="2 bases"):
        pdf.TensorProductLayer([("fourier", 3), ("sine", 2)], 2)(torch.ones(4, 3))
    assert "ChebyshevBasis(n=3)" in repr(pdf.TensorProductLayer([("chebyshev", 3)], 2))


# -- interpolation ------------------------------------------------------------------------------

KNOTS = np.array([0.0, 0.4, 1.0, 1.3, 2.5])
POINTS = np.array([[1.0, 0.0], [0.3, -2.0], [-1.0, 0.5], [2.0, 0.7], [0.1, 1.0]])
TIMES = np.linspace(0.0, 2.4999, 61)


def backward(knots: np.ndarray, points: np.ndarray) -> Any:
    chords = np.diff(points, axis=0) / np.diff(knots)[:, None]
    return CubicHermiteSpline(knots, points, np.concatenate([chords[:1], chords]))


def parabolas(t: np.ndarray) -> np.ndarray:
    out = []
    for v in t:
        i = min(max(int(np.searchsorted(KNOTS, v, side="right")) - 1, 0), len(KNOTS) - 3)
        out.append([np.polyval(np.polyfit(KNOTS[i : i + 3], POINTS[i : i + 3, k], 2), v) for k in range(2)])
    return np.array(out)


REFERENCES: dict[str, Any] = {
    "constant": interp1d(KNOTS, POINTS, kind="previous", axis=0),
    "linear": interp1d(KNOTS, POINTS, axis=0),
    "quadratic": parabolas,
    "hermite": backward(KNOTS, POINTS),
    "cubic": CubicSpline(KNOTS, POINTS, bc_type="natural"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_is_scipy_s(kind: str) -> None:
    path = interpolate(kind, torch.as_tensor(KNOTS), torch.as_tensor(POINTS))
    np.testing.assert_allclose(path(torch.as_tensor(TIMES)).numpy(), REFERENCES[kind](TIMES), rtol=1e-10, atol=1e-12)
    if kind in ("hermite", "cubic"):
        exact = REFERENCES[kind].derivative()(TIMES)
        np.testing.assert_allclose(path.derivative(torch.as_tensor(TIMES)).numpy(), exact, rtol=1e-10, atol=1e-11)
    t = torch.tensor(0.7, dtype=D)
    h = 1e-6
    slope = (path(t + h) - path(t - h)) / (2 * h)
    torch.testing.assert_close(path.derivative(t), slope, rtol=1e-7, atol=1e-8)
    assert path(t).shape == (2,) and path(torch.ones(2, 3, dtype=D)).shape == (2, 3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_gradients(kind: str) -> None:
    def values(knots: Tensor, points: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        path = interpolate(kind, knots, points)
        return path(t), path.derivative(t)

    inputs = [torch.tensor(a, dtype=D, requires_grad=True) for a in (KNOTS, POINTS, [0.3, 0.9, 2.2])]
    assert torch.autograd.gradcheck(values, inputs)


@pytest.mark.parametrize("count", [2, 3])
def test_few_points(count: int) -> None:
    knots, points = torch.as_tensor(KNOTS[:count]), torch.as_tensor(POINTS[:count])
    for kind, (_, fewest) in KINDS.items():
        if count >= fewest:
            ends = interpolate(kind, knots, points)(knots[:1])
            torch.testing.assert_close(ends, points[:1])


def test_times_that_are_no_knots() -> None:
    with pytest.raises(InvalidTimesError, match="strictly increasing"):
        check_knots([0.0, 1.0, 1.0], 3, 2, "times")
    with pytest.raises(InvalidTimesError, match="one-dimensional"):
        check_knots(torch.ones(2, 2), 2, 2, "times")
    with pytest.raises(ShapeError, match="2 times for 3 points"):
        check_knots([0.0, 1.0], 3, 2, "times")
    with pytest.raises(InvalidArgumentError, match="at least 3"):
        check_knots([0.0, 1.0], 2, 3, "times")


# -- spline layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_spline_layers(kind: str, shape: tuple[int, ...]) -> None:
    layer = pdf.SplineLayer(shape, 0.0, 2.0, 0.5, kind).double()
    assert layer.saved_points.shape == (5, *shape) and layer.grid.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    t = torch.rand(7, dtype=D) * 2
    expected = interpolate(kind, layer.grid, layer.saved_points)(t)
    torch.testing.assert_close(layer(t), expected)
    assert layer(t).shape == (7, *shape) and layer(t[0]).shape == shape
    beyond = layer(torch.tensor([-1.0, 5.0], dtype=D))
    torch.testing.assert_close(beyond[0], layer.saved_points[0])
    torch.testing.assert_close(beyond[1], layer.saved_points[-1])
    torch.testing.assert_close(layer(torch.tensor(2.0, dtype=D)), layer.saved_points[-1])
    assert [n for n, _ in layer.named_parameters()] == ["saved_points"]


def test_a_trained_grid() -> None:
    layer = pdf.SplineLayer(1, 0.0, 1.0, 0.25, train_grid=True, init_saved_points=torch.nn.init.zeros_).double()
    assert {n for n, _ in layer.named_parameters()} == {"grid", "saved_points"} and not layer.saved_points.any()
    times = torch.linspace(0, 1, 50, dtype=D)
    target = torch.tanh(20 * (times - 0.5))[:, None]
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(400):
        optimiser.zero_grad()
        loss = (layer(times) - target).square().mean()
        loss.backward()
        optimiser.step()
    fixed = pdf.SplineLayer(1, 0.0, 1.0, 0.25).double()
    path = interpolate("cubic", fixed.grid, torch.eye(5, dtype=D))(times)
    best = (path @ torch.linalg.lstsq(path, target).solution - target).square().mean()
    assert float(loss.detach()) < 0.5 * float(best)


def test_an_unknown_input_is_found() -> None:
    """y' = -y + u(t), u a spline: its knots are learnt from y."""
    layer = pdf.SplineLayer((), 0.0, 3.0, 0.75).double()
    times = torch.linspace(0, 3, 25, dtype=D)
    truth = pdf.solve(
        pdf.ODEProblem(lambda t, y: -y + torch.sin(2 * t), torch.zeros(1, dtype=D), (0.0, 3.0)), saveat=times, rtol=1e-8
    ).ys
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        problem = pdf.ODEProblem(lambda t, y: -y + layer(t), torch.zeros(1, dtype=D), (0.0, 3.0))
        value = (pdf.solve(problem, "rk4", saveat=times, dense=False).ys - truth).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    inside = times[3:-3]
    assert float((layer(inside) - torch.sin(2 * inside)).detach().abs().max()) < 0.1


def test_spline_layer_mistakes() -> None:
    with pytest.raises(UnknownNameError, match=r"basis='cubics' is not known\. Did you mean 'cubic'"):
        pdf.SplineLayer((), 0.0, 1.0, 0.5, "cubics")
    with pytest.raises(InvalidArgumentError, match="positive step"):
        pdf.SplineLayer((), 1.0, 0.0, 0.5)
    with pytest.raises(InvalidArgumentError, match="needs 3 or more"):
        pdf.SplineLayer((), 0.0, 1.0, 1.0, "quadratic")
    with pytest.raises(InvalidArgumentError, match="in_dims"):
        pdf.SplineLayer((0,), 0.0, 1.0, 0.5)
    with pytest.raises(ShapeError, match="tensor of times"):
        pdf.SplineLayer((), 0.0, 1.0, 0.5)(0.3)
    assert "(2,), 3 knots, basis=cubic" in repr(pdf.SplineLayer(2, 0.0, 1.0, 0.5))
