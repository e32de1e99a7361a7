"""What the benchmark of the compiled engine found, as tables and a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from spiral_report import COLOURS, ratio

#: A contender: does the work once and returns what its errors are taken of.
Work = Callable[[], dict[str, Any]]


@dataclass
class Row:
    """One workload."""

    title: str
    against: str
    must: float
    aim: float
    contenders: dict[str, Work]
    reference: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    ours: str = "pydiffeqflux"


@dataclass
class Outcome:
    """One contender: seconds in every round, and relative errors."""

    name: str
    times: list[float]
    errors: dict[str, float]


def ratios(row: Any, found: list[Outcome]) -> dict[str, float]:
    """Our time in units of every other contender's."""
    ours = next(o for o in found if o.name == row.ours)
    return {o.name: ratio(ours.times, o.times) for o in found}


def show(row: Any, found: list[Outcome]) -> None:
    table = Table(title=row.title, caption=f"against {row.against}: must {row.must:g}, aim {row.aim:g}")
    table.add_column("contender", no_wrap=True)
    kinds = list(found[0].errors)
    for head in ("ms", "ours / theirs", *(f"{k}'s error" for k in kinds)):
        table.add_column(head, justify="right")
    against = ratios(row, found)
    for o in sorted(found, key=lambda o: median(o.times)):
        cells = [f"{1e3 * median(o.times):.3f}", f"{against[o.name]:.4f}", *(f"{o.errors[k]:.1e}" for k in kinds)]
        table.add_row(o.name, *cells, style="bold" if o.name == row.ours else None)
    Console(width=110).print(table)


def draw(rows: list[tuple[Any, list[Outcome]]], path: Path) -> None:
    """Times of every workload, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = COLOURS | {"diffrax": "#3a6ea5", "scipy": "#9a8c5a"}
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    with plt.rc_context(style):
        height = sum(len(found) for _, found in rows)
        fig, axes = plt.subplots(
            len(rows), 1, figsize=(9, 0.32 * height + 0.55 * len(rows)), layout="constrained",
            height_ratios=[len(found) + 0.8 for _, found in rows], squeeze=False,
        )  # fmt: skip
        for ax, (row, found) in zip(axes[:, 0], rows, strict=True):
            order = sorted(found, key=lambda o: median(o.times))
            times = [1e3 * median(o.times) for o in order]
            against = ratios(row, found)
            ax.barh(range(len(order)), times, color=[colours[o.name.split()[0]] for o in order], height=0.7)
            ax.set_yticks(range(len(order)), [o.name for o in order])
            ax.tick_params(axis="y", length=0)
            for i, o in enumerate(order):
                error = f", error {max(o.errors.values()):.0e}" if o.errors else ""
                note = f"{times[i]:.3g} ms (x {1 / against[o.name]:.2g}{error})"
                ax.text(times[i] * 1.05, i, note, va="center", fontsize=8)
            ax.set_xscale("log")
            ax.set_xlim(min(times) * 0.5, max(times) * 12)
            ax.invert_yaxis()
            ax.set_title(row.title, loc="left")
        axes[-1, 0].set_xlabel("wall-clock time, ms; in brackets: in units of ours, and the largest relative error")
        fig.savefig(path, dpi=110)
        plt.close(fig)
