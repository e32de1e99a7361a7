"""Right-hand sides of many kinds, for whatever has to take any module: ``MODULES[name]() -> (func, y0)``, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

D = torch.float64


class Net(nn.Module):
    """Layers in a row, after an optional first step that also sees the time."""

    def __init__(self, *layers: nn.Module, first: Callable[[Tensor, Tensor], Tensor] | None = None):
        super().__init__()
        self.net = nn.Sequential(*layers).double()
        self.first = first

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y if self.first is None else self.first(t, y))


def _mlp(activation: nn.Module) -> Any:
    return Net(nn.Linear(3, 7), activation, nn.Linear(7, 3)), _normal(4, 3)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D)


def _with_time(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y, t.expand(y.shape[0], 1)], 1)


def _in_place() -> Any:
    a = _normal(3, 3).requires_grad_()

    def func(t: Tensor, y: Tensor) -> Tensor:
        dy = torch.zeros_like(y)
        dy[0] = y[1] * t
        dy[1:] = (a @ y)[1:]
        dy += F.softplus(y)
        return dy

    return func, _normal(3)


def _lotka_volterra() -> Any:
    k = torch.tensor([1.5, 1.0, 3.0], dtype=D, requires_grad=True)

    def func(t: Tensor, y: Tensor) -> Tensor:
        meet = k[1] * y[0] * y[1]
        return torch.stack([k[0] * y[0] - meet, -k[2] * y[1] + meet])

    return func, torch.tensor([1.0, 1.2], dtype=D)


def _elementary() -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        smooth = torch.sin(y) * torch.cos(t) + torch.atan2(y, t + 2) + torch.exp(-(y**2)) * torch.log1p(y**2)
        rough = torch.where(y > 0, y, y.exp() - 1) + torch.clamp(y, -0.5, 0.5)
        return smooth + rough + torch.sqrt(1 + y.abs()) + torch.erf(y) + torch.remainder(y, 0.7) + y.sigmoid().logit()

    return func, _normal(2, 3)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(part(y) for part in self.qkv))


class _MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.heads(y, y, y)[0]


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 3).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.cell(y, torch.tanh(y))


def _linear_systems() -> Any:
    w = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()

    def func(t: Tensor, y: Tensor) -> Tensor:
        matrix = torch.eye(3, dtype=torch.float64) + w @ w.mT
        return torch.linalg.solve(matrix, y.mT).mT - y @ torch.linalg.inv(matrix + w)

    return func, _normal(2, 3)


def _bilinear() -> Any:
    layer = nn.Bilinear(3, 3, 3).double()
    return lambda t, y: layer(y, torch.sin(y)), _normal(2, 3)


def _indexing() -> Any:
    pick = torch.tensor([2, 0, 1, 1])
    return lambda t, y: y[pick] * torch.roll(y, 1, 0) + y.flip(0) + y[:, [1, 0, 2]].cumsum(0), _normal(4, 3)


def _graph_sum() -> Any:
    source, target = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 1, 2, 2])
    w = _normal(2, 2).requires_grad_()
    return lambda t, y: torch.zeros_like(y).index_add(0, target, torch.tanh(y[source] @ w)), _normal(4, 2)


def _reductions() -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        spread = y.var(0) + y.mean() + y.std(1, keepdim=True) + y.logsumexp(0)
        return spread - y / y.norm(dim=-1, keepdim=True) ** 3 + y.amax(1, keepdim=True) + y.prod(1, keepdim=True)

    return func, _normal(4, 3)


class _ThreeTimes(torch.autograd.Function):
    """Rounds; and says that its derivative is three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g


def _own_gradients() -> Any:
    return lambda t, y: _ThreeTimes.apply(y) * y + y.detach() * y, _normal(3)


