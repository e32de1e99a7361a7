"""``backend="julia"`` with arrays whose elements cannot be read one by one.

No GPU is needed: the arrays of JLArrays, GPUArrays' reference implementation, refuse what a GPU's refuse. The same
tests on a GPU are in ``test_julia_cuda.py``.
"""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from problems.arrays import MANY, products, solved
from problems.modules import MODULES

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia.emit_arrays import array_source, independent
from pydiffeqflux.backends.julia.places import taken_for
from pydiffeqflux.errors import BackendUnavailableError, DtypeError, UnsupportedError
from pydiffeqflux.graph import kernels
from pydiffeqflux.graph.buffer import Buffer
from pydiffeqflux.graph.expr import WORDS, Call, Expr, Index, Load, Number, call, number
from pydiffeqflux.graph.program import Loop

D = torch.float64
SAVES = [0.0, 0.5, 1.0]


@pytest.fixture
def arrays() -> Iterator[None]:
    """Tensors on the CPU are solved with JLArrays."""
    from pydiffeqflux.backends.julia.engine import _Tools
    from pydiffeqflux.backends.julia.session import session

    with taken_for("cpu", "JLArrays"):
        try:
            _Tools.of(session()).places.of(torch.device("cpu"))
        except BackendUnavailableError as why:
            pytest.skip(str(why))
        yield


# -- the emitter, without Julia ---------------------------------------------------------------------------------------


def value(e: Expr, known: dict[Index, int], memory: dict[Any, int]) -> Any:
    """What an index expression is; places in memory hold any integers."""
    if isinstance(e, Number):
        return e.value
    if isinstance(e, Index):
        return known.get(e, 1)
    if isinstance(e, Load):
        return memory.setdefault((e.buffer, value(e.at, known, memory)), random.randrange(3))
    assert isinstance(e, Call)
    return WORDS[e.word][1](*(value(a, known, memory) for a in e.args))


def collisions(loop: Loop) -> int:
    """How many places are written by different combinations of the indices that are said to be independent."""
    apart, _ = independent(loop)
    memory: dict[Any, int] = {}
    writer: dict[int, tuple[int, ...]] = {}
    count = 0
    for combination in itertools.product(*(range(n) for _, n in loop.over)):
        known = {k: i for (k, _), i in zip(loop.over, combination, strict=True)}
        mine = tuple(known[k] for k, _ in apart)
        count += writer.setdefault(value(loop.at, known, memory), mine) != mine
    return count


