"""The compiled engine against diffrax, torchdiffeq, torchode and SciPy: times as ratios, errors against float64.

Every row is a workload; contenders take turns within a round, in shuffled order, so that whatever else the machine
does falls on all of them alike. A turn is one call that is not timed and then about 10 ms of calls that are. A ratio is
the median over rounds of the ratio within a round. Compilation is left out of a round, but for the row of 500 training
steps, which counts everything from the start of the process on.

    pip install -c constraints.txt -e ".[benchmark]"
    python benchmarks/compiled.py --out runs/benchmarks
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compiled_report import Outcome, Row, Work, draw, numpy, show
from compiled_rows import ROWS as MORE
from spiral_gradient import SPAN, Case, flat_gradient, loss
from torch import Tensor, nn

import pydiffeqflux as pdf

torch.set_num_threads(1)


def race(row: Row, rounds: int, clock: Callable[[], float]) -> list[Outcome]:
    """Times of every round, and errors."""
    errors = {}
    for _ in range(3):  # compiles, and warms up
        for work in row.contenders.values():
            work()
    row.match()
    names, shuffled = list(row.contenders), random.Random(0)
    for name, work in row.contenders.items():
        errors[name] = row.errors(work())
    times: dict[str, list[float]] = {name: [] for name in names}
    bursts = {name: burst(work) for name, work in row.contenders.items()}
    for _ in range(rounds):
        shuffled.shuffle(names)
        for name in names:
            work = row.contenders[name]
            work()  # whatever ran before has taken the caches
            began = clock()
            for _ in range(bursts[name]):
                work()
            times[name].append((clock() - began) / bursts[name])
    return [Outcome(name, times[name], errors[name]) for name in row.contenders]


def burst(work: Work) -> int:
    """How often in a row it is done in each round: for about 10 ms, as in a loop that does nothing else."""
    began = time.perf_counter()
    work()
    return max(1, min(20, round(0.01 / (time.perf_counter() - began))))


# -- workloads ------------------------------------------------------------------------------------


NETWORKS = 3


class Net(nn.Module):
    """A case's network without the counter of calls that the other benchmark needs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.hidden, self.out = case.net.hidden, case.net.out

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(y**3)))


def spiral_row(batch: int, tol: float = 1e-6) -> Row:
    """One gradient of the spiral by each of several networks, as a user writes it: module, loss, backward."""
    import diffrax_side as dx
    import torchdiffeq

    cases = [Case.make(seed, batch) for seed in range(NETWORKS)]
    nets = [Net(case) for case in cases]

    def torch_work(ys_of: Callable[[int], Tensor]) -> Work:
        def work() -> dict[str, Any]:
            states, gradients = [], []
            for i, (net, case) in enumerate(zip(nets, cases, strict=True)):
                net.zero_grad(set_to_none=True)
                ys = ys_of(i)
                loss(ys, case.data).backward()
                states.append(ys)
                gradients.append(flat_gradient(net))
            return {"solution": torch.stack(states), "gradient": torch.stack(gradients)}

        return work

    gradient = dx.gradient(dx.spiral, tol)
    inputs = [
        (dx.weights(net), *(dx.jnp.asarray(x.numpy()) for x in (case.y0, case.ts, case.data)))
        for net, case in zip(nets, cases, strict=True)
    ]

    def diffrax() -> dict[str, Any]:
        found = [dx.ready(gradient(*x)) for x in inputs]
        return {"solution": np.stack([ys for _, ys in found]), "gradient": np.stack([dx.flat(g) for g, _ in found])}

    def ours(backend: str, tol: float) -> Work:
        return torch_work(lambda i: pdf.solve(
            pdf.ODEProblem(nets[i], cases[i].y0, SPAN), saveat=cases[i].ts, rtol=tol, atol=tol, dense=False,
            backend=backend,
        ).ys)  # fmt: skip

    def theirs(odeint: Any) -> Work:
        return torch_work(lambda i: odeint(nets[i], cases[i].y0, cases[i].ts, rtol=tol, atol=tol))

    layers = [pdf.NeuralODE(net, SPAN, saveat=cases[0].ts, rtol=tol, atol=tol, backend="compiled") for net in nets]
    contenders = {
        "pydiffeqflux NeuralODE": torch_work(lambda i: layers[i](cases[i].y0)),
        "pydiffeqflux eager": ours("eager", tol),
        "diffrax": diffrax,
        "torchdiffeq odeint": theirs(torchdiffeq.odeint),
        "torchdiffeq odeint_adjoint": theirs(torchdiffeq.odeint_adjoint),
    }
    reference = {
        "solution": torch.stack([case.solution for case in cases]).numpy(),
        "gradient": torch.stack([case.gradient for case in cases]).numpy(),
    }
    title = f"spiral, one gradient by each of {NETWORKS} networks, batch {batch}"
    return Row(title, "diffrax", 2.0, 1.0, contenders, reference, lambda tol: ours("compiled", tol), tol)


