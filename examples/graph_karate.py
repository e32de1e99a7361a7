"""A graph neural ODE: which side of a karate club thirty-two members took, from two labels and who knew whom.

Zachary watched a club of 34 split between its instructor and its officer; only these two are labelled. Features diffuse
along the friendships, dh/dt = tanh(mean of the neighbours' W h) - h, in continuous depth, and are read off at the end:
Poli et al., "Graph neural ordinary differential equations" (2019), and the label setting of Kipf & Welling (2017).
Messages are passed by index operations in plain torch; networkx only brings the data (Zachary, "An information flow
model for conflict and fission in small groups", 1977).

    python examples/graph_karate.py --out runs/karate
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import networkx
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

INSTRUCTOR, OFFICER = 0, 33
WIDTH, SPAN = 8, (0.0, 4.0)


class Diffusion(nn.Module):
    """Messages from every member's friends, averaged: gathered along the edges, added up at their ends."""

    def __init__(self, edges: Tensor, members: int):
        super().__init__()
        both = torch.cat([edges, edges.flip(0), torch.arange(members).expand(2, -1)], dim=1)
        self.register_buffer("source", both[0])
        self.register_buffer("target", both[1])
        degree = torch.bincount(both[1], minlength=members).float()
        self.register_buffer("weight", (degree[both[0]] * degree[both[1]]).rsqrt()[:, None])
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        messages = self.weight * self.mix(h)[self.source]
        arrived = torch.zeros_like(h).index_add(0, self.target, messages)
        return torch.tanh(arrived) - h


class Club(nn.Module):
    """A vector for each member, the flow of the diffusion, and two sides to choose from."""

    def __init__(self, edges: Tensor, members: int, saveat: Tensor | None = None):
        super().__init__()
        self.start = nn.Parameter(0.1 * torch.randn(members, WIDTH))
        self.flow = pdf.NeuralODE(Diffusion(edges, members), SPAN, "tsit5", rtol=1e-3, atol=1e-3)
        self.side = nn.Linear(WIDTH, 2)

    def forward(self) -> Tensor:
        return self.side(self.flow(self.start))

    def over_time(self, times: Tensor) -> Tensor:
        """The share of each member's vote for the officer, at these times."""
        return self.side(self.flow.solve(self.start)(times)).softmax(-1)[..., 1]


@dataclass
class Outcome:
    #: Share of the 32 unlabelled members whose side is found; with the graph, and with the edges taken away.
    accuracy: float
    without: float
    losses: list[float]
    picture: Path


def train(edges: Tensor, members: int, iterations: int) -> tuple[Club, list[float]]:
    torch.manual_seed(0)
    club = Club(edges, members)
    labelled, sides = torch.tensor([INSTRUCTOR, OFFICER]), torch.tensor([0, 1])

    def loss() -> Tensor:
        # The unlabelled ones' own vectors are held small, so that what they say comes from their friends.
        return nn.functional.cross_entropy(club()[labelled], sides) + 1e-2 * club.start.square().sum(-1).mean()

    return club, descend(club.parameters(), loss, iterations, 0.05)


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``graph_karate.png`` into ``out_dir``."""
    graph = networkx.karate_club_graph()
    truth = torch.tensor([int(graph.nodes[i]["club"] == "Officer") for i in graph])
    edges = torch.tensor(list(graph.edges)).T
    iterations = 40 if quick else 150
    club, losses = train(edges, len(truth), iterations)
    alone, _ = train(edges[:, :0], len(truth), iterations)
    unlabelled = torch.ones(len(truth), dtype=torch.bool)
    unlabelled[[INSTRUCTOR, OFFICER]] = False
    times = torch.linspace(*SPAN, 200)
    with torch.no_grad():
        right = [(model().argmax(-1) == truth)[unlabelled].float().mean().item() for model in (club, alone)]
        votes = club.over_time(times)
    return Outcome(right[0], right[1], losses, draw(out_dir, graph, truth, times, votes, right))


def draw(
    out_dir: str | Path, graph: networkx.Graph, truth: Tensor, times: Tensor, votes: Tensor, right: list[float]
) -> Path:
    colours = (TEAL, ROSE)
    found = (votes[-1] > 0.5).long()
    with plt.rc_context(STYLE):
        fig, (left, middle) = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained", width_ratios=(1.25, 1))
        place = networkx.spring_layout(graph, seed=7)
        xy = torch.tensor([place[i].tolist() for i in graph])
        for a, b in graph.edges:
            left.plot(xy[[a, b], 0], xy[[a, b], 1], color=GREY, lw=0.7, alpha=0.7, zorder=1)
        left.scatter(*xy.T, s=170, c=[colours[int(k)] for k in found], edgecolors="white", zorder=2)
        for i in graph:
            bold = "bold" if i in (INSTRUCTOR, OFFICER) else "normal"
            left.text(*xy[i], str(i + 1), color="white", ha="center", va="center", fontsize=8, weight=bold, zorder=3)
        wrong = xy[found != truth]
        left.scatter(*wrong.T, s=300, facecolors="none", edgecolors=INK, linewidths=1.6, zorder=2)
        for i, name in ((INSTRUCTOR, "instructor"), (OFFICER, "officer")):
            box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85}
            beside = {"xytext": (-14 if i == INSTRUCTOR else 0, 13), "textcoords": "offset points", "ha": "center"}
            left.annotate(name, xy[i], weight="bold", bbox=box, **beside)
        left.set_axis_off()
        many = len(graph) - 2
        left.set_title(f"Side found: {round(right[0] * many)} of {many} right (the rest ringed)")
        for i in graph:
            middle.plot(times, votes[:, i], color=colours[int(truth[i])], lw=1.1, alpha=0.8)
        for colour, name in zip(colours, ("went with the instructor", "went with the officer"), strict=True):
            middle.plot([], [], color=colour, label=name)
        middle.set(xlabel="depth t", ylim=(0, 1), xlim=SPAN)
        middle.set_title("Read off on the way: vote for the officer")
        middle.legend(loc="lower right", bbox_to_anchor=(1.0, 0.15))
        return save(fig, Path(out_dir) / "graph_karate.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"{outcome.accuracy:.1%} of 32 members right; without the edges {outcome.without:.1%}")
    print(f"loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}; wrote {outcome.picture}")
