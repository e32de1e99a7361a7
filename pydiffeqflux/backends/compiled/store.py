"""Machine code kept on disk between processes.

One file for each piece of code, named by the hash of everything that it depends on: its source, this package's
compiler, LLVM, and the processor. A file holds the hash of its own contents, so one that is damaged counts as missing
and is written anew. Files appear by renaming, whole or not at all, so any number of processes may share the folder, and
deleting it costs nothing but time.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("pydiffeqflux")

_DIGEST = 32


def folder() -> Path:
    """Where the files lie: ``PYDIFFEQFLUX_CACHE``, or the user's folder for caches."""
    own = os.environ.get("PYDIFFEQFLUX_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pydiffeqflux"


@functools.cache
def _compiler() -> str:
    """A hash of this engine's own sources: of the loops, and of what compiles them."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def path_of(source: str, machine: str) -> Path:
    """The file for a source on a machine."""
    name = hashlib.sha256("\0".join((source, machine, _compiler())).encode()).hexdigest()
    return folder() / f"{name[:40]}.o"


def fetch(source: str, machine: str, build: Callable[[], bytes]) -> bytes:
    """The code for ``source``: from disk, or built and put there."""
    path = path_of(source, machine)
    code = _read(path)
    if code is None:
        code = build()
        _write(path, code)
    return code


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) <= _DIGEST or hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        log.info("the compiled code in %s is damaged: compiling again", path)
        return None
    return data[_DIGEST:]


def _write(path: Path, code: bytes) -> None:
    """Put the code on disk; a disk that cannot be written costs the next process a compilation, and no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as why:
        log.info("compiled code is not kept on disk: %s", why)
