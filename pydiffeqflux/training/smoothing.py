"""Smoothed states and their rates of change, from the data alone: what training starts from.

Local quadratic regression with tricube weights over the nearest neighbours (Cleveland 1979,
J. Am. Stat. Assoc. 74, 829-836; Fan & Gijbels, "Local polynomial modelling and its applications", 1996).
How many neighbours is chosen by leave-one-out cross-validation, so that clean data are followed and noisy
data are averaged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: A quadratic has three coefficients; with fewer neighbours than this it could not average anything.
_FEWEST = 4
#: Cross-validation looks at this many points at most: enough to rank the bandwidths.
_TRIALS = 100
#: So many bandwidths in a row that are worse than the best one end the search.
_PATIENCE = 4


def smooth(times: Array, values: Array, at: Array) -> tuple[Array, Array]:
    """Smoothed states and their time derivatives.

    Args:
        times: ``(n,)`` increasing.
        values: ``(n, d)``.
        at: ``(m,)`` times to evaluate at, within the data's.

    Returns:
        The states and the derivatives, each ``(m, d)``.
    """
    neighbours = _cross_validate(times, values)
    levels, slopes = np.empty((len(at), values.shape[1])), np.empty((len(at), values.shape[1]))
    for i, t in enumerate(at):
        levels[i], slopes[i] = _local(times, values, float(t), neighbours)
    return levels, slopes


def _local(times: Array, values: Array, t: float, neighbours: int, leave_out: int = -1) -> tuple[Array, Array]:
    """Value and slope at ``t`` of the weighted quadratic through the nearest ``neighbours`` points."""
    n = len(times)
    # The nearest k points of a sorted array lie within k places of t's own place.
    place = int(np.searchsorted(times, t))
    low, high = max(0, place - neighbours - 1), min(n, place + neighbours + 1)
    index = np.arange(low, high)
    index = index[index != leave_out]
    distance = np.abs(times[index] - t)
    order = np.argsort(distance, kind="stable")[:neighbours]
    index, distance = index[order], distance[order]
    # The bandwidth lies a little beyond the farthest neighbour, so that it still counts.
    weight = (1.0 - (distance / (1.2 * distance.max())) ** 3) ** 3
    root = np.sqrt(weight)[:, None]
    scale = distance.max()
    x = (times[index] - t) / scale
    basis = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(basis * root, values[index] * root, rcond=None)[0]
    return coefficients[0], coefficients[1] / scale


def _cross_validate(times: Array, values: Array) -> int:
    """The number of neighbours that best predicts the points left out."""
    n = len(times)
    candidates = sorted({min(n - 1, round(_FEWEST * 1.4**k)) for k in range(40)})
    trials = np.unique(np.linspace(0, n - 1, min(n, _TRIALS)).round().astype(int))
    spread = values.std(axis=0)
    spread[spread == 0] = 1.0
    best, best_error, worse = candidates[0], np.inf, 0
    for neighbours in candidates:
        errors = [
            (_local(times, values, float(times[i]), neighbours, leave_out=int(i))[0] - values[i]) / spread
            for i in trials
        ]
        error = float(np.mean(np.square(errors)))
        if error < best_error:
            best, best_error, worse = neighbours, error, 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best
