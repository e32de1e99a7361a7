"""``backend="diffeqflux"``: DiffEqFlux's and Boltz's own layers around torch modules, against the native engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems.in_julia import columns, julia, matrix, vector
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    BackendUnavailableError,
    DtypeError,
    MassMatrixMethodError,
    MaxStepsError,
    MethodNoiseError,
    ShapeError,
    StepSizeRequiredError,
    UnknownNameError,
    UnsupportedError,
)

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
SAVES: dict[str, Any] = {"saveat": [0.5, 1.0]}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).to(D)


class Driven(nn.Module):
    """A model of time and states."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = mlp(inputs + 1, outputs)

    def forward(self, t: Tensor, y: Tensor, *past: Tensor) -> Tensor:
        wave = torch.cos(3 * t).expand(*y.shape[:-1], 1)
        found: Tensor = self.net(torch.cat([y, *past, wave], -1))
        return found


class Past(nn.Module):
    """A history with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.5, -0.3], dtype=D))

    def forward(self, t: Tensor) -> Tensor:
        return torch.stack([torch.cos(t), 1 + t]) * self.slopes


class Constraint(nn.Module):
    """One row that says what the last state is, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=D))

    def forward(self, y: Tensor) -> Tensor:
        return y.sum(-1, keepdim=True) - 1 + 0.1 * torch.sin(self.weight * y[..., 2:])


class Implicit(nn.Module):
    """Residuals of two differential variables, for a state and its derivative side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 2)

    def forward(self, both: Tensor) -> Tensor:
        y, dy = both.chunk(2, -1)
        found: Tensor = dy[..., :2] - self.net(y)
        return found


# A case is a module, what of it is called on a backend, and the state that it is called with.
Case = tuple[nn.Module, Callable[[str], Callable[[Tensor], Tensor]], Tensor]


def weights(net: nn.Sequential) -> str:
    """A network's, as a Lux chain has them."""
    layers = (x for x in net if isinstance(x, nn.Linear))
    named = (f"layer_{i} = (weight = {matrix(x.weight)}, bias = {vector(x.bias)})" for i, x in enumerate(layers, 1))
    return f"({', '.join(named)},)"


def rows(*shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape, dtype=D)


def augmented(model: nn.Module) -> Case:
    return model, lambda b: pdf.AugmentedNeuralODE(model, (0.0, 1.0), 2, backend=b, **SAVES, **TIGHT), rows(3, 2)


def images() -> Case:
    conv = nn.Conv2d(3, 3, 3, padding=1).to(D)
    model = nn.Sequential(conv, nn.Tanh())
    return model, lambda b: pdf.AugmentedNeuralODE(model, (0.0, 1.0), 2, dim=1, backend=b, **TIGHT), rows(2, 1, 4, 4)


def massive(model: nn.Module) -> Case:
    constraint = Constraint()
    both = nn.ModuleList([model, constraint])
    mass = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=D))
    timed = isinstance(model, Driven)
    below = (lambda t, y: constraint(y)) if timed else constraint
    options: dict[str, Any] = {"initialise": "solve", "time_dependent": timed, **SAVES, **TIGHT}
    return both, lambda b: pdf.NeuralMassMatrixODE(model, below, (0.0, 1.0), mass, backend=b, **options), rows(2, 3)


def delayed(model: nn.Module, history: nn.Module | None, y0: Tensor) -> Case:
    both = nn.ModuleList([model] if history is None else [model, history])
    options: dict[str, Any] = {"inputs": "timed" if isinstance(model, Driven) else "joined", **SAVES, **TIGHT}
    return both, lambda b: pdf.NeuralDDE(model, (0.0, 1.0), [0.4, 0.7], history, backend=b, **options), y0


def flow(model: nn.Module, **options: Any) -> Case:
    def made(b: str) -> Callable[[Tensor], Tensor]:
        found = pdf.FFJORD(model, (0.0, 1.0), 2, backend=b, **options, **TIGHT)
        return lambda x: found(x).log_prob

    return model, made, rows(4, 2)


def shot(model: nn.Module) -> Case:
    t = torch.linspace(0, 2, 6, dtype=D) ** 1.2

    def made(b: str) -> Callable[[Tensor], Tensor]:
        def loss(data: Tensor) -> Tensor:
            return pdf.multiple_shoot(model, data, t, group_size=3, backend=b, **TIGHT).loss

        return loss

    return model, made, rows(6, 2)


