"""What the bridge to Julia costs: gradients from Python, and the same without Python, in one process.

``python benchmarks/julia_bridge.py`` measures, on one thread, in interleaved rounds:

- the spiral's gradient (y^3 -> 2-50-2 tanh, 30 saved times on [0, 1.5], float32, rtol = atol = 1e-6): the whole of
  the bridge (problem, solve, loss, backward), the same Julia code called from Julia, and DiffEqFlux's ``NeuralODE``
  with its own sensitivity algorithms;
- the gradients of ROBER and POLLU in their rates by Rodas5P and GaussAdjoint (loss: half the squared distance of the
  saved states to 1; POLLU as in arXiv:1812.01892, t = 0:0.5:60), against functions and derivatives written by hand in
  Julia;
- how long a started session takes to the first gradient of a model and of the next one, each in a process of its own
  (``latency``; ``stiff-latency`` does so for the stiff solvers with the three common adjoints);
- an empty call, and the memory of the process over 10,000 gradients.

It prints tables, and writes a figure and the numbers to ``--out``. Parts are chosen by ``--only``.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from julia_bridge_report import Clocked, Found, draw, show
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia.model import Compiled
from pydiffeqflux.backends.julia.session import Session, session
from pydiffeqflux.graph import kernels

PARTS = ("spiral", "stiff", "latency", "stiff-latency", "calls")

#: DiffEqFlux's own algorithms, its default first.
DIFFEQFLUX = (
    "default",
    "GaussAdjoint, Zygote",
    "GaussAdjoint, ReverseDiff",
    "InterpolatingAdjoint, ReverseDiff",
    "QuadratureAdjoint, ReverseDiff",
    "BacksolveAdjoint, ReverseDiff",
    "ForwardDiffSensitivity",
    "ReverseDiffAdjoint",
    "TrackerAdjoint",
)

#: Method, dtype, sensitivity algorithm.
LATENCIES = (
    *(
        ("tsit5", dtype, name)
        for dtype in ("float32", "float64")
        for name in ("GaussAdjoint", "QuadratureAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint")
    ),
    ("tsit5", "float64", "GaussKronrodAdjoint"),
    ("tsit5", "float64", "ForwardSensitivity"),
    ("tsit5", "float64", "ForwardDiffSensitivity"),
    ("rodas5p", "float32", "GaussAdjoint"),
    ("vern7", "float64", "GaussAdjoint"),
)


#: Method, sensitivity algorithm; float64.
STIFF_LATENCIES = tuple(
    (method, "float64", name)
    for method in ("rodas5p", "FBDF", "kencarp4", "Rosenbrock23", "AutoTsit5(Rosenbrock23())")
    for name in ("GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint")
)

#: How often a quick contender runs before it is timed.
WARM = 10


class Aside:
    """The Julia side: gradients that are called by number, on this thread."""

    def __init__(self, running: Session):
        self._running = running
        path = Path(__file__).with_suffix(".jl")
        running._on_thread(lambda: running.main.include(str(path)) and None)
        run = self._julia(lambda main: main.JuliaBridge.entry())
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64)(run)

    def _julia(self, ask: Callable[[Any], Any]) -> Any:
        return self._running._on_thread(lambda: ask(self._running.main))

    def keep(self, name: str, *args: Any) -> tuple[Callable[[], None], Tensor]:
        """A gradient of the Julia file, and its value."""

        def ask(main: Any) -> tuple[int, list[float]]:
            number, value = getattr(main.JuliaBridge, name)(*args)
            return int(number), [float(x) for x in value]

        number, value = self._julia(ask)
        return (lambda: self._run(number)), torch.tensor(value, dtype=torch.float64)


def race(works: dict[str, Callable[[], None]], rounds: int, patience: float) -> dict[str, Clocked]:
    """Wall and CPU times (of this thread) of everyone, taking turns; a slow one runs in fewer rounds.

    A quick one runs ``WARM`` times before it is timed, as in a training loop: right after something that ran for a few
    milliseconds (which a slow contender does), its code and torch's have to come from memory again, and take two to
    four times as long.
    """
    found = {name: Clocked() for name in works}
    for work in works.values():
        for _ in range(3):
            work()
    for k in range(rounds):
        for name, work in works.items():
            mine = found[name]
            if sum(mine.wall) > 1e3 * patience and len(mine.wall) >= 5:
                continue
            if not mine.wall or mine.wall[-1] < 50:
                for _ in range(WARM):
                    work()
            wall, cpu = time.perf_counter(), time.thread_time()
            work()
            mine.cpu.append(1e3 * (time.thread_time() - cpu))
            mine.wall.append(1e3 * (time.perf_counter() - wall))
        if k % 50 == 49:
            print(f"\r{k + 1} of {rounds} rounds", end="", file=sys.stderr)
    print("\r" + 30 * " " + "\r", end="", file=sys.stderr)
    return found


def error(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


# -- the spiral -----------------------------------------------------------------------------------


SAVES = torch.linspace(0, 1.5, 30)
STARTS = {dtype: torch.tensor([2.0, 0.0], dtype=dtype) for dtype in (torch.float32, torch.float64)}


def spiral(width: int, dtype: torch.dtype = torch.float32) -> tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]:
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)
    return (lambda t, y: net(y**3)), net


def gradient(
    func: Callable[[Tensor, Tensor], Tensor],
    method: str = "tsit5",
    dtype: torch.dtype = torch.float32,
    backend: str = "julia",
    tol: float = 1e-6,
    sensealg: str | None = None,
    rows: int | None = None,
) -> None:
    start = STARTS[dtype] if rows is None else STARTS[dtype].expand(rows, 2)
    problem = pdf.ODEProblem(func, start, (0.0, 1.5))
    sol = pdf.solve(
        problem, method, saveat=SAVES, rtol=tol, atol=tol, backend=backend, dense=False, sensealg=sensealg
    )  # fmt: skip
    ys = sol.ys
    assert isinstance(ys, Tensor)
    ys.square().sum().backward()


def flat_gradient(net: nn.Module, work: Callable[[], None]) -> Tensor:
    net.zero_grad()
    work()
    found = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    net.zero_grad()
    return found.double()


class Nothing(torch.autograd.Function):
    """A solve that does nothing: what is left is torch's own, whatever solves."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor, flat: Tensor, *params: Tensor) -> Tensor:
        ctx.flat, ctx.params = flat, params
        return ys

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts: Sequence[Tensor] = torch._C._nn.unflatten_dense_tensors(ctx.flat, list(ctx.params))
        return (None, None, *parts)


