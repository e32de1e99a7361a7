"""The command line: ``pydiffeqflux COMMAND``. Errors are one line on stderr and exit status 2."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .backends.registry import NAMES
from .errors import PyDiffEqFluxError

if TYPE_CHECKING:
    from .training import FitResult, Progress

#: Mean change of the scaled states from row to row from which on the likelihood of a step is a poor one.
LONG_STEP = 0.5
#: As shells report a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """A group whose commands report the package's errors in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PyDiffEqFluxError as error:
            click.echo(f"pydiffeqflux: error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pydiffeqflux")
def main() -> None:
    """Differential equations for PyTorch."""


def _columns(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """``A,B`` (or the option several times) to column names; a name with a comma goes in double quotes."""
    names = [name.strip() for value in values for name in next(csv.reader([value], skipinitialspace=True))]
    if not all(names):
        raise click.BadParameter("give column names separated by commas, none of them empty.")
    return names


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """``1,2.5`` to numbers."""
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} must be numbers separated by commas.") from None


@main.command()
@click.argument("data", metavar="DATA.csv")
@click.option("--time", "time_column", metavar="COL", required=True, help="Column with the times.")
@click.option(
    "--state", "states", metavar="COL,COL", required=True, multiple=True, callback=_columns, help="Columns to fit."
)
@click.option("--out", metavar="DIR", required=True, help="Folder for the results; made if need be.")
@click.option(
    "--model",
    default="node",
    show_default=True,
    help="Family: node, augmented, ude, hamiltonian, dde, sde.",
)
@click.option("--backend", type=click.Choice(NAMES), default="auto", show_default=True)
@click.option("--method", default=None, help="Solver.  [default: tsit5; em for sde]")
@click.option("--width", type=int, default=32, show_default=True, help="Units in each hidden layer.")
@click.option("--depth", type=int, default=2, show_default=True, help="Hidden layers.")
@click.option("--augment", type=int, default=None, help="Unobserved states with a trained start.  [node: 1; ude: 0]")
@click.option("--extra-dims", type=int, default=None, help="Unobserved states that start at 0.  [augmented: 1]")
@click.option(
    "--known",
    metavar="TERMS",
    default=None,
    help="Known terms of a ude: FILE.py:NAME, a function of the states; or kinematics (dq/dt = v).",
)
@click.option("--lags", metavar="T,T", default=None, callback=_numbers, help="Lags of a dde, in the data's time.")
@click.option("--epochs", type=int, default=800, show_default=True, help="Training epochs.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the network's first weights.")
@click.option("--lr", type=float, default=1e-2, show_default=True, help="Adam's step size at the start.")
@click.option("--rtol", type=float, default=1e-4, show_default=True, help="Relative tolerance of the solver.")
@click.option("--atol", type=float, default=1e-5, show_default=True, help="Absolute tolerance, in scaled units.")
@click.option(
    "--dt", type=float, default=None, help="Step of a fixed-step method.  [a tenth of the spacing; sde: a quarter]"
)
@click.option(
    "--transform",
    type=click.Choice(["auto", "log", "none"]),
    default="auto",
    show_default=True,
    help="Fit logarithms: of the states that are positive throughout, of all, of none.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of torch: a small network is slower on several.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in DIR (same data and options).")
