"""A bouncing ball: gravity and restitution from nothing but the clicks on the floor.

A ball falls from a known height; a microphone notes when it hits the floor, to a few milliseconds. Each bounce is an
event that reverses the velocity and takes a part of it, and the times of events are differentiable (Chen, Amos &
Nickel, "Learning neural event functions for ordinary differential equations", 2021), so the two numbers that make the
clicks are found by least squares on the times alone. The Jacobian of the times gives their standard errors.

    python examples/bouncing_ball.py --out runs/ball
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, out_dir, save
from torch import Tensor

import pydiffeqflux as pdf

HEIGHT, JITTER = 1.0, 0.004  # metres; seconds
TRUTH = torch.tensor([9.81, 0.85], dtype=torch.float64)  # gravity, restitution
GUESS = torch.tensor([7.0, 0.6], dtype=torch.float64)


def flight(numbers: Tensor, end: float) -> pdf.Solution:
    """The ball until ``end``, for a gravity and a restitution."""
    gravity, restitution = numbers

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -gravity])

    def rebound(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(y[0]), -restitution * y[1]])

    floor = pdf.Event(lambda t, y: y[0], terminal=False, affect=rebound, direction=-1)
    start = torch.tensor([HEIGHT, 0.0], dtype=torch.float64)
    return pdf.solve(pdf.ODEProblem(fall, start, (0.0, end)), event=floor, rtol=1e-6, atol=1e-8)


def clicks(numbers: Tensor, count: int) -> Tensor:
    """When the ball hits the floor, the first ``count`` times."""
    end = 1.0
    while True:
        times = flight(numbers, end).events[0].ts
        if len(times) >= count:
            return times[:count]
        end *= 1.5


@dataclass
class Outcome:
    #: Gravity and restitution, after every iteration.
    found: Tensor
    #: Their standard errors, from the scatter that is left.
    errors: Tensor
    #: Root mean square of the times that are left unexplained, in seconds.
    scatter: float
    picture: Path


def least_squares(heard: Tensor, iterations: int) -> tuple[Tensor, Tensor, float]:
    """Gauss and Newton's iteration: the Jacobian of the event times, by as many backward passes as there are times."""
    numbers, path = GUESS, [GUESS]
    for _ in range(iterations):
        jacobian = torch.autograd.functional.jacobian(lambda p: clicks(p, len(heard)), numbers)
        missed = heard - clicks(numbers, len(heard))
        numbers = numbers + torch.linalg.lstsq(jacobian, missed[:, None]).solution[:, 0]
        path.append(numbers)
    missed = heard - clicks(numbers, len(heard))
    variance = missed.square().sum() / (len(heard) - 2)
    errors = torch.linalg.inv(jacobian.T @ jacobian).diagonal().mul(variance).sqrt()
    return torch.stack(path), errors, float(missed.square().mean().sqrt())


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Listen to a few bounces (fewer when ``quick``), draw ``bouncing_ball.png`` into ``out_dir``."""
    torch.manual_seed(0)
    exact = clicks(TRUTH, 5 if quick else 9)
    heard = exact + JITTER * torch.randn(len(exact), dtype=torch.float64)
    found, errors, scatter = least_squares(heard, 5)
    end = float(exact[-1]) + 0.1
    with torch.no_grad():
        paths = [flight(numbers, end) for numbers in (TRUTH, GUESS, found[-1])]
    return Outcome(found, errors, scatter, draw(out_dir, heard, paths, found, errors, end))


def draw(
    out_dir: str | Path, heard: Tensor, paths: list[pdf.Solution], found: Tensor, errors: Tensor, end: float
) -> Path:
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.2), layout="constrained", width_ratios=(1.9, 1))
        fine = torch.linspace(0, end, 1200, dtype=torch.float64)
        truth, guess, last = (path(fine)[:, 0] for path in paths)
        left.plot(fine, guess, color=GREY, lw=1.4, ls=(0, (2, 1)), label="first guess")
        left.plot(fine, truth, color=INK, lw=4.5, alpha=0.3, label="truth (not seen)")
        left.plot(fine, last, color=ROSE, lw=1.6, label="found")
        left.plot(heard, torch.zeros_like(heard), "^", color=TEAL, ms=8, clip_on=False, zorder=5, label="clicks heard")
        left.set(xlabel="t in seconds", ylabel="height in metres", ylim=(0, 1.05), xlim=(0, end))
        left.set_title("The clicks, and the flight that they tell of")
        left.legend(loc="upper right", ncols=2)
        right.plot(found[:, 0], found[:, 1], "o-", color=ROSE, ms=5, lw=1.2, label="iterations")
        right.plot(*TRUTH, "+", color=INK, ms=14, mew=2, label="truth")
        right.set(xlabel="gravity in m/s²", ylabel="restitution")
        right.set_title(f"g = {found[-1, 0]:.2f} ± {errors[0]:.2f} m/s², e = {found[-1, 1]:.3f} ± {errors[1]:.3f}")
        right.legend(loc="lower right")
        return save(fig, Path(out_dir) / "bouncing_ball.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    (g, e), (dg, de) = outcome.found[-1].tolist(), outcome.errors.tolist()
    print(f"gravity {g:.3f} ± {dg:.3f}, restitution {e:.4f} ± {de:.4f}; {1000 * outcome.scatter:.1f} ms unexplained")
    print(f"wrote {outcome.picture}")
