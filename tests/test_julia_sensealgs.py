"""The sensitivity algorithms of SciMLSensitivity, by their names, against the native backend's exact gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    InvalidArgumentError,
    PyDiffEqFluxError,
    SolveError,
    UnknownNameError,
    UnsupportedError,
)

D = torch.float64
SAVES = [0.0, 0.2, 0.5]
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def slow(*values: Any) -> Any:
    """Julia compiles solver and adjoint for each kind of number and product at their first use."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Model(nn.Module):
    """A network, a branch by value, and the time; more states and parameters than one dual number carries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)).double()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, self.net(y) * torch.cos(t), -self.rate * y) - self.rate * y**3


def pulled(func: nn.Module, backend: str, method: str, *, dtype: torch.dtype = D, **options: Any) -> list[Tensor]:
    """The states, and the gradients of a loss that sees all of them."""
    y0 = torch.tensor([0.8, -0.6, 0.3], dtype=dtype, requires_grad=True)
    problem = pdf.ODEProblem(func, y0, (0.0, 0.5))
    options = {"saveat": SAVES, **TIGHT, **options}
    sol = pdf.solve(problem, method, backend=backend, dense=False, **options)
    weight = torch.linspace(0.5, 1.5, 9, dtype=dtype).reshape(3, 3)[: len(sol.ys)]
    return [sol.ys.detach(), *torch.autograd.grad((weight * sol.ys).sum(), [y0, *func.parameters()])]


def deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


ALGORITHMS = [
    pdf.ForwardSensitivity(),
    pdf.ForwardDiffSensitivity(),
    pdf.ReverseDiffAdjoint(),
    pdf.DiscreteAdjoint(),
    slow(pdf.TrackerAdjoint()),
    slow(pdf.ForwardDiffSensitivity(chunk_size=3)),
    slow(pdf.GaussKronrodAdjoint()),
    slow(pdf.GaussAdjoint(checkpointing=True)),
    slow(pdf.InterpolatingAdjoint(checkpointing=True)),
    slow(pdf.BacksolveAdjoint(checkpointing=False)),
]


@pytest.mark.julia
@pytest.mark.parametrize("sensealg", ALGORITHMS, ids=str)
def test_every_algorithm(sensealg: pdf.SenseAlg) -> None:
    func = Model()
    julia = pulled(func, "julia", "tsit5", sensealg=sensealg)
    native = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)
    assert deviation(julia, native) < 1e-7


PRODUCTS = [
    (algorithm, products)
    for algorithm in (
        pdf.BacksolveAdjoint,
        pdf.InterpolatingAdjoint,
        pdf.QuadratureAdjoint,
        pdf.GaussAdjoint,
        pdf.GaussKronrodAdjoint,
    )
    for products in ("forwarddiff", "finitediff", "reversediff", "tracker", "zygote")
]
FAST = [(pdf.GaussAdjoint, "finitediff"), (pdf.GaussAdjoint, "reversediff")]


@pytest.mark.julia
@pytest.mark.parametrize(
    ("algorithm", "products"), [p if p in FAST else slow(*p) for p in PRODUCTS], ids=lambda x: getattr(x, "__name__", x)
)
def test_every_choice_of_products(algorithm: type[Any], products: str) -> None:
    func = Model()
    quadrature = {"abstol": 1e-10, "reltol": 1e-10} if algorithm is pdf.QuadratureAdjoint else {}
    sensealg = algorithm(autojacvec=products, **quadrature)
    julia = pulled(func, "julia", "tsit5", sensealg=sensealg)
    native = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)
    assert deviation(julia, native) < (1e-5 if products == "finitediff" else 1e-7)


@pytest.mark.julia
@pytest.mark.slow
def test_the_discrete_adjoint_is_that_of_the_steps_taken() -> None:
    func = Model()
    coarse = {"dt": 0.125, "rtol": 1e-3, "atol": 1e-6}
    native = pulled(func, "torch", "rk4", sensealg="DiscreteAdjoint", **coarse)
    exact = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)
    for sensealg in ("DiscreteAdjoint", "TrackerAdjoint", "ForwardDiffSensitivity", "ForwardSensitivity"):
        julia = pulled(func, "julia", "rk4", sensealg=sensealg, **coarse)
        # Save times off the steps are interpolated, by polynomials that differ: compare where a step ends.
        assert deviation([x[-1:] for x in julia[:1]], [x[-1:] for x in native[:1]]) < 1e-12
    by_end = {}
    for backend in ("torch", "julia"):
        y0 = torch.tensor([0.8, -0.6, 0.3], dtype=D, requires_grad=True)
        problem = pdf.ODEProblem(func, y0, (0.0, 0.5))
        sol = pdf.solve(problem, "rk4", dt=0.125, saveat=[0.5], backend=backend, sensealg="DiscreteAdjoint")
        by_end[backend] = list(torch.autograd.grad(sol.ys.sum(), [y0, *func.parameters()]))
    assert deviation(by_end["julia"], by_end["torch"]) < 1e-12
    assert deviation(pulled(func, "torch", "rk4", **coarse), exact) > 1e-9  # the steps are coarse enough to tell


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("sensealg", ["ForwardSensitivity", "ForwardDiffSensitivity", "GaussKronrodAdjoint"])
def test_with_a_stiff_solver(sensealg: str) -> None:
    func = Model()
    julia = pulled(func, "julia", "rodas5p", sensealg=sensealg, rtol=1e-9, atol=1e-9)
    native = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)
    assert deviation(julia, native) < 1e-6


@pytest.mark.julia
def test_with_a_dose_and_a_gradient_of_the_time() -> None:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    found = []
    for backend, sensealg in (("julia", "ForwardSensitivity"), ("torch", "DiscreteAdjoint")):
        end = torch.tensor(3.0, dtype=D, requires_grad=True)
        dose = pdf.PresetTimeCallback([1.0], lambda t, y: y + 1.0)
        problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=D), (0.0, end))
        sol = pdf.solve(problem, callbacks=dose, save_everystep=False, backend=backend, sensealg=sensealg, **TIGHT)
        found.append(torch.autograd.grad(sol.ys.sum(), [rate, end]))
    assert deviation(list(found[0]), list(found[1])) < 1e-8


@pytest.mark.julia
def test_tolerances_that_differ_from_state_to_state() -> None:
    func = Model()
    tol = torch.tensor([1e-9, 1e-10, 1e-10], dtype=D)
    julia = pulled(func, "julia", "tsit5", sensealg="ForwardSensitivity", rtol=tol, atol=tol)
    native = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)
    assert deviation(julia, native) < 1e-6


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("sensealg", ["ForwardSensitivity", "ForwardDiffSensitivity", "ReverseDiffAdjoint"])
def test_single_precision(sensealg: str) -> None:
    func = Model().float()
    loose = {"rtol": 1e-5, "atol": 1e-6, "dtype": torch.float32}
    julia = pulled(func, "julia", "tsit5", sensealg=sensealg, **loose)
    native = pulled(func, "torch", "tsit5", **loose)
    assert julia[1].dtype == torch.float32
    assert deviation(julia, native) < 1e-3


@pytest.mark.julia
def test_a_function_in_python_takes_plain_numbers_only() -> None:
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)

    def func(t: Tensor, y: Tensor) -> Tensor:
        return -rate * y if float(y.detach().sum()) > 0 else rate * y

    problem = pdf.ODEProblem(func, torch.ones(2, dtype=D), (0.0, 1.0))
    how: dict[str, Any] = {"saveat": [1.0], "backend": "julia", "fallback": "callback"}
    sol = pdf.solve(problem, sensealg="ForwardSensitivity", **how, **TIGHT)
    (slope,) = torch.autograd.grad(sol.ys.sum(), rate)
    assert float(slope) == pytest.approx(-2 * float(torch.exp(-rate.detach())), abs=1e-8)
    with pytest.raises(UnsupportedError, match=r"sensealg=ReverseDiffAdjoint\(\).*called back in Python.*GaussAdjoint"):
        pdf.solve(problem, sensealg="ReverseDiffAdjoint", **how)


# -- names, without Julia --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ForwardDiffSensitivity", pdf.ForwardDiffSensitivity),
        ("reversediff", pdf.ReverseDiffAdjoint),
        ("TrackerAdjoint()", pdf.TrackerAdjoint),
        ("gausskronrod", pdf.GaussKronrodAdjoint),
    ],
)
def test_names(name: str, kind: type[pdf.SenseAlg]) -> None:
    from pydiffeqflux.sensealg import resolve

    assert resolve(name) == kind()


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ZygoteAdjoint", "ReverseDiffAdjoint"),
        ("EnzymeAdjoint", "ReverseDiffAdjoint"),
        ("MooncakeAdjoint", "ReverseDiffAdjoint"),
        ("ForwardLSS", "shadowing_average"),
        ("AdjointLSS", "shadowing_average"),
        ("NILSS", "shadowing_average"),
        ("NILSAS", "shadowing_average"),
        ("SteadyStateAdjoint", r"pydiffeqflux\.SteadyState"),
        ("ForwardDiffOverAdjoint", r"DiscreteAdjoint\(\)"),
    ],
)
def test_names_that_have_something_in_their_place(name: str, instead: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match=f"sensealg='{name}' is not one of solve's: take .*{instead}"):
        pdf.solve(problem, sensealg=name, backend="julia")


@pytest.mark.parametrize(
    ("given", "word"),
    [(None, "traced"), (True, "forwarddiff"), (False, "finitediff"), ("ReverseDiffVJP()", "reversediff")],
)
def test_products_by_sciml_s_words(given: Any, word: str) -> None:
    assert pdf.InterpolatingAdjoint(autojacvec=given).products == word


def test_bad_options() -> None:
    with pytest.raises(UnknownNameError, match=r"autojacvec='zygot' is not known\. Did you mean 'zygote'"):
        pdf.GaussAdjoint(autojacvec="zygot")
    with pytest.raises(UnsupportedError, match=r"autojacvec='EnzymeVJP' is not there: take 'traced'"):
        pdf.GaussAdjoint(autojacvec="EnzymeVJP")
    with pytest.raises(InvalidArgumentError, match=r"chunk_size=0 must be a positive integer"):
        pdf.ForwardDiffSensitivity(chunk_size=0)


@pytest.mark.parametrize("backend", ["torch", "eager", "compiled"])
def test_natively_they_say_where_they_belong(backend: str) -> None:
    rate = torch.tensor(0.5, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(PyDiffEqFluxError, match="ForwardDiffSensitivity is"):
        pdf.solve(problem, sensealg="ForwardDiffSensitivity", backend=backend)
    with pytest.raises(UnsupportedError, match="autojacvec is for backend='julia'"):
        pdf.solve(problem, sensealg=pdf.GaussAdjoint(autojacvec="zygote"), backend=backend)


@pytest.mark.julia
def test_options_that_julia_s_do_not_have() -> None:
    rate = torch.tensor(0.5, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match=r"DiscreteAdjoint is ReverseDiffAdjoint.*GaussAdjoint\(\)"):
        pdf.solve(problem, sensealg=pdf.DiscreteAdjoint(checkpoints="sqrt"), backend="julia")


@pytest.mark.julia
def test_shadowing_along_a_trajectory_of_julia_s() -> None:
    level = torch.tensor(2.0, dtype=D, requires_grad=True)
    tank = pdf.ODEProblem(lambda t, y: level - y, torch.ones(1, dtype=D), (0.0, 60.0))
    means = [
        pdf.shadowing_average(tank, lambda y: y[0], dt=0.1, transient=10.0, method="tsit5", backend=b, rtol=1e-9)
        for b in ("julia", "torch")
    ]
    slopes = [float(torch.autograd.grad(mean, level)[0]) for mean in means]
    assert float(means[0].detach()) == pytest.approx(float(means[1].detach()), abs=1e-6)
    assert slopes[0] == pytest.approx(slopes[1], abs=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("algorithm", [pdf.GaussAdjoint, pdf.QuadratureAdjoint, pdf.InterpolatingAdjoint])
def test_a_backward_solve_that_fails_is_an_error_and_no_gradient_of_zero(algorithm: type[Any]) -> None:
    impossible = algorithm(rtol=1e-300, atol=1e-300)
    for saves in (SAVES, SAVES[1:]):  # with the start among them, and without
        with pytest.raises(SolveError, match=r"no gradient: the backward solve did not come from t = 0.5 to t = 0.2"):
            pulled(Model(), "julia", "tsit5", sensealg=impossible, saveat=saves)


@pytest.mark.julia
def test_the_quadrature_is_at_least_as_accurate_as_it_is_asked_to_be() -> None:
    func, loose = Model(), {"rtol": 1e-4, "atol": 1e-4}
    exact = pulled(func, "torch", "vern9", rtol=1e-13, atol=1e-13)

    def apart(**tolerances: float) -> float:
        found = pulled(func, "julia", "tsit5", sensealg=pdf.QuadratureAdjoint(**tolerances), **loose)
        return deviation(found[1:], exact[1:])

    same = apart(abstol=1e-2, reltol=1e-2)
    assert same == apart(abstol=1e-4, reltol=1e-4)  # the solve's own are tighter
    assert apart(abstol=1e-9, reltol=1e-9) != same
