"""``compare``: the same problem by several backends and sensitivity algorithms, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InvalidArgumentError, PyDiffEqFluxError
from .layers.mass_matrix import NeuralMassMatrixODE
from .layers.neural_ode import NeuralODE
from .methods import Method
from .problem import ODEProblem, TimeLike
from .sensealg import SenseAlg
from .solve import solve
from .state import State, leaves_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One way of solving the problem.

    Attributes:
        milliseconds: median wall time of a solve with its gradient, the first one (compilation) left out.
        nf: evaluations of the right-hand side in the forward solve.
        solution, gradient: largest deviation from the reference, relative to its largest entry.
        failed: the error's message, where there was one; the numbers are NaN then.
    """

    backend: str
    sensealg: str
    milliseconds: float
    nf: int
    solution: float
    gradient: float
    failed: str = ""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> decay = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
        >>> found = pdf.compare(decay, backends=["eager"], repeats=1)
        >>> found.method, found.rows[0].nf > 10
        ('tsit5', True)
    """

    rows: list[Row]
    method: str

    def table(self) -> Table:
        """A table for :mod:`rich`."""
        from rich.table import Table

        table = Table("backend", "sensealg", "ms", "evaluations", "error: solution", "error: gradient")
        for r in self.rows:
            numbers = (f"{r.milliseconds:.2f}", str(r.nf), f"{r.solution:.1e}", f"{r.gradient:.1e}")
            table.add_row(r.backend, r.sensealg, *(numbers if not r.failed else (r.failed, "", "", "")))
        return table

    def plot(self) -> Figure:
        """Time against error of the gradient, one point a row."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        colours = {"torch": "#3b6ea5", "julia": "#9558b2"}
        for r in self.rows:
            if r.failed:
                continue
            colour = colours.get(r.backend.split(",")[0], "#666666")
            axes.loglog(max(r.gradient, 1e-17), r.milliseconds, "o", color=colour)
            axes.annotate(f" {r.backend}, {r.sensealg}", (max(r.gradient, 1e-17), r.milliseconds), fontsize=7)
        for low, high, widen in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
            middle = (low * high) ** 0.5  # a decade at least, so that its ticks can be read
            widen(min(low, middle / 3.2), max(high, middle * 3.2))
        axes.set_xlabel("relative error of the gradient")
        axes.set_ylabel("time of solve and gradient (ms)")
        axes.set_title(f"{self.method}: each backend and sensitivity algorithm", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.3)
        return figure


def compare(
    target: ODEProblem | NeuralODE | NeuralMassMatrixODE,
    y0: State | None = None,
    *,
    method: Method | str | None = None,
    saveat: Tensor | Sequence[TimeLike] | float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    backends: Sequence[str] = ("torch", "julia"),
    sensealgs: Sequence[SenseAlg | str | None] = (None,),
    repeats: int = 5,
) -> Comparison:
    """Solve and differentiate one problem in several ways.

    The loss is a fixed weighted sum of all saved states; its gradient is taken in ``y0`` and in the parameters. The
    reference is the native backend's ``vern9`` (with a mass matrix ``rodas5p``) at tolerances a thousand times tighter
    (1e-12 at least), differentiated exactly.

    Args:
        target: a problem, or a layer (then ``y0`` is its input, and its method and save times are the defaults).
        method, saveat, rtol, atol: as for :func:`pydiffeqflux.solve`.
        backends, sensealgs: every pair of them is a row; None is a backend's own choice.
        repeats: how many solves are timed.

    Returns:
        A :class:`Comparison`: ``rows``, ``table()`` for rich, and ``plot()``. A pair that does not exist is a row with
        the error's message.

    Raises:
        InvalidArgumentError: ``target`` is neither, or a layer without ``y0``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> decay = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
        >>> found = pdf.compare(decay, saveat=[0.5, 1.0], backends=["torch"], sensealgs=["gauss", "backsolve"])
        >>> [row.sensealg for row in found.rows], found.rows[0].solution < 1e-5
        (['GaussAdjoint', 'BacksolveAdjoint'], True)
    """
    if isinstance(target, NeuralODE | NeuralMassMatrixODE):
        if y0 is None:
            raise InvalidArgumentError("y0=None: a layer is compared at an input; give compare(layer, y0).")
        problem = target.problem(target.rhs, y0, target.t_span)
        assert isinstance(problem, ODEProblem)
        method = target.method if method is None else method
        saveat = target.saveat if saveat is None else saveat
    elif isinstance(target, ODEProblem):
        problem = target
    else:
        raise InvalidArgumentError(f"target is a {type(target).__name__}; give an ODEProblem or a NeuralODE.")
    usual, exact = ("tsit5", "vern9") if problem.mass_matrix is None else ("rodas5p", "rodas5p")
    subject = _Subject(problem, usual if method is None else method, saveat)
    tight = min(1e-12, 1e-3 * min(rtol, atol))
    reference = subject.run("torch", "DiscreteAdjoint", tight, tight, method=exact)
    rows = [subject.row(b, s, rtol, atol, reference, repeats) for b in backends for s in sensealgs]
    return Comparison(rows, str(subject.method))


