"""Multiple shooting: many short solves at once, pulled together until they are one trajectory.

The series is cut into segments. Each starts from a free state of its own (a node, which starts at the
datum), all are solved side by side as one batch, and the gaps between a segment's end and the next node
cost more and more. Errors can then not build up over the whole series while the network is still wrong,
which is what makes a single long solve get stuck on oscillating data.

Sources: Bock & Plitt, "A multiple shooting algorithm for direct solution of optimal control problems"
(1984); for neural ODEs, Turan & Jaschke, "Multiple shooting for training neural differential equations on
time series" (2021), arXiv:2109.06786. The growing penalty is the classical quadratic one (Nocedal & Wright,
"Numerical optimization", chapter 17).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .segments import Segments

#: At most so many segments: more would make the chain of nodes long and slow to settle.
MAX_SEGMENTS = 32


@dataclass(frozen=True)
class Shot:
    """One evaluation: mean squared distance from the data, mean squared gap, evaluations of the network."""

    misfit: Tensor
    gap: Tensor
    nf: int


class Shooting:
    """The segments of a series in scaled units.

    Args:
        times: ``(n,)`` scaled times.
        states: ``(n, d)`` scaled data.
        solver: keyword arguments of :func:`pydiffeqflux.solve`; a ``dt`` is in scaled time.
    """

    def __init__(self, times: Tensor, states: Tensor, solver: dict[str, Any]):
        n = len(times)
        self.length = -(-(n - 1) // MAX_SEGMENTS)  # intervals a segment
        self.starts = torch.arange(0, n - 1, self.length)
        steps = times.diff()
        # The last segment may be shorter: it is solved a little beyond the data, where nothing is compared.
        missing = len(self.starts) * self.length - (n - 1)
        padded = torch.cat([steps, steps[-1:].expand(missing)]).reshape(-1, self.length)
        self.segments = Segments(times[self.starts], padded, at_once=True)
        index = self.starts[:, None] + 1 + torch.arange(self.length)
        self.target = states[index.clamp(max=n - 1)]
        # A segment's last point is the next one's node too; it counts once, as a node.
        self.counted = index < n
        self.counted[:-1, -1] = False
        self.states = states
        self.solver = dict(solver)
        if self.solver.get("dt") is not None:  # from scaled time to intervals
            self.solver["dt"] = self.solver["dt"] / float(steps.median())

    def nodes(self, augment: int) -> nn.Parameter:
        """The free starting states, ``(segments, d + augment)``: data, and zeros for what is not observed."""
        data = self.states[self.starts]
        return nn.Parameter(torch.cat([data, data.new_zeros(len(data), augment)], dim=1))

    def shoot(self, rhs: Callable[[Any, Tensor], Tensor], nodes: Tensor) -> Shot:
        """Solve every segment from its node; ``rhs(t, z)`` gets its times as ``(segments, 1)``."""
        paths, nf = self.segments.solve(rhs, nodes, self.solver)
        d = self.states.shape[1]
        at_nodes = nodes[:, :d] - self.states[self.starts]
        between = (paths[..., :d] - self.target)[self.counted]
        misfit = (at_nodes.square().sum() + between.square().sum()) / self.states.numel()
        gap = (paths[:-1, -1] - nodes[1:]).square().mean() if len(nodes) > 1 else misfit.new_zeros(())
        return Shot(misfit, gap, nf)
