"""What the bridge costs: the spiral's gradient from Python, and the same from inside Julia.

``python benchmarks/julia_bridge.py`` prints a table: one gradient of y^3 -> 2-50-2 tanh, 30 saved times on [0, 1.5],
float32, rtol = atol = 1e-6, one thread; medians of interleaved rounds in one process. Also: how long a started session
takes to the first gradient of a model, and of the next one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia.session import session
from pydiffeqflux.graph import kernels

#: The same gradient without Python.
INSIDE = """
module BridgeBenchmark
using PyDiffEqFlux
const P = PyDiffEqFlux

const ALG, GAUSS = P.algorithm("Tsit5"), P.sensitivity("GaussAdjoint"; checkpointing = false)
const TS = collect(range(0.0, 1.5; length = 30))

function ours(kernels::Int, p::Integer, n::Int)
    k, flat = P.HELD[kernels], P.array(Float32, p, n)
    run = P.forward(
        k, ALG, Float32[2, 0], flat, 0.0, 1.5, TS;
        keep = "steps", dense = true, reltol = 1.0e-6, abstol = 1.0e-6, maxiters = 100_000, tstops = Float64[]
    )
    return sum(P.gradient(run, ALG, GAUSS, 2 .* run.us; reltol = 1.0e-6, abstol = 1.0e-6)[2])
end
end
"""


def spiral(width: int) -> Callable[[Tensor, Tensor], Tensor]:
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
    return lambda t, y: net(y**3)


def gradient(func: Callable[[Tensor, Tensor], Tensor], backend: str = "julia") -> None:
    problem = pdf.ODEProblem(func, torch.tensor([2.0, 0.0]), (0.0, 1.5))
    saves = torch.linspace(0, 1.5, 30)
    sol = pdf.solve(problem, "tsit5", saveat=saves, rtol=1e-6, atol=1e-6, backend=backend, dense=False)
    sol.ys.square().sum().backward()


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


@click.command()
@click.option("--rounds", default=200, show_default=True)
def main(rounds: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    running = session()
    first, second = clock(lambda: gradient(spiral(50))), clock(lambda: gradient(spiral(20)))
    print(f"from a started session: first gradient {first / 1e3:.2f} s, next model {second / 1e3:.2f} s")

    func = spiral(50)
    gradient(func)
    traced = kernels(func, torch.tensor(0.0), torch.tensor([2.0, 0.0]))
    p = traced.pack(traced.graphs.externals, "p")
    from pydiffeqflux.backends.julia.model import Model

    model = Model(running, traced)
    model.need("f", "vjp", "vjp_y")
    inside = running._on_thread(lambda: running.main.seval(INSIDE) and None)
    assert inside is None
    ours = running._on_thread(lambda: running.main.seval("BridgeBenchmark.ours"))
    works = {
        "from Python: solve, loss, backward": lambda: gradient(func),
        "inside Julia, the same code": lambda: running._on_thread(lambda: ours(model.handle, p.data_ptr(), len(p))),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(clock(work))
    table = Table("one gradient of the spiral", "ms", "ratio to inside Julia")
    base = times["inside Julia, the same code"]
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        table.add_row(name, f"{statistics.median(found):.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