def _hamiltonian() -> Any:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def func(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(net(y).sum(), y, create_graph=True)
        return torch.cat([slope[..., 2:], -slope[..., :2]], -1)

    return func, _normal(3, 4)


def _einsum() -> Any:
    w = _normal(3, 3, 3).requires_grad_()
    return lambda t, y: torch.einsum("ijk,bj,bk->bi", w, y, y), _normal(2, 3)


def _matrices() -> Any:
    w = _normal(3, 3)

    def func(t: Tensor, y: Tensor) -> Tensor:
        return (w - w.T) @ y @ w + torch.diag_embed(torch.diagonal(y)) + torch.tril(y) + torch.linalg.vector_norm(y)

    return func, _normal(3, 3)


def _embedding() -> Any:
    table = nn.Embedding(5, 3).double()
    rows = torch.tensor([1, 4])
    return lambda t, y: y * table(rows), _normal(2, 3)


def _outside() -> Any:
    raw = torch.tensor(0.3, dtype=D, requires_grad=True)
    rate = F.softplus(raw)  # not a leaf: computed before the solve
    return lambda t, y: -rate * y + torch.sin(t), _normal(2)


def _spiral(*shape: int) -> Any:
    return Net(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2), first=lambda t, y: y**3), _normal(*shape)


_ACTIVATIONS = """ReLU GELU SiLU Softplus ELU LeakyReLU Mish Sigmoid Hardtanh Hardswish Softsign LogSigmoid SELU CELU
    Tanhshrink Softshrink ReLU6""".split()

MODULES: dict[str, Callable[[], Any]] = {
    **{name.lower(): lambda name=name: _mlp(getattr(nn, name)()) for name in _ACTIVATIONS},
    "gelu_tanh": lambda: _mlp(nn.GELU("tanh")),
    "softmax": lambda: _mlp(nn.Softmax(-1)),
    "spiral": lambda: _spiral(2),
    "spiral_batch": lambda: _spiral(5, 2),
    "time": lambda: (Net(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3), first=_with_time), _normal(4, 3)),
    "layer_norm": lambda: (Net(nn.Linear(3, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)), _normal(4, 3)),
    "batch_norm": lambda: (
        Net(nn.Linear(3, 7), nn.BatchNorm1d(7).eval(), nn.Tanh(), nn.Linear(7, 3)),
        _normal(4, 3),
    ),
    "group_norm": lambda: (
        Net(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)),
        _normal(1, 2, 4, 4),
    ),
    "conv_dilated": lambda: (
        Net(nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.SiLU(), nn.Conv1d(4, 2, 1)),
        _normal(2, 2, 6),
    ),
    "conv_transposed": lambda: (
        Net(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.SiLU(), nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1)),
        _normal(2, 2, 8),
    ),
    "conv_groups": lambda: (
        Net(nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.SiLU(), nn.ConvTranspose1d(4, 4, 3, padding=1, groups=2)),
        _normal(2, 4, 6),
    ),
    "conv_circular": lambda: (
        Net(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), nn.Tanh()),
        _normal(2, 2, 6),
    ),
    "laplacian": lambda: (
        lambda t, y: torch.roll(y, 1, -1) + torch.roll(y, -1, -1) - 2 * y + F.pad(y[..., 1:], (0, 1)),
        _normal(2, 6),
    ),
    "attention": lambda: (_Attention(), _normal(1, 5, 4)),
    "multi_head": lambda: (_MultiHead(), _normal(1, 3, 4)),
    "recurrent": lambda: (_Recurrent(), _normal(2, 3)),
    "transformer": lambda: (Net(nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True)), _normal(2, 3, 4)),
    "weight_norm": lambda: (
        Net(weight_norm(nn.Linear(3, 7)), nn.Tanh(), weight_norm(nn.Linear(7, 3), dim=1)),
        _normal(4, 3),
    ),
    "bilinear": _bilinear,
    "linear_systems": _linear_systems,
    "in_place": _in_place,
    "lotka_volterra": _lotka_volterra,
    "elementary": _elementary,
    "indexing": _indexing,
    "graph_sum": _graph_sum,
    "reductions": _reductions,
    "own_gradients": _own_gradients,
    "hamiltonian": _hamiltonian,
    "einsum": _einsum,
    "matrices": _matrices,
    "embedding": _embedding,
    "outside": _outside,
}
