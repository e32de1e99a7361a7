"""``compare``: rows, errors, table and picture; with Julia and without."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError


def layer() -> pdf.NeuralODE:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return pdf.NeuralODE(net, (0.0, 1.0), "tsit5", saveat=[0.5, 1.0])


def test_a_layer_natively(tmp_path: Path) -> None:
    algorithms = [None, "gauss", "backsolve", "ForwardSensitivity", "ReverseDiffAdjoint"]
    found = pdf.compare(layer(), torch.randn(3, 2).double(), backends=["eager"], sensealgs=algorithms, repeats=1)
    assert [row.sensealg for row in found.rows[:3]] == ["DiscreteAdjoint", "GaussAdjoint", "BacksolveAdjoint"]
    assert all(row.solution < 1e-4 and row.gradient < 1e-4 for row in found.rows[:4])
    assert "backend='julia'" in found.rows[4].failed  # what does not exist is a row with its error
    shown = io.StringIO()
    Console(file=shown, width=160).print(found.table())
    assert "GaussAdjoint" in shown.getvalue() and "ReverseDiffAdjoint is one of backend='julia'" in shown.getvalue()
    found.plot().savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000
    names = [text.get_text().strip() for text in found.plot().axes[0].texts]
    assert names == [f"eager, {row.sensealg}" for row in found.rows[:4]]


def test_targets_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="target is a Linear"):
        pdf.compare(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match="y0=None"):
        pdf.compare(layer())


@pytest.mark.julia
def test_a_layer_on_both_backends() -> None:
    algorithms = [None, "QuadratureAdjoint", "BacksolveAdjoint", "InterpolatingAdjoint"]
    found = pdf.compare(layer(), torch.randn(3, 2).double(), sensealgs=algorithms, repeats=1)
    assert [row.backend for row in found.rows] == ["torch"] * 4 + ["julia"] * 4
    assert not any(row.failed for row in found.rows)
    assert found.rows[4].sensealg == "GaussAdjoint"
    assert all(row.solution < 1e-4 and row.gradient < 2e-3 and row.nf > 6 for row in found.rows)
    assert len(found.plot().axes[0].texts) == 8
