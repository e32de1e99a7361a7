"""The quick way to the trace of a function that is asked for again."""

from __future__ import annotations

import torch
from torch import nn

from pydiffeqflux.graph.cache import TraceCache


def test_same_function_that_has_not_changed() -> None:
    cache, net, y = TraceCache(), nn.Linear(2, 2), torch.ones(2)
    func = lambda t, y: net(y)  # noqa: E731
    t = torch.tensor(0.0)
    assert cache.same(func, y) is None
    traced, value = cache.get(func, func, t, y)
    assert value is not None and cache.same(func, y) is None  # its value has not been compared yet
    again, value = cache.get(func, func, t, y)
    assert value is None and again is traced
    assert cache.same(func, y) is traced
    with torch.no_grad():
        net.weight += 1.0  # an argument of the trace
    assert cache.same(func, y) is traced
    # Another state, another use, another function.
    assert cache.same(func, torch.ones(3)) is None
    assert cache.same(func, y.double()) is None
    assert cache.same(func, y, "other") is None
    assert cache.same(lambda t, y: net(y), y) is None


def test_one_that_has_changed() -> None:
    cache, y, t, factor = TraceCache(), torch.ones(2), torch.tensor(0.0), [2.0]
    func = lambda t, y: factor[0] * y  # noqa: E731
    for _ in range(2):
        cache.get(func, func, t, y)
    assert cache.same(func, y) is not None
    factor[0] = 3.0
    assert cache.same(func, y) is None


def test_forgotten() -> None:
    cache, y, t = TraceCache(), torch.ones(2), torch.tensor(0.0)
    func = lambda t, y: -y  # noqa: E731
    for _ in range(2):
        cache.get(func, func, t, y)
    cache.forget(func)
    assert cache.same(func, y) is None