@dataclass(frozen=True)
class _Found:
    """One solve with its gradient."""

    ys: Tensor
    gradient: Tensor
    nf: int
    sensealg: str


@dataclass(frozen=True)
class _Subject:
    """The problem, and what is asked of it."""

    problem: ODEProblem
    method: Method | str
    saveat: Any

    def run(self, backend: str, sensealg: Any, rtol: float, atol: float, method: Any = None) -> _Found:
        from .backends.common.capture import captured_tensors
        from .backends.common.rhs import Rhs

        p = self.problem
        start = p.packed.detach().clone().requires_grad_()
        begun = replace(p, y0=start if p.spec is None else p.spec.unflatten(start))
        rhs = Rhs(p.func, p.spec, start)
        when = rhs.time(p.t0.value).requires_grad_()
        params = captured_tensors(p.func, lambda: rhs.evaluate(when, start), [start, when])
        how: dict[str, Any] = {"saveat": self.saveat} if self.saveat is not None else {"save_everystep": False}
        sol = solve(
            begun,
            method or self.method,
            rtol=rtol,
            atol=atol,
            sensealg=sensealg,
            backend=backend,
            dense=False,
            **how,
        )
        ys = torch.cat([x.reshape(-1) for _, x in leaves_of(sol.ys, "ys")[0]])
        loss = (ys * torch.linspace(0.5, 1.5, ys.numel(), dtype=ys.dtype)).sum()
        grads = torch.autograd.grad(loss, [start, *params], allow_unused=True)
        flat = [torch.zeros_like(x) if g is None else g for x, g in zip([start, *params], grads, strict=True)]
        gradient = torch.cat([g.reshape(-1) for g in flat])
        return _Found(ys.detach(), gradient, int(sol.stats.nf), sol.stats.sensealg)

    def row(self, backend: str, sensealg: Any, rtol: float, atol: float, reference: _Found, repeats: int) -> Row:
        try:
            found = self.run(backend, sensealg, rtol, atol)
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                self.run(backend, sensealg, rtol, atol)
                times.append(1e3 * (time.perf_counter() - began))
        except PyDiffEqFluxError as why:
            name = getattr(sensealg, "name", sensealg) or "default"
            nan = float("nan")
            return Row(backend, str(name), nan, 0, nan, nan, failed=f"{type(why).__name__}: {why}")
        return Row(
            backend,
            found.sensealg,
            statistics.median(times),
            found.nf,
            _deviation(found.ys, reference.ys),
            _deviation(found.gradient, reference.gradient),
        )


def _deviation(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).abs().max() / reference.abs().max().clamp_min(1e-300))
