"""The operator table: what each core ATen operator becomes in a program. A row is a function.

A row gets a :class:`Lowering` (what is being built, and what the operator's result looks like) and the operator's
arguments, tensors as :class:`~.value.Value`. It returns a Value, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .expr import Kind
from .value import Builder, Value, constant

Row = Callable[..., Any]

#: By the operator's full name, ``"aten.add.Tensor"``.
TABLE: dict[str, Row] = {}


@dataclass(frozen=True)
class Lowering:
    """What a row may know: the builder, the program's dtype, and the shape and dtype of the result."""

    builder: Builder
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    result: torch.dtype | None

    @property
    def kind(self) -> Kind:
        """The kind of the result's elements."""
        return "float" if self.result is None else kind_of(self.result)

    def value(self, x: Value | float | int | bool) -> Value:
        """``x`` as a Value: numbers become constants."""
        return x if isinstance(x, Value) else constant(x)


def kind_of(dtype: torch.dtype) -> Kind:
    """What an element of a tensor of ``dtype`` is."""
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "int"


def operator(*names: str) -> Callable[[Row], Row]:
    """Enter a row, under one or several names."""

    def enter(row: Row) -> Row:
        for name in names:
            TABLE[name] = row
        return row

    return enter