def node(model: nn.Module, y0: Tensor) -> Case:
    return model, lambda b: pdf.NeuralODE(model, (0.0, 1.0), backend=b, **SAVES, **TIGHT), y0


def samples(model: nn.Module) -> Case:
    return model, lambda b: pdf.FFJORD(model, (0.0, 1.0), 2, backend=b, **TIGHT).inverse, rows(4, 2)


def spline(**options: Any) -> Case:
    layer = pdf.SplineLayer((), -1.0, 2.0, 0.5, **options).to(D)
    return node(layer, rows(3, 2))


def tensor_layer(one: str = "legendre", other: str = "sine") -> Case:
    layer = pdf.TensorProductLayer([(one, 3), (other, 4)], 2).to(D)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    return node(layer, rows(3, 2))


WIDE = Independent(Normal(torch.ones(2, dtype=D), 2 * torch.ones(2, dtype=D)), 1)
CASES: dict[str, Callable[[], Case]] = {
    "augmented": lambda: augmented(mlp(4, 4)),
    "augmented, driven": lambda: augmented(Driven(4, 4)),
    "augmented images": images,
    "mass matrix": lambda: massive(mlp(3, 2)),
    "mass matrix, driven": lambda: massive(Driven(3, 2)),
    "delay": lambda: delayed(mlp(6, 2), Past(), rows(2)),
    "delay, own history": lambda: delayed(mlp(6, 2), None, rows(3, 2)),
    "delay, driven": lambda: delayed(Driven(6, 2), None, rows(3, 2)),
    "delay, driven, history": lambda: delayed(Driven(6, 2), Past(), rows(2)),
    "flow": lambda: flow(mlp(2, 2)),
    "flow, driven": lambda: flow(Driven(2, 2)),
    "flow, other base": lambda: flow(mlp(2, 2), basedist=WIDE),
    "hamiltonian": lambda: node(pdf.HamiltonianNN(mlp(4, 1)), rows(3, 4)),
    "samples": lambda: samples(mlp(2, 2)),
    "samples, driven": lambda: samples(Driven(2, 2)),
    "spline": spline,
    "spline, trained grid": lambda: spline(train_grid=True),
    "tensor": tensor_layer,
    "tensor, chebyshev": lambda: tensor_layer("chebyshev", "fourier"),
    "tensor, polynomial": lambda: tensor_layer("polynomial", "cosine"),
    "shooting": lambda: shot(mlp(2, 2)),
    "shooting, driven": lambda: shot(Driven(2, 2)),
}

#: What of DiffEqFlux's is called for them.
CALLED = {
    "augmented": "AugmentedNDELayer",
    "augmented images": "AugmentedNDELayer",
    "mass matrix": "NeuralODEMM",
    "delay": "NeuralCDDE",
    "flow": "FFJORD",
    "hamiltonian": "NeuralODE(HamiltonianNN)",
    "samples": "FFJORDDistribution",
    "spline": "NeuralODE(SplineLayer)",
    "tensor": "NeuralODE(TensorProductLayer)",
    "shooting": "multiple_shoot",
}


