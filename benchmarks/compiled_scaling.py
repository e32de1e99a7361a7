"""How the compiled engine's time and memory grow: with steps, parameters, batch; and where eager torch takes over.

Times are the processor's, of one solve with its gradient on one thread: the best of several, all sizes in turn. Slopes
are fitted to the logarithms; the steepest is that between two neighbouring sizes. Memory is counted (the peak of what
torch allocates and of what Python does, added up) and measured (by how much the peak of a process grows: Linux), each
size in a process of its own.

    python benchmarks/compiled_scaling.py --out runs/benchmarks
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.compiled import shards

torch.set_num_threads(1)

#: No slope may be steeper where the work is linear; nor may memory with checkpoints grow faster.
LINEAR, SQUARE_ROOT = 1.05, 0.55
#: Entries of the state: large, so that nothing else counts.
MEMORY_STATE = 1 << 14


@dataclass
class Curve:
    """A quantity at several sizes, ``{contender: values}``."""

    title: str
    unit: str
    sizes: list[int]
    values: dict[str, list[float]]
    limit: float | None

    def slope(self, name: str) -> float:
        return float(np.polyfit(np.log(self.sizes), np.log(self.values[name]), 1)[0])

    def steepest(self, name: str) -> float:
        """Between two sizes next to each other."""
        return float((np.diff(np.log(self.values[name])) / np.diff(np.log(self.sizes))).max())


def work(width: int, batch: int, steps: int, backend: str) -> Callable[[], None]:
    """A solve of a network 2-width-2 by as many steps of RK4, and its gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
    y0 = torch.randn(batch, 2)

    def once() -> None:
        net.zero_grad(set_to_none=True)
        problem = pdf.ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0))
        ys = pdf.solve(problem, "rk4", dt=1.0 / steps, saveat=[1.0], dense=False, backend=backend).ys
        ys.square().mean().backward()

    return once


def best(
    works: Sequence[Callable[[], None]], rounds: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """The best time of each, by turns: what else the machine does falls on all of them alike."""
    for once in works:
        once()
    times = [[] for _ in works]  # type: list[list[float]]
    for _ in range(rounds):
        for once, found in zip(works, times, strict=True):
            began = clock()
            once()
            found.append(clock() - began)
    return [min(found) for found in times]


def times(title: str, sizes: list[int], make: Callable[[int], Callable[[], None]], rounds: int) -> Curve:
    found = best([make(n) for n in sizes], rounds)
    return Curve(title, "s", sizes, {"compiled": found}, LINEAR)


def takeover(rounds: int) -> Curve:
    """Square layers: from some width on, eager torch's BLAS is what counts."""
    sizes = [64, 128, 256, 512, 1024]

    def square(n: int, backend: str) -> Callable[[], None]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(n, n), nn.Tanh())
        y0 = torch.randn(32, n)

        def once() -> None:
            net.zero_grad(set_to_none=True)
            problem = pdf.ODEProblem(lambda t, y: net(y), y0, (0.0, 1.0))
            pdf.solve(problem, "rk4", dt=0.1, saveat=[1.0], dense=False, backend=backend).ys.square().mean().backward()

        return once

    values = {backend: best([square(n, backend) for n in sizes], rounds) for backend in ("compiled", "eager")}
    return Curve("square layers, batch 32: time against width", "s", sizes, values, None)


def threads(rounds: int) -> Curve:
    """The same work by one thread and by two, in wall time, whatever the size: from where on do two pay?"""
    sizes = [64, 256, 1024, 4096]
    shards.MANY, usual = 0, shards.MANY

    def by(count: int, once: Callable[[], None]) -> Callable[[], None]:
        def turn() -> None:
            torch.set_num_threads(count)
            once()

        return turn

    works = [by(count, work(50, n, 20, "compiled")) for n in sizes for count in (1, 2)]
    found = best(works, rounds, time.perf_counter)
    shards.MANY = usual
    torch.set_num_threads(1)
    title = "one thread or two: time against batch"
    return Curve(title, "s", sizes, {"1 thread": found[0::2], "2 threads": found[1::2]}, None)


def peak(steps: int, checkpoints: str | None) -> tuple[int, int]:
    """What one solve with its gradient takes at its most, in bytes: by torch's own count, and by the system's."""
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def solve(steps: int) -> None:
        problem = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(MEMORY_STATE, dtype=torch.float64), (0.0, 1.0))
        sense = pdf.DiscreteAdjoint(checkpoints=checkpoints)
        sol = pdf.solve(
            problem, "rk4", dt=1.0 / steps, saveat=[1.0], dense=False, sensealg=sense, backend="compiled"
        )  # fmt: skip
        sol.ys.sum().backward()

    # The C library gives memory back to the system as soon as it is free: what is counted is what was in use at a time.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    solve(4)  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # the system's peak begins anew
    before = _resident("VmRSS")
    solve(steps)
    resident = _resident("VmHWM") - before
    return counted(lambda: solve(steps)), resident


