"""Who may call Julia, from which thread, and what ends a call early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems.in_julia import juliacalls
from torch import Tensor

import pydiffeqflux as pdf

pytestmark = pytest.mark.julia

D = torch.float64


def decay(rate: Tensor, **options: Any) -> Tensor:
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(2, dtype=D), (0.0, 1.0))
    sol = pdf.solve(problem, saveat=[1.0], backend="julia", rtol=1e-9, atol=1e-9, **options)
    assert isinstance(sol.ys, Tensor)
    return sol.ys


def right(rate: float = 0.5) -> bool:
    """A solve and its gradient, as they should be."""
    k = torch.tensor(rate, dtype=D, requires_grad=True)
    ys = decay(k)
    (slope,) = torch.autograd.grad(ys.sum(), k)
    end = torch.exp(-k.detach())
    return bool(torch.allclose(ys.detach(), end.expand(1, 2), atol=1e-7)) and abs(float(slope + 2 * end)) < 1e-6


def endless(fallback: str | None = None) -> None:
    """A solve of a thousand million steps."""

    def func(t: Tensor, y: Tensor) -> Tensor:
        if fallback is not None and float(y.detach().sum()) > 1e9:
            return y
        return -y

    problem = pdf.ODEProblem(func, torch.ones(2, dtype=D), (0.0, 1.0))
    pdf.solve(
        problem, "rk4", dt=1e-9, saveat=[1.0], dense=False, backend="julia", max_steps=2_000_000_000, fallback=fallback
    )  # fmt: skip


@pytest.fixture
def alarm() -> Any:
    """Calls a handler from now on whenever the returned function's time has come."""
    before = signal.getsignal(signal.SIGALRM)

    def after(seconds: float, handler: Callable[[int, Any], None]) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield after
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_runs_during_a_solve_and_its_exception_ends_it(alarm: Any) -> None:
    decay(torch.tensor(0.5, dtype=D))

    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("that will do")

    alarm(0.5, handler)
    began = time.perf_counter()
    with pytest.raises(TimeoutError, match="that will do"):
        endless()
    assert time.perf_counter() - began < 60  # the solve itself takes hours
    assert right()


def test_a_handler_that_raises_nothing_does_not_end_the_solve(alarm: Any) -> None:
    heard: list[float] = []
    alarm(0.2, lambda number, frame: heard.append(time.perf_counter()))
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 1.0))
    options: dict[str, Any] = {"saveat": [1.0], "dense": False, "max_steps": 10_000_000, "backend": "julia"}
    sol, ended = pdf.solve(problem, "rk4", dt=4e-7, **options), time.perf_counter()
    assert sol.success
    assert heard and heard[0] < ended


@pytest.mark.parametrize("fallback", [None, "callback"])
def test_ctrl_c(fallback: str | None) -> None:
    decay(torch.tensor(0.5, dtype=D))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        endless(fallback)
    timer.join()
    assert right()


def test_two_threads_at_once() -> None:
    found: list[bool] = []

    def work() -> None:
        for k in range(40):
            found.append(right(0.2 + 0.01 * k))

    thread = threading.Thread(target=work)
    thread.start()
    mine = [right(0.3 + 0.01 * k) for k in range(40)]
    thread.join(300)
    assert all(mine) and len(found) == 40 and all(found)


def test_julia_collects_its_garbage_on_whichever_thread() -> None:
    from pydiffeqflux.backends.julia.session import session

    running = session()

    def collect() -> None:
        running._on_thread(lambda: running.main.GC.gc())

    other = threading.Thread(target=collect)
    other.start()
    other.join(300)
    assert right()
    collect()
    assert right()
    # On the main thread itself, during a solve: enough garbage for a collection or two.
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1000, dtype=D), (0.0, 1.0))
    for _ in range(20):
        assert pdf.solve(problem, "rk4", dt=1e-3, backend="julia").success


def test_a_function_that_is_called_back_may_solve_by_julia_itself() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        inner = decay(torch.tensor(0.5, dtype=D)) if float(t.detach()) >= 0 else y
        return -inner[0] * y

    problem = pdf.ODEProblem(func, torch.ones(2, dtype=D), (0.0, 1.0))
    sol = pdf.solve(problem, "rk4", dt=0.25, saveat=[1.0], backend="julia", fallback="callback")
    assert float(sol.ys[-1, 0]) == pytest.approx(float(torch.exp(-torch.exp(torch.tensor(-0.5)))), abs=1e-4)


SCRIPT = """
{imports}
import threading, torch, pydiffeqflux as pdf
def work():
    problem = pdf.ODEProblem(lambda t, y: -0.5 * y, torch.ones(1, dtype=torch.float64), (0.0, 1.0))
    sol = pdf.solve(problem, saveat=[1.0], backend="julia", rtol=1e-9, atol=1e-9)
    return round(float(sol.ys), 6)
{more}
found = [work()]
thread = threading.Thread(target=lambda: found.append(work()))
thread.start()
thread.join()
print(*found, work())
"""


# Only the thread that Julia was started on can load packages, and may print: printing is where another one waits.
FROM_ANOTHER = """
def refused():
    try:
        work()
    except pdf.errors.BackendUnavailableError as why:
        assert "main thread" in str(why)
        print("refused")
thread = threading.Thread(target=refused)
thread.start()
thread.join()
work()
juliacall.Main.println("printed")
juliacall.Main.GC.gc()
"""


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import torch", "import juliacall"])
def test_a_process_begins_and_ends_well(imports: str) -> None:
    """Also where juliacall was imported, and Julia started by it, before."""
    more = FROM_ANOTHER if "juliacall" in imports else ""
    script = SCRIPT.format(imports=imports, more=more)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | juliacalls())
    assert done.stdout.split()[-3:] == ["0.606531"] * 3, done.stderr
    assert ("refused" in done.stdout) == ("printed" in done.stdout) == ("juliacall" in imports)
    assert done.returncode == 0, done.stderr
