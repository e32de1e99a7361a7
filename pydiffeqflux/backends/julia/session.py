"""The one Julia of this process: started at first use, spoken to by one thread at a time.

Julia gets a thread of its own, on which it is started and on which calls run, whichever thread of Python asks; what
crosses over are numbers, strings and addresses. Handing over and waiting cost as much as a small solve, so the main
thread, where most programs do all their work, makes the calls that are made again and again itself. Between calls
both have left Julia, as far as its collector is concerned, which waits for every thread that has not.

Where the user's program imported juliacall before, Julia's thread is the main one: only that can load packages and
print (another would wait for its event loop for ever), so it makes all of its calls itself.

While Julia works, Python's lock is released: other threads go on, and Ctrl-C is heard (the next evaluation of the
right-hand side then gives up; see ``julia/src/interrupt.jl``).
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
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ...errors import BackendUnavailableError, JuliaForkError, PyDiffEqFluxError
from . import configuration
from .configuration import Configuration
from .direct import Entries, Signals
from .failures import translated

log = logging.getLogger("pydiffeqflux")

_HOW = (
    "run `pydiffeqflux setup-julia` (and `pydiffeqflux doctor` to see what is missing), or solve with backend='torch'"
)


#: How often progress is reported, in seconds.
_GLANCE = 0.1


class Session:
    """A running Julia. Use :func:`session` to get it."""

    #: The functions for :meth:`enter`.
    entries: Entries

    def __init__(self, chosen: Configuration):
        self.chosen = chosen
        #: What SciML calls its return codes.
        self.retcodes: dict[int, str] = {}
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._dropped: deque[int] = deque()
        self._stop = ctypes.c_int32(0)
        self._clock = ctypes.c_double(0.0)
        self._reports = threading.local()
        self._functions: dict[str, Any] = {}
        self._pending: BaseException | None = None
        self._forked = False
        self._signals = Signals()
        self._lock = threading.RLock()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._work, name="julia", daemon=True)
        self._thread.start()
        #: The threads that call Julia right away.
        self._own = {self._thread.ident}
        started_before = "juliacall" in sys.modules
        if started_before:
            self._own.add(self._main)
        self._on_thread(lambda: self._start(chosen))
        os.register_at_fork(after_in_child=self._fork)
        if started_before:
            atexit.register(self.entries.unpark)
            self._elsewhere(self._adopt)

    def call(self, name: str, *args: Any) -> Any:
        """Call ``PyDiffEqFlux.<name>`` with numbers and strings; its result is numbers and strings, too.

        Raises:
            JuliaForkError: this process was forked from the one that Julia runs in.
            PyDiffEqFluxError: what Julia threw, see :mod:`.failures`.
        """
        if self._forked:
            self._refuse()
        return self._on_thread(lambda: self._call(name, args))

    def enter(self, entry: Callable[..., int], ask: Any, *into: Any, here: bool = True) -> None:
        """Call one of the ``entries``: quicker than :meth:`call`, for what is called again and again.

        Args:
            here: the main thread may make the call itself. Not if Julia calls Python in it: an exception of a signal
                handler would have nowhere to go.

        Raises:
            JuliaForkError, PyDiffEqFluxError: as :meth:`call` does.
        """
        if self._forked:
            self._refuse()
        if not here or threading.get_ident() != self._main or getattr(self._reports, "now", None) is not None:
            run = self._on_thread if self._report is None else self._elsewhere
            run(lambda: self._entered(entry, ask, into))
            return
        ask.main = 1
        with self._lock:
            if self._dropped:
                self._release()
            code = entry(ctypes.byref(ask), *into)
        if code:
            self._signals.reraise()
            self.call("bridge_raise")

    @contextlib.contextmanager
    def reporting(self, report: Callable[[float], None] | None) -> Iterator[None]:
        """Tell ``report`` now and then which time the solves of this thread have come to."""
        self._reports.now = report
        try:
            yield
        finally:
            self._reports.now = None

    @property
    def _report(self) -> Callable[[float], None] | None:
        return getattr(self._reports, "now", None)

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
        if not self._forked:
            job = _Job(lambda: self._end(end))
            self._jobs.put(job)
            job.done.acquire(timeout=30)

    def _end(self, end: Callable[[], None]) -> None:
        self.entries.unpark()
        end()

    def _fork(self) -> None:
        self._forked = True

    def _refuse(self) -> NoReturn:
        raise JuliaForkError(
            "Julia cannot be used in a process forked from one in which it runs: start processes by 'spawn'"
            " (multiprocessing_context='spawn' for a DataLoader)."
        )

    # -- the other thread -------------------------------------------------------------------------

    def _on_thread(self, work: Callable[[], Any]) -> Any:
        if threading.get_ident() in self._own:
            with self._lock:
                return work()
        return self._elsewhere(work)

    def _elsewhere(self, work: Callable[[], Any]) -> Any:
        job = _Job(work)
        self._jobs.put(job)
        try:
            report = self._report
            while not job.done.acquire(timeout=-1 if report is None else _GLANCE):
                if report is not None:
                    report(self._clock.value)
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
                with self._lock:
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
            self._function("bridge_watch")(ctypes.addressof(self._stop), *self._signals.addresses)
            words = self._function("bridge_retcodes")().split()
            self.retcodes = {int(k): name for k, name in zip(words[::2], words[1::2], strict=True)}
            self._function("bridge_clock")(ctypes.addressof(self._clock))
            self.entries = Entries(self._function("bridge_entries")())
            self.entries.park()
        except Exception as why:
            said = " ".join(str(why).split())[:600]
            raise BackendUnavailableError(f"backend='julia' did not start: {said}. Way out: {_HOW}.") from why
        log.info("Julia %s started in %.1f s", self.main.seval("string(VERSION)"), time.perf_counter() - began)

    def _adopt(self) -> None:
        """Make Julia know a thread that it was not started on."""
        self.main.seval("nothing")
        self.entries.park()

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            self._functions[name] = self.main.seval(f"PyDiffEqFlux.{name}")
        return self._functions[name]

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        self._release()
        function = self._function(name)
        result, failed = None, None
        try:
            result = function._jl_call_nogil(*args)
        except Exception as error:
            failed = error
        self._give_up()
        if failed is not None:
            raise translated(failed) from failed
        return result

    def _entered(self, entry: Callable[..., int], ask: Any, into: tuple[Any, ...]) -> None:
        self._release()
        ask.main = 0
        code = entry(ctypes.byref(ask), *into)
        self._give_up()
        if code:
            self._call("bridge_raise", ())

    def _give_up(self) -> None:
        """Raise what :meth:`give_up` left for the end of the call."""
        if self._pending is not None:
            pending, self._pending, self._stop.value = self._pending, None, 0
            raise pending

    def _release(self) -> None:
        if self._dropped:
            handles = array("q")
            while self._dropped:
                handles.append(self._dropped.popleft())
            self.entries.release(handles.buffer_info()[0], len(handles))


class _Job:
    """A piece of work for Julia's thread, and what became of it."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]):
        self.work = work
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


def _must_be_first_thread() -> None:
    import juliacall

    if threading.current_thread() is not threading.main_thread() or juliacall.Main.seval("Threads.threadid()") != 1:
        raise BackendUnavailableError(
            "backend='julia': juliacall was imported before, and only the main thread, if it did that, can start the"
            " rest. Make the first solve by backend='julia' there, or import juliacall after it."
        )


def _environment(chosen: Configuration) -> None:
    """Tell juliacall which Julia; what the user's environment says already stays."""
    settings = {
        "PYTHON_JULIACALL_HANDLE_SIGNALS": "no",
        "PYTHON_JULIACALL_THREADS": "1",
        "PYTHON_JULIACALL_STARTUP_FILE": "no",
        # It would print from the main thread after every cell, and wait there for ever: only Julia's thread can print.
        "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
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
                _must_be_first_thread()
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
