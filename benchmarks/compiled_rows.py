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


def van_der_pol(mu: float, *, per_sample: bool, saves: int, tol: float, rest: dict[str, Any]) -> Row:
    """256 oscillators from random starts, each with a step size of its own; forward only, float64."""
    import diffrax_side as dx

    torch.manual_seed(0)
    y0 = torch.randn(256, 2, dtype=D)
    ts = torch.linspace(0, 10, saves, dtype=D)

    def func(t: Tensor, y: Tensor) -> Tensor:
        x, v = y[..., 0], y[..., 1]
        return torch.stack([v, mu * (1 - x**2) * v - x], -1)

    def ours() -> dict[str, Any]:
        with torch.no_grad():
            problem = pdf.ODEProblem(func, y0, (0.0, 10.0), batched=True)
            ys = pdf.solve(
                problem, saveat=ts, rtol=tol, atol=tol, dense=False, per_sample=per_sample, backend="compiled"
            ).ys  # fmt: skip
            return {"solution": ys}

    jnp = dx.jnp

    def rates(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    times, start = jnp.asarray(ts.numpy()), jnp.asarray(y0.numpy())
    batched = dx.jax.jit(dx.jax.vmap(lambda y: dx.solve(rates, y, times, None, tol).ys, out_axes=1))
    contenders: dict[str, Work] = {"pydiffeqflux": ours, "diffrax vmap": lambda: {"solution": dx.ready(batched(start))}}
    if rest["against"] == "torchode":
        contenders["torchode"] = _torchode(y0, ts, mu, tol)
    plain = lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]  # noqa: E731
    exact = [
        solve_ivp(plain, (0, 10), y.numpy(), "DOP853", ts.numpy(), rtol=1e-11, atol=1e-11).y.T for y in y0[:8]
    ]  # fmt: skip
    reference = {"solution": np.stack(exact, 1)}
    shown = {name: _first(work) for name, work in contenders.items()}
    return Row(f"van der Pol, mu {mu:g}, batch 256, {saves} saves", contenders=shown, reference=reference, **rest)


def _first(work: Work) -> Work:
    """Errors of the first eight rows only: the reference is slow."""

    def some() -> dict[str, Any]:
        return {"solution": work()["solution"][:, :8]}

    return some


class _Field(torch.nn.Module):
    def __init__(self, mu: float):
        super().__init__()
        self.mu = mu

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y[..., 0], y[..., 1]
        return torch.stack([v, self.mu * (1 - x**2) * v - x], -1)


def _torchode(y0: Tensor, ts: Tensor, mu: float, tol: float) -> Work:
    """As it comes: TorchScript cannot compile it any more (an internal assertion fails in torch 2.13)."""
    import torchode

    term = torchode.ODETerm(_Field(mu))
    controller = torchode.IntegralController(atol=tol, rtol=tol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)
    problem = torchode.InitialValueProblem(y0=y0, t_eval=ts.repeat(len(y0), 1))

    def work() -> dict[str, Any]:
        with torch.no_grad():
            return {"solution": solver.solve(problem).ys.transpose(0, 1)}

    return work


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
    """The gradient by all rate constants of the final state's weighted sum, float64.

    At matched errors: ours is taken at the loosest tolerance at which neither of its errors is larger than diffrax's.
    """
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
    wanted, own = _errors(theirs(), exact), tol
    while any(mine > other for mine, other in zip(_errors(ours("rodas5p", own)(), exact), wanted, strict=True)):
        own /= 2.0
        if own < 1e-12:
            raise RuntimeError(f"no tolerance makes Rodas5P as accurate as {wanted} on {name}")
    contenders = {"pydiffeqflux": ours("rodas5p", own), "diffrax Kvaerno5": theirs}
    title = f"{name} gradient, errors no larger than Kvaerno5's at rtol {tol:g}: Rodas5P at {own:.2g}"
    return Row(title, "diffrax", 1.0, 0.5, contenders, exact)


def _errors(found: dict[str, Any], exact: dict[str, Any]) -> list[float]:
    """As the table's: relative, of the solution and of the gradient."""
    return [float(np.linalg.norm(_array(found[k]) - exact[k]) / np.linalg.norm(exact[k])) for k in exact]


def _array(x: Any) -> np.ndarray:
    return x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)


ROWS: dict[str, Callable[[], Row]] = {
    "vdp2": lambda: van_der_pol(
        2.0, per_sample=True, saves=200, tol=1e-5, rest={"against": "torchode", "must": 0.1, "aim": 0.05}
    ),
    "vdp25": lambda: van_der_pol(
        25.0, per_sample=True, saves=20, tol=1e-5, rest={"against": "diffrax", "must": 1.5, "aim": 1.0}
    ),
    "rober": lambda: stiff_row("ROBER"),
    "pollu": lambda: stiff_row("POLLU"),
}  # fmt: skip