@pytest.mark.parametrize("name", list(MODULES))
def test_work_items_write_to_places_of_their_own(name: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    func, y0 = MODULES[name]()
    traced = kernels(func, torch.tensor(0.3, dtype=D), y0)
    for part in ("f", "vjp"):
        for s in traced.program(part).statements:
            if isinstance(s, Loop) and math.prod(n for _, n in s.over) <= 2000:
                assert collisions(s) == 0


def test_places_that_are_read_from_memory() -> None:
    a, b, c = Index("a"), Index("b"), Index("c")
    into, held = Buffer("output", "out", 60), Buffer("input", "i", 4)

    def parted(at: Expr) -> str:
        apart, _ = independent(Loop(((a, 4), (b, 3), (c, 5)), into, at, number(0.0), True))
        return "".join(k.name for k, _ in apart)

    def plus(*terms: tuple[Expr, int]) -> Expr:
        total: Expr = number(0)
        for e, step in terms:
            total = call("add", total, call("mul", e, number(step)))
        return total

    picked = Load(held, a, "int")
    assert parted(plus((a, 15), (b, 5), (c, 1))) == "abc"
    assert parted(plus((a, 1), (b, 4), (c, 12))) == "abc"
    assert parted(plus((picked, 15), (b, 5), (c, 1))) == "bc"
    assert parted(plus((picked, 5), (b, 15), (c, 1))) == "c"  # rows of one `b` may be those of another
    assert parted(plus((picked, 3), (b, 1), (c, 15))) == "b"
    assert parted(plus((b, 5), (c, 1))) == "bc"  # every `a` writes to the same places
    assert parted(plus((b, 4), (c, 1))) == ""  # windows that overlap
    assert parted(number(0)) == ""


def test_long_reductions_are_shared() -> None:
    def func(t: Any, y: torch.Tensor) -> torch.Tensor:
        return y * y.mean()

    code, workspace = array_source(kernels(func, torch.tensor(0.0, dtype=D), torch.randn(5000, dtype=D)).program("f"))
    assert "for share_ in part_:256:4999" in code
    assert workspace >= 256
    short, less = array_source(kernels(func, torch.tensor(0.0, dtype=D), torch.randn(50, dtype=D)).program("f"))
    assert "share_" not in short and less < 256


# -- in Julia ---------------------------------------------------------------------------------------------------------

SOME = ["spiral_batch", "time", "indexing", "graph_sum", "wide", "long"]


@pytest.mark.julia
@pytest.mark.parametrize("name", [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in MANY])
def test_values_and_products(arrays: None, name: str) -> None:
    for found, expected in products(name, "cpu"):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


PAIRS = [
    ("tsit5", "GaussAdjoint"),
    *(
        pytest.param(method, sensealg, marks=pytest.mark.slow)
        for method, sensealg in [
            ("tsit5", "InterpolatingAdjoint"),
            ("tsit5", "BacksolveAdjoint"),
            ("tsit5", "QuadratureAdjoint"),
            ("tsit5", pdf.GaussKronrodAdjoint()),
            ("dopri5", "InterpolatingAdjoint"),
            ("vern7", "GaussAdjoint"),
            ("rk4", "GaussAdjoint"),
            ("rodas5p", "GaussAdjoint"),
            ("FBDF", "GaussAdjoint"),
            ("kencarp4", "QuadratureAdjoint"),
        ]
    ),
]


@pytest.mark.julia
@pytest.mark.parametrize(("method", "sensealg"), PAIRS)
def test_solves_and_gradients(arrays: None, method: str, sensealg: Any) -> None:
    options = {"dt": 0.05} if method == "rk4" else {}
    found = solved("cpu", method, sensealg, **options)
    with taken_for("cpu", None):
        expected = solved("cpu", method, sensealg, **options)
    # GaussAdjoint reads FBDF's dense output, of low order: steps that differ by rounding change the gradient by more.
    tol = 1e-4 if method == "FBDF" else 1e-8
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=tol, atol=tol)


@pytest.mark.julia
def test_dense_output_tolerances_for_each_state_and_every_step(arrays: None) -> None:
    def run() -> list[torch.Tensor]:
        y0 = torch.tensor([1.0, 0.5], dtype=D)
        problem = pdf.ODEProblem(lambda t, y: torch.stack([-y[1], y[0]]) * torch.cos(t), y0, (0.0, 2.0))
        with torch.no_grad():
            sol = pdf.solve(problem, "tsit5", rtol=1e-9, atol=torch.tensor([1e-9, 1e-10], dtype=D), backend="julia")
            return [sol.ts, sol.ys, sol([0.3, 1.1])]

    found = run()
    with taken_for("cpu", None):
        expected = run()
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


@pytest.mark.julia
@pytest.mark.slow
def test_gradients_of_times(arrays: None) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=D)
    problem = pdf.ODEProblem(lambda t, y: -y, y0, (ends[0], ends[1]))
    sol = pdf.solve(problem, "tsit5", saveat=ends, rtol=1e-9, atol=1e-9, backend="julia", dense=False)
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), ends)
    torch.testing.assert_close(found, math.exp(-1) * torch.tensor([1.0, -1.0], dtype=D), rtol=1e-7, atol=1e-7)


