"""Data units to the units that a network sees, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidArgumentError, PhaseSpaceError, UnknownNameError
from .series import Series
from .smoothing import smooth

#: Networks of this size cost the same in either precision on a CPU, and the fit is then reproducible to more digits.
DTYPE = torch.float64


@dataclass(frozen=True)
class Scaling:
    """Data units to the units that the network sees, and back.

    A state is replaced by its logarithm where ``logs`` says so, then shifted and divided to mean 0 and
    standard deviation 1; times count from the first one in units of ``time_unit``.
    """

    logs: tuple[bool, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    time_start: float
    time_unit: float

    def states(self, values: np.ndarray[Any, Any]) -> Tensor:
        """``(n, d)`` in data units to scaled units."""
        logged = np.where(self.logs, np.log(np.where(self.logs, values, 1.0)), values)
        return torch.as_tensor((logged - np.array(self.means)) / np.array(self.stds), dtype=DTYPE)

    def values(self, states: Tensor) -> Tensor:
        """``(..., d)`` in scaled units back to data units; differentiable."""
        raw = states * states.new_tensor(self.stds) + states.new_tensor(self.means)
        logs = torch.tensor(self.logs, device=states.device)
        # Zeros where there is no logarithm: the exponential of a large number would spoil the gradient.
        return torch.where(logs, torch.where(logs, raw, 0.0).exp(), raw)

    def times(self, times: Any) -> Tensor:
        return (torch.as_tensor(times, dtype=DTYPE) - self.time_start) / self.time_unit


def scaling_of(series: Series, transform: str, *, pairs: bool = False) -> tuple[Scaling, Tensor, Tensor]:
    """The scaling of a series, and smoothed ``(state, rate)`` pairs in scaled units to start training from.

    The unit of time is such that the scaled states change at a rate of 1 (root mean square), which is
    what a freshly initialised network puts out.

    Args:
        transform: ``"auto"`` takes logarithms of the states that are positive throughout, ``"log"`` of
            all (they must be positive), ``"none"`` of none.
        pairs: the states are positions and momenta. They are not made logarithms, and positions share one unit,
            momenta another, so that the scaled motion has an energy where the motion has one.

    Raises:
        UnknownNameError: another transform.
        InvalidArgumentError: ``"log"`` with a state that is not positive, or with ``pairs``.
        PhaseSpaceError: an odd number of states with ``pairs``.
    """
    logs = _logs(series, transform, pairs)
    logged = np.where(logs, np.log(np.where(logs, series.values, 1.0)), series.values)
    means, stds = logged.mean(axis=0), logged.std(axis=0)
    if pairs:
        halves = np.split(stds, 2)
        stds = np.repeat([np.sqrt(np.mean(half**2)) for half in halves], len(halves[0]))
    stds = np.where(stds > 1e-12 * np.maximum(1.0, np.abs(means)), stds, 1.0)  # a constant state stays as it is
    count = min(8 * (len(series) - 1) + 1, 512)
    at = np.linspace(series.times[0], series.times[-1], count)
    levels, rates = smooth(series.times, (logged - means) / stds, at)
    speed = float(np.sqrt(np.mean(rates**2)))
    span = float(series.times[-1] - series.times[0])
    unit = 1.0 / max(speed, 1.0 / span)  # a series that hardly moves: its whole span is one unit
    scaling = Scaling(
        tuple(logs.tolist()),
        tuple(means.tolist()),
        tuple(stds.tolist()),
        float(series.times[0]),
        unit,
    )
    return scaling, torch.as_tensor(levels, dtype=DTYPE), torch.as_tensor(rates * unit, dtype=DTYPE)


def _logs(series: Series, transform: str, pairs: bool) -> NDArray[np.bool_]:
    """Which states are replaced by their logarithms."""
    if transform not in ("auto", "log", "none"):
        raise UnknownNameError("transform", transform, ["auto", "log", "none"])
    positive: NDArray[np.bool_] = np.all(series.values > 0, axis=0)
    if pairs:
        names = series.state_names
        if len(names) % 2:
            raise PhaseSpaceError(
                f"model='hamiltonian' needs positions and as many momenta, and the series has {len(names)} states"
                f" ({', '.join(names)}); name the positions first and then the momenta, in the same order: q1,q2,p1,p2."
            )
        if transform == "log":
            raise InvalidArgumentError(
                "transform='log' with model='hamiltonian': logarithms of positions and momenta have no energy of that"
                " form; use 'none'."
            )
        return np.zeros_like(positive)
    if transform == "log" and not positive.all():
        name = series.state_names[int(np.argmin(positive))]
        raise InvalidArgumentError(f"transform='log': state {name!r} has values that are not positive; use 'auto'.")
    return positive if transform != "none" else np.zeros_like(positive)
