"""What the spiral benchmark measured, as tables, a figure and a file of numbers."""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

#: Whom the others are compared with, and ourselves.
ODEINT, ADJOINT = "torchdiffeq odeint dopri5", "torchdiffeq odeint_adjoint dopri5"
OURS = "pydiffeqflux solve tsit5"

COLOURS = {"pydiffeqflux": "#0b7a75", "torchdiffeq": "#c8553d", "torchode": "#7d70a8"}


@dataclass
class Measured:
    """What one contender came to: one entry a round; times in seconds, errors relative."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    solution_error: list[float] = field(default_factory=list)
    gradient_error: list[float] = field(default_factory=list)


Race = dict[str, Measured]


def ratio(slow: Iterable[float], fast: Iterable[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def show(found: Race, title: str, clock: str) -> None:
    """Everyone's time, evaluations and errors at one tolerance, fastest first."""
    table = Table(title=title, caption=f"medians over rounds; 'faster' compares {clock} times within each round")
    table.add_column("solver and gradient", no_wrap=True)
    heads = ("wall\nms", "CPU\nms", "faster than\nodeint", "faster than\nodeint_adjoint", "evalua-\ntions")
    for head in (*heads, "solution\nerror", "gradient\nerror"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, m in sorted(found.items(), key=lambda item: median(getattr(item[1], clock))):
        faster = (ratio(getattr(found[other], clock), getattr(m, clock)) for other in (ODEINT, ADJOINT))
        table.add_row(
            name,
            f"{1e3 * median(m.wall):.1f}",
            f"{1e3 * median(m.cpu):.1f}",
            *(f"{x:.2f} x" for x in faster),
            f"{median(m.evaluations):.0f}",
            f"{median(m.solution_error):.1e}",
            f"{median(m.gradient_error):.1e}",
            style="bold" if name.startswith("pydiffeqflux") else None,
        )
    _print(table)


def curve(swept: dict[float, Race], name: str, clock: str) -> tuple[list[float], list[float]]:
    """Errors of the gradient and times in ms, from loose to tight."""
    rows = [swept[tol][name] for tol in sorted(swept, reverse=True)]
    return [median(m.gradient_error) for m in rows], [1e3 * median(getattr(m, clock)) for m in rows]


def time_for(error: float, errors: list[float], times: list[float]) -> float | None:
    """The time at which a contender reaches ``error``: log-linear between its tolerances, None beyond them."""
    points = list(zip(errors, times, strict=True))
    for (e1, t1), (e2, t2) in itertools.pairwise(points):
        if e2 <= error <= e1:
            share = math.log(e1 / error) / math.log(e1 / e2)
            return math.exp(math.log(t1) + share * (math.log(t2) - math.log(t1)))
    return None


def show_matched(swept: dict[float, Race], tol: float, clock: str) -> None:
    """How long each takes to reach the gradient error that torchdiffeq's two have at ``tol``."""
    table = Table(title=f"at torchdiffeq's own gradient error at tolerance {tol:g}", caption=f"medians, {clock} time")
    table.add_column("solver and gradient", no_wrap=True)
    targets = {}
    for other in (ODEINT, ADJOINT):
        errors, times = curve({tol: swept[tol]}, other, clock)
        targets[other] = (errors[0], times[0])
        short = other.split()[1]
        table.add_column(f"ms to {errors[0]:.1e}\n({short}'s)", justify="right")
        table.add_column(f"faster than\n{short}", justify="right")
    for name in next(iter(swept.values())):
        cells = []
        for error, theirs in targets.values():
            mine = time_for(error, *curve(swept, name, clock))
            cells += ["-", "-"] if mine is None else [f"{mine:.1f}", f"{theirs / mine:.2f} x"]
        table.add_row(name, *cells, style="bold" if name.startswith("pydiffeqflux") else None)
    _print(table)


def draw(swept: dict[float, Race], tol: float, clock: str, path: Path) -> None:
    """Left: times at one tolerance. Right: time against the gradient's error over all tolerances."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    with plt.rc_context(style):
        fig, (bars, plane) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1, 1.15), layout="constrained")
        _bars(bars, swept[tol], clock)
        _plane(plane, swept, tol, clock)
        bars.set_title(f"One gradient at rtol = atol = {tol:g}", loc="left")
        plane.set_title("Time against error, tolerances 1e-3 to 1e-7", loc="left")
        fig.savefig(path, dpi=110)
        plt.close(fig)


def _bars(ax, found: Race, clock: str) -> None:  # type: ignore[no-untyped-def]
    names = sorted(found, key=lambda name: median(getattr(found[name], clock)))
    times = [1e3 * median(getattr(found[name], clock)) for name in names]
    ax.barh(range(len(names)), times, color=[COLOURS[name.split()[0]] for name in names], height=0.66)
    ax.set_yticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8.5)
    ax.tick_params(axis="y", length=0)
    for i, (name, t) in enumerate(zip(names, times, strict=True)):
        faster = ratio(getattr(found[ODEINT], clock), getattr(found[name], clock))
        note = f"{t:.1f} ms" if name in (ODEINT, ADJOINT) else f"{t:.1f} ms: {faster:.1f} times odeint's speed"
        ax.text(t * 1.06, i, note, va="center", fontsize=8.5)
    ax.set_xscale("log")
    ax.set_xlim(min(times) * 0.6, max(times) * 4)
    ax.invert_yaxis()
    ax.set_xlabel(f"{_clock(clock)} time of forward and backward, ms")


def _plane(ax, swept: dict[float, Race], tol: float, clock: str) -> None:  # type: ignore[no-untyped-def]
    markers = {"tsit5": "o", "dopri5": "s", "vern7": "^"}
    for name in next(iter(swept.values())):
        errors, times = curve(swept, name, clock)
        package, method = name.split()[0], name.split()[-1]
        style = "--" if name == ADJOINT else "-"
        ax.plot(errors, times, style, marker=markers[method], color=COLOURS[package], ms=5, lw=1.6, label=name)
        at = sorted(swept, reverse=True).index(tol)
        ax.plot(errors[at], times[at], marker=markers[method], ms=11, mfc="none", mec=COLOURS[package], mew=1.6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.invert_xaxis()
    ax.set_xlabel("relative error of the gradient (more exact to the right)")
    ax.set_ylabel(f"{_clock(clock)} time, ms")
    ax.grid(which="major", color="#dddddd", lw=0.7)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.62))
    ax.text(0.99, 0.02, f"ringed: tolerance {tol:g}", transform=ax.transAxes, ha="right", fontsize=8.5, color="#555555")


def _clock(name: str) -> str:
    return {"wall": "wall-clock", "cpu": "CPU"}[name]


def save(races: dict[str, Race], path: Path) -> Path:
    """Every single measurement, and with what it was made."""
    packages = ("torch", "torchdiffeq", "torchode", "pydiffeqflux")
    about = {"python": platform.python_version(), "numpy": np.__version__, "threads": torch.get_num_threads()}
    about |= {name: _version(name) for name in packages}
    rounds = {title: {name: asdict(m) for name, m in found.items()} for title, found in races.items()}
    path.write_text(json.dumps({"about": about, "rounds": rounds}, indent=1) + "\n")
    return path


def _version(name: str) -> str:
    if name == "pydiffeqflux":
        import pydiffeqflux

        return pydiffeqflux.__version__  # also where it runs from its source tree, uninstalled
    return version(name)
