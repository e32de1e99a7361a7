"""What the continuous adjoints share: going backwards from one saved time to the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....methods import resolve
from ....problem import TimePoint
from ....state import pack
from ...common.dense import Piecewise
from ...common.failure import failure
from ...common.mass import Mass, MassRhs
from ...common.rhs import Rhs
from ...common.settle import Policy
from ...common.tolerances import Norm, Tolerances, rms_norm
from ..catalogue import stepper_for
from ..integrate import Counts, Integration
from .job import Job, Seeds


def stretches(job: Job, seeds: Seeds) -> Iterator[tuple[float, float, Tensor | None, int | None]]:
    """From the end back to the start, in pieces: ``(t, s, jump, index)``.

    Each says: solve from ``t`` back to ``s``, then add ``jump``, the loss's gradient at the saved state with
    that index (None where there is none). Saved times at which the loss has no gradient are passed over:
    every stop costs the method a restart.
    """
    felt = (seeds.at_saves.flatten(1) != 0).any(1).tolist() if len(seeds.at_saves) else []
    t = job.t1
    for i in reversed(range(len(job.ts))):
        if felt[i]:
            yield t, job.ts[i], seeds.at_saves[i], i
            t = job.ts[i]
    if t != job.t0:
        yield t, job.t0, None, None


class Reverse:
    """Solves an adjoint equation backwards, stretch after stretch, keeping the step size between them."""

    def __init__(
        self,
        job: Job,
        func: Callable[[Tensor, Any], Any],
        state: Any,
        *,
        batched: bool = False,
        norm: Norm | None = None,
        mass: Tensor | None = None,
    ):
        sense: Any = job.sensealg
        packed, self.spec = pack(state)
        self.method = job.method if sense.method is None else resolve(sense.method)
        forward = job.settings.tol
        tol = Tolerances(
            rtol=scalar(forward.rtol) if sense.rtol is None else sense.rtol,
            atol=scalar(forward.atol) if sense.atol is None else sense.atol,
            norm=rms_norm if norm is None else norm,
        )
        self.stepper = stepper_for(self.method, tol, batched=batched)
        if mass is None:
            self.rhs = Rhs(func, self.spec, packed)
        else:
            whole = Mass.of(mass, packed, batched)
            self.rhs = MassRhs(func, self.spec, packed, whole, Policy(tol, solve=True))
        self.settings = replace(
            job.settings,
            tol=tol,
            dt=job.settings.dt if not self.stepper.adaptive else None,
            progress=None,
            on_step=None,
            on_accept=None,
            on_reject=None,
        )
        self.counts = Counts()

    def run(self, state: Any, t: float, s: float, pieces: Piecewise | None = None) -> Any:
        """The state at ``s`` for that at ``t``.

        Raises:
            SolveError: the backward solve did not reach ``s``.
        """
        if t == s:
            return state
        settings = self.settings
        if not self.stepper.adaptive and settings.dt is None:
            settings = replace(settings, dt=abs(t - s))
        packed = state if self.spec is None else self.spec.flatten(state)
        with torch.no_grad():
            going = Integration(
                self.rhs, self.stepper, settings, TimePoint(t), TimePoint(s), None, counts=self.counts, pieces=pieces
            )
            out = going.run(self.rhs.settle(t, packed))
        if not out.status.ok:
            raise failure(out.status, f"in the backward solve, {out.message}", out.t1.value, (t, s), self.method)
        if self.stepper.adaptive:
            self.settings = replace(self.settings, dt=going.dt)
        return out.y1 if self.spec is None else self.spec.unflatten(out.y1)


def scalar(tol: float | Tensor) -> float:
    """A tolerance per entry of the state says nothing about the adjoint's entries: take the tightest."""
    return float(tol.min()) if isinstance(tol, Tensor) else tol


def add(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Entrywise sums."""
    return [x + y for x, y in zip(a, b, strict=True)]


def largest_of(*widths: int) -> Norm:
    """The largest RMS norm of the first parts of a packed state, which have these widths, and of the rest.

    One norm over everything would let a crowd of easy parameters hide the error of the adjoint itself.
    """

    def norm(z: Tensor) -> Tensor:
        parts = z.split([*widths, z.numel() - sum(widths)])
        return torch.stack([rms_norm(part) for part in parts if part.numel()]).amax()

    return norm