@pytest.mark.julia
@pytest.mark.slow
def test_single_precision(arrays: None) -> None:
    options = {"dtype": torch.float32, "rtol": 1e-5, "atol": 1e-5}
    found = solved("cpu", "tsit5", "GaussAdjoint", **options)
    with taken_for("cpu", None):
        expected = solved("cpu", "tsit5", "GaussAdjoint", **options)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)


@pytest.mark.julia
@pytest.mark.slow
def test_a_device_that_is_not_the_cpu() -> None:
    """Nothing is made on the wrong device on the way: see ``test_devices.py``. In a process of its own."""
    command = [sys.executable, "-m", "tests.problems.on_elsewhere", "julia"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900)
    if "BackendUnavailableError" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout


# -- what is refused --------------------------------------------------------------------------------------------------


def rotation(t: Any, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([-y[1], y[0]])


Y0 = torch.tensor([1.0, 0.0], dtype=D)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("an event", {"event": [pdf.Event(lambda t, y: y[0])]}),
        ("per_sample=True", {"per_sample": True}),
        ("fallback='callback'", {"fallback": "callback"}),
    ],
)
def test_options_that_are_the_cpus(arrays: None, said: str, options: dict[str, Any]) -> None:
    problem = pdf.ODEProblem(rotation, Y0.reshape(2, 1), (0.0, 1.0), batched="per_sample" in options)
    with pytest.raises(UnsupportedError, match=f"{said} with backend='julia' and a state on cpu"):
        pdf.solve(problem, "tsit5", backend="julia", **options)


@pytest.mark.julia
def test_problems_that_are_the_cpus(arrays: None) -> None:
    massive = pdf.ODEProblem(rotation, Y0, (0.0, 1.0), mass_matrix=torch.eye(2, dtype=D))
    with pytest.raises(UnsupportedError, match="a mass_matrix with backend='julia'"):
        pdf.solve(massive, "rodas5p", backend="julia")
    stochastic = pdf.SDEProblem(rotation, lambda t, y: y, Y0, (0.0, 1.0))
    with pytest.raises(UnsupportedError, match="SDEProblem with backend='julia'"):
        pdf.solve(stochastic, "euler_maruyama", dt=0.1, backend="julia")


@pytest.mark.julia
def test_algorithms_that_read_single_numbers(arrays: None) -> None:
    y0 = Y0.clone().requires_grad_()
    problem = pdf.ODEProblem(rotation, y0, (0.0, 1.0))
    for sensealg in ("ForwardSensitivity", pdf.ForwardDiffSensitivity()):
        with pytest.raises(UnsupportedError, match="reads single numbers of the state"):
            pdf.solve(problem, "tsit5", saveat=[1.0], sensealg=sensealg, backend="julia")


@pytest.mark.julia
@pytest.mark.slow
def test_julias_own_refusal_is_ours(arrays: None) -> None:
    y0 = Y0.clone().requires_grad_()
    problem = pdf.ODEProblem(rotation, y0, (0.0, 1.0))
    sol = pdf.solve(problem, "rosenbrock23", saveat=[1.0], sensealg="InterpolatingAdjoint", backend="julia")
    with pytest.raises(UnsupportedError, match="take an explicit method, or a stiff one with GaussAdjoint"):
        sol.ys.sum().backward()


@pytest.mark.julia
def test_a_julia_package_that_is_missing() -> None:
    problem = pdf.ODEProblem(rotation, Y0, (0.0, 1.0))
    said = "the Julia package NoSuchArrays is not installed"
    with taken_for("cpu", "NoSuchArrays"), pytest.raises(BackendUnavailableError, match=said):
        pdf.solve(problem, "tsit5", backend="julia")


def test_devices_that_nobody_knows() -> None:
    from pydiffeqflux.backends.julia.engine import _require

    problem = pdf.ODEProblem(rotation, torch.ones(2, device="meta"), (0.0, 1.0))
    with pytest.raises(DtypeError, match="solves on the CPU and on CUDA devices; y0 is on meta"):
        _require(problem, None)  # type: ignore[arg-type]
