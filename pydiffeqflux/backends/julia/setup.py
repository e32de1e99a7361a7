"""The long first start, done once: find or get a Julia, put the bundled package into a project, compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ...errors import BackendUnavailableError, InvalidArgumentError
from . import bundle, configuration
from .configuration import Configuration

Report = Callable[[str], None]

#: What a project has to be able to do; compiles what is not compiled yet.
_LOAD = "import PythonCall, PyDiffEqFlux; print(Base.pkgversion(PythonCall))"


def point_at(
    julia: str, project: str, depot: str | None, report: Report, *, prefer: bool = False, cuda: bool = False
) -> tuple[Configuration, Path]:
    """Use a Julia and a project that are there already, and remember them. Needs no network if their packages are.

    Args:
        julia: the executable, or its name on the PATH.
        project: a folder with a Project.toml that has PythonCall; PyDiffEqFlux is added to it where it is missing.
        depot: value for JULIA_DEPOT_PATH.
        report: told what is going on.
        prefer: let ``backend="auto"`` mean Julia.
        cuda: have CUDA.jl in the project, too; it is added where it is missing.

    Returns:
        The configuration, and the file that it was written to.

    Raises:
        InvalidArgumentError: there is no such executable or project.
        BackendUnavailableError: Julia failed; its message is in ours.
    """
    found = shutil.which(julia)
    if found is None:
        raise InvalidArgumentError(f"julia={julia!r} is not an executable; give the path of Julia's.")
    place = Path(project).expanduser().resolve()
    if not (place / "Project.toml").is_file():
        raise InvalidArgumentError(f"project={str(project)!r} is not a folder with a Project.toml.")
    chosen = Configuration(str(Path(found).resolve()), str(place), depot, prefer)
    if "PyDiffEqFlux" not in (place / "Project.toml").read_text(encoding="utf-8"):
        report(f"adding the bundled PyDiffEqFlux to {place}")
        run(chosen, f"import Pkg; Pkg.develop(path = raw{_quoted(bundle.folder())})", report)
    if cuda and bundle.CUDA not in (place / "Project.toml").read_text(encoding="utf-8"):
        report(f"adding CUDA.jl to {place} (a download)")
        run(chosen, f'import Pkg; Pkg.add(name = "CUDA", uuid = "{bundle.CUDA}")', report)
    _load(chosen, report, cuda)
    return chosen, configuration.write(chosen)


def managed(report: Report, *, prefer: bool = False, cuda: bool = False) -> tuple[Configuration, Path]:
    """Let juliapkg get Julia and the packages at the versions that the bundled package pins. Needs a network.

    Raises:
        BackendUnavailableError: juliapkg or Julia failed; the message is in ours.
    """
    import juliapkg

    report(f"asking juliapkg for Julia {bundle.JULIA} and the packages (a download, minutes)")
    try:
        juliapkg.require_julia(f"~{bundle.JULIA}")
        juliapkg.add("PyDiffEqFlux", bundle.field("uuid"), dev=True, path=str(bundle.folder()))
        if cuda:
            juliapkg.add("CUDA", bundle.CUDA)
        juliapkg.resolve()
        chosen = Configuration(juliapkg.executable(), juliapkg.project(), None, prefer)
    except Exception as why:
        # Or whatever else uses juliapkg in this environment would be held up by it.
        juliapkg.rm("PyDiffEqFlux")
        if cuda:
            juliapkg.rm("CUDA")
        juliapkg.require_julia(None)
        said = " ".join(str(why).split())[:400]
        raise BackendUnavailableError(
            f"juliapkg could not get Julia and its packages: {said}. Without a network, point at a Julia"
            f" {bundle.JULIA} and a project (a folder with a Project.toml) that has the packages of"
            f" {bundle.folder() / 'Project.toml'}: pydiffeqflux setup-julia --julia EXE --project DIR."
        ) from why
    _load(chosen, report, cuda)
    return chosen, configuration.write(chosen)


def _load(chosen: Configuration, report: Report, cuda: bool) -> None:
    report("loading the packages (compiling them where that is not done: minutes, the first time)")
    run(chosen, _LOAD, report)
    if cuda and run(chosen, "import CUDA, PyDiffEqFlux; print(CUDA.functional())", report).strip() != "true":
        report("CUDA.jl is installed, and finds no GPU on this machine that it can use")


def run(chosen: Configuration, code: str, report: Report, timeout: float = 7200.0) -> str:
    """Run ``code`` in a Julia of its own; returns what it printed. What it says on the way is reported.

    Raises:
        BackendUnavailableError: it failed, or took longer than ``timeout`` seconds.
    """
    assert chosen.julia is not None and chosen.project is not None
    command = [chosen.julia, f"--project={chosen.project}", "--startup-file=no", "-e", code]
    # PythonCall looks for a Python of its own when it is not started from one: this one will do.
    environment = os.environ | {"JULIA_CONDAPKG_BACKEND": "Null", "JULIA_PYTHONCALL_EXE": sys.executable}
    if chosen.depot:
        environment["JULIA_DEPOT_PATH"] = chosen.depot
    try:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as why:
        raise BackendUnavailableError(f"{chosen.julia} cannot be run: {why}.") from why
    said: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    for line in process.stderr:
        said.append(line.rstrip())
        report(line.rstrip())
    out = process.stdout.read()
    if process.wait(timeout) != 0:
        raise BackendUnavailableError(
            f"Julia failed at `{code}` in the project {chosen.project}: {' '.join(said[:6])[:600]}"
        )
    return out


def _quoted(path: Path) -> str:
    return '"' + str(path).replace('"', '\\"') + '"'
