"""Source in, functions in this process out: compiled now, or earlier and kept on disk."""

from __future__ import annotations

import ast
import ctypes
import logging
import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from . import blas, store
from .lang import mathlib, words
from .lang.machine import Loaded, machine_name, object_code

log = logging.getLogger("pydiffeqflux")

#: A compilation that takes longer than this, in seconds, is mentioned.
LONG = 1.0
#: What the source of a kernel may use.
_NAMES = {k: v for m in (words, mathlib) for k, v in vars(m).items() if not k.startswith("_")} | {"math": math}

_lock = threading.RLock()
_loaded: dict[str, Loaded] = {}


def kernels(sources: Sequence[str], single: bool) -> Loaded:
    """The functions of these sources; loops over them may be vectorised, sums reordered."""
    from .lang.compiler import Unit

    def build() -> bytes:
        unit = Unit(single=single, loose=True)
        for key, source in enumerate(sources):
            tree = ast.parse(source).body[0]
            assert isinstance(tree, ast.FunctionDef)
            unit.define(tree, dict(_NAMES), key=-1 - key, export=True)
        return object_code(unit.module)

    return _load(f"kernels {single}\n" + "\n".join(sources), "a model's kernels", build)


class Entry:
    """A loop, to be called with numbers and addresses; ``enter`` takes the address of an array of them."""

    def __init__(self, address: int):
        self.enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)

    def __call__(self, *args: int) -> int:
        words = array("q", args)
        return self.enter(words.buffer_info()[0])


def loop(function: Callable[..., Any], single: bool) -> Entry:
    """A loop, ready to be called with addresses."""
    from .lang.compiler import Unit

    def build() -> bytes:
        unit = Unit(single=single)
        unit.entry(function)
        return object_code(unit.module)

    # The store knows the sources of this package: naming the loop is enough.
    name = function.__name__
    code = _load(f"loop {function.__module__}.{name} {single}", f"the loop {name!r}", build)
    return Entry(code.address(name))


def kernel(function: Callable[..., Any], single: bool) -> int:
    """The address of a kernel that this package has written itself."""
    from .lang.compiler import Unit

    def build() -> bytes:
        unit = Unit(single=single)
        unit.function(function, export=True)
        return object_code(unit.module)

    name = function.__name__
    return _load(f"kernel {function.__module__}.{name} {single}", f"the kernel {name!r}", build).address(name)


def _load(source: str, what: str, build: Callable[[], bytes]) -> Loaded:
    with _lock:
        if source not in _loaded:
            code = store.fetch(source, machine_name(), lambda: _timed(build, what))
            _loaded[source] = Loaded(code, blas.addresses() if "gemm(" in source else None)
        return _loaded[source]


def _timed(build: Callable[[], bytes], what: str) -> bytes:
    began = time.perf_counter()
    code = build()
    took = time.perf_counter() - began
    if took > LONG:
        log.warning("compiling %s took %.1f s; the result is kept in %s", what, took, store.folder())
    return code
