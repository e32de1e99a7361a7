"""One solve by Julia, and its gradient: flat tensors in, flat tensors out."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .callback import CalledBack
from .events import Watch
from .model import Model
from .sensitivities import Sensitivity
from .session import Session
from .solvers import Solver


@dataclass(frozen=True)
class Request:
    """What Julia is to solve, besides the initial state and the parameters.

    Attributes:
        saves: the times to return; without any, ``keep`` says what is: ``"steps"`` or ``"end"``.
        dense: keep what evaluations in between need.
        rtol, atol: one number, or one for each state (float64).
        options: further keyword arguments of SciML's ``solve``, as Julia writes them.
        watch: the events that may end it.
        constants: of the model, as they were when the solve was asked for.
    """

    model: Model | CalledBack
    solver: Solver
    sensitivity: Sensitivity | None
    t0: float
    t1: float
    saves: tuple[float, ...]
    keep: str
    dense: bool
    rtol: Tensor
    atol: Tensor
    max_steps: int
    stops: tuple[float, ...] = ()
    options: str = ""
    watch: Watch | None = None
    constants: Any = None


@dataclass
class Run:
    """What came of it.

    Attributes:
        ts, ys: the times that were reached, ``(T,)``, and the states there, ``(T, n)``.
        last_t, last_y: where it ended.
        event: the number of the event that ended it, counted from 1; 0 where none did.
    """

    session: Session
    handle: int
    retcode: str
    last_t: float
    nf: int
    naccept: int
    nreject: int
    njac: int
    finite: bool
    event: int
    ts: list[float] = field(default_factory=list)
    ys: Tensor = field(default_factory=lambda: torch.zeros(0))
    last_y: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        weakref.finalize(self, self.session.drop, self.handle)

    def at(self, t: float) -> Tensor:
        """The dense output at ``t``, ``(n,)``."""
        out = torch.empty_like(self.last_y)
        self.session.call("bridge_interpolate", self.handle, float(t), out.data_ptr())
        return out


def solve(request: Request, y0: Tensor, p: Tensor) -> Run:
    """Solve from ``y0 (n,)`` with parameters ``p (np,)``, both contiguous."""
    session = request.model.session
    saves, stops = (torch.tensor(x, dtype=torch.float64) for x in (request.saves, request.stops))
    last = torch.empty_like(y0)
    # The states at known times are written at once: crossing to Julia's thread and back costs as much as a small solve.
    room = torch.empty(len(saves), y0.numel(), dtype=y0.dtype)
    handle, count, *how = session.call(
        "bridge_solve",
        request.model.handle,
        request.solver.handle,
        0 if request.sensitivity is None else request.sensitivity.handle,
        y0.data_ptr(),
        p.data_ptr(),
        request.t0,
        request.t1,
        saves.data_ptr(),
        len(saves),
        request.keep,
        request.dense,
        request.rtol.data_ptr(),
        request.atol.data_ptr(),
        request.rtol.numel(),
        request.max_steps,
        stops.data_ptr(),
        len(stops),
        0 if request.watch is None else request.watch.handle,
        0 if request.watch is None else request.watch.points,
        request.options,
        room.data_ptr() if len(saves) else 0,
        last.data_ptr(),
    )
    run = Run(session, handle, *how)
    run.last_y = last
    if len(saves):
        run.ts, run.ys = list(request.saves[:count]), room[:count]
        return run
    ts = torch.empty(count, dtype=torch.float64)
    run.ys = torch.empty(count, y0.numel(), dtype=y0.dtype)
    session.call("bridge_states", handle, ts.data_ptr(), run.ys.data_ptr())
    run.ts = ts.tolist()
    return run


def gradient(request: Request, run: Run, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in ``y0 (n,)`` and ``p (np,)`` of a loss whose gradient in ``run.ys`` is ``seeds (T, n)``."""
    assert request.sensitivity is not None
    seeds = seeds.contiguous()
    to_y0 = torch.zeros_like(run.last_y)
    to_p = torch.zeros(request.model.np, dtype=to_y0.dtype)
    if len(seeds):
        request.model.load(request.constants)
        request.model.session.call(
            "bridge_gradient",
            run.handle,
            request.solver.handle,
            request.sensitivity.handle,
            seeds.data_ptr(),
            to_y0.data_ptr(),
            to_p.data_ptr(),
            request.sensitivity.rtol or float(request.rtol.min()),
            request.sensitivity.atol or float(request.atol.min()),
        )
    return to_y0, to_p
