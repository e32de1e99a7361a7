"""Right-hand sides put together at random: ``random_graph(seed) -> Graph``, the same one for the same seed.

A graph is a list of steps, each an operator applied to results of earlier ones; its value gathers all of them, so that
each one's gradient counts. Operators are kept away from poles, and steps whose results grow large are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

#: Results larger than this are left out: tolerances are relative to the largest.
LARGEST = 30.0
SHAPES = [(3,), (1,), (5,), (2, 3), (4, 2), (3, 3), (2, 2, 3), (1, 4), (2, 1, 3)]

Step = Callable[..., Tensor]

UNARY: dict[str, Step] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "relu6": F.relu6,
    "abs": torch.abs,
    "neg": torch.neg,
    "square": torch.square,
    "cube": lambda x: x**3,
    "erf": torch.erf,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "expm1": lambda x: torch.expm1(-x.abs()),
    "sinc": torch.sinc,
    "exp": lambda x: torch.exp(-x * x),
    "sqrt": lambda x: torch.sqrt(1 + x * x),
    "rsqrt": lambda x: (1 + x * x).rsqrt(),
    "log": lambda x: torch.log(1 + x * x),
    "log1p": lambda x: torch.log1p(x.abs()),
    "reciprocal": lambda x: 1 / (2 + x.cos()),
    "pow": lambda x: (x.abs() + 0.1) ** 1.7,
    "exponent": lambda x: 1.3 ** x.clamp(-3, 3),
    "clamp": lambda x: x.clamp(-0.4, 0.9),
    "clamp below": lambda x: x.clamp_min(-0.2),
    "floor": lambda x: torch.floor(x) * 0.5,
    "round": torch.round,
    "sign": lambda x: torch.sign(x) * x,
    "frac": torch.frac,
    "remainder": lambda x: torch.remainder(x, 0.7),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "mask": lambda x: (x > 0.1).to(x.dtype) * x,
    "logit": lambda x: torch.logit(torch.sigmoid(x)),
    "integers": lambda x: x.detach().long().to(x.dtype) + x,
    "nan_to_num": torch.nan_to_num,
    "acos": lambda x: torch.acos(0.9 * torch.tanh(x)),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.3),
    "detach": lambda x: x.detach() * x,
    "cosh": lambda x: torch.cosh(torch.tanh(x)),
    "prelu": lambda x: torch.where(x > 0, x, 0.3 * x),
    "trunc": lambda x: torch.trunc(x) + x,
    "logical": lambda x: torch.where((x > 0) & (x < 1) | ~(x > -1), x, -x),
}

BINARY: dict[str, Step] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "rsub": lambda a, b: torch.rsub(a, b, alpha=2),
    "div": lambda a, b: a / (1.5 + b * b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "atan2": lambda a, b: torch.atan2(a, b.abs() + 0.3),
    "where": lambda a, b: torch.where(a > b, a, 2 * b),
    "hypot": lambda a, b: torch.hypot(a, b + 0.1),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "logaddexp": lambda a, b: torch.log(torch.exp(-a.abs()) + torch.exp(-b.abs())),
    "scaled": lambda a, b: torch.add(a, b, alpha=0.7),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "power": lambda a, b: (a.abs() + 0.2) ** b.clamp(-2, 2),
    "xlogy": lambda a, b: torch.xlogy(a, b * b + 0.1),
    "fmax": lambda a, b: torch.where(a >= b, a, b),
    "mse": lambda a, b: F.mse_loss(*torch.broadcast_tensors(a, b), reduction="none"),
}


@dataclass
class Graph:
    """A right-hand side, its example state, and the tensors that it reaches for."""

    y0: Tensor
    params: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    steps: list[tuple[str, Step, tuple[int, ...]]] = field(default_factory=list)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        values = [y, torch.sin(t)]
        for _, step, inputs in self.steps:
            values.append(step(*(values[i] for i in inputs)))
        total = torch.tanh(values[-1].mean()) * y
        for k, value in enumerate(values[2:]):
            if value.numel() == y.numel():
                total = total + 0.1 * torch.tanh(value.reshape(y.shape))
            else:
                total = total + 0.1 * math.cos(k) * torch.tanh(value.sum() if k % 2 else value.mean())
        return total - 0.5 * y

    def __str__(self) -> str:
        lines = [f"  {k + 2} = {name}{inputs}" for k, (name, _, inputs) in enumerate(self.steps)]
        return f"y: {tuple(self.y0.shape)} {self.y0.dtype}\n" + "\n".join(lines)


def random_graph(seed: int, dtype: torch.dtype = torch.float64, length: int = 8) -> Graph:
    """A graph of about ``length`` steps."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    graph = Graph(torch.randn(rng.choice(SHAPES), dtype=dtype))
    values = [graph.y0, torch.sin(torch.tensor(0.3, dtype=dtype))]
    tries = 0
    while len(graph.steps) < length and tries < 60:
        tries += 1
        made = rng.choice(_KINDS)(rng, graph, values)
        if made is None:
            continue
        name, step, inputs = made
        try:
            value = step(*(values[i] for i in inputs))
        except (RuntimeError, IndexError):  # shapes that do not fit
            continue
        if not 0 < value.numel() <= 60 or value.dtype != dtype or not bool(value.isfinite().all()):
            continue
        if value.abs().max() > LARGEST:
            continue
        graph.steps.append((name, step, inputs))
        values.append(value.detach())
    return graph


