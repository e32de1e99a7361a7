"""What a fit leaves to read: a JSON report, a picture of the trajectory and one of the loss."""

from __future__ import annotations

import io
import json
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .recipe import GAP_WEIGHT, Trainer
from .series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .recipe import History
    from .result import FitResult

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


def report_of(trainer: Trainer, series: Series, resumed: bool) -> dict[str, Any]:
    """Arguments, versions, losses, quality of fit and cost of a run, in plain types."""
    from .. import __version__

    sol = trainer.module.solve()
    fitted = trainer.module.observed(sol.ys).detach().numpy()
    residual = fitted - series.values
    final = float((sol.ys[:, : len(series.state_names)] - trainer.states).square().mean().detach())
    states = {}
    for i, name in enumerate(series.state_names):
        total = float(np.square(series.values[:, i] - series.values[:, i].mean()).sum())
        error = float(np.square(residual[:, i]).sum())
        states[name] = {
            "r2": 1.0 - error / total if total > 0 else None,
            "rmse": float(np.sqrt(error / len(series))),
            "logarithm": trainer.module.scaling.logs[i],
        }
    shooting = trainer.shooting_epochs - 1
    return {
        "arguments": trainer.options.as_dict(),
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
        "seed": trainer.options.seed,
        "backend": sol.stats.backend,
        "method": sol.stats.method,
        "sensealg": sol.stats.sensealg,
        "states": states,
        "losses": {
            "derivative_matching": trainer.matching_loss,
            "shooting_misfit": trainer.history.misfit[shooting],
            "shooting_gap": trainer.history.gap[shooting],
            "final": final,
        },
        "epochs": {"shooting": trainer.shooting_epochs, "trajectory": len(trainer.history) - trainer.shooting_epochs},
        "function_evaluations": {"training": trainer.nf, "trajectory": sol.stats.nf},
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "seconds": trainer.seconds,
        "resumed": resumed,
        "history": {"misfit": trainer.history.misfit, "gap": trainer.history.gap},
    }


def json_bytes(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


def figures(result: FitResult) -> dict[str, bytes]:
    """``fit.png`` and ``loss.png``."""
    return {"fit.png": _png(draw_fit(result)), "loss.png": _png(draw_loss(result.history))}


def draw_fit(result: FitResult) -> Figure:
    """Data and trajectory over time; beside it the phase plane where there are two states."""
    import matplotlib as mpl

    series = result.series
    fine = np.linspace(series.times[0], series.times[-1], max(600, 4 * len(series)))
    with torch.no_grad():
        curve = result.module(torch.as_tensor(fine)).numpy()
    with mpl.rc_context(_STYLE):
        plane = len(series.state_names) == 2
        groups = _groups(series.values)
        figure = _figure((9.6, 4.0) if plane else (7.2, max(3.6, 2.0 * len(groups))))
        grid = figure.add_gridspec(len(groups), 2 if plane else 1, width_ratios=(1.55, 1.0) if plane else None)
        first: Axes | None = None
        for row, group in enumerate(groups):
            ax = figure.add_subplot(grid[row, 0], sharex=first)
            first = first or ax
            _draw_states(ax, result, group, fine, curve)
            if row == len(groups) - 1:
                ax.set_xlabel(series.time_name)
            else:
                ax.tick_params(labelbottom=False)
        if plane:
            _draw_plane(figure.add_subplot(grid[:, 1]), series, curve)
        figure.align_ylabels()
    return figure


def _groups(values: np.ndarray[Any, Any]) -> list[list[int]]:
    """One panel for all states where their ranges are alike, else one each."""
    count = values.shape[1]
    spans = np.ptp(values, axis=0)
    middles = np.abs(values).max(axis=0)
    alike = max(spans.max(), middles.max()) <= 10 * max(spans.min(), 1e-300)
    return [list(range(count))] if count == 1 or (alike and count <= 4) else [[i] for i in range(count)]


def _draw_states(
    ax: Axes, result: FitResult, group: list[int], fine: np.ndarray[Any, Any], curve: np.ndarray[Any, Any]
) -> None:
    from matplotlib.ticker import MaxNLocator

    series = result.series
    size = 4.6 if len(series) <= 100 else 2.4
    for i in group:
        colour, name = COLOURS[i % len(COLOURS)], series.state_names[i]
        r2 = result.r2[name]
        quality = "" if r2 is None else f" ($R^2$ = {r2:.3f})"
        ax.plot(fine, curve[:, i], color=colour, lw=1.8, label=f"{name}, neural ODE{quality}")
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
    if series.values[:, group].min() >= 0 and low > -0.1 * high:
        ax.set_ylim(bottom=0.0)
    ax.set_xlim(fine[0], fine[-1])
    ax.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    _legend(ax, 2)


def _draw_plane(ax: Axes, series: Series, curve: np.ndarray[Any, Any]) -> None:
    x, y = series.values.T
    ax.plot(*curve.T, color="#555555", lw=1.6, label="neural ODE")  # it may cross itself: see FittedODE on `augment`
    ax.plot(x, y, "o", ms=4.6, color="#999999", mec="white", mew=0.7, label="data", zorder=3)
    start = f"start ({series.time_name} {series.times[0]:g})"
    ax.plot(*curve[0], "o", ms=7, mfc="white", mec=_INK, mew=1.4, label=start, zorder=4)
    ax.set_xlabel(series.state_names[0])
    ax.set_ylabel(series.state_names[1])
    if x.min() >= 0:
        ax.set_xlim(left=0.0)
    if y.min() >= 0:
        ax.set_ylim(bottom=0.0)
    _legend(ax, 3)


def draw_loss(history: History) -> Figure:
    """Misfit and gap over the epochs, on a logarithmic axis, with the stages marked."""
    import matplotlib as mpl

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
