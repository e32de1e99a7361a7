"""Moving the time dimension."""

from __future__ import annotations

import pytest
import torch

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, ShapeError


def test_moves_dimensions_as_torch_does() -> None:
    x = torch.randn(3, 4, 5)
    assert torch.equal(pdf.DimMover()(x), x.transpose(0, 1))
    assert torch.equal(pdf.DimMover(-2, -1)(x), x.transpose(1, 2))
    assert torch.equal(pdf.DimMover(0, -1)(x), x.permute(1, 2, 0))
    assert "source=0, destination=1" in repr(pdf.DimMover())


def test_mistakes() -> None:
    with pytest.raises(ShapeError, match="no dimension destination=1"):
        pdf.DimMover()(torch.ones(3))
    with pytest.raises(InvalidArgumentError, match=r"source=1\.0"):
        pdf.DimMover(1.0)