_M_MMAP_THRESHOLD = -3


def counted(once: Callable[[], None]) -> int:
    """The most bytes that torch's tensors and Python's arrays took at a time: both sides' own peaks, added up."""
    tracemalloc.start()
    with torch.autograd.profiler.profile(profile_memory=True) as prof:
        once()
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prof.kineto_results is not None
    now = most = 0
    for event in sorted(prof.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most + python


def _resident(what: str) -> int:
    """What Linux says of this process's memory, in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return 1024 * int(line.split()[1])


def memory() -> list[Curve]:
    """Each size in a process of its own."""
    curves = []
    for name, kind, sizes, limit in (
        ("with checkpoints", "sqrt", [64, 256, 1024, 4096], SQUARE_ROOT),
        ("every step kept", "all", [64, 256, 1024], LINEAR),
    ):
        found = []
        for steps in sizes:
            command = [sys.executable, __file__, "--peak", str(steps), kind]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append([float(x) for x in said.split()])
        tensors, resident = (list(x) for x in zip(*found, strict=True))
        title = f"memory of the discrete adjoint against steps, {name}"
        curves.append(Curve(title, "bytes", sizes, {"allocated": tensors, "resident": resident}, limit))
    return curves


def show(curve: Curve) -> None:
    table = Table(title=curve.title)
    table.add_column("contender", no_wrap=True)
    for n in curve.sizes:
        table.add_column(str(n), justify="right")
    table.add_column("slope", justify="right")
    table.add_column("steepest", justify="right")
    for name, values in curve.values.items():
        cells = [f"{1e3 * v:.2f} ms" if curve.unit == "s" else f"{v / 2**20:.1f} MiB" for v in values]
        table.add_row(name, *cells, f"{curve.slope(name):.3f}", f"{curve.steepest(name):.3f}")
    if curve.limit is not None:
        table.caption = f"the slope is to be {curve.limit} at most"
    Console(width=120).print(table)


def draw(curves: Sequence[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    colours = {"compiled": "#b5452c", "allocated": "#b5452c", "eager": "#8a8a8a", "resident": "#8a8a8a",
               "1 thread": "#8a8a8a", "2 threads": "#b5452c"}  # fmt: skip
    with plt.rc_context(style):
        fig, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 3.0), layout="constrained")
        for ax, curve in zip(axes, curves, strict=True):
            for name, values in curve.values.items():
                label = f"{name}, {curve.slope(name):.2f}"
                ax.loglog(curve.sizes, values, "o-", color=colours[name], ms=4, label=label)
            title = curve.title.split(":")[-1].strip()
            ax.set_title("\n".join(title.split(" against steps, ")), loc="left", fontsize=8)
            ax.set_ylabel("seconds" if curve.unit == "s" else "bytes")
            ax.legend(frameon=False, fontsize=7, title="slope", title_fontsize=7)
        fig.savefig(path, dpi=110)
        plt.close(fig)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the figure and the numbers")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds (default 15)")
    parser.add_argument("--peak", nargs=2, metavar=("STEPS", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        print(*peak(int(args.peak[0]), "sqrt" if args.peak[1] == "sqrt" else None))
        return
    if args.out is None:
        parser.error("--out is required")
    args.out.mkdir(parents=True, exist_ok=True)
    rounds = args.rounds
    steps, widths, batches = [64, 256, 1024, 4096, 16384], [64, 256, 1024, 4096], [16, 64, 256, 1024, 4096]
    curves: list[Curve] = []
    for measure in (
        lambda: [times("time against steps", steps, lambda n: work(50, 1, n, "compiled"), rounds)],
        lambda: [times("time against hidden width", widths, lambda n: work(n, 4, 20, "compiled"), rounds)],
        lambda: [times("time against batch", batches, lambda n: work(50, n, 20, "compiled"), rounds)],
        lambda: [threads(4 * rounds)],
        lambda: [takeover(max(3, rounds // 5))],
        memory,
    ):
        for curve in measure():
            curves.append(curve)
            show(curve)
    draw(curves, args.out / "compiled_scaling.png")
    numbers = [{"title": c.title, "unit": c.unit, "sizes": c.sizes, "values": c.values} for c in curves]
    (args.out / "compiled_scaling.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"wrote {args.out / 'compiled_scaling.png'} and {args.out / 'compiled_scaling.json'}")


if __name__ == "__main__":
    main()
