"""The Brownian path: a function of seed and time alone, with the law that it should have."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats

from pydiffeqflux.backends.common.path import Path
from pydiffeqflux.backends.common.tree import DEPTH, KEPT, Tree

F64 = torch.float64
CPU = torch.device("cpu")


def tree(seed: int = 0, shape: tuple[int, ...] = (3,), t0: float = 0.0, t1: float = 1.0, dtype=F64) -> Tree:
    return Tree(seed, t0, t1, shape, dtype, CPU)


# -- a function of seed and time ----------------------------------------------------------------


def test_the_order_of_questions_does_not_matter() -> None:
    order = random.Random(0)
    times = sorted(order.random() * 2 - 1 for _ in range(60))
    pairs = [(a, b) for a in times for b in times if a < b]
    questions = order.sample(pairs, 300)
    one, other = tree(t0=-1.0), tree(t0=-1.0)
    first = {q: one(*q, return_U=True) for q in questions}
    for q in reversed(questions):
        w, u = other(*q, return_U=True)
        assert torch.equal(w, first[q][0]) and torch.equal(u, first[q][1])


def test_seeds_differ_and_repeat() -> None:
    assert torch.equal(tree(7)(0.1, 0.9), tree(7)(0.1, 0.9))
    assert not torch.isclose(tree(7)(0.1, 0.9), tree(8)(0.1, 0.9)).any()


def test_increments_add_up() -> None:
    motion = tree(3, t0=2.0, t1=7.0)
    a, b, c = 2.25, 4.1875, 6.5  # exact in binary: rounding of times plays no part
    (w1, u1), (w2, u2), (w, u) = (motion(*q, return_U=True) for q in ((a, b), (b, c), (a, c)))
    assert torch.allclose(w1 + w2, w, atol=1e-13)
    assert torch.allclose(u1 + u2 + (c - b) * w1, u, atol=1e-13, rtol=1e-6)


def test_single_precision_keeps_the_digits_of_small_steps() -> None:
    # The integral over a short step is a small difference of large numbers; the weights are subtracted in double.
    a, b = 0.7, 0.7 + 1e-4
    single, double = tree(5, dtype=torch.float32), tree(5)
    w32, u32 = single(a, b, return_U=True)
    double._noise, double._slots = single._noise.double(), single._slots  # the same noise, already drawn
    w64, u64 = double(a, b, return_U=True)
    assert torch.allclose(w32.double(), w64, rtol=1e-5, atol=1e-9)
    assert torch.allclose((u32 / 1e-4).double(), u64 / 1e-4, rtol=1e-4, atol=1e-8)


def test_memory_is_bounded() -> None:
    motion = tree(1, (2, 2))
    size = motion._noise.numel()
    for i in range(2000):
        motion(i / 2000, (i + 1) / 2000)
    assert motion._noise.numel() == size == KEPT * 2 * 4
    assert len(motion._slots) == KEPT and len(motion._known) <= 8


def test_times_are_resolved_to_a_power_of_two() -> None:
    motion = tree(1)
    assert torch.equal(motion(0.3, 0.3 + 2.0 ** -(DEPTH + 3)), torch.zeros(3, dtype=F64))
    assert (motion(0.3, 0.3 + 2.0 ** -(DEPTH - 1)) != 0).all()


# -- the law ------------------------------------------------------------------------------------

MANY = 40_000


@pytest.mark.parametrize(("a", "b", "c"), [(0.0, 0.5, 1.0), (0.15, 0.1834, 0.6), (0.3, 0.85, 0.8501)])
def test_covariance_of_increments_and_integrals(a: float, b: float, c: float) -> None:
    motion = tree(11, (MANY,), t0=0.0, t1=1.0)
    w1, u1 = motion(a, b, return_U=True)
    w2, u2 = motion(b, c, return_U=True)
    h, k = b - a, c - b
    exact = torch.zeros(4, 4, dtype=F64)
    for i, step in ((0, h), (2, k)):
        exact[i, i], exact[i, i + 1], exact[i + 1, i] = step, step**2 / 2, step**2 / 2
        exact[i + 1, i + 1] = step**3 / 3
    found = torch.stack([w1, u1, w2, u2])
    scale = exact.diagonal().sqrt()
    correlation = (found @ found.T / MANY) / torch.outer(scale, scale)
    assert torch.allclose(correlation, exact / torch.outer(scale, scale), atol=5 / math.sqrt(MANY))


@pytest.mark.parametrize("step", [(0.0, 1.0), (0.2, 0.7), (0.51, 0.5107)])
def test_increments_are_normal(step: tuple[float, float]) -> None:
    w, u = tree(2, (5000,))(*step, return_U=True)
    h = step[1] - step[0]
    assert stats.kstest((w / h**0.5).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((u / (h**3 / 3) ** 0.5).numpy(), "norm").pvalue > 1e-3


def test_increments_along_a_path_are_independent() -> None:
    motion = tree(4, (200,))
    steps = torch.stack([motion(i / 97, (i + 1) / 97) for i in range(97)]) * math.sqrt(97)
    assert float(steps.square().mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / steps.numel()))
    for lag in (1, 2, 7):
        assert abs(float((steps[lag:] * steps[:-lag]).mean())) < 5 / math.sqrt(steps.numel())


def test_levy_area() -> None:
    h = 0.7 - 0.2
    w, a = tree(6, (MANY, 2))(0.2, 0.7, return_A=True)
    assert torch.equal(a, -a.transpose(-1, -2))
    # Levy (1950): mean 0 and variance h^2 / 4; not correlated with the increments.
    area = a[:, 0, 1] / (h / 2)
    assert abs(float(area.mean())) < 5 / math.sqrt(MANY)
    assert float(area.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert abs(float((area * w[:, 0] * w[:, 1]).mean() / h)) < 10 / math.sqrt(MANY)
    # The fourth moment of Levy's law (a hyperbolic secant) is 5; a normal number's is 3.
    assert float(area.pow(4).mean()) == pytest.approx(5.0, abs=0.6)


# -- as the loop asks ---------------------------------------------------------------------------


def test_a_step_that_ends_at_a_mark_but_for_rounding_ends_there() -> None:
    asked = []
    path = Path(lambda a, b: asked.append((a, b)) or torch.zeros(1), [0.0, 0.3, 1.0])
    path.increment(0.1 + 0.1, 0.1)  # 0.30000000000000004
    path.increment(0.3 - 1e-17, 0.2)
    path.increment(0.5, -0.2)
    assert asked == [(0.2, 0.3), (0.3, 0.5), (0.3, 0.5)]
