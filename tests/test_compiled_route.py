"""A problem solved again and again takes a shorter way: never with anything but what is there now."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, UnsupportedError
from pydiffeqflux.problem import ROUTE

D = torch.float64
TS = torch.linspace(0, 1, 5, dtype=D)


def solve(problem, ts=TS, **more):
    return pdf.solve(problem, saveat=ts, rtol=1e-6, atol=1e-8, dense=False, backend="compiled", **more)


def eager(problem, ts=TS):
    return pdf.solve(problem, saveat=ts, rtol=1e-6, atol=1e-8, dense=False, backend="eager")


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.k = torch.tensor([1.0, 2.0], dtype=D)
        self.power = 1

    def forward(self, t, y):
        return -self.k * y**self.power


@pytest.fixture
def problem():
    found = pdf.ODEProblem(Linear(), torch.tensor([1.0, 0.5], dtype=D), (0.0, 1.0))
    with torch.no_grad():
        for _ in range(3):
            solve(found)
    assert found.__dict__[ROUTE] is not None
    return found


def agrees(problem, ts=TS):
    torch.testing.assert_close(solve(problem, ts).ys, eager(problem, ts).ys, rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_the_same_again(problem):
    first, second = solve(problem), solve(problem)
    assert torch.equal(first.ys, second.ys) and torch.equal(first.ts, TS)
    assert first.stats.nf == eager(problem).stats.nf and first.stats.method == "tsit5"
    assert first.stats.reason == "gradients are disabled" and first.stats.time > 0
    assert first.events == [] and first.dense is None


@torch.no_grad()
def test_values_that_changed(problem):
    problem.func.k.mul_(2)
    agrees(problem)
    problem.packed.add_(0.25)
    agrees(problem)
    problem.func.k = torch.tensor([0.5, 0.1], dtype=D)
    agrees(problem)
    problem.func.k.data = torch.tensor([0.3, 7.0, 0.2, 7.0], dtype=D)[::2]
    agrees(problem)


@torch.no_grad()
def test_a_function_that_changed(problem):
    problem.func.power = 2
    agrees(problem)


@torch.no_grad()
def test_save_times_that_changed(problem):
    own = TS.clone()
    solve(problem, own)
    own[2] += 0.1
    agrees(problem, own)
    agrees(problem, own[:3])
    agrees(problem, own.float())


def test_a_gradient_that_is_wanted(problem):
    problem.func.k.requires_grad_()
    for _ in range(3):
        (ours,) = torch.autograd.grad(solve(problem).ys.sum(), problem.func.k)
    (theirs,) = torch.autograd.grad(eager(problem).ys.sum(), problem.func.k)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert problem.__dict__[ROUTE] is not None


@torch.no_grad()
def test_arguments_that_changed(problem):
    assert solve(problem, max_steps=50).stats.naccept == solve(problem).stats.naccept
    loose = pdf.solve(problem, saveat=TS, rtol=1e-2, atol=1e-2, dense=False, backend="compiled")
    assert loose.stats.naccept < solve(problem).stats.naccept
    with pytest.raises(InvalidArgumentError, match="max_steps"):
        solve(problem, max_steps=0)


def test_a_transform_goes_its_own_way(problem):
    with pytest.raises(UnsupportedError, match=r"torch\.func"), torch.no_grad():
        torch.func.vmap(lambda y: solve(problem).ys + y)(torch.zeros(3, 2, dtype=D))


@torch.no_grad()
def test_problems_and_solutions_can_be_copied(problem):
    sol = pickle.loads(pickle.dumps(solve(problem)))
    assert torch.equal(sol.ys, solve(problem).ys) and sol.stats.nf == solve(problem).stats.nf
    other = copy.deepcopy(problem)
    assert ROUTE not in other.__dict__
    agrees(other)
