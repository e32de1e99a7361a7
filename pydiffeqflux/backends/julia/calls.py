"""One solve by Julia, and its gradient: flat tensors in, flat tensors out."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .callback import CalledBack
from .direct import Ask, Came, Pull
from .events import Watch
from .form import Form
from .held import Held
from .model import Constants, Model, addresses
from .places import Place
from .sensitivities import Sensitivity
from .session import Session
from .solvers import Solver


@dataclass(frozen=True)
class Request:
    """What Julia is to solve, besides the initial state, the parameters and the constants: good for many solves.

    Attributes:
        saves: the times to return; without any, ``keep`` says what is: ``"steps"`` or ``"end"``.
        dense: keep what evaluations in between need.
        rtol, atol: one number, or one for each state (float64).
        options: further keyword arguments of SciML's ``solve``.
        watch: the events that may end it.
        form: of an equation that is not ``y' = f``.
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
    options: Held | None = None
    watch: Watch | None = None
    form: Form | None = None

    @functools.cached_property
    def save_times(self) -> Tensor:
        return torch.tensor(self.saves, dtype=torch.float64)

    @functools.cached_property
    def template(self) -> tuple[Ask, Tensor]:
        """The request as Julia takes it, with the memory that it points to."""
        saves, stops = self.save_times, torch.tensor(self.stops, dtype=torch.float64)
        ask = Ask(
            equation=self.model.handle if self.form is None else self.form.handle,
            alg=self.solver.handle,
            sensealg=0 if self.sensitivity is None else self.sensitivity.handle,
            options=0 if self.options is None else self.options.handle,
            watch=0 if self.watch is None else self.watch.handle,
            points=0 if self.watch is None else self.watch.points,
            everystep=self.keep == "steps",
            dense=self.dense,
            maxiters=self.max_steps,
            nsaves=len(saves),
            saves=saves.data_ptr(),
            nstops=len(stops),
            stops=stops.data_ptr(),
            ntol=self.rtol.numel(),
            rtol=self.rtol.data_ptr(),
            atol=self.atol.data_ptr(),
            t0=self.t0,
            t1=self.t1,
        )
        return ask, stops

    @functools.cached_property
    def pull(self) -> Pull:
        """The request for a gradient as Julia takes it."""
        assert self.sensitivity is not None
        rtol, atol = self.sensitivity.tolerances(float(self.rtol.min()), float(self.atol.min()))
        return Pull(alg=self.solver.handle, sensealg=self.sensitivity.handle, rtol=rtol, atol=atol)


class Run(Held):
    """What came of it.

    Attributes:
        ts, ys: the times that were reached, ``(T,)``, and the states there, ``(T, *y0.shape)``.
        last_y: where it ended.
    """

    def __init__(
        self,
        session: Session,
        came: Came,
        ts: tuple[float, ...],
        ys: Tensor,
        last_y: Tensor,
        place: Place | None = None,
    ):
        self.session, self.handle, self.came, self.ts, self.ys, self.last_y = session, came.run, came, ts, ys, last_y
        self.place = place

    @property
    def last_t(self) -> float:
        """When it ended."""
        return float(self.came.t)

    @property
    def event(self) -> int:
        """The number of the event that ended it, counted from 1; 0 where none did."""
        return int(self.came.event)

    @property
    def retcode(self) -> str:
        """Julia's word for how it went."""
        return self.session.retcodes[self.came.retcode]

    @property
    def finite(self) -> bool:
        """Whether the last state is."""
        return bool(self.came.finite)

    @property
    def ok(self) -> bool:
        return self.finite and self.retcode in ("Success", "Terminated")

    def at(self, t: float) -> Tensor:
        """The dense output at ``t``."""
        out = torch.empty_like(self.last_y)
        _ready(self.place)
        self.session.call("bridge_interpolate", self.handle, float(t), out.data_ptr())
        return out


def solve(request: Request, y0: Tensor, p: Tensor, constants: Constants) -> Run:
    """Solve from ``y0`` with parameters ``p (np,)``, both contiguous."""
    session, saves = request.model.session, request.saves
    ask, came = Ask.from_buffer_copy(request.template[0]), Came()
    start = y0 if request.form is None else request.form.start(y0)
    last, room = torch.empty_like(y0), y0.new_empty((len(saves), *y0.shape))
    ask.y0, ask.p, ask.last = start.data_ptr(), p.data_ptr(), last.data_ptr()
    if saves:  # the states at known times are written at once
        ask.us = room.data_ptr()
    if constants is not None:
        ask.c, ask.i = addresses(constants)
    place = request.model.place
    _ready(place)
    session.enter(session.entries.solve, ask, ctypes.byref(came), here=request.model.here)
    count = came.count
    if saves:
        if count < len(saves):
            saves, room = saves[:count], room[:count]
        return Run(session, came, saves, room, last, place)
    ts = torch.empty(count, dtype=torch.float64)
    ys = y0.new_empty((count, *y0.shape))
    run = Run(session, came, (), ys, last, place)
    _ready(place)
    session.call("bridge_states", came.run, ts.data_ptr(), ys.data_ptr())
    run.ts = tuple(ts.tolist())
    return run


def gradient(request: Request, run: Run, seeds: Tensor, constants: Constants) -> Tensor:
    """The gradients in ``y0`` and in ``p``, one after the other, of a loss whose gradient in ``run.ys`` is ``seeds``.

    Args:
        constants: those of the solve, whatever was solved since.
    """
    session, n = run.session, run.last_y.numel()
    if not len(seeds):
        return seeds.new_zeros(n + request.model.np)
    found, seeds = seeds.new_empty(n + request.model.np), seeds.contiguous()
    pull = Pull.from_buffer_copy(request.pull)
    pull.run, pull.seeds, pull.du0 = run.handle, seeds.data_ptr(), found.data_ptr()
    pull.dp = pull.du0 + n * found.element_size()
    if constants is not None:
        pull.c, pull.i = addresses(constants)
    _ready(run.place)
    session.enter(session.entries.pull, pull, here=request.model.here)
    return found


def _ready(place: Place | None) -> None:
    """Before Julia reads and writes there: what torch still does to this memory, or did to what lay there before."""
    if place is not None:
        place.ready()
