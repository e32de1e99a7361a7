"""The same solves on the CPU and on ``elsewhere``: ``python -m tests.problems.on_elsewhere GROUP``.

A case is a function of a device that returns tensors; both devices must give the same numbers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia.places import taken_for
from tests.problems import elsewhere

F64 = torch.float64
Case = Callable[[str], list[Tensor]]
ADJOINTS = ["backsolve", "interpolating", "quadrature", "gauss", "forward", "discrete", pdf.DiscreteAdjoint("sqrt")]


def net(device: str, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(F64).to(device)


def even(device: str, *shape: int) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.linspace(-1, 1, size, dtype=F64).reshape(shape).to(device).requires_grad_()


def with_gradients(out: Tensor, *wanted: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out.square().sum(), wanted, materialize_grads=True)]


def solved(method: str, **options) -> Case:
    def case(device: str) -> list[Tensor]:
        model, y0 = net(device, 2, 8, 2), even(device, 4, 2)
        problem = pdf.ODEProblem(lambda t, y: model(y), y0, (0.0, 1.0), batched=options.get("per_sample", False))
        saveat = torch.linspace(0, 1, 5, dtype=F64).to(device)
        sol = pdf.solve(problem, method, saveat=saveat, rtol=1e-6, atol=1e-6, **options)
        assert sol.ts.device == sol.ys.device == y0.device
        return with_gradients(sol.ys, y0, *model.parameters())

    return case


def eventful(device: str) -> list[Tensor]:
    """A ball, caught on its way down, that is pushed twice before."""
    y0, g = torch.tensor([5.0, 1.0], dtype=F64).to(device).requires_grad_(), even(device, 1)
    pushes = pdf.PresetTimeCallback([0.2, 0.3], lambda t, y: y + torch.stack([t * 0, t]))
    fall = pdf.ODEProblem(lambda t, y: torch.cat([y[1:], -9.8 + g]), y0, (0.0, 9.0))
    sol = pdf.solve(fall, event=lambda t, y: y[0], callbacks=pushes, rtol=1e-8, atol=1e-8)
    return with_gradients(torch.cat([sol.events[0].ts, sol.ys[-1]]), y0, g)


def flowing(device: str) -> list[Tensor]:
    model, x = net(device, 2, 8, 2), even(device, 4, 2)
    return with_gradients(pdf.FFJORD(model, (0.0, 1.0), 2)(x).log_prob, x, *model.parameters())


def energetic(device: str) -> list[Tensor]:
    model, y0 = net(device, 2, 8, 1), even(device, 4, 2)
    layer = pdf.NeuralODE(pdf.HamiltonianNN(lambda y: model(y).squeeze(-1)), (0.0, 1.0), "gl4", dt=0.1)
    return with_gradients(layer(y0), y0, *model.parameters())


def controlled(device: str) -> list[Tensor]:
    x, z0 = even(device, 5, 10, 3), even(device, 5, 4)
    control = pdf.SplineControl(torch.linspace(0, 1, 10, dtype=F64).to(device), x)
    model = net(device, 4, 12)
    return with_gradients(pdf.NeuralCDE(model, (0.0, 1.0))(z0, control), x, z0)


def resting(device: str) -> list[Tensor]:
    a = torch.tensor([4.0, 9.0], dtype=F64).to(device).requires_grad_()
    start = torch.ones(2, dtype=F64).to(device)
    return with_gradients(pdf.SteadyState(lambda u, a: a - u**2)(start, a), a)


def based(device: str) -> list[Tensor]:
    x = even(device, 5, 2)
    layer = pdf.TensorProductLayer([pdf.LegendreBasis(3), ("sine", 4)], 2).to(F64)
    nn.init.ones_(layer.weight)
    layer.to(device)
    return with_gradients(layer(x), x, *layer.parameters())


def through(odeint: Callable[..., Tensor], method: str, **options) -> Case:
    def case(device: str) -> list[Tensor]:
        model, y0 = net(device, 2, 8, 2), even(device, 4, 2)
        times = torch.linspace(0, 1, 5, dtype=F64).to(device).requires_grad_()
        field = nn.ModuleDict({"f": model})
        field.forward = lambda t, y: model(y)  # type: ignore[method-assign]
        return with_gradients(odeint(field, y0, times, method=method, **options), y0, times, *model.parameters())

    return case


EXPLICIT = ["tsit5", "dopri5", "dopri8", "bosh3", "heun", "vern7", "vern9"]
STIFF = ["rosenbrock23", "rodas5p", "kencarp4", "kvaerno5", "qndf", "autotsit5(rosenbrock23)"]
GROUPS: dict[str, dict[str, Case]] = {
    "methods": {m: solved(m) for m in EXPLICIT + STIFF},
    "fixed": {m: solved(m, dt=0.1) for m in ("euler", "midpoint", "rk4", "abm4")},
    "adjoints": {f"{s}": solved("tsit5", sensealg=s) for s in ADJOINTS},
    "stiff adjoints": {f"{s}": solved("rodas5p", sensealg=s) for s in ADJOINTS},
    "rows": {m: solved(m, per_sample=True) for m in ("tsit5", "rosenbrock23", "kencarp4")},
    "layers": {case.__name__: case for case in (flowing, energetic, controlled, resting, based)},
    "odeint": {
        "odeint": through(pdf.odeint, "dopri5"),
        "odeint fixed": through(pdf.odeint, "rk4", options={"step_size": 0.1}),
        "odeint_adjoint": through(pdf.odeint_adjoint, "dopri5"),
    },
    "events": {"eventful": eventful},
    "julia": {m: solved(m, backend="julia") for m in ("tsit5", "rodas5p")},
}


def reads_per_step() -> Iterator[tuple[str, float]]:
    """Values read off the device for each attempted step, start and end of the solve left out."""
    for method in ("tsit5", "dopri5", "vern7", "rosenbrock23", "rodas5p"):
        seen = []
        for end in (2.0, 8.0):
            model, y0 = net(elsewhere.NAME, 2, 8, 2).requires_grad_(False), even(elsewhere.NAME, 4, 2).detach()
            before = elsewhere.reads
            sol = pdf.solve(pdf.ODEProblem(lambda t, y: model(y), y0, (0.0, end)), method, rtol=1e-7, atol=1e-7)
            seen.append((elsewhere.reads - before, sol.stats.naccept + sol.stats.nreject))
        (first, few), (second, many) = seen
        yield method, (second - first) / (many - few)


def main(group: str) -> None:
    if group == "reads":
        for method, reads in reads_per_step():
            print(f"{method}: {reads:.2f} reads a step")
            assert reads <= 1.0, f"{method} reads {reads:.2f} values off the device in every step"
        return
    for name, case in GROUPS[group].items():
        torch.manual_seed(0)
        expected = case("cpu")
        torch.manual_seed(0)
        with taken_for(elsewhere.NAME, "JLArrays"):
            found = case(elsewhere.NAME)
        for e, f in zip(expected, found, strict=True):
            assert f.device == elsewhere.DEVICE, f"{name}: a result on {f.device}"
            torch.testing.assert_close(f.detach().cpu(), e.detach(), rtol=1e-9, atol=1e-12)
        print("the same:", name)


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for a device made in Python may not survive an orderly end
