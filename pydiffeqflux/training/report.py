"""What a fit leaves to read: a JSON report, a picture of the trajectory and one of the loss."""

from __future__ import annotations

import io
import json
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .delayed import FittedDDE
from .recipe import GAP_WEIGHT
from .run import Run
from .series import Series
from .stochastic import FittedSDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .result import FitResult
    from .run import History

#: Okabe & Ito's colours, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
_INK = "#333333"
#: Simulated paths that quantiles are taken of.
PATHS = 400

Array = NDArray[np.float64]


def report_of(run: Run, series: Series, resumed: bool) -> dict[str, Any]:
    """Arguments, versions, losses, quality of fit and cost of a run, in plain types."""
    from .. import __version__

    return {
        "arguments": run.options.as_dict(),
        "data": {
            "source": series.source,
            "sha256": series.digest,
            "rows": len(series),
            "time": series.time_name,
            "states": list(series.state_names),
        },
        "versions": {
            "pydiffeqflux": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "seed": run.options.seed,
        **run.findings(series),
        "parameters": sum(p.numel() for p in run.module.parameters()),
        "seconds": run.seconds,
        "resumed": resumed,
        "history": {"misfit": run.history.misfit, "gap": run.history.gap},
    }


def json_bytes(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


def figures(result: FitResult) -> dict[str, bytes]:
    """``fit.png`` and ``loss.png``."""
    return {"fit.png": _png(draw_fit(result)), "loss.png": _png(draw_loss(result.history))}


@dataclass(frozen=True)
class _Drawn:
    """What is drawn of a module at many times: a curve, and where most paths of a stochastic one are."""

    times: Array
    curve: Array
    label: str
    low: Array | None = None
    high: Array | None = None
    #: A path to be drawn in the phase plane.
    path: Array | None = None

    @classmethod
    def of(cls, result: FitResult) -> _Drawn:
        series, module = result.series, result.module
        many = 300 if isinstance(module, FittedSDE) else max(600, 4 * len(series))
        fine = np.linspace(series.times[0], series.times[-1], many)
        with torch.no_grad():
            if not isinstance(module, FittedSDE):
                return cls(fine, module(torch.as_tensor(fine)).numpy(), module.label)
            paths = module.paths(PATHS, torch.as_tensor(fine)).numpy()
        low, middle, high = np.quantile(paths, (0.025, 0.5, 0.975), axis=1)
        return cls(fine, middle, "median", low, high, paths[:, 0])


def draw_fit(result: FitResult) -> Figure:
    """Data and trajectory over time; beside it the phase plane where there are two states."""
    import matplotlib as mpl

    series, drawn = result.series, _Drawn.of(result)
    with mpl.rc_context(_STYLE):
        plane = len(series.state_names) == 2
        groups = _groups(series.values)
        figure = _figure((9.6, 4.0) if plane else (7.2, max(3.6, 2.0 * len(groups))))
        grid = figure.add_gridspec(len(groups), 2 if plane else 1, width_ratios=(1.55, 1.0) if plane else None)
        first: Axes | None = None
        for row, group in enumerate(groups):
            ax = figure.add_subplot(grid[row, 0], sharex=first)
            first = first or ax
            _draw_states(ax, result, group, drawn)
            if row == len(groups) - 1:
                ax.set_xlabel(series.time_name)
            else:
                ax.tick_params(labelbottom=False)
        if plane:
            _draw_plane(figure.add_subplot(grid[:, 1]), series, drawn)
        figure.align_ylabels()
    return figure


def _groups(values: np.ndarray[Any, Any]) -> list[list[int]]:
    """One panel for all states where their ranges are alike, else one each."""
    count = values.shape[1]
    spans = np.ptp(values, axis=0)
    middles = np.abs(values).max(axis=0)
    alike = max(spans.max(), middles.max()) <= 10 * max(spans.min(), 1e-300)
    return [list(range(count))] if count == 1 or (alike and count <= 4) else [[i] for i in range(count)]


def _draw_states(ax: Axes, result: FitResult, group: list[int], drawn: _Drawn) -> None:
    from matplotlib.ticker import MaxNLocator

    series = result.series
    size = 4.6 if len(series) <= 100 else 2.4
    for i in group:
        colour, name = COLOURS[i % len(COLOURS)], series.state_names[i]
        r2 = result.r2[name]
        if drawn.low is None or drawn.high is None:
            quality = "" if r2 is None else f" ($R^2$ = {r2:.3f})"
        else:
            quality = " and 95 % of paths"
            ax.fill_between(drawn.times, drawn.low[:, i], drawn.high[:, i], color=colour, alpha=0.15, lw=0)
        ax.plot(drawn.times, drawn.curve[:, i], color=colour, lw=1.8, label=f"{name}, {drawn.label}{quality}")
        ax.plot(
            series.times,
            series.values[:, i],
            "o",
            ms=size,
            color=colour,
            mec="white",
            mew=0.7,
            label=f"{name}, data",
            zorder=3,
            clip_on=False,
        )
    ax.set_ylabel(", ".join(series.state_names[i] for i in group))
    low, high = ax.get_ylim()
    if isinstance(result.module, FittedDDE):
        ax.axvspan(drawn.times[0], result.module.start, color="#f0f0f0", lw=0, zorder=0, label="history")
    if series.values[:, group].min() >= 0 and low > -0.1 * high:
        ax.set_ylim(bottom=0.0)
    ax.set_xlim(drawn.times[0], drawn.times[-1])
    ax.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    _legend(ax, 2)


def _draw_plane(ax: Axes, series: Series, drawn: _Drawn) -> None:
    x, y = series.values.T
    if drawn.low is None:  # the curve may cross itself: see FittedODE on `augment`
        ax.plot(*drawn.curve.T, color="#555555", lw=1.6, label=drawn.label)
    elif drawn.path is not None:
        ax.plot(*drawn.path.T, color="#555555", lw=0.8, label="a simulated path")
    ax.plot(x, y, "o", ms=4.6, color="#999999", mec="white", mew=0.7, label="data", zorder=3)
    start = f"start ({series.time_name} {series.times[0]:g})"
    ax.plot(*drawn.curve[0], "o", ms=7, mfc="white", mec=_INK, mew=1.4, label=start, zorder=4)
    ax.set_xlabel(series.state_names[0])
    ax.set_ylabel(series.state_names[1])
    if x.min() >= 0:
        ax.set_xlim(left=0.0)
    if y.min() >= 0:
        ax.set_ylim(bottom=0.0)
    _legend(ax, 3 if drawn.low is None else 2)


def draw_loss(history: History) -> Figure:
    """Misfit and gap over the epochs, on a logarithmic axis, with the stages marked; or minus the log-likelihood."""
    import matplotlib as mpl

    if "likelihood" in history.stage:
        return _draw_surprise(history)
    epochs = np.arange(1, len(history) + 1)
    gaps = np.array([np.nan if g is None else g for g in history.gap], dtype=np.float64)
    with mpl.rc_context(_STYLE):
        figure = _figure((6.4, 3.8))
        ax = figure.add_subplot()
        label = "misfit: mean squared distance from the data"
        ax.semilogy(epochs, history.misfit, color=COLOURS[0], lw=1.6, label=label)
        if np.nanmax(gaps, initial=0.0) > 0:
            label = f"gap between segments (weight {GAP_WEIGHT[0]:g} to {GAP_WEIGHT[1]:g})"
            ax.semilogy(epochs, np.where(gaps > 0, gaps, np.nan), color=COLOURS[1], lw=1.2, label=label)
        ax.set_xlabel("Epoch")
        ax.set_ylabel("Loss (scaled units)")
        ax.set_xlim(0, len(history))
        last = history.stage.index("trajectory") if "trajectory" in history.stage else None
        if last is not None:
            ax.axvspan(last, len(history), color="#f0f0f0", lw=0, zorder=0)
            for left, right, words in ((0, last, "multiple shooting"), (last, len(history), "one\ntrajectory")):
                place = ax.get_xaxis_transform()
                ax.text((left + right) / 2, 0.98, words, ha="center", va="top", fontsize=8, color=_INK, transform=place)
        _legend(ax, 1)
    return figure


def _draw_surprise(history: History) -> Figure:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = _figure((6.4, 3.8))
        ax = figure.add_subplot()
        ax.plot(np.arange(1, len(history) + 1), history.misfit, color=COLOURS[0], lw=1.6)
        ax.set_xlabel("Epoch")
        ax.set_ylabel("Minus the log-likelihood of a step, a number")
        ax.set_xlim(0, len(history))
    return figure


def _legend(ax: Axes, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        fontsize=8,
        handlelength=1.4,
        columnspacing=1.4,
        borderpad=0.1,
    )


def _figure(size: tuple[float, float]) -> Figure:
    """A figure of its own, without pyplot's global state or a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
