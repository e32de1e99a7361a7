"""``odeint`` and its family with ``backend="julia"``: same arguments, shapes and results as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DenseOutputError,
    EventNotFoundError,
    MaxStepsError,
    UnknownNameError,
    UnsupportedError,
)

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * torch.cos(t)


def pulled(interface: Any, **how: Any) -> list[Tensor]:
    """The states, and the gradients in the initial state, the times and the parameters."""
    func = Model()
    y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    t = torch.linspace(0, 1, 5, dtype=D).requires_grad_()
    ys = interface(func, y0, t, **{**TIGHT, **how})
    loss = (ys * torch.linspace(1, 2, 10, dtype=D).reshape(5, 2)).sum()
    return [ys.detach(), *torch.autograd.grad(loss, [y0, t, *func.parameters()])]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


CASES = [
    (pdf.odeint, {}),
    (pdf.odeint, {"method": "tsit5"}),
    (pdf.odeint_adjoint, {"method": "tsit5", "adjoint_rtol": 1e-9, "adjoint_atol": 1e-9}),
    (pdf.odeint, {"method": "tsit5", "options": {"sensealg": "ForwardSensitivity"}}),
    slow(pdf.odeint, {"method": "dopri5", "options": {"first_step": 0.01, "max_step": 0.1, "step_t": [0.3]}}),
    slow(pdf.odeint, {"method": "rk4", "options": {"step_size": 0.005}}),
    slow(
        pdf.odeint, {"method": "FBDF", "rtol": 1e-11, "atol": 1e-11, "options": {"sensealg": "InterpolatingAdjoint"}}
    ),  # Gauss quadrature on a BDF's dense output: 9e-6 at this tolerance
    slow(pdf.odeint_adjoint, {"method": "dopri8"}),
]


@pytest.mark.julia
@pytest.mark.parametrize(("interface", "how"), CASES)
def test_states_and_gradients_are_the_native_ones(interface: Any, how: dict[str, Any]) -> None:
    julia = pulled(interface, backend="julia", **how)
    native = pulled(pdf.odeint_adjoint)
    assert [x.shape for x in julia] == [x.shape for x in native]
    for one, other in zip(julia, native, strict=True):
        assert torch.allclose(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.julia
def test_tuples_single_times_and_other_precisions() -> None:
    y0 = (torch.ones(2), torch.ones(1, 3))
    t = torch.tensor([1.0, 0.5, 0.0])
    func = lambda t, y: [-y[0], 0.5 * y[1]]  # noqa: E731
    julia, native = (pdf.odeint(func, y0, t, method="tsit5", backend=b) for b in ("julia", None))
    assert isinstance(julia, tuple)
    for one, other in zip(julia, native, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert torch.allclose(one, other, atol=1e-5)
    alone = pdf.odeint(lambda t, y: -y, torch.ones(3), torch.tensor([0.5]), backend="julia")
    assert torch.equal(alone, torch.ones(1, 3))


@pytest.mark.julia
def test_a_function_is_traced_once() -> None:
    traced = 0

    class Counted(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            nonlocal traced
            traced += isinstance(y, torch.Tensor) and type(y) is not torch.Tensor
            return -y

    func = Counted()
    t = torch.tensor([0.0, 1.0], dtype=D)
    pdf.odeint(func, torch.ones(2, dtype=D), t, backend="julia")
    once = traced
    pdf.odeint(func, torch.ones(2, dtype=D), t, backend="julia")
    assert traced == once


@pytest.mark.julia
@pytest.mark.parametrize("interface", [pdf.odeint, pdf.odeint_adjoint])
def test_events(interface: Any) -> None:
    found = []
    for backend in ("julia", None):
        rate = torch.tensor(0.5, dtype=D, requires_grad=True)
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        when, ys = pdf.odeint_event(
            lambda t, y, rate=rate: -rate * y,
            y0,
            torch.tensor(0.25, dtype=D),
            event_fn=lambda t, y, rate=rate: y[0] - rate,
            odeint_interface=interface,
            backend=backend,
            method="tsit5",
            **TIGHT,
        )
        found.append([when, ys, *torch.autograd.grad(when + ys.sum(), [y0, rate])])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.julia
def test_odeint_itself_holds_the_event_time_constant() -> None:
    found = []
    for backend in ("julia", None):
        rate = torch.tensor(0.5, dtype=D, requires_grad=True)
        t = torch.tensor([0.0, -1.0], dtype=D)  # backwards
        when, ys = pdf.odeint(
            lambda t, y, rate=rate: (-rate * y[0],),
            (torch.ones(1, dtype=D),),
            t,
            event_fn=lambda t, y: y[0] - 2.0,
            backend=backend,
            method="tsit5",
            **TIGHT,
        )
        found.append([when, ys[0].detach(), *torch.autograd.grad(ys[0][-1].sum(), rate)])
    assert not found[0][0].requires_grad
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.julia
def test_an_event_at_the_start_and_one_that_never_comes() -> None:
    start = torch.tensor(0.0, dtype=D)
    when, _ = pdf.odeint_event(
        lambda t, y: -y, torch.ones(1, dtype=D), start, event_fn=lambda t, y: y - 1, backend="julia"
    )
    assert float(when) == 0.0
    with pytest.raises(EventNotFoundError, match=r"event_fn never came to zero"):
        pdf.odeint_event(
            lambda t, y: torch.ones_like(y), torch.ones(1, dtype=D), start, event_fn=lambda t, y: y, backend="julia"
        )


@pytest.mark.julia
def test_dense_output_with_its_gradients() -> None:
    found = []
    for backend in ("julia", None):
        func = Model()
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        t = torch.tensor([0.3, 0.1, 0.3, 0.0], dtype=D, requires_grad=True)
        solution = pdf.odeint_dense(func, y0, 0.0, 1.0, method="tsit5", backend=backend, **TIGHT)
        ys = solution(t)
        grads = torch.autograd.grad((ys * torch.arange(8.0, dtype=D).reshape(4, 2)).sum(), [y0, t, *func.parameters()])
        with torch.no_grad():
            found.append([ys.detach(), solution(0.35), solution(torch.tensor(0.35)), *grads])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(DenseOutputError, match=r"t=1\.5 lies outside"):
        pdf.odeint_dense(lambda t, y: -y, torch.ones(1), 0.0, 1.0, backend="julia")(1.5)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["explicit_adams", "scipy_solver"])
def test_methods_that_julia_does_not_have(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"method='{name}'.*'VCABM'"):
        pdf.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), method=name, backend="julia")


@pytest.mark.julia
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tsit5", {"safety": 0.8}),
        ("rk4", {"interp": "cubic"}),
        ("rk4", {"grid_constructor": lambda f, y, t: t}),
        ("rk4", {"perturb": True}),
    ],
)
def test_options_that_julia_does_not_have(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=rf"options\['{next(iter(options))}'\].*leave it out"):
        pdf.odeint(
            lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), method=method, options=options, backend="julia"
        )


@pytest.mark.julia
def test_what_the_adjoint_cannot_do_there() -> None:
    func, t = Model(), torch.tensor([0.0, 1.0], dtype=D)
    y0 = torch.ones(2, dtype=D)
    with pytest.raises(UnsupportedError, match=r"adjoint_method='rk4' with backend='julia'"):
        pdf.odeint_adjoint(func, y0, t, adjoint_method="rk4", backend="julia")
    with pytest.raises(UnsupportedError, match=r"adjoint_options=.* with backend='julia'"):
        pdf.odeint_adjoint(func, y0, t, adjoint_options={"norm": "seminorm"}, backend="julia")
    with pytest.raises(UnsupportedError, match=r"adjoint_params leaves out 3 tensors.*requires_grad_\(False\)"):
        pdf.odeint_adjoint(func, y0, t, adjoint_params=[func.net[0].weight], backend="julia")


@pytest.mark.julia
def test_too_many_steps() -> None:
    with pytest.raises(MaxStepsError, match=r"options\['max_num_steps'\]=2"):
        pdf.odeint(
            lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 9.0]), options={"max_num_steps": 2}, backend="julia"
        )


@pytest.mark.parametrize("interface", [pdf.odeint, pdf.odeint_adjoint])
def test_backends_have_names(interface: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"backend='julai' is not known\. Did you mean 'julia'"):
        interface(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), backend="julai")
    ys = interface(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), backend="torch")
    assert float(ys[-1]) == pytest.approx(0.36787944, abs=1e-6)
