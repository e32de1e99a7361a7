"""Continuous normalising flows: densities against exact ones, volumes against determinants, both ways."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, ShapeError, UnknownNameError, UnsupportedError

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def net(features: int = 2, width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, features)).double()


class Linear(nn.Module):
    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.matrix.T


MATRIX = torch.tensor([[0.3, -0.8, 0.1], [0.5, -0.2, 0.4], [0.0, 0.7, 0.6]], dtype=D)


# -- against what is known ----------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_linear_flow_changes_volumes_by_its_trace(trace: str) -> None:
    """z' = A z: z(T) = exp(A T) z(0), and log det exp(A T) = T tr A."""
    x = torch.randn(6, 3, dtype=D)
    flow = pdf.FFJORD(Linear(MATRIX), (0.0, 1.5), 3, trace=trace, **TIGHT)
    noise = None if trace == "exact" else flow.draw(x)
    z, volume = flow.flow(x, noise)
    torch.testing.assert_close(z, x @ torch.matrix_exp(1.5 * MATRIX).T, rtol=1e-7, atol=1e-8)
    if noise is None:
        expected = torch.full((6,), 1.5 * float(MATRIX.trace()), dtype=D)
    else:  # of the estimate, what the noise says: it is constant along the path
        expected = 1.5 * torch.einsum("bi,ij,bj->b", noise, MATRIX, noise)
    torch.testing.assert_close(volume, expected, rtol=1e-7, atol=1e-8)


def test_a_linear_flow_makes_a_normal_distribution() -> None:
    x = torch.randn(6, 3, dtype=D)
    flow = pdf.FFJORD(Linear(MATRIX), (0.0, 1.5), 3, **TIGHT)
    back = torch.matrix_exp(-1.5 * MATRIX)
    exact = MultivariateNormal(torch.zeros(3, dtype=D), back @ back.T)
    torch.testing.assert_close(flow(x).log_prob, exact.log_prob(x), rtol=1e-7, atol=1e-7)
    shifted = MultivariateNormal(torch.ones(3, dtype=D), 2 * torch.eye(3, dtype=D))
    moved = pdf.FFJORD(Linear(MATRIX), (0.0, 1.5), 3, basedist=shifted, **TIGHT)
    exact = MultivariateNormal(back @ torch.ones(3, dtype=D), 2 * back @ back.T)
    torch.testing.assert_close(moved(x).log_prob, exact.log_prob(x), rtol=1e-7, atol=1e-7)


def test_the_estimate_is_unbiased() -> None:
    x = torch.randn(1, 3, dtype=D).expand(4000, 3)
    flow = net(3)
    exact = pdf.FFJORD(flow, (0.0, 1.0), 3, rtol=1e-6)(x[:1]).log_prob.detach()
    for noise in ("rademacher", "gaussian"):
        found = pdf.FFJORD(flow, (0.0, 1.0), 3, trace="hutchinson", noise=noise, rtol=1e-6)(x).log_prob.detach()
        spread = found.std() / math.sqrt(len(found))
        assert found.std() > 1e-3
        assert abs(float(found.mean() - exact)) < 4 * float(spread)


