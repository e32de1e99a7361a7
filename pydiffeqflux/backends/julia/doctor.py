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
from .configuration import VARIABLES, Configuration, from_environment
from .setup import run

_SETUP = (
    "run `pydiffeqflux setup-julia`, which downloads Julia and its packages (minutes, once); on a machine without a"
    " network, `pydiffeqflux setup-julia --julia EXE --project DIR` with those that are there"
)

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
        chosen, source, mend = _chosen()
    except PyDiffEqFluxError as why:
        yield Finding("installation", False, str(why), "see the message")
        return
    yield Finding("configuration", chosen is not None, source, mend)
    if chosen is None:
        return
    well = True
    for finding in _julia(chosen, juliacall, mend):
        yield finding
        well &= finding.ok
    if trial and well:
        done = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        found = "a solve and its gradient" if done.returncode == 0 else said
        yield Finding("trial", done.returncode == 0, found, "the message says what failed")


def _chosen() -> tuple[Configuration | None, str, str]:
    """The Julia that a solve would use, or None; who says so, or where nothing was found; and how to change that."""
    if (named := from_environment()) is not None:
        names = " and ".join(VARIABLES)
        return named, f"{names}, in the environment", f"correct {names}; or unset them, and {_SETUP}"
    chosen, file = configuration.read(), configuration.path()
    return chosen, str(file) if chosen else f"there is no {file}: Julia was not set up", _SETUP


def _julia(chosen: Configuration, juliacall: str, mend: str) -> Iterator[Finding]:
    if chosen.julia is None or shutil.which(chosen.julia) is None:
        yield Finding("Julia", False, f"{chosen.julia} is not there", mend)
        return
    try:
        version = run(chosen, "print(VERSION)", lambda line: None)
        yield Finding("Julia", True, f"{version} ({chosen.julia})")
        code = "import PythonCall, PyDiffEqFlux; print(pkgversion(PythonCall), ' ', pkgversion(PyDiffEqFlux))"
        pythoncall, ours = run(chosen, code, lambda line: None).split()
    except PyDiffEqFluxError as why:
        yield Finding("Julia packages", False, str(why), mend)
        return
    good = pythoncall == juliacall
    yield Finding("PythonCall", good, f"{pythoncall} for juliacall {juliacall}", f"pip install juliacall=={pythoncall}")
    yield Finding("PyDiffEqFlux", ours == bundle.field("version"), ours, mend)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
