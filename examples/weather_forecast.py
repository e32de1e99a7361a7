"""Seattle's weather: a neural ODE learns three years of it and forecasts the fourth.

Daily maximum and minimum temperature, wind and rain in Seattle, 2012 to 2015, averaged over months. The equation is
autonomous: nobody tells it the date, the seasons have to be a cycle of its own. It is trained on rates of change, then
on stretches of half a year to two years, then on the first three in one; after SciML's tutorial "Weather forecasting
with neural ODEs". Beside its forecast of 2015: the averages of the three years before, month by month.

The data: NOAA, public domain, as shipped by the package vega_datasets (seattle-weather.csv).

    python examples/weather_forecast.py --out runs/weather
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GOLD, GREY, INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn
from vega_datasets import data as datasets

import pydiffeqflux as pdf

COLUMNS = ("temp_max", "temp_min", "wind", "precipitation")
LABELS = ("warmest of the day, °C", "coldest of the day, °C", "wind, m/s", "rain, mm a day")
YEAR, KNOWN = 12, 36  # months; how many are seen
GROUPS = (7, 13, 25)  # months in a stretch


def monthly() -> Tensor:
    """Averages over the 48 months, ``(48, 4)``."""
    days = datasets.seattle_weather()
    return torch.tensor(days.groupby(days.date.dt.to_period("M"))[list(COLUMNS)].mean().to_numpy())


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)).double()


@dataclass
class Outcome:
    losses: list[float]
    #: Root mean square errors of 2015's monthly maximum temperature, in °C: the neural ODE's, that of the averages of
    #: the same month in the years before, and that of the average over all of them.
    forecast: float
    climate: float
    mean: float
    picture: Path


def flow(net: nn.Module, months: int) -> pdf.NeuralODE:
    times = torch.arange(months, dtype=torch.float64)
    return pdf.NeuralODE(net, (0.0, float(times[-1])), "rk4", dt=0.5, saveat=times, dense=False)


def train(net: nn.Module, start: nn.Parameter, seen: Tensor, rounds: tuple[int, int, int]) -> list[float]:
    """Rates of change first, then stretches side by side, shorter and longer ones, then all three years in one."""
    times = torch.arange(len(seen), dtype=torch.float64)
    pdf.collocation_pretrain(net, seen, times, "epanechnikov", 0.12, steps=rounds[0])
    for group in GROUPS:

        def stretches(group: int = group) -> Tensor:
            return pdf.multiple_shoot(net, seen, times, None, "rk4", group, continuity_term=1.0, dt=0.5).loss

        descend(net.parameters(), stretches, rounds[1], 0.01)
    node = flow(net, len(seen))
    return descend([*net.parameters(), start], lambda: (node(start) - seen).square().mean(), rounds[2], 0.002)


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``weather_forecast.png`` into ``out_dir``."""
    torch.manual_seed(0)
    weather = monthly()
    middle, spread = weather[:KNOWN].mean(0), weather[:KNOWN].std(0)
    seen = (weather[:KNOWN] - middle) / spread
    net, start = network(), nn.Parameter(seen[0].clone())
    losses = train(net, start, seen, (300, 80, 20) if quick else (400, 300, 600))
    with torch.no_grad():
        fine = torch.linspace(0, len(weather) - 1, 800, dtype=torch.float64)
        problem = pdf.ODEProblem(lambda t, y: net(y), start, (0.0, float(fine[-1])))
        curve = pdf.solve(problem, "tsit5", saveat=fine).ys * spread + middle
        forecast = (flow(net, len(weather))(start) * spread + middle)[KNOWN:]
    climate = weather[:KNOWN].reshape(-1, YEAR, 4).mean(0)
    actual = weather[KNOWN:]
    wrong = [float((x - actual)[:, 0].square().mean().sqrt()) for x in (forecast, climate, middle.expand_as(actual))]
    return Outcome(losses, *wrong, draw(out_dir, weather, fine, curve, climate, wrong))


def draw(
    out_dir: str | Path, weather: Tensor, fine: Tensor, curve: Tensor, climate: Tensor, wrong: list[float]
) -> Path:
    months = 2012 + (torch.arange(len(weather)) + 0.5) / YEAR
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(2, 2, figsize=(12.0, 6.0), layout="constrained", sharex=True)
        for k, (ax, label, colour) in enumerate(zip(axes.flat, LABELS, (ROSE, GOLD, TEAL, INK), strict=True)):
            ax.axvspan(2015, 2016, color="#f1f3f5", lw=0)
            ax.plot(months[KNOWN:], climate[:, k], color=GREY, lw=1.6, ls=(0, (2, 1)), label="average of 2012-2014")
            ax.plot(2012 + (fine + 0.5) / YEAR, curve[:, k], color=colour, lw=1.8, label="neural ODE")
            ax.plot(months[:KNOWN], weather[:KNOWN, k], "o", color=colour, ms=4.5, mec="white", label="seen")
            ax.plot(months[KNOWN:], weather[KNOWN:, k], "o", mfc="white", mec=colour, ms=4.5, label="not seen")
            ax.set(xlim=(2012, 2016), xticks=range(2012, 2017))
            ax.set_title(label)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
        axes[0, 0].set_title(f"{LABELS[0]} (2015: off by {wrong[0]:.1f}, average {wrong[1]:.1f})")
        axes[1, 0].text(2015.5, 0.02, "2015", ha="center", transform=axes[1, 0].get_xaxis_transform(), color=GREY)
        return save(fig, Path(out_dir) / "weather_forecast.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(
        f"warmest of the day in 2015, by month: off by {outcome.forecast:.2f} °C; the average of the years before by"
        f" {outcome.climate:.2f}, the mean of all months by {outcome.mean:.2f}"
    )
    print(f"loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}; wrote {outcome.picture}")