@click.option("--overwrite", is_flag=True, help="Start over where DIR holds an unfinished run.")
def fit(
    data: str,
    time_column: str,
    states: list[str],
    out: str,
    threads: int,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Fit a neural ODE, or a model of another family, to a time series.

    \b
    node         a network for the rates of change, and unobserved states beside the observed ones
    augmented    the same, the unobserved states starting at 0
    ude          known terms (--known) and a network for the rest
    hamiltonian  the motion of a learnt energy; --state names the positions, then their momenta
    dde          rates that depend on the states --lags ago too
    sde          drift and noise, by the likelihood of the steps from each row to the next

    Writes fit.png (data and trajectory), loss.png, model.pt (read it back with pydiffeqflux.training.load)
    and report.json into DIR, and checkpoint.pt while it runs. Ctrl-C stops after the current epoch; the same
    command with --resume goes on from there, to the same result.
    """
    import torch

    from . import training

    torch.set_num_threads(threads)
    series = training.read_csv(data, time_column, states)
    chosen = training.FitOptions(**options)
    try:
        with _progress(chosen.epochs) as progress:
            result = training.fit(series, chosen, out=out, resume=resume, overwrite=overwrite, progress=progress)
    except training.FitInterrupted as stop:
        click.echo(f"Stopped after {stop.epoch} of {stop.epochs} epochs. To go on:\n  {_again()}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        click.echo("Stopped before the end of an epoch; --resume goes on from DIR's last checkpoint, if any.", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    _summarise(result, out)


@contextmanager
def _progress(epochs: int) -> Iterator[Callable[[Progress], None]]:
    """A bar with the loss, on stderr (nothing where that is not a terminal)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as bar:
        task = bar.add_task("getting ready", total=epochs, loss="-")

        def update(now: Progress) -> None:
            stage = {"shooting": "multiple shooting", "trajectory": "one trajectory"}.get(now.stage, now.stage)
            bar.update(task, completed=now.epoch, description=stage, loss=f"{now.loss:.3e}")

        yield update


def _again() -> str:
    """The command that continues this one."""
    words = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
    name = "pydiffeqflux" if words[0].endswith(("pydiffeqflux", ".py")) else words[0]
    return shlex.join([name, *words[1:], "--resume"])


def _summarise(result: FitResult, out: str) -> None:
    report = result.report
    for name, state in report["states"].items():
        r2 = "R^2 undefined (the state never changes)" if state["r2"] is None else f"R^2 {state['r2']:.4f}"
        ahead = f" one step ahead, {state['within_95']:.0%} within 95 % bounds" if "within_95" in state else ""
        click.echo(f"{name}: {r2}, RMSE {state['rmse']:.4g}{ahead}")
    for name, value in _flat(report["model"].get("known_parameters", {})):
        click.echo(f"{name} {value:.4g}")
    step = report["model"].get("step", 0.0)
    if step > LONG_STEP:
        click.echo(
            f"note: from row to row the states move by {step:.2g} standard deviations; the likelihood of a step is for"
            " closely spaced rows, and paths simulated beyond one step may stray from the data"
        )
    click.echo(
        f"loss {report['losses']['final']:.3e}, {report['function_evaluations']['training']} network evaluations,"
        f" {report['seconds']:.1f} s, backend {report['backend']}, method {report['method']}"
    )
    click.echo(f"wrote fit.png, loss.png, model.pt and report.json into {out}")


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested dicts and lists, each with its place."""
    if isinstance(found, dict | list):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _flat(value, f"{name} {key}".strip())
    else:
        yield name, found


@main.command()
@click.argument("target", metavar="FILE.py:NAME")
@click.option("--backend", "backends", multiple=True, default=("torch", "julia"), show_default=True)
@click.option("--sensealg", "sensealgs", multiple=True, help="Sensitivity algorithm.  [default: each backend's own]")
@click.option("--method", default="tsit5", show_default=True, help="Solver.")
@click.option("--saveat", type=float, default=None, help="Spacing of the saved times.  [default: the end only]")
@click.option("--rtol", type=float, default=1e-6, show_default=True)
@click.option("--atol", type=float, default=1e-8, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Solves that are timed.")
@click.option("--out", metavar="FILE.png", default=None, help="Draw time against error, too.")
def compare(
    target: str, backends: tuple[str, ...], sensealgs: tuple[str, ...], out: str | None, **options: Any
) -> None:
    """Solve the ODEProblem NAME that FILE.py defines in several ways, side by side."""
    import runpy

    from rich.console import Console

    from .compare import compare as compared
    from .errors import DataError, DataFileNotFoundError, OutputError

    file, _, name = target.rpartition(":")
    if not file or not name:
        raise click.UsageError(f"{target!r} must be FILE.py:NAME, NAME an ODEProblem that the file defines.")
    try:
        defined = runpy.run_path(file)
    except FileNotFoundError:
        raise DataFileNotFoundError(f"no file {file}") from None
    if name not in defined:
        raise DataError(f"{file} defines no {name}; it has {', '.join(k for k in defined if not k.startswith('_'))}.")
    found = compared(defined[name], backends=backends, sensealgs=sensealgs or (None,), **options)
    Console().print(found.table())
    if out is not None:
        try:
            found.plot().savefig(out, dpi=150)
        except (OSError, ValueError) as why:
            raise OutputError(f"--out={out}: {why}") from why
        click.echo(f"wrote {out}")
    if any(row.failed for row in found.rows):
        raise SystemExit(1)


@main.command("setup-julia")
@click.option("--julia", metavar="EXE", help="Julia's executable.  [default: one that juliapkg gets]")
@click.option("--project", metavar="DIR", help="A Julia project that has PythonCall; goes with --julia.")
@click.option("--depot", metavar="PATH", help="Value for JULIA_DEPOT_PATH.")
@click.option("--prefer", is_flag=True, help="Let backend='auto' mean Julia.")
@click.option("--cuda", is_flag=True, help="Add CUDA.jl, for states on an NVIDIA GPU.")
def setup_julia(julia: str | None, project: str | None, depot: str | None, prefer: bool, cuda: bool) -> None:
    """Set the Julia backend up: the long first start, once.

    Without options, juliapkg downloads Julia and its packages. For machines without a network, point at a Julia and a
    project that are there. What was chosen is remembered in a configuration file.
    """
    from .backends.julia import setup

    if (julia is None) != (project is None):
        raise click.UsageError("--julia and --project go together.")
    report = lambda line: click.echo(line, err=True)  # noqa: E731
    if julia is not None and project is not None:
        _, file = setup.point_at(julia, project, depot, report, prefer=prefer, cuda=cuda)
    else:
        _, file = setup.managed(report, prefer=prefer, cuda=cuda)
    click.echo(f"Julia is ready; remembered in {file}")


@main.command()
@click.option("--no-trial", is_flag=True, help="Leave out the solve at the end, which starts Julia.")
def doctor(no_trial: bool) -> None:
    """Say what the Julia backend needs, what is there, and how to mend what is not."""
    from rich.console import Console
    from rich.table import Table

    from .backends.julia.doctor import examine

    findings = list(examine(trial=not no_trial))
    table = Table("", "what")
    table.add_column("found", overflow="fold")
    for f in findings:
        table.add_row("[green]ok[/green]" if f.ok else "[red]no[/red]", f.what, f.found)
    Console().print(table)
    if not all(f.ok for f in findings):
        click.echo("The Julia backend cannot run yet (backend='torch' needs none of this). What to do:")
        for f in findings:
            if not f.ok:
                click.echo(f"  {f.what}: {f.mend}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
