"""Drawing a solution (Matplotlib is imported only here and only when something is drawn)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .solution import Solution


def plot_solution(
    solution: Solution,
    ax: Axes | None,
    components: Sequence[int] | None,
    labels: Sequence[str] | None,
    points: int,
) -> Axes:
    """See :meth:`pydiffeqflux.Solution.plot`."""
    import matplotlib.pyplot as plt

    saved = solution.flat(solution.ys)
    ts = solution.ts.detach().cpu().double()
    count = saved.shape[1]
    chosen = list(range(min(count, 10))) if components is None else list(components)
    for index in chosen:
        if not -count <= index < count:
            raise InvalidArgumentError(f"components={chosen}: the state has {count} components, so {index} is not one.")
    if labels is not None and len(labels) != len(chosen):
        raise InvalidArgumentError(f"labels={list(labels)}: {len(chosen)} components are drawn, give as many labels.")
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    if solution.dense is not None and len(ts) > 1:
        fine = torch.linspace(float(ts[0]), float(ts[-1]), points, dtype=torch.float64)
        with torch.no_grad():
            curve, at = solution.flat(solution(fine)), fine
    else:
        curve, at = saved, ts
    marks = len(ts) <= 60
    for k, index in enumerate(chosen):
        label = labels[k] if labels is not None else f"$y_{{{index % count}}}$"
        (line,) = ax.plot(at, curve[:, index], lw=1.6, label=label)
        if marks:
            ax.plot(ts, saved[:, index], ".", ms=5, color=line.get_color())
    ax.set_xlabel("t")
    ax.set_ylabel("y(t)")
    ax.spines[["top", "right"]].set_visible(False)
    if len(chosen) > 1 or labels is not None:
        ax.legend(frameon=False, fontsize="small", ncols=2 if len(chosen) > 5 else 1)
    return ax
