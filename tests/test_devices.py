"""Nothing is made on the wrong device, and nothing waits for a device more often than it must.

On a device that is made of the CPU's memory, which every machine has: see ``problems/elsewhere.py``. Whether a GPU
computes the same numbers is what ``test_cuda.py`` asks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GROUPS = ["methods", "fixed", "adjoints", "stiff adjoints", "rows", "layers", "odeint", "events"]


def on_elsewhere(group: str) -> str:
    """In a process of its own: torch has one spare device type a process."""
    command = [sys.executable, "-m", "tests.problems.on_elsewhere", group]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_both_devices_give_the_same_numbers(group: str) -> None:
    assert "the same" in on_elsewhere(group)


def test_a_step_reads_at_most_one_value_off_the_device() -> None:
    """Explicit and Rosenbrock methods: the error's norm. Newton's method reads one an iteration besides."""
    assert on_elsewhere("reads").count("reads a step") == 5
