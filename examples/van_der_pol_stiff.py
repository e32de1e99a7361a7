"""Van der Pol's oscillator at mu = 1000: stiff, solved and differentiated.

x'' = mu (1 - x^2) x' - x creeps for some 800 units of time and then jumps within a few thousandths. Implicit methods
cross the slow stretches in a handful of steps; an explicit one, for stability alone, needs about a thousand for every
unit of time. The time of the first jump is an event, and its derivative with respect to mu comes back through the
stiff solver; for large mu it tends to 3/2 - log 2 (Grasman, "Asymptotic methods for relaxation oscillations", 1987).

    python examples/van_der_pol_stiff.py --out runs/van_der_pol
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import STYLE, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor

import pydiffeqflux as pdf

MU, SPAN = 1000.0, (0.0, 2000.0)
STIFF: tuple[pdf.Method, ...] = (pdf.Rodas5P(), pdf.KenCarp4(), pdf.AutoTsit5(pdf.Rosenbrock23()))
COLOURS = ("#0b7a75", "#d1495b", "#edae49", "#8d99ae")
LIMIT = 1.5 - math.log(2.0)


def van_der_pol(mu: float | Tensor) -> pdf.ODEProblem:
    def rhs(t: Tensor, y: Tensor) -> Tensor:
        x, v = y
        return torch.stack([v, mu * (1 - x * x) * v - x])

    return pdf.ODEProblem(rhs, torch.tensor([2.0, 0.0], dtype=torch.float64), SPAN)


@dataclass
class Outcome:
    stiff: dict[str, pdf.Solution]
    explicit: pdf.Solution
    #: mu -> the time of the first jump, and its derivative with respect to mu.
    jumps: dict[float, tuple[float, float]]
    picture: Path

    @property
    def explicit_total(self) -> float:
        """Evaluations that the explicit method would need for the whole span, at the pace it had."""
        return self.explicit.stats.nf * SPAN[1] / float(self.explicit.ts[-1])


def first_jump(mu: float, method: pdf.Method) -> tuple[float, float]:
    """When x first changes sign, and the derivative of that time with respect to mu."""
    parameter = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    crossing = pdf.Event(lambda t, y: y[0])
    lean = {"dense": False, "save_everystep": False}
    sol = pdf.solve(van_der_pol(parameter), method, event=crossing, rtol=1e-6, atol=1e-8, **lean)
    (when,) = sol.events[0].ts
    when.backward()
    assert parameter.grad is not None
    return when.item(), parameter.grad.item()


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Solve, differentiate (for fewer mu when ``quick``), draw ``van_der_pol_stiff.png`` into ``out_dir``."""
    with torch.no_grad():
        problem, tolerances = van_der_pol(MU), {"rtol": 1e-5, "atol": 1e-7}
        stiff = {str(method): pdf.solve(problem, method, **tolerances) for method in STIFF}
        # A budget of steps instead of an endless wait: what was solved until then comes back.
        explicit = pdf.solve(problem, "tsit5", max_steps=500 if quick else 2000, throw=False, **tolerances)
    jumps = {mu: first_jump(mu, pdf.Rodas5P()) for mu in ((MU,) if quick else (3.0, 10.0, 30.0, 100.0, MU))}
    outcome = Outcome(stiff, explicit, jumps, Path(out_dir) / "van_der_pol_stiff.png")
    draw(outcome)
    return outcome


def draw(outcome: Outcome) -> None:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(12, 6.2), layout="constrained")
        axes = fig.subplot_mosaic("AC;BD", width_ratios=(1.35, 1))
        solution(axes["A"], outcome)
        step_sizes(axes["B"], outcome)
        cost(axes["C"], outcome)
        sensitivity(axes["D"], outcome)
        axes["B"].sharex(axes["A"])
        save(fig, outcome.picture)


