"""The rows of the operator table, one kind of operator a file."""

from __future__ import annotations

from . import convolution, creation, indexing, matrices, pointwise, reductions, views

__all__ = ["convolution", "creation", "indexing", "matrices", "pointwise", "reductions", "views"]
