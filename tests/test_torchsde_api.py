"""torchsde's interface: the same numbers as torchsde's on the same path, and gradients that agree."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
import torchsde
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import torchsde_api

F64 = torch.float64
M = {"diagonal": 2, "scalar": 1, "additive": 3, "general": 3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Equation(nn.Module):
    def __init__(self, noise: str, kind: str):
        super().__init__()
        self.noise_type, self.sde_type = noise, kind
        self.a = nn.Parameter(torch.tensor([0.4, -0.7], dtype=F64))
        self.b = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(self.a * y) - 0.3 * y * torch.cos(t)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        m = M[self.noise_type]
        if self.noise_type == "additive":
            return (self.b * torch.arange(1.0, 2 * m + 1, dtype=F64).view(2, m) / 5 * torch.cos(t)).expand(len(y), 2, m)
        g = self.b * torch.cos(y) + 0.1
        return g if self.noise_type == "diagonal" else torch.stack([g * (k + 1) / m for k in range(m)], -1)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


def motion(noise: str, **options) -> torchsde.BrownianInterval:
    return torchsde.BrownianInterval(
        0.0, 1.0, (4, M[noise]), F64, entropy=7, levy_area_approximation="foster", **options
    )


def start() -> Tensor:
    return torch.linspace(-1, 1, 8, dtype=F64).view(4, 2).requires_grad_()


CASES = [
    (method, kind, noise)
    for kind, methods in {
        "ito": {
            "euler": ["diagonal", "scalar", "additive", "general"],
            "milstein": ["diagonal", "scalar", "additive"],
            "srk": ["diagonal", "scalar", "additive"],
        },
        "stratonovich": {
            "milstein": ["diagonal", "scalar", "additive"],
            **{
                name: ["diagonal", "scalar", "additive", "general"]
                for name in ("midpoint", "heun", "euler_heun", "reversible_heun", "log_ode")
            },
        },
    }.items()
    for method, noises in methods.items()
    for noise in noises
]


@pytest.mark.parametrize(("method", "kind", "noise"), CASES)
def test_the_same_numbers_on_the_same_path(method: str, kind: str, noise: str) -> None:
    sde, ts = Equation(noise, kind), torch.linspace(0, 1, 4, dtype=F64)
    options = {"method": method, "dt": 0.125}
    with torch.no_grad():
        theirs = torchsde.sdeint(sde, start(), ts, bm=motion(noise), **options)
        ours = pdf.sdeint(sde, start(), ts, bm=motion(noise), **options)
    assert ours.shape == (4, 4, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_milstein_without_derivatives() -> None:
    for noise in ("diagonal", "scalar"):
        for kind in ("ito", "stratonovich"):
            sde, options = Equation(noise, kind), {"method": "milstein", "dt": 0.125, "options": {"grad_free": True}}
            with torch.no_grad():
                theirs = torchsde.sdeint(sde, start(), [0.0, 1.0], bm=motion(noise), **options)
                ours = pdf.sdeint(sde, start(), [0.0, 1.0], bm=motion(noise), **options)
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive", "general"])
def test_log_ratio(noise: str) -> None:
    sde, ts = Equation(noise, "ito"), torch.linspace(0, 1, 4, dtype=F64)
    size = (4, M[noise] + (noise == "diagonal"))
    results = []
    for sdeint in (torchsde.sdeint, pdf.sdeint):
        bm = torchsde.BrownianInterval(0.0, 1.0, size, F64, entropy=7)
        with torch.no_grad():
            results.append(sdeint(sde, start(), ts, bm=bm, method="euler", dt=0.125, logqp=True))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert results[1][1].shape == (3, 4)


DEFAULTS = [(noise, kind) for noise in M for kind in ("ito", "stratonovich")]


# On general noise in Ito's sense the default is Euler's method, which is not for adaptive steps.
@pytest.mark.parametrize(("noise", "kind"), [case for case in DEFAULTS if case != ("general", "ito")])
def test_defaults_and_adaptive_steps(noise: str, kind: str) -> None:
    sde, bm = Equation(noise, kind), motion(noise)
    with torch.no_grad():
        fine = pdf.sdeint(sde, start(), [0.0, 0.4, 1.0], bm=bm, dt=1 / 256)
        adaptive = pdf.sdeint(sde, start(), [0.0, 0.4, 1.0], bm=bm, dt=0.1, adaptive=True, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(adaptive, fine, rtol=0, atol=3e-2)


@pytest.mark.parametrize(("method", "kind", "noise"), [c for c in CASES if c[0] != "log_ode"])
def test_the_adjoint_agrees_with_autograd(method: str, kind: str, noise: str) -> None:
    sde, ts, bm = Equation(noise, kind), [0.0, 0.5, 1.0], motion(noise, dt=1 / 64)
    found = []
    for sdeint in (pdf.sdeint, pdf.sdeint_adjoint):
        y0 = start()
        ys = sdeint(sde, y0, ts, bm=bm, method=method, dt=1 / 64)
        grads = torch.autograd.grad(ys.square().sum(), [y0, *sde.parameters()], allow_unused=True)
        found.append((ys, torch.cat([g.flatten() for g in grads])))
    torch.testing.assert_close(found[0][0], found[1][0])
    distance = float((found[1][1] - found[0][1]).norm() / found[0][1].norm())
    first_order = kind == "ito" or method in ("milstein", "euler_heun")  # in the drift, unlike the adjoint's solve
    assert distance < (1e-9 if method == "reversible_heun" else 0.03 if first_order else 5e-3)


def test_adaptive_steps_backwards_and_chosen_parameters() -> None:
    sde, bm = Equation("diagonal", "stratonovich"), motion("diagonal")
    ys = pdf.sdeint(sde, start(), [0.0, 1.0], bm=bm, method="heun", dt=1 / 128)
    exact = torch.autograd.grad(ys[-1].sum(), sde.a)[0]
    options = {"method": "heun", "adjoint_method": "heun", "dt": 1 / 128, "adjoint_params": [sde.a]}
    for more in ({}, {"adjoint_adaptive": True, "adjoint_rtol": 1e-3, "adjoint_atol": 1e-3}):
        ys = pdf.sdeint_adjoint(sde, start(), [0.0, 1.0], bm=bm, **options, **more)
        found, none = torch.autograd.grad(ys[-1].sum(), [sde.a, sde.b], allow_unused=True)
        torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)
        assert none is None


def test_a_solve_goes_on_where_another_stopped() -> None:
    sde, bm = Equation("general", "stratonovich"), motion("general")
    options = {"bm": bm, "method": "reversible_heun", "dt": 0.125, "extra": True}
    whole, carry = pdf.sdeint(sde, start(), [0.0, 1.0], **options)
    first, middle = pdf.sdeint(sde, start(), [0.0, 0.5], **options)
    second, last = pdf.sdeint(sde, first[-1], [0.5, 1.0], extra_solver_state=middle, **options)
    torch.testing.assert_close(second[-1], whole[-1])
    for a, b in zip(carry, last, strict=True):
        torch.testing.assert_close(a, b)
    ys, _ = pdf.sdeint_adjoint(sde, start(), [0.0, 1.0], **options)
    torch.testing.assert_close(ys, whole)
    y0 = first[-1].detach().requires_grad_()
    kept = tuple(x.detach() for x in middle)
    grads = []
    for sdeint in (pdf.sdeint, pdf.sdeint_adjoint):
        ys, _ = sdeint(sde, y0, [0.5, 1.0], extra_solver_state=kept, **options)
        grads.append(torch.autograd.grad(ys[-1].sum(), y0)[0])
    torch.testing.assert_close(grads[1], grads[0])


def test_a_scalar_tensor_as_dt_and_other_motions() -> None:
    sde = Equation("diagonal", "ito")
    path = torchsde_api.BrownianPath(t0=0.0, w0=torch.zeros(4, 2, dtype=F64))
    tree = torchsde_api.BrownianTree(t0=0.0, w0=torch.zeros(4, 2, dtype=F64), t1=1.0, entropy=1)
    for bm in (path, tree, torchsde_api.brownian_interval_like(torch.zeros(4, 2, dtype=F64))):
        ys = pdf.sdeint(sde, start(), torch.tensor([0.0, 1.0]), bm=bm, method="euler", dt=torch.tensor(0.25))
        assert ys.isfinite().all()


def test_method_names_of_this_package() -> None:
    sde, bm = Equation("diagonal", "ito"), motion("diagonal")
    with torch.no_grad():
        exact = pdf.sdeint(sde, start(), [0.0, 1.0], bm=bm, method="srk", dt=1 / 256)
        for name in ("sosri", "sriw1"):
            ys = pdf.sdeint(sde, start(), [0.0, 1.0], bm=bm, method=name, dt=1 / 64)
            torch.testing.assert_close(ys, exact, rtol=0, atol=5e-3)


def test_what_is_handed_on() -> None:
    for name in torchsde_api.HANDED_ON:
        assert getattr(pdf, name) is getattr(torchsde_api, name) is getattr(torchsde, name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pdf.Nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        torchsde_api.Nothing  # noqa: B018
    settings = importlib.import_module("pydiffeqflux.torchsde_api.settings")
    assert settings.NOISE_TYPES is torchsde.settings.NOISE_TYPES


def test_importing_the_package_does_not_import_torchsde() -> None:
    code = "import sys, pydiffeqflux; assert 'torchsde' not in sys.modules; pydiffeqflux.BrownianInterval"
    subprocess.run([sys.executable, "-c", code], check=True)