def long_row(tol: float = 1e-6) -> Row:
    """What diffrax's own benchmark solves (its ``benchmarks/small_neural_ode.py``), with the gradient of our loss.

    A 4-32-4 network with softplus, and tanh at its end, batch 64, to t = 100, by Dopri5.
    """
    import diffrax
    import diffrax_side as dx

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 32), nn.Softplus(), nn.Linear(32, 4), nn.Tanh())

    torch.manual_seed(0)
    net = network()
    y0, ts = torch.randn(64, 4), torch.tensor([0.0, 100.0])
    data = torch.zeros(2, 64, 4)
    problem = pdf.ODEProblem(lambda t, y: net(y), y0, (0.0, 100.0))

    def ours(tol: float) -> Work:
        def work() -> dict[str, Any]:
            net.zero_grad(set_to_none=True)
            ys = pdf.solve(problem, "dopri5", saveat=ts, rtol=tol, atol=tol, dense=False, backend="compiled").ys
            loss(ys, data).backward()
            return {"solution": ys, "gradient": flat_gradient(net)}

        return work

    wide = network().double()
    wide.load_state_dict(net.state_dict())
    ys = pdf.solve(
        pdf.ODEProblem(lambda t, y: wide(y), y0.double(), (0.0, 100.0)), "vern9", saveat=ts.double(), rtol=1e-11,
        atol=1e-11, dense=False, backend="compiled",
    ).ys  # fmt: skip
    loss(ys, data.double()).backward()

    def field(t: Any, y: Any, layers: Any) -> Any:
        return dx.jnp.tanh(dx.mlp(layers, y, dx.jax.nn.softplus))

    layers, gradient = dx.weights(net), dx.gradient(field, tol, solver=diffrax.Dopri5())
    start, times, zeros = (dx.jnp.asarray(x.numpy()) for x in (y0, ts, data))

    def diffrax_work() -> dict[str, Any]:
        found, states = dx.ready(gradient(layers, start, times, zeros))
        return {"solution": states, "gradient": dx.flat(found)}

    reference = {"solution": numpy(ys), "gradient": numpy(flat_gradient(wide))}
    title = "4-32-4, batch 64, t1 = 100 (diffrax's own), with its gradient"
    return Row(title, "diffrax", 1.5, 1.0, {"diffrax": diffrax_work}, reference, ours, tol)


# -- training from the start of a process ---------------------------------------------------------


def training(cold: bool, folder: Path) -> list[Outcome]:
    """500 Adam steps of the spiral, from the start of the process, imports and compilation included: wall time."""
    import os

    here = Path(__file__).parent
    times: dict[str, list[float]] = {"pydiffeqflux": [], "diffrax": []}
    for k in range(4):
        for name, found in times.items():
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if name == "pydiffeqflux":
                env["PYDIFFEQFLUX_CACHE"] = str(folder / f"code-{time.time_ns()}" if cold else folder / "code")
            began = time.perf_counter()
            command = [sys.executable, str(here / "training_spiral.py"), name]
            subprocess.run(command, check=True, env=env, capture_output=True)
            if k:  # the first process of each finds files that nobody has read yet
                found.append(time.perf_counter() - began)
    return [Outcome(name, found, {}) for name, found in times.items()]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS: dict[str, Callable[[], Row]] = {
    "spiral1": lambda: spiral_row(1),
    "spiral20": lambda: spiral_row(20),
    "long": long_row,
    **MORE,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figure and the numbers")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="rounds (default 30; spiral: a third)")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "training"], default=[*ROWS, "training"], metavar="ROW")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use too")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in args.rows:
        if name == "training":
            for cold in (True, False):
                title = f"500 Adam steps from process start, {'nothing' if cold else 'code'} on disk"
                found.append((Row(title, "diffrax", 1.0, 0.5, {}), training(cold, args.out)))
        else:
            row = ROWS[name]()
            rounds = -(-args.rounds // 3) if name.startswith("spiral") else args.rounds
            found.append((row, race(row, rounds, CLOCKS[args.clock])))
        show(*found[-1])
    draw(found, args.out / "compiled.png", args.clock)
    numbers = [
        {"row": row.title, "times": {o.name: o.times for o in out}, "errors": {o.name: o.errors for o in out}}
        for row, out in found
    ]
    (args.out / "compiled.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"wrote {args.out / 'compiled.png'} and {args.out / 'compiled.json'}")


if __name__ == "__main__":
    main()
