"""Ensembles: the same trajectories wherever they are solved, their gradients, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest
import torch
from problems import ensembles
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.ensemble.problem import seed_of
from pydiffeqflux.errors import (
    EnsembleError,
    GradientError,
    InvalidArgumentError,
    NotPicklableError,
    ShapeError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

D = torch.float64
STARTS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0], [1.0, 1.0], [2.0, -1.0]], dtype=D)
FREQUENCIES = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=D)
TIGHT: dict[str, Any] = {"saveat": [0.5, 1.0], "rtol": 1e-8, "atol": 1e-10}
HERE = ["serial", "batched", "threads"]


def vary(problem: Any, i: int) -> Any:
    return dataclasses.replace(
        problem, y0=STARTS[i], func=functools.partial(ensembles.oscillator, frequency=FREQUENCIES[i])
    )


def oscillators(**options: Any) -> pdf.EnsembleProblem:
    return pdf.EnsembleProblem(pdf.ODEProblem(ensembles.oscillator, STARTS[0], (0.0, 1.0)), vary, **options)


def exact(t: float) -> Tensor:
    w = FREQUENCIES
    c, s = torch.cos(w * t), torch.sin(w * t)
    return torch.stack([STARTS[:, 0] * c + STARTS[:, 1] * s / w, STARTS[:, 1] * c - w * STARTS[:, 0] * s], 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """One pair of processes for all tests: starting one takes seconds."""
    import multiprocessing

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


# -- the same everywhere ------------------------------------------------------------------------


@pytest.mark.parametrize("ensemblealg", HERE)
@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_trajectories_are_exact_solutions(ensemblealg: str, method: str) -> None:
    sols = pdf.solve_ensemble(oscillators(), method, trajectories=5, ensemblealg=ensemblealg, **TIGHT)
    assert sols.ys.shape == (5, 2, 2) and len(sols) == sols.count == 5 and sols.success
    assert torch.allclose(sols.ys[:, 1], exact(1.0), rtol=1e-5)
    assert torch.allclose(sols[3](0.75), exact(0.75)[3], rtol=1e-4)
    assert [sol.stats.method for sol in sols] == [method] * 5
    assert torch.equal(sols.ts, torch.tensor([0.5, 1.0], dtype=D))


def test_rows_of_a_batch_may_step_for_themselves() -> None:
    sols = pdf.solve_ensemble(oscillators(), trajectories=5, ensemblealg="batched", per_sample=True, **TIGHT)
    assert torch.allclose(sols.ys[:, 1], exact(1.0), rtol=1e-5)
    alone = pdf.solve_ensemble(oscillators(), trajectories=5, **TIGHT)
    assert torch.allclose(sols.ys, alone.ys, rtol=1e-10)  # no row sees another


def test_states_that_are_structures() -> None:
    func = lambda t, y: {"a": -y["a"], "b": y["a"].sum() - y["b"]}  # noqa: E731
    problem = pdf.ODEProblem(func, {"a": torch.ones(3), "b": torch.zeros(())}, (0.0, 1.0))
    more = lambda p, i: dataclasses.replace(p, y0={"a": torch.ones(3) * i, "b": torch.zeros(())})  # noqa: E731
    for ensemblealg in HERE:
        sols = pdf.solve_ensemble(
            pdf.EnsembleProblem(problem, more), trajectories=3, ensemblealg=ensemblealg, saveat=[1.0], rtol=1e-6
        )
        assert sols.ys["a"].shape == (3, 1, 3) and sols.ys["b"].shape == (3, 1)
        assert torch.allclose(sols.ys["b"][:, 0], 3 * torch.arange(3.0) * math.exp(-1), rtol=1e-4)


@torch.no_grad()
def test_other_processes_find_the_same(pool: ProcessPoolExecutor) -> None:
    here = pdf.solve_ensemble(oscillators(), trajectories=5, **TIGHT)
    there = pdf.solve_ensemble(oscillators(), trajectories=5, ensemblealg=pool, **TIGHT)
    assert torch.equal(here.ys, there.ys)
    assert torch.equal(here[2](0.3), there[2](0.3))  # the dense output comes along
    assert there[0].stats.naccept == here[0].stats.naccept


@torch.no_grad()
def test_processes_by_name_and_what_is_kept_of_a_solution() -> None:
    ensemble = oscillators(output_func=ensembles.last)
    found = pdf.solve_ensemble(ensemble, trajectories=3, ensemblealg="processes", workers=1, **TIGHT)
    for i in range(3):
        assert torch.allclose(found[i], i * exact(1.0)[i], rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match="output_func kept a Tensor"):
        _ = found.ys


def test_a_real_dask_cluster() -> None:
    distributed = pytest.importorskip("distributed", reason="pip install 'dask[distributed]'")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        torch.no_grad(),
    ):
        here = pdf.solve_ensemble(oscillators(), trajectories=5, **TIGHT)
        by_client = pdf.solve_ensemble(oscillators(), trajectories=5, ensemblealg=client, **TIGHT)
        by_executor = pdf.solve_ensemble(oscillators(), trajectories=5, ensemblealg=client.get_executor(), **TIGHT)
        assert torch.equal(here.ys, by_client.ys) and torch.equal(here.ys, by_executor.ys)
        where = pdf.solve_ensemble(
            oscillators(output_func=ensembles.process), trajectories=5, ensemblealg=client, **TIGHT
        )
        workers = set(client.run(os.getpid).values())
        assert len(workers) == 2 and os.getpid() not in workers and set(where) <= workers


# -- noise --------------------------------------------------------------------------------------


def noisy(seed: int | None = 3) -> pdf.EnsembleProblem:
    problem = pdf.SDEProblem(ensembles.decay, ensembles.noise, torch.ones(1, dtype=D), (0.0, 1.0))
    return pdf.EnsembleProblem(problem, seed=seed)


NOISE: dict[str, Any] = {"dt": 0.1, "saveat": [0.5, 1.0]}


@torch.no_grad()
def test_noise_depends_on_the_seed_and_the_trajectory_alone(pool: ProcessPoolExecutor) -> None:
    one = pdf.solve_ensemble(noisy(), "em", trajectories=6, **NOISE)
    for ensemblealg in ("threads", pool):
        same = pdf.solve_ensemble(noisy(), "em", trajectories=6, ensemblealg=ensemblealg, **NOISE)
        assert torch.equal(one.ys, same.ys)
    fewer = pdf.solve_ensemble(noisy(), "em", trajectories=4, batch_size=3, **NOISE)
    assert torch.equal(one.ys[:4], fewer.ys)
    assert one.ys[:, -1].std() > 0.05 and one.seed == 3
    assert [sol.stats.seed for sol in one] == [seed_of(3, i) for i in range(6)]
    assert not torch.equal(one.ys, pdf.solve_ensemble(noisy(4), "em", trajectories=6, **NOISE).ys)
    torch.manual_seed(7)
    drawn = pdf.solve_ensemble(noisy(None), "em", trajectories=2, **NOISE)
    torch.manual_seed(7)
    assert torch.equal(drawn.ys, pdf.solve_ensemble(noisy(None), "em", trajectories=2, **NOISE).ys)
    kept = pdf.EnsembleProblem(noisy().problem, lambda p, i: dataclasses.replace(p, seed=5), seed=3)
    same = pdf.solve_ensemble(kept, "em", trajectories=2, **NOISE)
    assert torch.equal(same.ys[0], same.ys[1])


@torch.no_grad()
def test_moments_of_a_batch_of_paths() -> None:
    """E y = exp(-t), Var y = exp(-2 t) (exp(0.09 t) - 1) of geometric Brownian motion."""
    sols = pdf.solve_ensemble(
        noisy(), "sosri", trajectories=4000, ensemblealg="batched", saveat=[0.5, 1.0], rtol=1e-2, atol=1e-3
    )
    summary = sols.summary((0.25, 0.5))
    for k, t in enumerate((0.5, 1.0)):
        mean, var = math.exp(-t), math.exp(-2 * t) * (math.exp(0.09 * t) - 1)
        assert float(summary.mean[k]) == pytest.approx(mean, abs=4 * math.sqrt(var / 4000))
        assert float(summary.var[k]) == pytest.approx(var, rel=0.15)
        assert float(summary.quantiles[1][k]) == pytest.approx(math.exp(-1.045 * t), rel=0.02)  # of a log-normal
    again = pdf.solve_ensemble(
        noisy(), "sosri", trajectories=4000, ensemblealg="batched", saveat=[0.5, 1.0], rtol=1e-2, atol=1e-3
    )
    assert torch.equal(sols.ys, again.ys)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sensealg", [None, "GaussAdjoint", pdf.DiscreteAdjoint(checkpoints=2)])
@pytest.mark.parametrize("ensemblealg", HERE)
def test_gradients_of_starts_parameters_and_modules(ensemblealg: str, sensealg: Any) -> None:
    starts, gains = STARTS[:3].clone().requires_grad_(), torch.tensor([0.5, 1.0, 2.0], dtype=D, requires_grad=True)
    net = ensembles.net()

    def field(t: Tensor, y: Tensor, gain: Any) -> Tensor:
        return gain * net(y)

    def made(problem: Any, i: int) -> Any:
        return dataclasses.replace(problem, y0=starts[i], func=functools.partial(field, gain=gains[i]))

    def loss(end: Tensor) -> Tensor:
        return (end * torch.tensor([1.0, 3.0], dtype=D)).square().sum()

    problem = pdf.ODEProblem(functools.partial(field, gain=1.0), starts[0], (0.0, 1.0))
    options: dict[str, Any] = {"saveat": [1.0], "rtol": 1e-9, "atol": 1e-11, "sensealg": sensealg}
    sols = pdf.solve_ensemble(pdf.EnsembleProblem(problem, made), trajectories=3, ensemblealg=ensemblealg, **options)
    wanted = (starts, gains, *net.parameters())
    found = torch.autograd.grad(loss(sols.ys), wanted)
    expected = [torch.zeros_like(x) for x in wanted]
    for i in range(3):
        alone = pdf.ODEProblem(lambda t, y, i=i: gains[i] * net(y), starts[i], (0.0, 1.0))
        sol = pdf.solve(alone, rtol=1e-9, atol=1e-11)
        for total, g in zip(expected, torch.autograd.grad(loss(sol.ys[-1]), wanted), strict=True):
            total += g
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_threads_record_as_much_as_the_caller_does() -> None:
    ensemble = pdf.EnsembleProblem(pdf.ODEProblem(ensembles.Field(), STARTS[0], (0.0, 1.0)))
    assert pdf.solve_ensemble(ensemble, trajectories=2, ensemblealg="threads", saveat=[1.0]).ys.requires_grad
    with torch.no_grad():
        assert not pdf.solve_ensemble(ensemble, trajectories=2, ensemblealg="threads", saveat=[1.0]).ys.requires_grad


def test_other_processes_give_no_gradient_and_say_so(pool: ProcessPoolExecutor) -> None:
    ensemble = pdf.EnsembleProblem(pdf.ODEProblem(ensembles.Field(), STARTS[0], (0.0, 1.0)))
    sols = pdf.solve_ensemble(ensemble, trajectories=2, ensemblealg=pool, saveat=[1.0])
    with pytest.raises(GradientError, match="ensemblealg='serial', 'threads' or 'batched'"):
        sols.ys.sum().backward()
    plain = pdf.EnsembleProblem(pdf.ODEProblem(ensembles.decay, STARTS[0], (0.0, 1.0)))
    assert not pdf.solve_ensemble(plain, trajectories=2, ensemblealg=pool, saveat=[1.0]).ys.requires_grad


# -- summing up ---------------------------------------------------------------------------------


def test_a_reduction_uses_trajectories_up_and_may_stop() -> None:
    calls = []

    def total(value: Any, outputs: list[Any], indices: range) -> tuple[Any, bool]:
        calls.append(list(indices))
        value = value + sum(float(out[0]) for out in outputs)
        return value, len(calls) == 2

    ensemble = oscillators(output_func=lambda sol, i: sol.ys[-1], reduction=total, initial=0.0)
    found = pdf.solve_ensemble(ensemble, trajectories=5, batch_size=2, **TIGHT)
    assert calls == [[0, 1], [2, 3]] and found.count == 4 and len(found) == 0
    assert found.reduced == pytest.approx(float(exact(1.0)[:4, 0].sum()), rel=1e-5)
    with pytest.raises(InvalidArgumentError, match="reduced"):
        found.summary()


def test_quantiles_and_picture() -> None:
    sols = pdf.solve_ensemble(oscillators(), trajectories=5, saveat=0.1, rtol=1e-6)
    summary = sols.summary((0.0, 1.0))
    assert torch.equal(summary.quantiles[0], sols.ys.min(0).values)
    assert torch.equal(summary.quantiles[1], sols.ys.max(0).values)
    assert torch.allclose(summary.mean, sols.ys.mean(0)) and summary.count == 5
    ax = sols.plot(components=[0], labels=["x"], trajectories=3)
    assert len(ax.lines) == 1 + 3 and len(ax.collections) == 1
    for wrong in ({"quantiles": (1.5,)},):
        with pytest.raises(InvalidArgumentError, match="lie in"):
            sols.summary(**wrong)
    for bad in ({"components": [7]}, {"labels": ["a"]}):
        with pytest.raises(InvalidArgumentError):
            sols.plot(**bad)  # type: ignore[arg-type]


# -- what goes wrong ----------------------------------------------------------------------------


def explosive() -> pdf.EnsembleProblem:
    problem = pdf.ODEProblem(ensembles.blow_up, torch.ones(1, dtype=D), (0.0, 1.0))
    return pdf.EnsembleProblem(problem, lambda p, i: dataclasses.replace(p, y0=torch.tensor([0.4 * i], dtype=D)))


def test_a_failed_trajectory_is_named(pool: ProcessPoolExecutor) -> None:
    for ensemblealg in ("serial", "threads", pool):
        with torch.no_grad(), pytest.raises(EnsembleError, match=r"trajectory 3: .*t=0\.83") as caught:
            pdf.solve_ensemble(explosive(), trajectories=5, ensemblealg=ensemblealg, saveat=[1.0])
        assert caught.value.index == 3
    sols = pdf.solve_ensemble(explosive(), trajectories=4, throw=False, saveat=[1.0])
    assert [status.ok for status in sols.statuses] == [True, True, True, False] and not sols.success
    with pytest.raises(ShapeError, match="trajectory 3 was saved at other times"):
        _ = sols.ys
    rows = pdf.solve_ensemble(
        explosive(), trajectories=4, ensemblealg="batched", per_sample=True, throw=False, saveat=[1.0]
    )
    assert [status.ok for status in rows.statuses] == [True, True, True, False]


def test_what_cannot_be_pickled() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(NotPicklableError, match=r"at the top of a file.*threads"):
        pdf.solve_ensemble(pdf.EnsembleProblem(problem), trajectories=2, ensemblealg="processes")


class Nowhere:
    """Runs nothing, elsewhere or here."""

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(ConnectionError("the cluster is gone"))
        return failed


def test_an_executors_own_errors_come_through() -> None:
    with pytest.raises(ConnectionError, match="cluster is gone"):
        pdf.solve_ensemble(oscillators(), trajectories=2, ensemblealg=Nowhere())


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        ({"trajectories": 0}, InvalidArgumentError, "trajectories=0"),
        ({"trajectories": 2.0}, InvalidArgumentError, "trajectories=2.0"),
        ({"trajectories": 2, "batch_size": -1}, InvalidArgumentError, "batch_size=-1"),
        ({"trajectories": 2, "workers": True}, InvalidArgumentError, "workers=True"),
        ({"trajectories": 2, "ensemblealg": "parallel"}, UnknownNameError, "ensemblealg='parallel'"),
        ({"trajectories": 2, "ensemblealg": 7}, InvalidArgumentError, "submit"),
        ({"trajectories": 2, "trajectory": 3}, UnknownOptionError, "Did you mean 'trajectories'"),
        ({"trajectories": 2, "progress": True}, InvalidArgumentError, "progress"),
    ],
)
def test_arguments_that_are_none(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        pdf.solve_ensemble(oscillators(), **arguments)


def test_problems_that_are_none() -> None:
    problem = pdf.ODEProblem(ensembles.decay, torch.ones(1), (0.0, 1.0))
    for wrong, says in (
        ((7,), "problem is a int"),
        ((problem, 7), "prob_func=7"),
        ((problem, None, 7), "output_func=7"),
        ((problem, None, None, 7), "reduction=7"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            pdf.EnsembleProblem(*wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="seed=-1"):
        pdf.EnsembleProblem(problem, seed=-1)
    with pytest.raises(InvalidArgumentError, match="give an EnsembleProblem"):
        pdf.solve_ensemble(problem, trajectories=2)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="solve_ensemble"):
        pdf.solve(pdf.EnsembleProblem(problem))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="prob_func returned a NoneType for trajectory 0"):
        pdf.solve_ensemble(pdf.EnsembleProblem(problem, lambda p, i: None), trajectories=2)
    with pytest.raises(InvalidArgumentError, match="at least two"):
        pdf.solve_ensemble(pdf.EnsembleProblem(problem), trajectories=1, saveat=[1.0]).summary()


def test_what_cannot_be_batched() -> None:
    problem = pdf.ODEProblem(ensembles.decay, torch.ones(1), (0.0, 1.0))
    matrix = torch.eye(1)

    def solve(prob_func: Any, base: Any = problem, **options: Any) -> None:
        pdf.solve_ensemble(
            pdf.EnsembleProblem(base, prob_func), trajectories=2, ensemblealg="batched", **{"saveat": [1.0], **options}
        )

    change = dataclasses.replace
    cases: list[tuple[Any, str]] = [
        (lambda p, i: change(p, t_span=(0.0, 1.0 + i)), "has t_span="),
        (lambda p, i: change(p, func=lambda t, y: -y * i), "functions of their own"),
        (lambda p, i: change(p, y0=torch.ones(1 + i)), "y0 differs"),
        (lambda p, i: change(p, func=functools.partial(ensembles.decay, rate=[1.0] * (i + 1))), "other arguments"),
        (lambda p, i: change(p, func=functools.partial(ensembles.decay, rate=str(i))), "a str differs"),
        (lambda p, i: change(p, mass_matrix=matrix.clone()), "mass matrices that differ"),
    ]
    for prob_func, says in cases:
        with pytest.raises(UnsupportedError, match=says):
            solve(prob_func)
    with pytest.raises(UnsupportedError, match="event with ensemblealg='batched'"):
        solve(None, event=pdf.Event(lambda t, y: y[0] - 0.5))
    branching = change(problem, func=lambda t, y: -y if y[0] > 0.5 else y)
    with pytest.raises(UnsupportedError, match=r"torch\.func\.vmap"):
        solve(None, branching)
    with pytest.raises(UnsupportedError, match="batched rows"):
        solve(None, pdf.ODEProblem(ensembles.decay, torch.ones(3, 1), (0.0, 1.0), True, matrix), method="rodas5p")
    with pytest.raises(UnsupportedError, match="a seed of each"):
        solve(lambda p, i: change(p, seed=1000 + i), noisy().problem, method="em", dt=0.1)


def test_fully_implicit_equations(pool: ProcessPoolExecutor) -> None:
    ones = torch.ones(2, dtype=D)
    problem = pdf.DAEProblem(ensembles.relaxing, ones, -ones, (0.0, 1.0), [True, False])
    ensemble = pdf.EnsembleProblem(problem, lambda p, i: dataclasses.replace(p, y0=ones * i, dy0=-ones * i))
    for ensemblealg in ("serial", pool):
        sols = pdf.solve_ensemble(ensemble, trajectories=3, ensemblealg=ensemblealg, saveat=[1.0], rtol=1e-7, atol=1e-9)
        assert torch.allclose(sols.ys[:, 0, 1], math.exp(-1) * torch.arange(3, dtype=D), rtol=1e-5)
    with pytest.raises(UnsupportedError, match="a DAEProblem with ensemblealg='batched'"):
        pdf.solve_ensemble(ensemble, trajectories=3, ensemblealg="batched")


def test_a_batch_of_differential_algebraic_equations() -> None:
    from problems import algebraic

    problem = pdf.ODEProblem(
        algebraic.product, algebraic.product_solution(0.0), (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS
    )
    sols = pdf.solve_ensemble(
        pdf.EnsembleProblem(problem), "rodas5p", trajectories=3, ensemblealg="batched", saveat=[1.0], rtol=1e-8
    )
    assert torch.allclose(sols.ys[:, 0], algebraic.product_solution(1.0).expand(3, 2), rtol=1e-5)
