"""What the benchmark of the bridge measured, as tables, a figure and a file of numbers."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

#: What a contender is in words.
WORDS = {
    "bridge": "pydiffeqflux from Python: solve, loss, backward",
    "ours": "the same Julia code, called from Julia",
    "torch": "torch alone: a function that does nothing, loss, backward",
    "vjp": "Julia, all derivatives written by hand",
    "tape": "Julia, Jacobian by hand, ReverseDiff's compiled tape",
}
TITLES = {"spiral": "the spiral", "rober": "ROBER, Rodas5P", "pollu": "POLLU, Rodas5P"}


@dataclass
class Clocked:
    """One contender's times, one entry a round, in milliseconds; and its gradient's relative error (or distance)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    error: float | None = None


Race = dict[str, Clocked]


@dataclass
class Found:
    """Everything."""

    races: dict[str, Race] = field(default_factory=dict)
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        machine = {"python": platform.python_version(), "torch": version("torch"), "machine": platform.machine()}
        path.write_text(json.dumps({**asdict(self), "versions": machine}, indent=1))


def ratio(bridge: Clocked, other: Clocked) -> tuple[float, float]:
    """How many times as long as the other the bridge takes, wall and CPU: medians of the ratios within rounds."""
    by_wall, by_cpu = (
        median(a / b for a, b in zip(mine, its, strict=False) if b > 0)
        for mine, its in ((bridge.wall, other.wall), (bridge.cpu, other.cpu))
    )
    return by_wall, by_cpu


def _word(name: str) -> str:
    return WORDS.get(name, f"DiffEqFlux's NeuralODE, {name}")


def show(found: Found) -> None:
    """Print the tables."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    for title, race in found.races.items():
        table = Table(title=f"one gradient: {TITLES[title]}", caption="medians over rounds; times in ms, of one thread")
        table.add_column("", no_wrap=True)
        heads = ("wall", "least", "CPU", "bridge / this,\nwall", "bridge / this,\nCPU", "gradient:\nerror or distance")
        for head in heads:
            table.add_column(head, justify="right")
        for name, m in race.items():
            by_wall, by_cpu = ratio(race["bridge"], m)
            table.add_row(
                _word(name), f"{median(m.wall):.3g}", f"{min(m.wall):.3g}", f"{median(m.cpu):.3g}", f"{by_wall:.3g}",
                f"{by_cpu:.3g}", "" if m.error is None else f"{m.error:.1e}",
            )  # fmt: skip
        console.print(table)
    if found.latency:
        table = Table(title="seconds to a gradient, each row in a process of its own")
        heads = {
            "start": "session", "first": "first model", "first CPU": "CPU", "next": "next model", "next CPU": "CPU",
            "third": "third, of another state", "third CPU": "CPU",
        }  # fmt: skip
        for head in ("", *heads.values()):
            table.add_column(head, justify="right" if head else "left")
        for case, took in found.latency.items():
            table.add_row(case, *(f"{took[key]:.2f}" for key in heads))
        console.print(table)
    if found.calls:
        table = Table("", "", title="calls and memory")
        for name, value in found.calls.items():
            table.add_row(name, f"{value:.1f}")
        console.print(table)


def draw(found: Found, path: Path) -> None:
    """A bar for each contender, a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    races = found.races
    rows = [len(race) for race in races.values()]
    figure, axes = plt.subplots(
        len(races), 1, figsize=(8, 0.9 + 0.36 * sum(rows) + 0.7 * len(rows)), height_ratios=rows, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax, (title, race) in zip(axes[:, 0], races.items(), strict=True):
        names = sorted(race, key=lambda name: -median(race[name].wall))
        times = [median(race[name].wall) for name in names]
        bars = ax.barh(names, times, color=["#0b7a75" if name == "bridge" else "#9a9a9a" for name in names], height=0.7)
        ax.bar_label(bars, [f"{x:.3g} ms" for x in times], padding=4, fontsize=8)
        ax.set_yticks(range(len(names)), [_word(name) for name in names], fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(times) / 2, max(times) * 3)
        ax.set_title(f"{TITLES[title]}: one gradient", fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("milliseconds, median, one thread")
    figure.savefig(path, dpi=150)
    plt.close(figure)
