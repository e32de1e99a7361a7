"""The one Julia of this process: started at first use, spoken to from one thread only.

Julia's collector waits for every thread that ever ran Julia code, and a thread that is busy in Python does not answer
it. So Julia gets a thread of its own, on which it is started and on which every call runs, whichever thread of Python
asks; what crosses over are numbers, strings and addresses. While Julia works, Python's lock is released: other threads
go on, and Ctrl-C is heard (the next evaluation of the right-hand side then gives up).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import logging
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import BackendUnavailableError, JuliaForkError, PyDiffEqFluxError
from . import configuration
from .configuration import Configuration
from .failures import translated

log = logging.getLogger("pydiffeqflux")

_HOW = (
    "run `pydiffeqflux setup-julia` (and `pydiffeqflux doctor` to see what is missing), or solve with backend='torch'"
)


class Session:
    """A running Julia. Use :func:`session` to get it."""

    def __init__(self, chosen: Configuration):
        self.pid = os.getpid()
        self.chosen = chosen
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._dropped: list[int] = []
        self._stop = ctypes.c_int32(0)
        self._functions: dict[str, Any] = {}
        self._pending: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="julia", daemon=True)
        self._thread.start()
        self._on_thread(lambda: self._start(chosen))

    def call(self, name: str, *args: Any) -> Any:
        """Call ``PyDiffEqFlux.<name>`` with numbers and strings; its result is numbers and strings, too.

        Raises:
            JuliaForkError: this process was forked from the one that Julia runs in.
            PyDiffEqFluxError: what Julia threw, see :mod:`.failures`.
        """
        if os.getpid() != self.pid:
            raise JuliaForkError(
                "Julia cannot be used in a process forked from one in which it runs: start processes by 'spawn'"
                " (multiprocessing_context='spawn' for a DataLoader)."
            )
        return self._on_thread(lambda: self._call(name, args))

    def give_up(self, error: BaseException) -> None:
        """For functions that Julia calls: end the call that is under way, with this error."""
        self._pending = error
        self._stop.value = 1

    def drop(self, handle: int) -> None:
        """Let go of something that Julia holds; may be called from anywhere, a finaliser included."""
        self._dropped.append(handle)

    def leave(self, end: Callable[[], None]) -> None:
        """End Julia when Python exits (not in a forked child, which has no Julia)."""
        # Python will throw its last objects away on the main thread, where those that wrap Julia's would call Julia
        # once more, and wait for a lock that an ended Julia does not give back: they are kept for good.
        import juliacall

        for thing in (*vars(juliacall).values(), *self._functions.values(), self.main):
            if type(thing).__module__.startswith("juliacall"):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        if os.getpid() == self.pid:
            job = _Job(end)
            self._jobs.put(job)
            job.done.acquire(timeout=30)

    # -- the other thread -------------------------------------------------------------------------

    def _on_thread(self, work: Callable[[], Any]) -> Any:
        job = _Job(work)
        self._jobs.put(job)
        try:
            job.done.acquire()
        except KeyboardInterrupt:
            self._stop.value = 1
            job.done.acquire()
            self._stop.value = 0
            raise
        if job.error is not None:
            raise job.error
        return job.result

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job.result = job.work()
            except BaseException as error:
                job.error = error
            finally:
                job.done.release()

    def _start(self, chosen: Configuration) -> None:
        began = time.perf_counter()
        _environment(chosen)
        chatter = io.StringIO()
        try:
            # juliapkg prints to stdout. juliacall warns of torch having come first: both orders work (tests).
            with contextlib.redirect_stdout(chatter), _leaving_to(self), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
                import juliacall

            self.main = juliacall.Main
            self.main.seval("import PyDiffEqFlux")
            self._function("bridge_watch")(ctypes.addressof(self._stop))
        except Exception as why:
            said = " ".join(str(why).split())[:600]
            raise BackendUnavailableError(f"backend='julia' did not start: {said}. Way out: {_HOW}.") from why
        log.info("Julia %s started in %.1f s", self.main.seval("string(VERSION)"), time.perf_counter() - began)

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            self._functions[name] = self.main.seval(f"PyDiffEqFlux.{name}")
        return self._functions[name]

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self._function("release")(*dropped)
        function = self._function(name)
        result, failed = None, None
        try:
            result = function._jl_call_nogil(*args)
        except Exception as error:
            failed = error
        if self._pending is not None:
            pending, self._pending, self._stop.value = self._pending, None, 0
            raise pending
        if failed is not None:
            raise translated(failed) from failed
        return result


class _Job:
    """A piece of work for Julia's thread, and what became of it."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]):
        self.work = work
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


def _environment(chosen: Configuration) -> None:
    """Tell juliacall which Julia; what the user's environment says already stays."""
    settings = {
        "PYTHON_JULIACALL_HANDLE_SIGNALS": "no",
        "PYTHON_JULIACALL_THREADS": "1",
        "PYTHON_JULIACALL_STARTUP_FILE": "no",
        "JULIA_CONDAPKG_BACKEND": "Null",
    }
    if chosen.julia and chosen.project:
        settings |= {"PYTHON_JULIACALL_EXE": chosen.julia, "PYTHON_JULIACALL_PROJECT": chosen.project}
    if chosen.depot:
        settings["JULIA_DEPOT_PATH"] = chosen.depot
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _leaving_to(session: Session) -> Iterator[None]:
    """Let juliacall end Julia on Julia's own thread, when Python exits.

    It registers a function that does so on the main thread, where it would wait for the other one forever.
    """
    register = atexit.register

    def caught(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if getattr(function, "__name__", "") == "at_jl_exit":
            register(session.leave, function)
            return function
        return register(function, *args, **kwargs)

    atexit.register = caught  # type: ignore[assignment]
    try:
        yield
    finally:
        atexit.register = register


_lock = threading.Lock()
_running: Session | None = None
_failed: BackendUnavailableError | None = None


def session() -> Session:
    """The running Julia; the first call starts it.

    Raises:
        BackendUnavailableError: none was set up, or it does not start.
    """
    global _running, _failed
    if _running is not None:
        return _running
    with _lock:
        if _failed is not None:  # Julia cannot be started twice in a process
            raise _failed
        if _running is None:
            chosen = chosen_julia()
            if "juliacall" in sys.modules:
                log.warning("juliacall was imported before: its Julia, threads and signal handling stay as they are")
            try:
                _running = Session(chosen)
            except BackendUnavailableError as why:
                _failed = why
                raise
    return _running


def chosen_julia() -> Configuration:
    """The Julia that would be used.

    Raises:
        BackendUnavailableError: none was set up.
    """
    if (named := configuration.from_environment()) is not None:
        return named
    try:
        found = configuration.read()
    except PyDiffEqFluxError as why:
        raise BackendUnavailableError(f"backend='julia' cannot be used: {why}") from why
    if found is None:
        raise BackendUnavailableError(f"backend='julia' is not set up on this machine: {_HOW}.")
    return found