def value_and_gradients(case: Case, backend: str) -> tuple[Tensor, list[Tensor]]:
    module, made, y0 = case
    y0 = y0.clone().requires_grad_()
    value = made(backend)(y0)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=D).reshape(value.shape)
    wanted = [y0, *module.parameters()]
    found = torch.autograd.grad((weights * value).sum(), wanted, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_layers_and_their_gradients(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same states as natively, and the same gradients in the initial state and in every parameter."""
    case = CASES[name]()
    with caplog.at_level("INFO", "pydiffeqflux"):
        theirs, to_theirs = value_and_gradients(case, "diffeqflux")
    assert f"DiffEqFlux's {CALLED[name.split(',')[0]]}\n" in caplog.text
    ours, to_ours = value_and_gradients(case, "torch")
    assert theirs.shape == ours.shape
    assert torch.allclose(theirs, ours, rtol=1e-7, atol=1e-7)
    for one, other in zip(to_theirs, to_ours, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


FAST = ("delay, own history", "shooting, driven")


@pytest.mark.parametrize("name", FAST)
def test_layers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The states alone: nothing of Zygote is compiled."""
    _, made, y0 = CASES[name]()
    with torch.no_grad(), caplog.at_level("INFO", "pydiffeqflux"):
        theirs, ours = made("diffeqflux")(y0), made("torch")(y0)
    assert f"DiffEqFlux's {CALLED[name.split(',')[0]]}\n" in caplog.text
    assert theirs.shape == ours.shape
    assert torch.allclose(theirs, ours, rtol=1e-7, atol=1e-7)


# -- stochastic layers -------------------------------------------------------------------------------


def noisy(kind: str, backend: str, **options: Any) -> nn.Module:
    """A layer with Euler's method and steps of 1/20."""
    torch.manual_seed(1)
    made: dict[str, Any] = {"dt": 0.05, "backend": backend, **options}
    if kind == "diagonal":
        return pdf.NeuralDSDE(mlp(2, 2), nn.Sequential(mlp(2, 2), nn.Sigmoid()), (0.0, 1.0), "em", **made)
    if kind == "driven":
        return pdf.NeuralDSDE(Driven(2, 2), mlp(2, 2), (0.0, 1.0), "em", **made)
    matrix = nn.Sequential(mlp(2, 6), nn.Unflatten(-1, (2, 3)))
    return pdf.NeuralSDE(mlp(2, 2), matrix, (0.0, 1.0), 3, "em", **made)


@pytest.mark.parametrize("kind", ["diagonal", "driven", "general"])
def test_stochastic_layers_have_the_same_moments(kind: str) -> None:
    y0 = torch.tensor([0.5, -0.2], dtype=D).expand(400, 2).contiguous()
    with torch.no_grad():
        theirs, ours = (noisy(kind, b, saveat=[0.5, 1.0], seed=5)(y0) for b in ("diffeqflux", "torch"))
    assert theirs.shape == ours.shape == (2, 400, 2)
    spread = ((theirs.var(1) + ours.var(1)) / 400).sqrt()
    assert bool(((theirs.mean(1) - ours.mean(1)).abs() < 4 * spread).all())
    ratio = theirs.var(1) / ours.var(1)  # of normal variables within 1 +- 4 sqrt(4 / 400)
    assert bool(((ratio > 0.6) & (ratio < 1.6)).all())
    # One motion a row, and rows are independent.
    assert abs(float(torch.corrcoef(theirs[-1, :, 0].reshape(2, 200))[0, 1])) < 4 / 200**0.5


def test_a_stochastic_layer_takes_the_path_of_a_julia_program() -> None:
    """The same seed in the same layer around a network of Lux: the same numbers."""
    layer = noisy("diagonal", "diffeqflux", saveat=[0.5, 1.0], seed=7)
    f, g = layer.drift, layer.diffusion[0]
    y0 = torch.tensor([0.5, -0.2], dtype=D)
    found = julia(
        f"""
        drift = Lux.Chain(Lux.Dense(2 => 5, tanh), Lux.Dense(5 => 2))
        diffusion = Lux.Chain(Lux.Dense(2 => 5, tanh), Lux.Dense(5 => 2, P.sigmoid))
        layer = DiffEqFlux.NeuralDSDE(
            drift, diffusion, (0.0, 1.0), P.stochastic("EM(false)", false);
            adaptive = false, dt = 0.05, saveat = [0.5, 1.0], tstops = [0.5, 1.0], seed = 7
        )
        ps = (drift = {weights(f)}, diffusion = {weights(g)})
        solution = first(layer({vector(y0)}, ps, Lux.initialstates(P.Xoshiro(0), layer)))
        vec(Array(solution))
        """
    )
    with torch.no_grad():
        assert torch.allclose(layer(y0), columns(found, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diagonal", "driven", "general"])
def test_gradients_of_stochastic_layers(kind: str) -> None:
    """With the same seed the solution is a function of the parameters, which finite differences know, too."""
    layer, y0 = noisy(kind, "diffeqflux", saveat=[0.5, 1.0], seed=5), torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=D)

    def loss(start: Tensor) -> Tensor:
        return (layer(start) * torch.linspace(0.5, 1.5, 8, dtype=D).reshape(2, 2, 2)).sum()

    start = y0.clone().requires_grad_()
    wanted = [start, *layer.parameters()]
    found = torch.autograd.grad(loss(start), wanted)
    for x, g in zip(wanted, found, strict=True):
        direction = torch.randn_like(x)
        with torch.no_grad():
            ends = []
            for h in (1e-5, -1e-5):
                x += h * direction
                ends.append(loss(start))
                x -= h * direction
        assert float((g * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_an_adaptive_stochastic_layer_has_a_gradient() -> None:
    layer = noisy("diagonal", "diffeqflux", seed=5)
    layer.method, layer.options = pdf.sde_methods.resolve("sosri"), {}
    ends = []
    for _ in range(2):
        layer.zero_grad()
        end = layer(torch.tensor([0.5, -0.2], dtype=D))
        end.sum().backward()
        ends.append(torch.cat([end.detach(), *(p.grad.reshape(-1) for p in layer.parameters())]))
    assert torch.equal(ends[0], ends[1]) and bool(ends[0].isfinite().all()) and bool((ends[0] != 0).any())


# -- implicit equations --------------------------------------------------------------------------------


@pytest.mark.parametrize("driven", [False, True])
def test_implicit_layers(driven: bool) -> None:
    inner = Implicit()
    model = (lambda t, both: inner(both) - torch.sin(t)) if driven else inner
    made: dict[str, Any] = {"time_dependent": driven, "rtol": 1e-7, "atol": 1e-7, **SAVES}

    def constraint(*given: Tensor) -> Tensor:
        return given[-1].sum(-1, keepdim=True) - 1

    below = (lambda t, y: constraint(y)) if driven else constraint
    y0 = torch.tensor([[0.3, 0.4, 0.3], [0.1, 0.2, 0.7]], dtype=D)
    with torch.no_grad():
        theirs, ours = (
            pdf.NeuralDAE(model, below, (0.0, 1.0), [True, True, False], backend=b, **made)(y0)
            for b in ("diffeqflux", "torch")
        )
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    assert torch.allclose(theirs.sum(-1), torch.ones(2, 2, dtype=D), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("driven", [False, True])
def test_gradients_of_implicit_layers(driven: bool) -> None:
    """Dual numbers through DiffEqFlux's layer, to the parameters of model and constraint; against the native tape."""
    inner, constraint = Implicit(), Constraint()
    model = (lambda t, both: inner(both) - torch.sin(t)) if driven else inner
    below = (lambda t, y: constraint(y)) if driven else constraint
    made: dict[str, Any] = {"time_dependent": driven, "initialise": "solve", "rtol": 1e-8, "atol": 1e-8, **SAVES}
    found = []
    for backend in ("diffeqflux", "torch"):
        y0 = torch.tensor([[0.3, 0.4, 0.3], [0.1, 0.2, 0.7]], dtype=D, requires_grad=True)
        layer = pdf.NeuralDAE(model, below, (0.0, 1.0), [True, True, False], backend=backend, **made)
        ys = layer(y0)
        loss = (ys * torch.linspace(0.5, 1.5, ys.numel(), dtype=D).reshape(ys.shape)).sum()
        found.append([ys, *torch.autograd.grad(loss, [y0, *inner.parameters(), *constraint.parameters()])])
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5)


# -- which layer it was, and what there is not -----------------------------------------------------------


def test_a_hamiltonian_is_conserved() -> None:
    """Boltz's field lacks a sign, and conserves nothing; corrected it does."""
    net, y0 = mlp(4, 1), rows(3, 4)
    layer = pdf.NeuralODE(pdf.HamiltonianNN(net), (0.0, 5.0), backend="diffeqflux", **TIGHT)
    with torch.no_grad():
        sol = layer.solve_rhs(layer.rhs, y0, save_everystep=False)
        assert sol.stats.layer == "NeuralODE(HamiltonianNN)"
        assert torch.allclose(net(sol.ys[-1]), net(y0), atol=1e-6)


def test_which_layer_it_was() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 1.0))
    with torch.no_grad():
        sol = pdf.solve(problem, saveat=[0.5, 1.0], backend="diffeqflux")
    assert (sol.stats.backend, sol.stats.layer, sol.stats.sensealg) == ("diffeqflux", "NeuralODE", "none")


@pytest.mark.parametrize("names", [("legendre", "sine"), ("chebyshev", "fourier"), ("polynomial", "cosine")])
def test_tensor_layers_are_boltzs(names: tuple[str, str]) -> None:
    """Chebyshev's too, which begin with T_1 in Boltz itself, and end outside of [-1, 1]."""
    _, made, _ = tensor_layer(*names)
    theirs, y0 = made("diffeqflux"), torch.tensor([[0.2, -0.4], [1.2, 1.5]], dtype=D)
    with torch.no_grad():
        sol = theirs.solve_rhs(theirs.rhs, y0)  # type: ignore[attr-defined]
        assert sol.stats.layer == "NeuralODE(TensorProductLayer)"
        assert torch.allclose(sol.ys, made("torch")(y0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "quadratic", "cubic", "hermite"])
def test_splines_are_boltzs(kind: str) -> None:
    """Beyond the ends of the grid, too; but for Hermite's, which Boltz has not of points alone."""
    _, made, _ = spline(basis=kind)
    theirs, y0 = made("diffeqflux"), torch.tensor([[-1.7, -0.9], [0.3, 1.4], [1.9, 2.5]], dtype=D)
    with torch.no_grad():
        sol = theirs.solve_rhs(theirs.rhs, y0)  # type: ignore[attr-defined]
        assert sol.stats.layer == ("NeuralODE" if kind == "hermite" else "NeuralODE(SplineLayer)")
        assert torch.allclose(sol.ys, made("torch")(y0), rtol=1e-6, atol=1e-6)


def test_splines_need_a_package_of_julia_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydiffeqflux.backends.julia.door.boltz._PACKAGE", "NoSuchPackage")
    _, made, y0 = spline()
    with pytest.raises(BackendUnavailableError, match=r"NoSuchPackage.*setup-julia"):
        made("diffeqflux")(y0)


@pytest.mark.parametrize("driven", [False, True])
def test_samples_of_a_flow(driven: bool) -> None:
    """What samples an FFJORDDistribution in Julia."""
    net, z = Driven(2, 2) if driven else mlp(2, 2), rows(4, 2)
    theirs, ours = (pdf.FFJORD(net, (0.0, 1.0), 2, backend=b, **TIGHT) for b in ("diffeqflux", "torch"))
    with torch.no_grad():
        assert torch.allclose(theirs.inverse(z), ours.inverse(z), rtol=1e-7, atol=1e-7)
    assert pdf.FFJORDDistribution(theirs).sample((3,)).shape == (3, 2)


@pytest.mark.parametrize("kernel", ["triangular", "epanechnikov", "gaussian", "logistic"])
def test_collocation(kernel: str) -> None:
    t = torch.linspace(0, 2, 15, dtype=D) ** 1.2
    data = torch.stack([torch.sin(t), torch.exp(-t)], -1) + 0.01 * torch.randn(15, 2, dtype=D)
    theirs, ours = (pdf.collocate_data(data, t, kernel, 0.4, backend=b) for b in ("diffeqflux", "torch"))
    assert torch.allclose(theirs.du, ours.du, rtol=1e-7, atol=1e-8)
    assert torch.allclose(theirs.u, ours.u, rtol=1e-7, atol=1e-8)


def test_moved_dimensions() -> None:
    """DiffEqFlux's DimMover sees the same array with its dimensions the other way round."""
    x = torch.arange(24, dtype=D).reshape(2, 3, 4)  # (time, batch, channels); in Julia (channels, batch, time)
    found = julia(
        f"""
        x = reshape({vector(x)}, 4, 3, 2)
        vec(first(DiffEqFlux.DimMover()(x, (;), (;))))
        """
    )
    assert pdf.DimMover()(x).reshape(-1).tolist() == found


def test_what_collocation_does_not_take() -> None:
    t = torch.linspace(0, 1, 9, dtype=D)
    data = torch.sin(t)[:, None]
    refused: list[tuple[type[Exception], str, Tensor, dict[str, Any]]] = [
        (UnsupportedError, "silverman", data, {"kernel": "silverman"}),
        (UnsupportedError, "requires a gradient", data.clone().requires_grad_(), {}),
        (UnsupportedError, "at on", data, {"at": t}),
        (DtypeError, "float16", data.half(), {}),
    ]
    for kind, said, given, options in refused:
        with pytest.raises(kind, match=said):
            pdf.collocate_data(given, t, **{"bandwidth": 0.5, **options}, backend="diffeqflux")
    with pytest.raises(UnknownNameError, match="backend='nowhere'"):
        pdf.collocate_data(data, t, backend="nowhere")


def test_what_layers_do_not_take() -> None:
    net, y0 = mlp(2, 2), rows(3, 2)
    trained = Normal(torch.zeros(2, dtype=D, requires_grad=True), torch.ones(2, dtype=D))
    mass = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=D))
    slanted = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=D)
    lag = torch.tensor(0.4, dtype=D, requires_grad=True)

    def massively(matrix: Tensor, **options: Any) -> nn.Module:
        return pdf.NeuralMassMatrixODE(
            mlp(3, 2), Constraint(), (0.0, 1.0), matrix, backend="diffeqflux", initialise="solve", **options
        )

    def flowing(model: nn.Module = net, **options: Any) -> nn.Module:
        return pdf.FFJORD(model, (0.0, 1.0), 2, backend="diffeqflux", **options)

    def delaying(**options: Any) -> nn.Module:
        return pdf.NeuralDDE(mlp(4, 2), (0.0, 1.0), **{"lags": 0.4, **options}, backend="diffeqflux")

    def stepping() -> nn.Module:
        return pdf.NeuralODE(net, (0.0, 1.0), "rk4", backend="diffeqflux", **SAVES)

    def implicitly() -> nn.Module:
        return pdf.NeuralDAE(
            Implicit(), lambda y: y.sum(-1, keepdim=True), (0.0, 1.0), [True, True, False], backend="diffeqflux",
            initialise="solve", sensealg="DiscreteAdjoint",
        )  # fmt: skip

    motion = pdf.BrownianInterval(0.0, 1.0, size=(3, 2), dtype=D)
    interpolating = {"sensealg": "InterpolatingAdjoint"}
    refused: list[tuple[type[Exception], str, Callable[[], nn.Module], Tensor]] = [
        (ShapeError, "right-hand side returned", lambda: flowing(mlp(2, 3)), y0),
        (UnsupportedError, "trace='hutchinson'", lambda: flowing(trace="hutchinson"), y0),
        (UnsupportedError, "regularize=True", lambda: flowing(regularize=True), y0),
        (UnsupportedError, "basedist has parameters", lambda: flowing(basedist=trained), y0),
        (UnsupportedError, "sensealg=InterpolatingAdjoint", lambda: massively(mass, **interpolating), rows(2, 3)),
        (UnsupportedError, "semi-explicit", lambda: massively(slanted), rows(2, 3)),
        (UnsupportedError, "respect to mass_matrix", lambda: massively(nn.Parameter(mass)), rows(2, 3)),
        (UnsupportedError, "function of time and state", lambda: delaying(lags=lambda t, y: 0.4 + t), y0),
        (UnsupportedError, "requires a gradient", lambda: delaying(lags=lag), y0),
        (UnsupportedError, "sensealg=GaussAdjoint", lambda: delaying(sensealg="GaussAdjoint"), y0),
        (UnsupportedError, "NeuralDAE takes ForwardDiffSensitivity", implicitly, rows(2, 3)),
        (MassMatrixMethodError, "Vern6.. cannot take", lambda: massively(mass, method="Vern6()"), rows(2, 3)),
        (UnsupportedError, "rtol or atol for each", lambda: flowing(rtol=torch.full((2,), 1e-3, dtype=D)), y0),
        (StepSizeRequiredError, "say dt", stepping, y0),
        (UnsupportedError, "brownian", lambda: noisy("diagonal", "diffeqflux", brownian=motion), y0),
        (StepSizeRequiredError, "say dt", lambda: noisy("diagonal", "diffeqflux", dt=None, saveat=[1.0]), y0),
    ]
    for kind, said, made, start in refused:
        with pytest.raises(kind, match=said):
            made()(start)
    general = noisy("general", "diffeqflux")
    general.method = pdf.sde_methods.resolve("SOSRI2", "julia")
    with pytest.raises(MethodNoiseError, match="not for noise='general'"):
        general(y0)
    residual = pdf.DAEProblem(lambda t, y, dy: dy + y, y0, -y0, (0.0, 1.0))
    with torch.no_grad(), pytest.raises(UnsupportedError, match="must be that of a NeuralDAE"):
        pdf.solve(residual, saveat=[1.0], backend="diffeqflux")


def test_a_flow_that_was_not_finished() -> None:
    """DiffEqFlux's FFJORD returns wherever its solver has come to, and does not say so."""
    net, x = mlp(2, 2), rows(4, 2)
    with torch.no_grad(), pytest.raises(MaxStepsError, match="max_steps=3"):
        pdf.FFJORD(net, (0.0, 1.0), 2, backend="diffeqflux", max_steps=3, **TIGHT)(x)
    with torch.no_grad(), pytest.raises(MaxStepsError, match="max_steps=3"):
        pdf.FFJORD(net, (0.0, 1.0), 2, "rk4", dt=0.1, backend="diffeqflux", max_steps=3)(x)


def test_single_precision_and_a_tolerance_for_each_state() -> None:
    net = Driven(2, 2).float()
    y0 = rows(3, 2).float()
    atol = torch.tensor([[1e-6, 1e-4]]).expand(3, 2)
    with torch.no_grad():
        theirs, ours = (pdf.NeuralODE(net, (0.0, 1.0), backend=b, atol=atol)(y0) for b in ("diffeqflux", "torch"))
    assert theirs.dtype == torch.float32 and torch.allclose(theirs, ours, atol=2e-3)
