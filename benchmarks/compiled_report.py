"""What the benchmark of the compiled engine found, as tables and a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from spiral_report import COLOURS, ratio
from torch import Tensor

#: A contender: does the work once and returns what its errors are taken of.
Work = Callable[[], dict[str, Any]]


@dataclass
class Row:
    """One workload.

    Attributes:
        contenders: the others, and ours as far as they are not made by ``ours``.
        ours: ours at a tolerance; ``tol`` is the loosest one, which the others were given.
        partner: which of ours each other one is compared with (see ``match``).
    """

    title: str
    against: str
    must: float
    aim: float
    contenders: dict[str, Work]
    reference: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    ours: Callable[[float], Work] | None = None
    tol: float = 0.0
    partner: dict[str, str] = field(default_factory=dict)

    def errors(self, found: dict[str, Any]) -> dict[str, float]:
        """Relative ones, in the Euclidean norm."""
        off = {k: numpy(found[k]) - want for k, want in self.reference.items()}
        return {k: float(np.linalg.norm(off[k]) / np.linalg.norm(want)) for k, want in self.reference.items()}

    def match(self) -> None:
        """Add ours, for every other one at a tolerance at which none of our errors is larger than its own.

        From ``tol`` on it is made tighter until that is so; or, where it is so already, looser for as long as it is.
        """
        assert self.ours is not None
        known: dict[int, dict[str, float]] = {}

        def accurate(k: int, theirs: dict[str, float]) -> bool:
            """At ``tol`` times the square root of 2 to the power of ``k``."""
            if k not in known:
                known[k] = self.errors(self.ours(self.tol * sqrt(2.0) ** k)())
            return all(known[k][name] <= theirs[name] for name in theirs)

        for name, work in list(self.contenders.items()):
            if name.startswith(OURS):
                continue
            theirs, k = self.errors(work()), 0
            while not accurate(k, theirs):
                k -= 1
                if k < -20:
                    raise RuntimeError(f"no tolerance makes ours as accurate as {name} ({theirs}) on: {self.title}")
            while k >= 0 and k < 8 and accurate(k + 1, theirs):
                k += 1
            tol = self.tol * sqrt(2.0) ** k
            self.partner[name] = own = f"{OURS} at {tol:.2g}"
            self.contenders.setdefault(own, self.ours(tol))


OURS = "pydiffeqflux"


def numpy(x: Any) -> np.ndarray[Any, Any]:
    return x.detach().double().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


@dataclass
class Outcome:
    """One contender: seconds in every round, and relative errors."""

    name: str
    times: list[float]
    errors: dict[str, float]


def ratios(row: Row, found: list[Outcome]) -> dict[str, float]:
    """Our time, at no larger errors, in units of every other contender's."""
    times = {o.name: o.times for o in found}
    return {o.name: ratio(times[row.partner.get(o.name, OURS)], o.times) for o in found if _other(o)}


def _other(o: Outcome) -> bool:
    return not o.name.startswith(OURS)


def show(row: Row, found: list[Outcome]) -> None:
    table = Table(title=row.title, caption=f"against {row.against}: must {row.must:g}, aim {row.aim:g}")
    table.add_column("contender", no_wrap=True)
    kinds = list(found[0].errors)
    for head in ("ms", "ours / theirs", *(f"error of the {k}" for k in kinds), "as accurate"):
        table.add_column(head, justify="right")
    against = ratios(row, found)
    for o in sorted(found, key=lambda o: median(o.times)):
        cells = [
            f"{1e3 * median(o.times):.4g}", f"{against[o.name]:.4f}" if _other(o) else "",
            *(f"{o.errors[k]:.1e}" for k in kinds), row.partner.get(o.name, ""),
        ]  # fmt: skip
        table.add_row(o.name, *cells, style=None if _other(o) else "bold")
    Console(width=130).print(table)


def draw(rows: list[tuple[Row, list[Outcome]]], path: Path, clock: str) -> None:
    """Times of every workload, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = COLOURS | {"diffrax": "#3a6ea5", "scipy": "#9a8c5a", "numbalsoda": "#6a8c5a"}
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
                times_ours = f"x {1 / against[o.name]:.2g}" if _other(o) else "ours"
                note = f"{times[i]:.3g} ms ({times_ours}{error})"
                ax.text(times[i] * 1.05, i, note, va="center", fontsize=8)
            ax.set_xscale("log")
            ax.set_xlim(min(times) * 0.5, max(times) * 12)
            ax.invert_yaxis()
            ax.set_title(row.title, loc="left")
        label = f"ms ({clock} time; of training wall time); in brackets: in units of ours, and the largest error"
        axes[-1, 0].set_xlabel(label)
        fig.savefig(path, dpi=110)
        plt.close(fig)