def solution(ax: Axes, outcome: Outcome) -> None:
    """Dense output as the line, the steps themselves as dots."""
    name, sol = next(iter(outcome.stiff.items()))
    fine = torch.cat([torch.linspace(*SPAN, 1000, dtype=torch.float64), sol.ts]).sort().values
    ax.plot(fine, sol(fine)[:, 0], color=COLOURS[0], lw=1.6)
    ax.plot(sol.ts, sol.ys[:, 0], "o", color=COLOURS[0], ms=4, mec="white", mew=0.6)
    ax.set(ylabel="x")
    ax.set_title(f"mu = {MU:g}: x(t), with the {len(sol.ts) - 1} steps of {name}", loc="left")


def step_sizes(ax: Axes, outcome: Outcome) -> None:
    for (name, sol), colour in zip(outcome.stiff.items(), COLOURS, strict=False):
        ax.step(sol.ts[:-1], sol.ts.diff(), where="post", color=colour, lw=1.1, label=name)
    typical = float(outcome.explicit.ts.diff()[-100:].median())
    ax.axhline(typical, color=COLOURS[3], lw=2, ls=(0, (4, 2)))
    ax.annotate("all that Tsit5 can do", (60, typical), xytext=(0, 5), textcoords="offset points", color="#6c7789")
    ax.set(yscale="log", xlabel="t", ylabel="step size", xlim=SPAN)
    ax.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))


def cost(ax: Axes, outcome: Outcome) -> None:
    names = [*outcome.stiff, "tsit5"]
    evaluations = [float(sol.stats.nf) for sol in outcome.stiff.values()] + [outcome.explicit_total]
    ax.barh([name.replace("(", "\n(") for name in names], evaluations, color=COLOURS, height=0.6)
    ax.set_xscale("log")
    ax.set_xlim(300, max(evaluations) * 120)
    ax.invert_yaxis()
    for i, (sol, n) in enumerate(zip(outcome.stiff.values(), evaluations, strict=False)):
        ax.text(n * 1.15, i, f"{n:,.0f}, in {sol.stats.naccept} steps", va="center", fontsize=9)
    reached = float(outcome.explicit.ts[-1])
    note = f"{evaluations[-1]:,.0f}\n(projected: it was at\nt = {reached:.2g} after {outcome.explicit.stats.nf:,})"
    ax.text(evaluations[-1] * 1.15, len(names) - 1, note, va="center", fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.set_title("Evaluations of the right-hand side", loc="left")


def sensitivity(ax: Axes, outcome: Outcome) -> None:
    """By how much the first jump moves when mu does."""
    slopes = [slope for _, slope in outcome.jumps.values()]
    ax.axhline(LIMIT, color="#6c7789", lw=1.2, ls=(0, (4, 2)))
    ax.annotate("3/2 - log 2, for large mu", (max(outcome.jumps), LIMIT), xytext=(0, 6), textcoords="offset points",
                ha="right", color="#6c7789")  # fmt: skip
    ax.semilogx(list(outcome.jumps), slopes, "o-", color=COLOURS[0], ms=6, lw=1.6)
    last = outcome.jumps[MU]
    ax.annotate(f"mu = {MU:g}: jump at t = {last[0]:.2f},\nslope {last[1]:.4f}", (MU, last[1]), xytext=(0, -34),
                textcoords="offset points", ha="right", color=COLOURS[0])  # fmt: skip
    low = min(slopes)
    ax.set(xlabel="mu", ylim=(low - 0.05, max(LIMIT, *slopes) + 0.05))
    ax.set(ylabel="d(time of the jump) / d mu")
    ax.set_title("Gradient of the first jump's time", loc="left")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for name, sol in outcome.stiff.items():
        s = sol.stats
        print(f"{name}: {s.naccept} + {s.nreject} steps, {s.nf} evaluations, {s.njac} Jacobians, {s.time:.1f} s")
    print(f"tsit5: t = {float(outcome.explicit.ts[-1]):.3g} after {outcome.explicit.stats.nf} evaluations", end="; ")
    print(f"the whole span would take {outcome.explicit_total:,.0f}")
    print(f"first jump at t = {outcome.jumps[MU][0]:.3f}, which moves by {outcome.jumps[MU][1]:.4f} with mu")
    print(f"wrote {outcome.picture}")
