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
from compiled_report import Outcome, Row, Work, draw, show
from compiled_rows import ROWS as MORE
from spiral_gradient import SPAN, Case, flat_gradient, loss
from torch import Tensor, nn

import pydiffeqflux as pdf

torch.set_num_threads(1)

def numpy(x: Any) -> np.ndarray[Any, Any]:
    return x.detach().double().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


def race(row: Row, rounds: int, clock: Callable[[], float]) -> list[Outcome]:
    """Times of every round, and errors."""
    names, shuffled = list(row.contenders), random.Random(0)
    errors = {}
    for name in names:
        for _ in range(3):  # compiles, and warms up
            got = row.contenders[name]()
        errors[name] = {
            k: float(np.linalg.norm(numpy(got[k]) - want) / np.linalg.norm(want)) for k, want in row.reference.items()
        }
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


def spiral_row(batch: int, tol: float = 1e-6) -> Row:
    """One gradient of the spiral, as a user writes it: module, loss, backward."""
    import diffrax_side as dx

    case = Case.make(0, batch)
    case.net.calls = 0

    class Net(nn.Module):  # without the counter of calls that the other benchmark needs
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = case.net.hidden, case.net.out

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.out(torch.tanh(self.hidden(y**3)))

    net = Net()

    def torch_work(ys_of: Callable[[], Tensor]) -> Work:
        def work() -> dict[str, Any]:
            net.zero_grad(set_to_none=True)
            ys = ys_of()
            loss(ys, case.data).backward()
            return {"solution": ys, "gradient": flat_gradient(net)}

        return work

    layers = dx.weights(net)
    gradient = dx.gradient(dx.spiral, tol)
    y0, ts, data = (dx.jnp.asarray(x.numpy()) for x in (case.y0, case.ts, case.data))

    def diffrax() -> dict[str, Any]:
        found, ys = dx.ready(gradient(layers, y0, ts, data))
        return {"solution": ys, "gradient": np.concatenate([np.asarray(x).ravel() for pair in found for x in pair])}

    import torchdiffeq

    def ours(backend: str) -> Callable[[], Tensor]:
        return lambda: pdf.solve(
            pdf.ODEProblem(net, case.y0, SPAN), saveat=case.ts, rtol=tol, atol=tol, dense=False, backend=backend
        ).ys

    layer = pdf.NeuralODE(net, SPAN, saveat=case.ts, rtol=tol, atol=tol, backend="compiled")
    contenders = {
        "pydiffeqflux": torch_work(ours("compiled")),
        "pydiffeqflux NeuralODE": torch_work(lambda: layer(case.y0)),
        "pydiffeqflux eager": torch_work(ours("eager")),
        "diffrax": diffrax,
        "torchdiffeq odeint": torch_work(lambda: torchdiffeq.odeint(net, case.y0, case.ts, rtol=tol, atol=tol)),
        "torchdiffeq odeint_adjoint": torch_work(
            lambda: torchdiffeq.odeint_adjoint(net, case.y0, case.ts, rtol=tol, atol=tol)
        ),
    }
    reference = {"solution": case.solution.numpy(), "gradient": case.gradient.numpy()}
    return Row(f"spiral gradient, batch {batch}", "diffrax", 2.0, 1.0, contenders, reference)


def lotka_volterra_row(rtol: float) -> Row:
    """The forward solve of two equations, in float64, 100 saved times."""
    import diffrax_side as dx
    from scipy.integrate import solve_ivp

    k = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64)
    y0, ts = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.linspace(0, 10, 100, dtype=torch.float64)

    def func(t: Tensor, y: Tensor) -> Tensor:
        x, z = y[0], y[1]
        return torch.stack([k[0] * x - k[1] * x * z, k[3] * x * z - k[2] * z])

    def ours() -> dict[str, Any]:
        with torch.no_grad():
            problem = pdf.ODEProblem(func, y0, (0.0, 10.0))
            return {"solution": pdf.solve(problem, saveat=ts, rtol=rtol, atol=rtol, dense=False, backend="compiled").ys}

    def rates(t: Any, y: Any, args: Any = None) -> Any:
        return dx.jnp.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3.0 * y[1]])

    times, start = dx.jnp.asarray(ts.numpy()), dx.jnp.asarray(y0.numpy())
    jitted = dx.jax.jit(lambda start: dx.solve(rates, start, times, None, rtol).ys)

    def plain(t: float, y: Any) -> list[float]:
        return [1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3.0 * y[1]]

    exact = solve_ivp(plain, (0, 10), [1.0, 1.0], "DOP853", ts.numpy(), rtol=1e-13, atol=1e-13).y.T
    contenders: dict[str, Work] = {
        "pydiffeqflux": ours,
        "diffrax": lambda: {"solution": dx.ready(jitted(start))},
        "scipy RK45": lambda: {
            "solution": solve_ivp(plain, (0, 10), [1.0, 1.0], "RK45", ts.numpy(), rtol=rtol, atol=rtol).y.T
        },
    }
    return Row(f"Lotka-Volterra, rtol {rtol:g}", "diffrax", 1.0, 0.5, contenders, {"solution": exact})


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

    def ours() -> dict[str, Any]:
        net.zero_grad(set_to_none=True)
        ys = pdf.solve(problem, "dopri5", saveat=ts, rtol=tol, atol=tol, dense=False, backend="compiled").ys
        loss(ys, data).backward()
        return {"solution": ys, "gradient": flat_gradient(net)}

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

    def diffrax() -> dict[str, Any]:
        found, states = dx.ready(gradient(layers, start, times, zeros))
        return {"solution": states, "gradient": dx.flat(found)}

    reference = {"solution": numpy(ys), "gradient": numpy(flat_gradient(wide))}
    contenders = {"pydiffeqflux": ours, "diffrax": diffrax}
    return Row("4-32-4, batch 64, t1 = 100 (diffrax's own)", "diffrax", 1.5, 1.0, contenders, reference)


# -- training from the start of a process ---------------------------------------------------------


def training(cold: bool, folder: Path) -> list[Outcome]:
    """500 Adam steps of the spiral, from the start of the process, imports and compilation included."""
    import os

    outcomes = []
    here = Path(__file__).parent
    for name in ("pydiffeqflux", "diffrax"):
        times = []
        for k in range(3):
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if name == "pydiffeqflux":
                env["PYDIFFEQFLUX_CACHE"] = str(folder / f"code-{time.time_ns()}" if cold else folder / "code")
            began = time.perf_counter()
            command = [sys.executable, str(here / "training_spiral.py"), name]
            subprocess.run(command, check=True, env=env, capture_output=True)
            if cold or k:
                times.append(time.perf_counter() - began)
        outcomes.append(Outcome(name, times, {}))
    return outcomes


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS: dict[str, Callable[[], Row]] = {
    "spiral1": lambda: spiral_row(1),
    "spiral20": lambda: spiral_row(20),
    "long": long_row,
    **{f"lv{d}": (lambda d=d: lotka_volterra_row(10.0**-d)) for d in (3, 6, 10)},
    **MORE,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figure and the numbers")
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="rounds (default 200)")
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
            slow = name.startswith("spiral") and args.rounds > 30
            found.append((row, race(row, 30 if slow else args.rounds, CLOCKS[args.clock])))
        show(*found[-1])
    draw(found, args.out / "compiled.png")
    numbers = [
        {"row": row.title, "times": {o.name: o.times for o in out}, "errors": {o.name: o.errors for o in out}}
        for row, out in found
    ]
    (args.out / "compiled.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"wrote {args.out / 'compiled.png'} and {args.out / 'compiled.json'}")


if __name__ == "__main__":
    main()
