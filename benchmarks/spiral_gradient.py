"""One gradient of the spiral neural ODE, side by side with torchdiffeq and torchode.

The workload is that of "Neural ordinary differential equations": dy/dt = net(y^3) with a 2-50-2 tanh network,
30 saved times on [0, 1.5], the loss a sum of squares against the true spiral, float32, one thread. Everybody gets
the same networks, the same times and rtol = atol.

How it is measured: one round times each contender once, in shuffled order, so that whatever else the machine does
falls on all of them alike; a ratio is the median over rounds of the ratio within a round. Each round takes another
network, and errors are medians over networks, for one gradient's error at a given tolerance is partly luck. The
reference is a float64 Runge-Kutta solve with small fixed steps, written out below: it shares no code with anyone.

    pip install -c constraints.txt -e ".[benchmark]"
    python benchmarks/spiral_gradient.py --out runs/benchmarks
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from spiral_report import ADJOINT, ODEINT, OURS, Measured, Race, draw, save, show, show_matched
from torch import Tensor, nn

import pydiffeqflux as pdf

SPAN = (0.0, 1.5)
SAVES = 30
TOLERANCE = 1e-6
TRUTH = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
#: Tolerances and contenders of the sweep: time against error.
SWEEP = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SWEPT = (
    OURS,
    "pydiffeqflux solve dopri5",
    "pydiffeqflux solve vern7",
    ODEINT,
    ADJOINT,
    "torchode tsit5",
    "torchode dopri5",
)


class Spiral(nn.Module):
    """y^3 -> 2-50-2 tanh, Xavier weights, no bias to start with; counts its evaluations."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.hidden, self.out = nn.Linear(2, 50), nn.Linear(50, 2)
        for layer in (self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.out(torch.tanh(self.hidden(y**3)))


@dataclass(frozen=True)
class Case:
    """One network, one batch of initial states, and what the trajectories should have been."""

    net: Spiral
    y0: Tensor
    ts: Tensor
    data: Tensor
    solution: Tensor
    gradient: Tensor

    @classmethod
    def make(cls, seed: int, batch: int) -> Case:
        net = Spiral(seed)
        y0 = torch.tensor([[2.0, 0.0]])
        if batch > 1:
            y0 = torch.cat([y0, 4 * torch.rand(batch - 1, 2, generator=torch.Generator().manual_seed(seed)) - 2])
        ts = torch.linspace(*SPAN, SAVES)
        data = rk4(lambda y: y**3 @ TRUTH.double(), y0.double(), ts.double())
        wide = Spiral(seed).double()
        wide.load_state_dict(net.state_dict())
        ys = rk4(lambda y: wide(ts, y), y0.double(), ts.double())
        loss(ys, data).backward()
        return cls(net, y0, ts, data.float(), ys.detach(), flat_gradient(wide))


def rk4(f: Callable[[Tensor], Tensor], y: Tensor, ts: Tensor, substeps: int = 40) -> Tensor:
    """The reference: Kutta's method, so finely that its error is far below float32's (see ``check_reference``)."""
    states = [y]
    for span in ts.diff().tolist():
        h = span / substeps
        for _ in range(substeps):
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            k4 = f(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(y)
    return torch.stack(states)


def loss(ys: Tensor, data: Tensor) -> Tensor:
    return ((ys - data) ** 2).sum()


def flat_gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


#: From a case and a tolerance to the states at the saved times, ``(SAVES, batch, 2)``.
Solver = Callable[[Case, float], Tensor]


def ours(method: str, **options: object) -> Solver:
    def run(case: Case, tol: float) -> Tensor:
        problem = pdf.ODEProblem(case.net, case.y0, SPAN, batched=bool(options.get("per_sample")))
        return pdf.solve(problem, method, saveat=case.ts, rtol=tol, atol=tol, dense=False, **options).ys  # type: ignore[arg-type]

    return run


def our_layer(case: Case, tol: float) -> Tensor:
    return pdf.NeuralODE(case.net, SPAN, saveat=case.ts, rtol=tol, atol=tol)(case.y0)


def our_odeint(case: Case, tol: float) -> Tensor:
    return pdf.odeint(case.net, case.y0, case.ts, rtol=tol, atol=tol)


def torchdiffeq(name: str) -> Solver:
    import torchdiffeq as package

    solver = getattr(package, name)
    return lambda case, tol: solver(case.net, case.y0, case.ts, rtol=tol, atol=tol, method="dopri5")


def torchode(method: str) -> Solver:
    """With its automatic differentiation and integral controller, its documented defaults; without compiling."""
    import torchode as package

    def run(case: Case, tol: float) -> Tensor:
        term = package.ODETerm(case.net)
        controller = package.IntegralController(atol=tol, rtol=tol, term=term)
        solver = package.AutoDiffAdjoint(getattr(package, method)(term=term), controller)
        t_eval = case.ts.expand(len(case.y0), -1)
        return solver.solve(package.InitialValueProblem(y0=case.y0, t_eval=t_eval)).ys.transpose(0, 1)

    return run


def contenders(batch: int) -> dict[str, Solver]:
    """Everyone, by name; the first word is the package."""
    everyone = {
        OURS: ours("tsit5"),
        "pydiffeqflux NeuralODE tsit5": our_layer,
        "pydiffeqflux solve dopri5": ours("dopri5"),
        "pydiffeqflux solve vern7": ours("vern7"),
        "pydiffeqflux odeint dopri5": our_odeint,
        ODEINT: torchdiffeq("odeint"),
        ADJOINT: torchdiffeq("odeint_adjoint"),
        "torchode tsit5": torchode("Tsit5"),
        "torchode dopri5": torchode("Dopri5"),
    }
    if batch == 1:  # what else can be had from ours, to be compared with odeint_adjoint
        for name in ("GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint"):
            everyone[f"pydiffeqflux solve tsit5 {name}"] = ours("tsit5", sensealg=name)
        everyone["pydiffeqflux solve tsit5 checkpoints"] = ours(
            "tsit5", sensealg=pdf.DiscreteAdjoint(checkpoints="sqrt")
        )
    else:
        everyone["pydiffeqflux solve tsit5 per sample"] = ours("tsit5", per_sample=True)
    return everyone


def measure(into: Measured, solver: Solver, case: Case, tol: float) -> None:
    """One solve and one backward pass, timed; then what they were worth."""
    case.net.zero_grad(set_to_none=True)
    case.net.calls = 0
    wall, cpu = time.perf_counter(), time.process_time()
    ys = solver(case, tol)
    loss(ys, case.data).backward()
    into.cpu.append(time.process_time() - cpu)
    into.wall.append(time.perf_counter() - wall)
    into.evaluations.append(case.net.calls)
    into.solution_error.append(relative(ys.detach(), case.solution))
    into.gradient_error.append(relative(flat_gradient(case.net), case.gradient))


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference).norm() / reference.norm())


