"""Handwritten digits by a convolutional neural ODE: a residual tower of continuous depth.

A convolution lifts 8 x 8 images to 16 channels, a neural ODE whose right-hand side is two convolutions carries them on,
and a linear layer reads the digit off: the classifier of Chen et al., "Neural ordinary differential equations" (2018),
section 3, on the 1797 images that scikit-learn ships (UCI's "optical recognition of handwritten digits").

    python examples/digits_convolution.py --out runs/digits
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, TEAL, out_dir, save
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pydiffeqflux as pdf

CHANNELS, TEST, BATCH = 16, 450, 100


class Convolutions(nn.Module):
    """The right-hand side: two convolutions that see the time as a channel, normalised in groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, CHANNELS) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(CHANNELS + 1, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        time = t.expand(len(x), 1, *x.shape[2:])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(torch.cat([torch.relu(norm(x)), time], dim=1))
        return x


def classifier() -> nn.Sequential:
    flow = pdf.NeuralODE(Convolutions(), (0.0, 1.0), "bosh3", rtol=1e-2, atol=1e-2)
    head = nn.GroupNorm(4, CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 10)
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), flow, *head)


@dataclass
class Outcome:
    #: Share of the held-out digits that are read correctly, after every epoch; and the losses of all batches.
    accuracies: list[float]
    losses: list[float]
    #: ``confusion[i, j]``: held-out digits i that were read as j.
    confusion: Tensor
    parameters: int
    picture: Path


def epoch(
    model: nn.Module, images: Tensor, digits: Tensor, optimiser: torch.optim.Optimizer, schedule: object
) -> list[float]:
    losses = []
    for batch in torch.randperm(len(images)).split(BATCH):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), digits[batch])
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer epochs when ``quick``), draw ``digits_convolution.png`` into ``out_dir``."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    digits = torch.tensor(data.target)
    order = torch.randperm(len(images))  # the writers come one after the other in the file
    train, test = order[TEST:], order[:TEST]
    model, epochs = classifier(), 4 if quick else 12
    optimiser = torch.optim.Adam(model.parameters())
    steps = epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.02, total_steps=steps)
    losses, accuracies = [], []
    for _ in range(epochs):
        losses += epoch(model, images[train], digits[train], optimiser, schedule)
        with torch.no_grad():
            read = model(images[test]).argmax(-1)
        accuracies.append((read == digits[test]).float().mean().item())
    confusion = torch.zeros(10, 10, dtype=torch.long)
    confusion.index_put_((digits[test], read), torch.ones((), dtype=torch.long), accumulate=True)
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        path = model[1].solve(model[0](images[test[:1]]))
    picture = draw(out_dir, images[test], digits[test], read, losses, accuracies, path)
    return Outcome(accuracies, losses, confusion, parameters, picture)


def draw(
    out_dir: str | Path,
    images: Tensor,
    digits: Tensor,
    read: Tensor,
    losses: list[float],
    accuracies: list[float],
    path: pdf.Solution,
) -> Path:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(11.5, 5.0), layout="constrained")
        left, right = fig.subfigures(1, 2, width_ratios=(1, 1.35))
        ax = left.subplots()
        steps = torch.arange(1, len(losses) + 1) * len(accuracies) / len(losses)
        ax.semilogy(steps, losses, color=TEAL, lw=1.0)
        ax.set(xlabel="epoch", xlim=(0, len(accuracies)), title=f"Held out: {accuracies[-1]:.1%} read correctly")
        ax.set_ylabel("cross entropy of a batch", color=TEAL)
        share = ax.twinx()
        share.plot(range(1, len(accuracies) + 1), accuracies, "o-", color=ROSE, ms=4, lw=1.4)
        share.set_ylabel("accuracy on held-out digits", color=ROSE)
        share.set_ylim(0.3, 1.0)
        share.grid(axis="y", color="#e5e5e5", lw=0.7)
        share.spines["right"].set_visible(True)
        above, below = right.subfigures(2, 1, height_ratios=(1.45, 1))
        wrong = (read != digits).nonzero()[:, 0].tolist()
        shown = (wrong + [i for i in range(len(read)) if i not in wrong])[:16]
        above.suptitle(f"Held-out digits, the {len(wrong)} misread ones first", x=0.02, ha="left", weight="bold")
        for place, i in zip(above.subplots(2, 8).flat, shown, strict=True):
            place.imshow(images[i, 0].numpy(), cmap="Greys")
            same = read[i] == digits[i]
            text = f"{int(digits[i])}" if same else f"{int(digits[i])} read {int(read[i])}"
            place.set_title(text, fontsize=9, color=INK if same else ROSE, loc="center", weight="normal")
            place.set_axis_off()
        times = torch.linspace(0, 1, 8)
        below.suptitle("A channel of one digit, on its way from t = 0 to 1", x=0.02, ha="left", weight="bold")
        film = path(times)[:, 0]
        busiest = int(film.std(dim=0).mean(dim=(1, 2)).argmax())
        for place, t, frame in zip(below.subplots(1, 8), times, film[:, busiest], strict=True):
            place.imshow(frame.numpy(), cmap="viridis")
            place.set_title(f"{float(t):.2f}", fontsize=9, loc="center", weight="normal")
            place.set_axis_off()
        return save(fig, Path(out_dir) / "digits_convolution.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"{outcome.accuracies[-1]:.2%} of {TEST} held-out digits, {outcome.parameters} parameters")
    print(f"loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}; wrote {outcome.picture}")
