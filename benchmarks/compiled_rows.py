"""Further workloads of ``compiled.py``: batches of van der Pol oscillators, and stiff reactions with their gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compiled_report import Row, Work
from scipy.integrate import solve_ivp
from torch import Tensor

import pydiffeqflux as pdf

D = torch.float64


def van_der_pol(mu: float, *, saves: int, tol: float, rest: dict[str, Any]) -> Row:
    """256 oscillators from random starts, each with a step size of its own; forward only, float64."""
    import diffrax_side as dx

    torch.manual_seed(0)
    y0 = torch.randn(256, 2, dtype=D)
    ts = torch.linspace(0, 10, saves, dtype=D)
    problem = pdf.ODEProblem(_Field(mu), y0, (0.0, 10.0), batched=True)

    def ours(tol: float) -> Work:
        def work() -> dict[str, Any]:
            with torch.no_grad():
                ys = pdf.solve(
                    problem, saveat=ts, rtol=tol, atol=tol, dense=False, per_sample=True, backend="compiled"
                ).ys  # fmt: skip
                return {"solution": ys[:, :REFERENCED]}

        return work

    jnp = dx.jnp

    def rates(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    times, start = jnp.asarray(ts.numpy()), jnp.asarray(y0.numpy())
    batched = dx.jax.jit(dx.jax.vmap(lambda y: dx.solve(rates, y, times, None, tol).ys, out_axes=1))
    contenders: dict[str, Work] = {"diffrax vmap": lambda: {"solution": dx.ready(batched(start))[:, :REFERENCED]}}
    if rest["against"] == "torchode":
        contenders |= _torchode(y0, ts, mu, tol)
    plain = lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]  # noqa: E731
    exact = [
        solve_ivp(plain, (0, 10), y.numpy(), "DOP853", ts.numpy(), rtol=1e-11, atol=1e-11).y.T for y in y0[:REFERENCED]
    ]
    reference = {"solution": np.stack(exact, 1)}
    title = f"van der Pol, mu {mu:g}, batch 256, {saves} saves"
    return Row(title, contenders=contenders, reference=reference, ours=ours, tol=tol, **rest)


#: Rows of which the errors are taken: their reference is slow.
REFERENCED = 8


class _Field(torch.nn.Module):
    def __init__(self, mu: float):
        super().__init__()
        self.mu = mu

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y[..., 0], y[..., 1]
        return torch.stack([v, self.mu * (1 - x**2) * v - x], -1)


def _torchode(y0: Tensor, ts: Tensor, mu: float, tol: float) -> dict[str, Work]:
    """As it comes, by ``torch.compile`` (which takes a minute), and by TorchScript, where that can still do it."""
    import torchode

    problem = torchode.InitialValueProblem(y0=y0, t_eval=ts.repeat(len(y0), 1))

    def solver() -> Any:
        term = torchode.ODETerm(_Field(mu))
        controller = torchode.IntegralController(atol=tol, rtol=tol, term=term)
        return torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)

    def work(solve: Any) -> Work:
        def once() -> dict[str, Any]:
            with torch.no_grad():
                return {"solution": solve(problem).ys.transpose(0, 1)[:, :REFERENCED]}

        return once

    found = {"torchode": work(solver().solve), "torchode torch.compile": work(torch.compile(solver().solve))}
    try:
        scripted = work(torch.jit.script(solver()).solve)
        scripted()
    except Exception as why:
        print(f"torchode by TorchScript: {type(why).__name__}: {str(why).splitlines()[0]}")
        return found
    return found | {"torchode TorchScript": scripted}


# -- Lotka-Volterra -------------------------------------------------------------------------------


def lotka_volterra(tol: float) -> Row:
    """The forward solve of two equations, in float64, 100 saved times.

    SciPy and numbalsoda (LSODA, and Hairer's DOP853, both in machine code) get a right-hand side by numba.
    """
    import diffrax_side as dx

    k = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=D)
    y0, ts = torch.tensor([1.0, 1.0], dtype=D), torch.linspace(0, 10, 100, dtype=D)

    def func(t: Tensor, y: Tensor) -> Tensor:
        x, z = y[0], y[1]
        return torch.stack([k[0] * x - k[1] * x * z, k[3] * x * z - k[2] * z])

    problem = pdf.ODEProblem(func, y0, (0.0, 10.0))
    method = "tsit5" if tol > 1e-8 else "vern7"

    def ours(tol: float) -> Work:
        def work() -> dict[str, Any]:
            with torch.no_grad():
                ys = pdf.solve(problem, method, saveat=ts, rtol=tol, atol=tol, dense=False, backend="compiled").ys
                return {"solution": ys}

        return work

    def rates(t: Any, y: Any, args: Any = None) -> Any:
        return dx.jnp.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3.0 * y[1]])

    times, start = dx.jnp.asarray(ts.numpy()), dx.jnp.asarray(y0.numpy())

    def diffrax(solver: Any) -> Work:
        jitted = dx.jax.jit(lambda start: dx.solve(rates, start, times, None, tol, solver=solver).ys)
        return lambda: {"solution": dx.ready(jitted(start))}

    def plain(t: float, y: Any) -> list[float]:
        return [1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3.0 * y[1]]

    exact = solve_ivp(plain, (0, 10), [1.0, 1.0], "DOP853", ts.numpy(), rtol=1e-13, atol=1e-13).y.T
    contenders = {"diffrax": diffrax(None)} | _numba(ts.numpy(), tol)
    if tol <= 1e-8:
        import diffrax as package

        contenders["diffrax Dopri8"] = diffrax(package.Dopri8())
    title = f"Lotka-Volterra, rtol {tol:g}, ours by {method}"
    return Row(title, "each", 1.0, 0.5, contenders, {"solution": exact}, ours, tol)


def _numba(ts: np.ndarray, tol: float) -> dict[str, Work]:
    import numba
    import numbalsoda

    def rates(t: float, y: Any) -> Any:
        return np.array([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3.0 * y[1]])

    jitted, start, nothing = numba.njit(rates), np.array([1.0, 1.0]), np.zeros(1)

    @numba.cfunc(numbalsoda.lsoda_sig)
    def kernel(t: float, y: Any, dy: Any, p: Any) -> None:
        dy[0] = 1.5 * y[0] - y[0] * y[1]
        dy[1] = y[0] * y[1] - 3.0 * y[1]

    def by_scipy(method: str) -> Work:
        return lambda: {"solution": solve_ivp(jitted, (0, 10), start, method, ts, rtol=tol, atol=tol).y.T}

    def by_numbalsoda(solve: Any) -> Work:
        return lambda: {"solution": solve(kernel.address, start, ts, nothing, rtol=tol, atol=tol)[0]}

    return {
        "scipy RK45": by_scipy("RK45"), "scipy LSODA": by_scipy("LSODA"),
        "numbalsoda lsoda": by_numbalsoda(numbalsoda.lsoda), "numbalsoda dop853": by_numbalsoda(numbalsoda.dop853),
    }  # fmt: skip


# -- stiff reactions ------------------------------------------------------------------------------


def reactions(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Rates, the (1-based) reactants and the stoichiometry of a system of reactions; its start and its end."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from problems import stiff

    if name == "ROBER":
        rates = np.array([0.04, 3e7, 1e4])
        reactants = np.array([[1, 0], [2, 2], [2, 3]])
        changes = np.array([[-1.0, 0.0, 1.0], [1.0, -1.0, -1.0], [0.0, 1.0, 0.0]])
        return rates, reactants, changes, np.array([1.0, 0.0, 0.0]), 1e4
    changes = np.zeros((20, 25))
    for species, (made, used) in enumerate(zip(stiff._MADE, stiff._USED, strict=True)):
        for reaction in made:
            changes[species, reaction - 1] += 1
        for reaction in used:
            changes[species, reaction - 1] -= 1
    pollu = next(p for p in vars(stiff).values() if isinstance(p, stiff.StiffProblem) and len(p.y0) == 20)
    return stiff._RATES.numpy(), np.array(stiff._REACTANTS), changes, pollu.y0.numpy(), 60.0


def stiff_row(name: str, tol: float = 1e-6) -> Row:
    """The gradient by all rate constants of the final state's weighted sum, float64."""
    import diffrax
    import diffrax_side as dx

    rates, reactants, changes, start, end = reactions(name)
    first, second = (torch.from_numpy(reactants[:, i].copy()) for i in (0, 1))
    k, table, y0 = torch.tensor(rates, requires_grad=True), torch.from_numpy(changes), torch.tensor(start)
    one, scale = torch.ones(1, dtype=D), torch.linspace(1.0, 2.0, len(start), dtype=D)

    def func(t: Tensor, y: Tensor) -> Tensor:
        wide = torch.cat([one, y])
        return table @ (k * wide[first] * wide[second])

    def ours(method: str, tol: float) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            ys = pdf.solve(
                pdf.ODEProblem(func, y0, (0.0, end)), method, saveat=[end], rtol=tol, atol=1e-3 * tol, dense=False,
                backend="compiled",
            ).ys  # fmt: skip
            (found,) = torch.autograd.grad((ys[-1] * scale).sum(), k)
            return {"solution": ys[-1], "gradient": found * k}

        return work

    jnp = dx.jnp
    i1, i2, matrix, weights = reactants[:, 0], reactants[:, 1], jnp.asarray(changes), jnp.asarray(scale.numpy())

    def field(t: Any, y: Any, k: Any) -> Any:
        wide = jnp.concatenate([jnp.ones(1), y])
        return matrix @ (k * wide[i1] * wide[i2])

    def loss(k: Any) -> Any:
        ys = dx.solve(
            field, jnp.asarray(start), jnp.array([0.0, end]), k, 1e-3 * tol, rtol=tol, solver=diffrax.Kvaerno5()
        ).ys  # fmt: skip
        return (ys[-1] * weights).sum(), ys[-1]

    gradient = dx.jax.jit(dx.jax.grad(loss, has_aux=True))

    def theirs() -> dict[str, Any]:
        found, y1 = dx.ready(gradient(jnp.asarray(rates)))
        return {"solution": y1, "gradient": found * rates}

    exact = {key: value.detach().numpy() for key, value in ours("rodas5p", 1e-11)().items()}
    title = f"{name}, gradient by its rates, rtol {tol:g}, ours by rodas5p"
    contenders = {"diffrax Kvaerno5": theirs}
    return Row(title, "diffrax", 1.0, 0.5, contenders, exact, lambda own: ours("rodas5p", own), tol)


ROWS: dict[str, Callable[[], Row]] = {
    "vdp2": lambda: van_der_pol(
        2.0, saves=200, tol=1e-5, rest={"against": "torchode", "must": 0.1, "aim": 0.05}
    ),
    "vdp25": lambda: van_der_pol(
        25.0, saves=20, tol=1e-5, rest={"against": "diffrax", "must": 1.5, "aim": 1.0}
    ),
    **{f"lv{d}": (lambda d=d: lotka_volterra(10.0**-d)) for d in (3, 6, 10)},
    "rober": lambda: stiff_row("ROBER"),
    "pollu": lambda: stiff_row("POLLU"),
}  # fmt: skip
