"""What is there, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import PyDiffEqFluxError
from . import bundle, configuration
from .configuration import Configuration
from .setup import run

_SETUP = "pydiffeqflux setup-julia (with a network), or pydiffeqflux setup-julia --julia EXE --project DIR"

_TRIAL = """
import torch, pydiffeqflux as pdf
rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
sol = pdf.solve(problem, "tsit5", saveat=[1.0], rtol=1e-8, atol=1e-8, backend="julia", dense=False)
sol.ys.sum().backward()
assert abs(float(rate.grad) + 2 * 2.718281828459045 ** -0.5) < 1e-5, float(rate.grad)
"""


@dataclass(frozen=True)
class Finding:
    """One thing that the Julia backend needs.

    Attributes:
        ok: whether it is there.
        found: what is.
        mend: the way out where it is not.
    """

    what: str
    ok: bool
    found: str
    mend: str = ""


def examine(*, trial: bool = True) -> Iterator[Finding]:
    """Look at everything that the Julia backend needs, in the order in which it needs it; stops at what is missing.

    Args:
        trial: end with a real solve and gradient in a fresh process.
    """
    juliacall = _version("juliacall")
    yield Finding("juliacall", juliacall is not None, juliacall or "not installed", "pip install juliacall")
    if juliacall is None:
        return
    try:
        place = bundle.folder()
        yield Finding("bundled Julia package", True, f"PyDiffEqFlux {bundle.field('version')} in {place}")
        chosen = configuration.read()
    except PyDiffEqFluxError as why:
        yield Finding("installation", False, str(why), "see the message")
        return
    file = configuration.path()
    yield Finding("configuration", chosen is not None, str(file) if chosen else f"no file {file}", _SETUP)
    if chosen is None:
        return
    yield from _julia(chosen, juliacall)
    if trial:
        done = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        found = "a solve and its gradient" if done.returncode == 0 else said
        yield Finding("trial", done.returncode == 0, found, "the message says what failed; " + _SETUP)


def _julia(chosen: Configuration, juliacall: str) -> Iterator[Finding]:
    if chosen.julia is None or shutil.which(chosen.julia) is None:
        yield Finding("Julia", False, f"{chosen.julia} is not there", _SETUP)
        return
    try:
        version = run(chosen, "print(VERSION)", lambda line: None)
        yield Finding("Julia", True, f"{version} ({chosen.julia})")
        code = "import PythonCall, PyDiffEqFlux; print(pkgversion(PythonCall), ' ', pkgversion(PyDiffEqFlux))"
        pythoncall, ours = run(chosen, code, lambda line: None).split()
    except PyDiffEqFluxError as why:
        yield Finding("Julia packages", False, str(why), _SETUP)
        return
    good = pythoncall == juliacall
    yield Finding("PythonCall", good, f"{pythoncall} for juliacall {juliacall}", f"pip install juliacall=={pythoncall}")
    yield Finding("PyDiffEqFlux", ours == bundle.field("version"), ours, _SETUP)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
