"""What the examples share: colours, the look of a picture, one loop of Adam, and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

INK, ROSE, TEAL, GOLD, GREY = "#1d3557", "#d1495b", "#0b7a75", "#e09f3e", "#9aa5b1"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",
}


def descend(parameters: Iterable[Tensor], loss_of: Callable[[], Tensor], iterations: int, lr: float) -> list[float]:
    """Adam, its step size up to ``lr`` and down again ("one cycle"); returns the losses."""
    optimiser = torch.optim.Adam(list(parameters))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=iterations)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def save(fig: Figure, path: Path) -> Path:
    """Write the picture; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)
    return path


def out_dir(description: str | None) -> str:
    """``--out DIR`` of the command line, which every example takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the picture")
    return str(parser.parse_args().out)