Made = tuple[str, Step, tuple[int, ...]] | None


def _some(rng: random.Random, values: Sequence[Tensor], least: int = 0) -> int | None:
    """One of the values, the later ones more often; of at least so many dimensions."""
    fitting = [k for k, v in enumerate(values) if v.dim() >= least]
    return rng.choice(fitting[-4:] + fitting) if fitting else None


def _unary(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    name = rng.choice(list(UNARY))
    return name, UNARY[name], (_some(rng, values) or 0,)


def _binary(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    name = rng.choice(list(BINARY))
    return name, BINARY[name], (_some(rng, values) or 0, _some(rng, values) or 0)


def _tensor(rng: random.Random, graph: Graph, shape: Sequence[int]) -> Tensor:
    """A parameter, or a constant."""
    x = 0.5 * torch.randn(tuple(shape), dtype=graph.y0.dtype)
    if rng.random() < 0.8:
        x.requires_grad_()
        graph.params.append(x)
    else:
        graph.constants.append(x)
    return x


def _with_tensor(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values)
    assert i is not None
    shape = [n if rng.random() < 0.7 else 1 for n in values[i].shape]
    x = _tensor(rng, graph, shape[rng.randint(0, len(shape)) :])
    name = rng.choice(list(BINARY))
    f = BINARY[name]
    return (
        (f"{name} of a tensor", (lambda a: f(a, x)), (i,))
        if rng.random() < 0.5
        else (f"{name} to a tensor", (lambda a: f(x, a)), (i,))
    )


def _matrix(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values, 1)
    if i is None:
        return None
    n, m = values[i].shape[-1], rng.randint(1, 4)
    kind = rng.choice(["linear", "matmul", "mv", "gram", "outer", "einsum", "bilinear", "addmm"])
    if kind == "linear":
        w, b = _tensor(rng, graph, (m, n)), _tensor(rng, graph, (m,))
        return kind, lambda a: F.linear(a, w, b), (i,)
    if kind == "matmul":
        w = _tensor(rng, graph, (n, m))
        return kind, lambda a: a @ w, (i,)
    if kind == "mv":
        w = _tensor(rng, graph, (n,))
        return kind, lambda a: a @ w, (i,)
    if kind == "gram":
        return kind, lambda a: a @ a.mT if a.dim() > 1 else torch.dot(a, a), (i,)
    if kind == "outer":
        return kind, lambda a: torch.outer(a.flatten(), a.flatten()[:2]), (i,)
    if kind == "einsum":
        w = _tensor(rng, graph, (n, m))
        return kind, lambda a: torch.einsum("...i,ij->...j", a, w) * a.sum(-1, keepdim=True), (i,)
    if kind == "addmm":
        w, b = _tensor(rng, graph, (n, m)), _tensor(rng, graph, (m,))
        return kind, lambda a: torch.addmm(b, a.reshape(-1, n), w, beta=0.5, alpha=1.5), (i,)
    j = _some(rng, values, 1)
    assert j is not None
    return kind, lambda a, b: a @ b if a.dim() > 1 and b.dim() > 1 else a.unsqueeze(-1) * b.flatten(), (i, j)


def _reduction(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values, 1)
    if i is None:
        return None
    dim, keep = rng.randrange(-values[i].dim(), values[i].dim()), rng.random() < 0.5
    table: dict[str, Step] = {
        "sum": lambda a: a.sum(dim, keep),
        "mean": lambda a: a.mean(dim, keep),
        "sum all": lambda a: a.sum(),
        "amax": lambda a: a.amax(dim, keep),
        "amin": lambda a: a.amin(dim, keep),
        "max": lambda a: a.max(dim, keep)[0],
        "min": lambda a: a.min(dim, keep)[0],
        "prod": lambda a: a.prod(dim, keep),
        "var": lambda a: (a + 0.0).var(dim, unbiased=False, keepdim=keep),
        "logsumexp": lambda a: a.logsumexp(dim, keep),
        "std": lambda a: (a.var(dim, unbiased=False, keepdim=keep) + 0.1).sqrt(),
        "norm": lambda a: torch.linalg.vector_norm(a + 0.01, dim=dim, keepdim=keep),
        "norm 1": lambda a: torch.linalg.vector_norm(a, 1, dim=dim, keepdim=keep),
        "softmax": lambda a: a.softmax(dim),
        "log_softmax": lambda a: a.log_softmax(dim),
        "cumsum": lambda a: a.cumsum(dim),
        "cumprod": lambda a: a.cumprod(dim),
        "flat norm": lambda a: a.norm() + 0.0 * a.sum(),
        "layer_norm": lambda a: F.layer_norm(a, a.shape[-1:], eps=0.1),
        "normalize": lambda a: F.normalize(a + 0.2, dim=dim),
        "argmax": lambda a: a.argmax(dim, keep).to(a.dtype) + a.sum(dim, keep),
        "any": lambda a: (a > 0).any(dim, keep).to(a.dtype) * a.mean(dim, keep),
        "diff": lambda a: a.diff(dim=dim),
    }
    name = rng.choice(list(table))
    return f"{name} {dim}", table[name], (i,)


def _view(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values, 1)
    if i is None:
        return None
    x = values[i]
    dim, other = (rng.randrange(-x.dim(), x.dim()) for _ in range(2))
    n = x.shape[dim]
    first, step = rng.randrange(n), rng.randint(1, 2)
    order = rng.sample(range(x.dim()), x.dim())
    times = [rng.randint(1, 2) for _ in range(x.dim())]
    rest = x.numel() // n if n else 1
    table: dict[str, Step] = {
        "transpose": lambda a: a.transpose(dim, other),
        "permute": lambda a: a.permute(order),
        "flatten": lambda a: a.flatten(),
        "reshape": lambda a: a.reshape(rest, n),
        "unsqueeze": lambda a: a.unsqueeze(dim),
        "squeeze": lambda a: a.squeeze(),
        "select": lambda a: a.select(dim, first),
        "narrow": lambda a: a.narrow(dim, first, n - first),
        "flip": lambda a: a.flip(dim),
        "slice": lambda a: a[..., ::step],
        "last": lambda a: a[..., -1:],
        "roll": lambda a: a.roll(first + 1, dim),
        "repeat": lambda a: a.repeat(times),
        "repeat_interleave": lambda a: a.repeat_interleave(step, dim),
        "tile": lambda a: a.tile((2,)),
        "expand": lambda a: a.unsqueeze(0).expand(2, *a.shape),
        "movedim": lambda a: a.movedim(dim, 0),
        "tril": lambda a: a.reshape(rest, n).tril(first - 1),
        "triu": lambda a: a.reshape(n, rest).triu(first - 1),
        "diagonal": lambda a: a.reshape(rest, n).diagonal(first - 1),
        "diag": lambda a: torch.diag_embed(a.flatten()[:4]),
        "chunk": lambda a: torch.cat(a.chunk(2, dim)[::-1], dim),
        "split": lambda a: a.split(1, dim)[first] * 2,
        "unfold": lambda a: a.unfold(dim, min(2, n), 1),
        "pad": lambda a: F.pad(a, (1, step)),
        "pad value": lambda a: F.pad(a, (0, 1), value=0.3),
        "circular": lambda a: F.pad(a.reshape(1, 1, -1), (1, 1), mode="circular"),
        "unbind": lambda a: a.unbind(dim)[first],
        "negative step": lambda a: a.flip(-1)[..., ::2],
        "meshgrid": lambda a: torch.meshgrid(a.flatten()[:3], a.flatten()[:2], indexing="ij")[step - 1],
        "broadcast": lambda a: torch.broadcast_to(a, (2, *a.shape)),
        "swapaxes": lambda a: a.swapaxes(dim, 0),
        "view": lambda a: a.contiguous().view(-1, n),
    }
    name = rng.choice(list(table))
    return f"{name} {dim} {first} {step}", table[name], (i,)


def _joined(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values, 1)
    if i is None:
        return None
    same = [k for k, v in enumerate(values) if v.shape == values[i].shape]
    j, dim = rng.choice(same), rng.randrange(-values[i].dim(), values[i].dim())
    table: dict[str, Step] = {
        "cat": lambda a, b: torch.cat([a, 2 * b], dim),
        "stack": lambda a, b: torch.stack([a, b], dim),
        "hstack": lambda a, b: torch.hstack([a, b]),
        "three": lambda a, b: torch.cat([a, b, a * b], dim),
    }
    name = rng.choice(list(table))
    return f"{name} {dim}", table[name], (i, j)


def _indexed(rng: random.Random, graph: Graph, values: Sequence[Tensor]) -> Made:
    i = _some(rng, values, 1)
    if i is None:
        return None
    x = values[i]
    dim = rng.randrange(x.dim())
    n = x.shape[dim]
    places = [rng.randrange(n) for _ in range(rng.randint(1, 4))]
    index = torch.tensor(places)
    whole = torch.randint(n, x.shape)
    order = torch.rand(x.shape).argsort(dim)  # each place once: of several, torch keeps any
    mask = torch.rand(x.shape) > 0.5
    graph.constants += [index, whole, order, mask]
    before = (slice(None),) * dim
    first = rng.randrange(n)

    def assigned(a: Tensor) -> Tensor:
        out = torch.zeros_like(a)
        out[(*before, first)] = a.select(dim, first) ** 2
        out[(*before, slice(0, first))] += 1.0
        out += a
        return out.mul_(0.5)

    def filled(a: Tensor) -> Tensor:
        out = a.new_empty(a.shape)
        out[...] = a
        out[(*before, slice(first, None))] = a.narrow(dim, first, n - first).cos()
        return out

    table: dict[str, Step] = {
        "index_select": lambda a: a.index_select(dim, index),
        "advanced": lambda a: a[(*before, index)],
        "gather": lambda a: a.gather(dim, whole),
        "list": lambda a: a[(*before, places)],
        "assigned": assigned,
        "filled": filled,
        "scatter_add": lambda a: torch.zeros_like(a).scatter_add(dim, whole, a),
        "index_add": lambda a: torch.zeros_like(a).index_add(dim, index, a.index_select(dim, index)),
        "scatter": lambda a: a.scatter(dim, order, a.sin()),
        "scatter a number": lambda a: a.scatter(dim, whole, 0.7),
        "mask": lambda a: torch.where(mask, a, a.sin()),
        "masked_fill": lambda a: a.masked_fill(mask, 0.5),
        "bool times": lambda a: a * mask,
        "put": lambda a: a.index_put((index.clamp_max(a.shape[0] - 1),), a[0].detach() * 0 + 0.3),
        "take": lambda a: a.flatten()[index.clamp_max(a.numel() - 1)],
        "integers": lambda a: a * whole,
    }
    name = rng.choice(list(table))
    return f"{name} {dim}", table[name], (i,)


_KINDS = [
    _unary,
    _unary,
    _binary,
    _binary,
    _with_tensor,
    _matrix,
    _reduction,
    _reduction,
    _view,
    _view,
    _joined,
    _indexed,
]
