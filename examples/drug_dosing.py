"""Drug dosing: clearance, volume and the times at which the doses were really taken, from blood samples.

A tablet dissolves in the gut and is taken up into the blood, from which the body clears it: one compartment with
first-order absorption. The patient was to take a tablet at 0, 12 and 24 h, and took the last two when it suited. Doses
are changes of the state at preset times, and the times may carry gradients: what the body does and what the patient did
are found together, by maximum likelihood on eighteen samples with an error of 5 %.

    python examples/drug_dosing.py --out runs/dosing
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

DOSE, SPAN, NOISE = 500.0, (0.0, 36.0), 0.05  # milligrams; hours; a share
SAMPLES = torch.linspace(1.0, 35.0, 18, dtype=torch.float64)
PRESCRIBED = torch.tensor([12.0, 24.0], dtype=torch.float64)
NAMES = ("clearance", "volume", "uptake")
UNITS = ("l/h", "l", "1/h")


class Patient(nn.Module):
    """A body (clearance, volume, rate of uptake: positive, so kept as logarithms) and the times of two doses."""

    def __init__(self, clearance: float, volume: float, uptake: float, times: Tensor):
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([clearance, volume, uptake], dtype=torch.float64).log())
        self.times = nn.Parameter(times.clone())

    def rates(self, t: Tensor, y: Tensor) -> Tensor:
        """Of milligrams in the gut and in the blood."""
        clearance, volume, uptake = self.logs.exp()
        gut, blood = y.unbind(-1)
        return torch.stack([-uptake * gut, uptake * gut - clearance / volume * blood], -1)

    def concentrations(self, saveat: Tensor) -> Tensor:
        """Milligrams a litre of blood."""
        tablet = torch.tensor([DOSE, 0.0], dtype=torch.float64)
        doses = pdf.PresetTimeCallback(self.times, lambda t, y: y + tablet)
        problem = pdf.ODEProblem(self.rates, tablet, SPAN)  # the first one at 0, under the doctor's eyes
        sol = pdf.solve(problem, "tsit5", saveat=saveat, callbacks=doses, rtol=1e-5, atol=1e-5)
        return sol.ys[:, 1] / self.logs[1].exp()


@dataclass
class Outcome:
    losses: list[float]
    #: Clearance, volume and rate of uptake; true and found.
    body: tuple[list[float], list[float]]
    #: The times of the second and third dose; true and found.
    times: tuple[list[float], list[float]]
    picture: Path


def fit(patient: Patient, data: Tensor, iterations: int) -> list[float]:
    """Maximum likelihood, errors being proportional to the concentration, by L-BFGS."""
    optimiser = torch.optim.LBFGS(patient.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = ((patient.concentrations(SAMPLES).log() - data.log()) / NOISE).square().mean()
        value.backward()
        losses.append(value.item())
        return value

    optimiser.step(loss)
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Fit (fewer iterations when ``quick``), draw ``drug_dosing.png`` into ``out_dir``."""
    torch.manual_seed(0)
    truth = Patient(4.0, 30.0, 0.9, torch.tensor([14.3, 21.2], dtype=torch.float64))
    guess = Patient(2.5, 45.0, 0.5, PRESCRIBED)
    fine = torch.linspace(*SPAN, 600, dtype=torch.float64)
    with torch.no_grad():
        data = truth.concentrations(SAMPLES) * (NOISE * torch.randn(len(SAMPLES), dtype=torch.float64)).exp()
        before = guess.concentrations(fine)
    losses = fit(guess, data, 25 if quick else 60)
    with torch.no_grad():
        curves = (truth.concentrations(fine), before, guess.concentrations(fine))
    body = truth.logs.exp().tolist(), guess.logs.exp().tolist()
    times = truth.times.tolist(), guess.times.tolist()
    return Outcome(losses, body, times, draw(out_dir, fine, data, curves, body, times))


def draw(
    out_dir: str | Path,
    fine: Tensor,
    data: Tensor,
    curves: tuple[Tensor, Tensor, Tensor],
    body: tuple[list[float], list[float]],
    times: tuple[list[float], list[float]],
) -> Path:
    truth, before, found = curves
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(12.0, 4.4), layout="constrained", width_ratios=(2.3, 1))
        left.plot(fine, before, color=GREY, lw=1.4, ls=(0, (2, 1)), label="as prescribed, a typical body")
        left.plot(fine, truth, color=INK, lw=4.5, alpha=0.3, label="truth (not seen)")
        left.plot(fine, found, color=ROSE, lw=1.8, label="found")
        left.plot(SAMPLES, data, "o", color=INK, ms=5, mec="white", mew=0.7, label="blood samples", zorder=5)
        low = -0.06 * float(truth.max())
        left.plot([0.0, *times[1]], [low] * 3, "^", color=TEAL, ms=8, clip_on=False, label="doses, found")
        left.plot([0.0, *PRESCRIBED.tolist()], [low] * 3, "^", color=TEAL, ms=8, mfc="none", label="doses, prescribed")
        left.set(xlabel="hours", ylabel="mg a litre of blood", xlim=(-0.5, 36.5), xticks=range(0, 37, 6))
        left.set_title("Concentration")
        left.legend(fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        rows = [(f"{n}, {u}", *pair) for n, u, pair in zip(NAMES, UNITS, zip(*body, strict=True), strict=True)]
        rows += [(f"{n} dose, h", *pair) for n, pair in zip(("2nd", "3rd"), zip(*times, strict=True), strict=True)]
        for k, (_, true, value) in enumerate(reversed(rows)):
            right.plot([100 * (value / true - 1)], [k], "o", color=ROSE, ms=7)
            right.annotate(f"{value:.4g} ({true:.4g})", (1.02, k), xycoords=("axes fraction", "data"), va="center")
        right.axvline(0, color=INK, lw=1)
        right.set(yticks=range(len(rows)), yticklabels=[row[0] for row in reversed(rows)], xlim=(-10, 10))
        right.set(xlabel="off the truth, in per cent", ylim=(-0.5, len(rows) - 0.5))
        right.set_title("Found (truth)")
        return save(fig, Path(out_dir) / "drug_dosing.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for name, unit, true, value in zip(NAMES, UNITS, *outcome.body, strict=True):
        print(f"{name} {value:.3f} {unit} (truth {true:g})")
    print("doses at", ", ".join(f"{v:.2f} h (truth {t:g})" for t, v in zip(*outcome.times, strict=True)))
    print(f"loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}; wrote {outcome.picture}")
