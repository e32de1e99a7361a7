"""The networks that a fit trains."""

from __future__ import annotations

from torch import Tensor, nn

from .scaling import DTYPE


def network(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """``depth`` hidden tanh layers of ``width``, and a linear last one: bounded, so no solution blows up."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width, dtype=DTYPE), nn.Tanh()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs, dtype=DTYPE))


class Positive(nn.Module):
    """A network's outputs made positive, ``floor + log(1 + exp(x))``."""

    def __init__(self, net: nn.Module, floor: float):
        super().__init__()
        self.net, self.floor = net, floor

    def forward(self, y: Tensor) -> Tensor:
        return self.floor + nn.functional.softplus(self.net(y))
