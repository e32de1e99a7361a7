"""How long a new process waits for its first gradient of the spiral by the compiled engine.

Counted is the first solve with its gradient (tracing, compiling or reading machine code, loading llvmlite and the
engine's own modules); not counted are ``import torch`` and ``import pydiffeqflux``, which are shown next to it. Every
repeat is a process of its own: with nothing on disk, and with the code of an earlier process there. Python's own
bytecode is on disk in both, as in an installed package.

    python benchmarks/compiled_start.py --out runs/benchmarks
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

#: Seconds that the first gradient may take.
LIMITS = {"nothing on disk": 3.0, "code on disk": 0.3}
PARTS = ("import torch", "import pydiffeqflux", "first gradient", "its CPU time", "second gradient")


def child() -> None:
    """Print the seconds of ``PARTS``."""
    marks = [time.perf_counter()]
    import torch

    marks.append(time.perf_counter())
    import pydiffeqflux as pdf

    marks.append(time.perf_counter())
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))
    y0, ts = torch.tensor([[2.0, 0.0]]), torch.linspace(0, 1.5, 30)

    def gradient() -> tuple[float, float]:
        began, own = time.perf_counter(), time.process_time()
        problem = pdf.ODEProblem(lambda t, y: net(y**3), y0, (0.0, 1.5))
        ys = pdf.solve(problem, saveat=ts, rtol=1e-6, atol=1e-6, dense=False, backend="compiled").ys
        ys.square().sum().backward()
        return time.perf_counter() - began, time.process_time() - own

    first, own = gradient()
    print(json.dumps([marks[1] - marks[0], marks[2] - marks[1], first, own, gradient()[0]]))


def measure(repeats: int) -> dict[str, list[list[float]]]:
    """The parts' seconds in every repeat."""
    found: dict[str, list[list[float]]] = {name: [] for name in LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        for k in range(repeats + 1):
            for name, cache in (("nothing on disk", f"cold{k}"), ("code on disk", "cold0")):
                own = env | {"PYDIFFEQFLUX_CACHE": f"{folder}/{cache}"}
                command = [sys.executable, __file__, "--child"]
                said = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout
                if k:  # the first process writes bytecode and machine code
                    found[name].append(json.loads(said))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the numbers")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="processes of each kind (default 7)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child()
        return
    if args.out is None:
        parser.error("--out is required")
    from rich.console import Console
    from rich.table import Table

    found = measure(args.repeats)
    limits = ", ".join(f"{limit:g} with {name}" for name, limit in LIMITS.items())
    table = Table(title=f"a new process, s: least (median) of {args.repeats}", caption=f"at most {limits}")
    for head in ("", *PARTS):
        table.add_column(head, justify="right" if head else "left", no_wrap=not head)
    for name, rows in found.items():
        table.add_row(name, *(f"{min(x):.3f} ({median(x):.3f})" for x in zip(*rows, strict=True)))
    Console(width=120).print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compiled_start.json").write_text(json.dumps({"parts": PARTS, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