def test_the_volume_is_the_determinant_of_the_map() -> None:
    flow = pdf.FFJORD(net(), (0.0, 1.0), 2, **TIGHT)
    x = torch.randn(2, dtype=D)
    jacobian = torch.autograd.functional.jacobian(lambda a: flow.flow(a)[0], x)
    torch.testing.assert_close(flow.flow(x)[1], torch.linalg.slogdet(jacobian)[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dims", [1, 2])
def test_the_density_integrates_to_one(dims: int) -> None:
    model = net(dims)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
        side = torch.linspace(-14, 14, 4001 if dims == 1 else 281, dtype=D)
        points = torch.cartesian_prod(*[side] * dims).reshape(-1, dims)
        flow = pdf.FFJORD(model, (0.0, 1.0), dims, rtol=1e-7, atol=1e-7)
        density = flow(points).log_prob.exp()
        normal = Normal(0.0, 1.0).log_prob(points).sum(-1).exp()
    assert float((density - normal).abs().max()) > 0.05  # the flow does something
    assert float(density.sum() * (side[1] - side[0]) ** dims) == pytest.approx(1.0, abs=1e-5)


def test_forwards_and_back() -> None:
    flow = pdf.FFJORD(net(), (0.2, 1.3), 2, **TIGHT)
    x = torch.randn(7, 2, dtype=D)
    torch.testing.assert_close(flow.inverse(flow.flow(x)[0]), x, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(flow.flow(flow.inverse(x))[0], x, rtol=1e-6, atol=1e-7)


def test_a_field_that_depends_on_time() -> None:
    """z' = 2 t z: log-volume t1^2 - t0^2 in each dimension."""
    flow = pdf.FFJORD(lambda t, z: 2 * t * z, (0.5, 1.0), 2, **TIGHT)
    x = torch.randn(3, 2, dtype=D)
    z, volume = flow.flow(x)
    torch.testing.assert_close(z, x * math.exp(0.75))
    torch.testing.assert_close(volume, torch.full((3,), 1.5, dtype=D))


def test_samples_of_any_shape() -> None:
    """An image flow is the flow of its flattened pixels."""
    model = net(6)

    class Image(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return model(z.flatten(-2)).unflatten(-1, (2, 3))

    x = torch.randn(4, 5, 2, 3, dtype=D)
    found = pdf.FFJORD(Image(), (0.0, 1.0), (2, 3), regularize=True, **TIGHT)(x)
    flat = pdf.FFJORD(model, (0.0, 1.0), 6, regularize=True, **TIGHT)(x.flatten(-2))
    for a, b in zip(found, flat, strict=True):
        assert a.shape == (4, 5)
        torch.testing.assert_close(a, b)


def test_regularisers() -> None:
    """z' = A z: |f|^2 and |A|^2 along the exact path; Hutchinson's |e'A|^2."""
    flow = pdf.FFJORD(Linear(MATRIX), (0.0, 1.0), 3, regularize=True, **TIGHT)
    x = torch.randn(4, 3, dtype=D)
    times = torch.linspace(0, 1, 2001, dtype=D)
    path = torch.einsum("tij,bj->tbi", torch.matrix_exp(times[:, None, None] * MATRIX), x)
    kinetic = torch.trapezoid((path @ MATRIX.T).square().sum(-1), times, dim=0)
    found = flow(x)
    torch.testing.assert_close(found.kinetic, kinetic, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.jacobian, MATRIX.square().sum().expand(4), rtol=1e-7, atol=0)
    torch.testing.assert_close(found.log_prob, pdf.FFJORD(flow.model, (0.0, 1.0), 3, **TIGHT)(x).log_prob)
    guess = pdf.FFJORD(flow.model, (0.0, 1.0), 3, trace="hutchinson", regularize=True, **TIGHT)
    noise = guess.draw(x)
    torch.testing.assert_close(guess(x, noise).jacobian, (noise @ MATRIX).square().sum(-1), rtol=1e-7, atol=0)
    plain = pdf.FFJORD(flow.model, (0.0, 1.0), 3)(x)
    assert not plain.kinetic.any() and not plain.jacobian.any()


# -- noise --------------------------------------------------------------------------------------


def test_noise_is_drawn_once_a_solve() -> None:
    """Fresh noise at each evaluation would make the field rough, and adaptive steps tiny."""
    x = torch.randn(50, 3, dtype=D)
    model = net(3)
    estimate = pdf.FFJORD(model, (0.0, 1.0), 3, trace="hutchinson", **TIGHT).solve(x).stats
    exact = pdf.FFJORD(model, (0.0, 1.0), 3, **TIGHT).solve(x).stats
    assert estimate.nf < 2 * exact.nf


def test_seeds() -> None:
    x = torch.randn(5, 2, dtype=D)
    model = net()
    seeded = pdf.FFJORD(model, (0.0, 1.0), 2, trace="hutchinson", seed=3)
    assert torch.equal(seeded(x).log_prob, seeded(x).log_prob)
    assert torch.equal(seeded(x).log_prob, seeded(x, seeded.draw(x)).log_prob)
    free = pdf.FFJORD(model, (0.0, 1.0), 2, trace="hutchinson")
    assert not torch.equal(free(x).log_prob, free(x).log_prob)
    torch.manual_seed(5)
    first = free(x).log_prob
    torch.manual_seed(5)
    assert torch.equal(free(x).log_prob, first)


def test_what_noise_looks_like() -> None:
    x = torch.zeros(20000, 2, dtype=D)
    signs = pdf.FFJORD(net(), (0.0, 1.0), 2, seed=0).draw(x)
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.02
    normal = pdf.FFJORD(net(), (0.0, 1.0), 2, noise="gaussian", seed=0).draw(x)
    assert abs(float(normal.std()) - 1) < 0.02


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients(trace: str) -> None:
    flow = pdf.FFJORD(net(2, 4), (0.0, 1.0), 2, trace=trace, seed=1, regularize=True, rtol=1e-9, atol=1e-9)
    x = torch.randn(2, 2, dtype=D, requires_grad=True)
    names = list(dict(flow.named_parameters()))

    def together(x: Tensor, *values: Tensor) -> Tensor:
        out = torch.func.functional_call(flow, dict(zip(names, values, strict=True)), (x,))
        return out.log_prob + 0.3 * out.kinetic + 0.2 * out.jacobian

    assert torch.autograd.gradcheck(together, (x, *flow.parameters()), atol=1e-5)


@pytest.mark.parametrize("sensealg", ["gauss", "backsolve", "interpolating", "quadrature", "forward"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_every_sensitivity_algorithm(sensealg: str, trace: str) -> None:
    model, x = net(), torch.randn(3, 2, dtype=D)

    def grads(how: str | None) -> list[Tensor]:
        flow = pdf.FFJORD(model, (0.0, 1.0), 2, trace=trace, seed=1, sensealg=how, **TIGHT)
        return list(torch.autograd.grad(flow(x).log_prob.sum(), list(model.parameters())))

    for mine, exact in zip(grads(sensealg), grads(None), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)


def test_stiff_methods_transforms_and_inference() -> None:
    model, x = net(), torch.randn(3, 2, dtype=D)
    flow = pdf.FFJORD(model, (0.0, 1.0), 2, rtol=1e-7, atol=1e-7)
    expected = flow(x).log_prob
    stiff = pdf.FFJORD(model, (0.0, 1.0), 2, "rodas5p", batched=True, rtol=1e-7, atol=1e-7)(x).log_prob
    torch.testing.assert_close(stiff, expected, rtol=1e-5, atol=1e-5)
    rows = pdf.FFJORD(model, (0.0, 1.0), 2, batched=True, per_sample=True, rtol=1e-7, atol=1e-7)(x).log_prob
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
    each = torch.func.vmap(lambda a: flow(a).log_prob)(x)
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(flow(x).log_prob, expected)
    with torch.no_grad():
        assert not flow(x).log_prob.requires_grad


def test_a_model_without_a_batching_rule() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return z**3

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (z,) = ctx.saved_tensors
            return 3 * z**2 * g * float(g.new_ones(1).item())  # .item() keeps vmap out

    x = 0.3 * torch.randn(3, 2, dtype=D)
    own = pdf.FFJORD(Cube.apply, (0.0, 1.0), 2, time_dependent=False, **TIGHT)(x).log_prob
    torch.testing.assert_close(own, pdf.FFJORD(lambda z: z**3, (0.0, 1.0), 2, **TIGHT)(x).log_prob)


# -- as a distribution --------------------------------------------------------------------------


def test_as_a_distribution() -> None:
    flow = pdf.FFJORD(Linear(MATRIX), (0.0, 1.0), 3, **TIGHT)
    learnt = pdf.FFJORDDistribution(flow)
    assert (learnt.batch_shape, learnt.event_shape) == ((), (3,)) and learnt.has_rsample
    x = learnt.sample((4, 5))
    assert x.shape == (4, 5, 3) and x.dtype == D and not x.requires_grad
    assert learnt.log_prob(x).shape == (4, 5) and learnt.sample().shape == (3,)
    assert bool(learnt.support.check(x).all())
    assert torch.equal(learnt.log_prob(x), flow(x).log_prob)
    back = torch.matrix_exp(-MATRIX)
    many = learnt.sample((20000,))
    torch.testing.assert_close(many.T.cov(), back @ back.T, rtol=0.1, atol=0.05)


def test_samples_are_differentiable() -> None:
    """x = exp(-A) z: the mean of |x|^2 has a gradient in A."""
    model = Linear(torch.tensor([[0.5]], dtype=D))
    learnt = pdf.FFJORDDistribution(pdf.FFJORD(model, (0.0, 1.0), 1, **TIGHT))
    x = learnt.rsample((10,))
    (grad,) = torch.autograd.grad(x.square().mean(), model.matrix)
    torch.testing.assert_close(grad, -2 * x.detach().square().mean().reshape(1, 1), rtol=1e-6, atol=0)
    fixed = pdf.FFJORDDistribution(
        pdf.FFJORD(model, (0.0, 1.0), 1, basedist=Uniform(torch.zeros(1, dtype=D), torch.ones(1, dtype=D)))
    )
    assert fixed.rsample((3,)).shape == (3, 1)


def test_learns_a_density() -> None:
    """Two far-apart bumps on the line: the likelihood comes near that of the truth."""
    sign = torch.randint(0, 2, (256, 1)) * 2.0 - 1.0
    x = 1.5 * sign + 0.4 * torch.randn(256, 1)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    flow = pdf.FFJORD(model, (0.0, 1.0), 1, trace="hutchinson")
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        loss = -flow(x).log_prob.mean()
        loss.backward()
        optimiser.step()
    both = torch.stack([Normal(1.5, 0.4).log_prob(x), Normal(-1.5, 0.4).log_prob(x)]).logsumexp(0) - math.log(2)
    normal = -Normal(x.mean(), x.std()).log_prob(x).mean()
    assert float(loss.detach()) < float(-both.mean()) + 0.1
    assert float(loss.detach()) < float(normal) - 0.3


def test_copies() -> None:
    flow = pdf.FFJORD(net(), (0.0, nn.Parameter(torch.tensor(1.0))), 2, trace="hutchinson", seed=0)
    x = torch.randn(2, 2, dtype=D)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(twin(x).log_prob, flow(x).log_prob)
    assert "input_dims=(2,), trace=hutchinson" in repr(flow)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [0, -2, 1.5, (), (2, 0), "2", None, True])
def test_dims_that_are_none(dims: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="input_dims"):
        pdf.FFJORD(net(), (0.0, 1.0), dims)


def test_samples_of_another_shape() -> None:
    flow = pdf.FFJORD(net(), (0.0, 1.0), 2)
    for x in (torch.ones(4, 3, dtype=D), torch.ones((), dtype=D), [1.0, 2.0]):
        with pytest.raises(ShapeError, match=r"input_dims=\(2,\)"):
            flow(x)
    with pytest.raises(ShapeError, match="z has shape"):
        flow.inverse(torch.ones(4, 3, dtype=D))
    with pytest.raises(ShapeError, match=r"input_dims=\(2,\)"):
        pdf.FFJORDDistribution(flow).log_prob(torch.ones(3, dtype=D))
    with pytest.raises(ShapeError, match="a flow needs that shape"):
        pdf.FFJORD(lambda z: z[..., :1], (0.0, 1.0), 2)(torch.ones(4, 2))
    with pytest.raises(ShapeError, match="noise has shape"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, trace="hutchinson")(torch.ones(4, 2, dtype=D), torch.ones(2, dtype=D))


def test_other_mistakes() -> None:
    with pytest.raises(UnknownNameError, match=r"trace='hutchison' is not known\. Did you mean 'hutchinson'"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, trace="hutchison")
    with pytest.raises(UnknownNameError, match=r"noise='gauss'.*'gaussian'"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, noise="gauss")
    with pytest.raises(UnsupportedError, match="leave saveat out"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, saveat=[0.5])
    with pytest.raises(InvalidArgumentError, match=r"not a torch\.distributions"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, basedist="normal")
    with pytest.raises(InvalidArgumentError, match=r"shape \(3,\) where input_dims=\(2,\)"):
        pdf.FFJORD(net(), (0.0, 1.0), 2, basedist=Independent(Normal(torch.zeros(3), 1.0), 1))
    with pytest.raises(InvalidArgumentError, match="trace='exact' uses none"):
        pdf.FFJORD(net(), (0.0, 1.0), 2)(torch.ones(1, 2, dtype=D), torch.ones(1, 2, dtype=D))
    with pytest.raises(InvalidArgumentError, match="not an FFJORD"):
        pdf.FFJORDDistribution(net())
    with pytest.raises(InvalidArgumentError, match="not callable"):
        pdf.FFJORD(3, (0.0, 1.0), 2)