def race(everyone: dict[str, Solver], cases: Sequence[Case], rounds: int, tol: float) -> Race:
    """``rounds`` interleaved rounds, after one that only warms up."""
    order = list(everyone)
    shuffled = random.Random(0)
    for name in order:
        measure(Measured(), everyone[name], cases[0], tol)
    found = {name: Measured() for name in order}
    for r in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            measure(found[name], everyone[name], cases[r % len(cases)], tol)
    return found


def sweep(cases: Sequence[Case], rounds: int) -> dict[float, Race]:
    everyone = contenders(batch=1)
    return {tol: race({name: everyone[name] for name in SWEPT}, cases, rounds, tol) for tol in SWEEP}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figure and the numbers")
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="rounds (default 30)")
    parser.add_argument("--networks", type=int, default=10, metavar="N", help="random networks (default 10)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what ratios are of (default wall)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 20], metavar="B", help="(default 1 20)")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the sweep over tolerances and the figure")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    races: dict[str, Race] = {}
    for batch in args.batches:
        cases = [Case.make(seed, batch) for seed in range(args.networks)]
        found = race(contenders(batch), cases, args.repeats, TOLERANCE)
        show(found, f"spiral gradient, batch {batch}, rtol = atol = {TOLERANCE:g}, float32, one thread", args.clock)
        races[f"batch {batch}"] = found
    if not args.no_sweep:
        cases = [Case.make(seed, 1) for seed in range(args.networks)]
        swept = sweep(cases, max(args.networks, args.repeats // 3))
        show_matched(swept, TOLERANCE, args.clock)
        races |= {f"batch 1, tolerance {tol:g}": found for tol, found in swept.items()}
        figure = args.out / "spiral_gradient.png"
        draw(swept, TOLERANCE, args.clock, figure)
        print(f"wrote {figure}")
    print(f"wrote {save(races, args.out / 'spiral_gradient.json')}")


if __name__ == "__main__":
    main()