def run_spiral(running: Session, aside: Aside, rounds: int, algorithms: tuple[str, ...]) -> dict[str, Clocked]:
    torch.manual_seed(0)
    func, net = spiral(50)
    traced = kernels(func, torch.tensor(0.0), torch.tensor([2.0, 0.0]))
    p = traced.pack(traced.graphs.externals, "p")
    model = Compiled(running, traced)
    model.need("f", "vjp", "vjp_y")
    bridge = lambda: gradient(func)  # noqa: E731
    wide = nn.Sequential(*net).double()
    exact = flat_gradient(wide, lambda: gradient(lambda t, y: wide(y**3), "vern9", torch.float64, "eager", 1e-12))
    net.float()
    errors: dict[str, float | None] = {"bridge": error(flat_gradient(net, bridge), exact)}
    works = {"bridge": bridge}
    params, states = list(net.parameters()), torch.zeros(len(SAVES), 2)
    works["torch"], errors["torch"] = (lambda: Nothing.apply(states, p, *params).square().sum().backward()), None
    works["ours"], value = aside.keep("ours", model.handle, p.data_ptr(), len(p))
    errors["ours"] = error(value, exact)
    for name in algorithms:
        began = time.perf_counter()
        try:
            works[name], value = aside.keep("diffeqflux", name, p.data_ptr(), len(p))
        except Exception as why:
            print(f"DiffEqFlux, {name}: {' '.join(str(why).split())[:300]}")
            continue
        errors[name] = error(value, exact)
        print(f"DiffEqFlux, {name}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    found = race(works, rounds, patience=20.0)
    for name, clocked in found.items():
        clocked.error = errors[name]
    return found


# -- stiff problems -------------------------------------------------------------------------------


def rober(k: Tensor, t: Tensor, u: Tensor) -> Tensor:
    u1, u2, u3 = u.unbind()
    slow, fast, middle = k[0] * u1, k[1] * u2**2, k[2] * u2 * u3
    return torch.stack([middle - slow, slow - middle - fast, fast])


def pollu(k: Tensor, t: Tensor, u: Tensor) -> Tensor:
    (u1, u2, u3, u4, u5, u6, u7, _, u9, u10, u11, _, u13, u14, _, u16, u17, _, u19, u20) = u.unbind()
    r = k * torch.stack([
        u1, u2 * u4, u5 * u2, u7, u7, u7 * u6, u9, u9 * u6, u11 * u2, u11 * u1, u13, u10 * u2, u14, u1 * u6, u3, u4, u4,
        u16, u16, u17 * u6, u19, u19, u1 * u4, u19 * u1, u20,
    ])  # fmt: skip
    (
        r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15, r16, r17, r18, r19, r20, r21, r22, r23, r24,
        r25,
    ) = r.unbind()  # fmt: skip
    return torch.stack([
        r2 + r3 + r9 + r11 + r12 + r22 + r25 - r1 - r10 - r14 - r23 - r24, r1 + r21 - r2 - r3 - r9 - r12,
        r1 + r17 + r19 + r22 - r15, r15 - r2 - r16 - r17 - r23, 2 * r4 + r6 + r7 + r13 + r20 - r3,
        2 * r18 + r3 - r6 - r8 - r14 - r20, r13 - r4 - r5 - r6, r4 + r5 + r6 + r7, -r7 - r8, r7 + r9 - r12,
        r8 + r11 - r9 - r10, r9, r10 - r11, r12 - r13, r14, r16 - r18 - r19, -r20, r20, r23 + r25 - r21 - r22 - r24,
        r24 - r25,
    ])  # fmt: skip


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


POLLU_RATES = _vector(
    0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9.0e3, 0.022, 1.2e4, 1.88, 1.63e4, 4.8e6,
    3.5e-4, 0.0175, 1.0e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12,
)  # fmt: skip
POLLU_START = torch.zeros(20, dtype=torch.float64)
POLLU_START[[1, 3, 6, 7, 8, 16]] = _vector(0.2, 0.04, 0.1, 0.3, 0.01, 0.007)

#: Function, rates, initial state, save times, rtol, atol.
STIFF = {
    "rober": (rober, _vector(0.04, 3e7, 1e4), _vector(1, 0, 0), torch.logspace(-5, 5, 30).double(), 1e-6, 1e-8),
    "pollu": (pollu, POLLU_RATES, POLLU_START, torch.arange(0, 60.5, 0.5, dtype=torch.float64), 1e-7, 1e-5),
}


def run_stiff(aside: Aside, name: str, rounds: int) -> dict[str, Clocked]:
    func, values, u0, saves, rtol, atol = STIFF[name]
    k = values.clone().requires_grad_()
    bound = lambda t, u: func(k, t, u)  # noqa: E731
    end = float(saves[-1])

    def bridge() -> None:
        problem = pdf.ODEProblem(bound, u0, (0.0, end))
        sol = pdf.solve(problem, "rodas5p", saveat=saves, rtol=rtol, atol=atol, backend="julia", dense=False)
        ys = sol.ys
        assert isinstance(ys, Tensor)
        (0.5 * (1 - ys).square().sum()).backward()

    works: dict[str, Callable[[], None]] = {"bridge": bridge}
    bridge()
    assert k.grad is not None
    # The rates are of very different size: so are the gradients, which are compared by what a rate's own size does.
    value = k.grad * values
    k.grad = None
    errors = {}
    flat, times = u0.contiguous(), saves.contiguous()
    for way in ("vjp", "tape"):
        works[way], reference = aside.keep(
            "stiff", name, way, flat.data_ptr(), len(flat), values.data_ptr(), len(values), times.data_ptr(),
            len(times), rtol, atol,
        )  # fmt: skip
        errors[way] = error(value, reference * values)
    found = race(works, rounds, patience=30.0)
    for way, apart in errors.items():
        found[way].error = apart
    return found


# -- latency, calls, memory -----------------------------------------------------------------------


def latency(method: str, dtype: str, sensealg: str) -> dict[str, float]:
    """Seconds to a started session, to the first gradient, and to those of two more models, of other sizes.

    For the first gradient seconds of CPU time, too: what compiling costs, whatever else the machine does.
    """
    torch.set_num_threads(1)
    found, began = {}, time.perf_counter()
    session()
    found["start"] = time.perf_counter() - began
    for k, width in enumerate((50, 20, 7)):
        func, _ = spiral(width, getattr(torch, dtype))
        began, cpu = time.perf_counter(), time.process_time()
        gradient(func, method, getattr(torch, dtype), tol=1e-4, sensealg=sensealg, rows=(None, None, 3)[k])
        name = ("first", "next", "third")[k]
        found[name], found[f"{name} CPU"] = time.perf_counter() - began, time.process_time() - cpu
    return found


def run_latencies(cases: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, float]]:
    found = {}
    for case in cases:
        command = [sys.executable, __file__, "--latency-of", *case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[", ".join(case)] = json.loads(done.stdout.splitlines()[-1])
        print(f"{', '.join(case)}: {found[', '.join(case)]}", flush=True)
    return found


def run_calls(running: Session, solves: int) -> dict[str, float]:
    """Microseconds of empty calls; megabytes that the process grew by."""
    release = running.entries.release

    def least(work: Callable[[], object]) -> float:
        times = []
        for _ in range(2000):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return 1e6 * min(times)

    found = {
        "an empty C call (us)": least(lambda: release(0, 0)),
        "an empty call by juliacall on Julia's thread (us)": least(lambda: running.call("release")),
    }
    func, _ = spiral(50)

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    for _ in range(2000):
        gradient(func)
    before = resident()
    for _ in range(solves):
        gradient(func)
    found[f"memory over {solves} gradients (MB)"] = resident() - before
    return found


@click.command()
@click.option("--rounds", default=300, show_default=True)
@click.option("--only", type=click.Choice(PARTS), multiple=True, default=PARTS, help="May be given several times.")
@click.option("--diffeqflux", default=";".join(DIFFEQFLUX), show_default=True, help="Its algorithms, by ';'.")
@click.option("--solves", default=10_000, show_default=True, help="How many, to see whether memory grows.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("julia_bridge"), show_default=True)
@click.option("--latency-of", nargs=3, default=None, help="Method, dtype, algorithm: print this process's latencies.")
def main(
    rounds: int, only: tuple[str, ...], diffeqflux: str, solves: int, out: Path, latency_of: tuple[str, str, str] | None
) -> None:
    """Measure the bridge to Julia."""
    if latency_of:
        print(json.dumps(latency(*latency_of)))
        return
    torch.set_num_threads(1)
    found = Found()
    out.mkdir(parents=True, exist_ok=True)
    numbers = out / "julia_bridge.json"
    for part, cases in (("latency", LATENCIES), ("stiff-latency", STIFF_LATENCIES)):
        if part in only:
            found.latency |= run_latencies(cases)
            found.write(numbers)  # what has been measured is not lost with what comes after
    if set(only) - {"latency", "stiff-latency"}:
        running = session()
        aside = Aside(running) if {"spiral", "stiff"} & set(only) else None
        if aside is not None and "spiral" in only:
            found.races["spiral"] = run_spiral(running, aside, rounds, tuple(x for x in diffeqflux.split(";") if x))
            found.write(numbers)
        if aside is not None and "stiff" in only:
            for name in STIFF:
                found.races[name] = run_stiff(aside, name, rounds)
                found.write(numbers)
        if "calls" in only:
            found.calls = run_calls(running, solves)
    found.write(numbers)
    show(found)
    if found.races:
        draw(found, out / "julia_bridge.png")
    print(f"figure and numbers in {out}")


if __name__ == "__main__":
    main()
