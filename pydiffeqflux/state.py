"""What a state looks like to the user, and the one tensor that every solver sees instead.

A state is a tensor of any shape, or a (nested) tuple, list or dict of tensors. Solvers work on a single
tensor: a plain tensor passes through untouched; a structure is packed into one vector, or, where the
leaves share a batch dimension, into one row per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import DtypeError, InvalidStateError, ShapeError

State = Any  # Tensor | tuple[State, ...] | list[State] | dict[str, State]


def leaves_of(state: State, where: str) -> tuple[list[tuple[str, Tensor]], Any]:
    """The tensors of ``state``, each with its path, and a skeleton to put new ones back into."""
    found: list[tuple[str, Tensor]] = []

    def walk(node: State, path: str) -> Any:
        if isinstance(node, Tensor):
            found.append((path, node))
            return len(found) - 1
        if isinstance(node, dict):
            return {key: walk(value, f"{path}[{key!r}]") for key, value in node.items()}
        if isinstance(node, tuple | list):
            parts = [walk(value, f"{path}[{i}]") for i, value in enumerate(node)]
            return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
        raise InvalidStateError(
            f"{path} is a {type(node).__name__}; a state is a torch tensor or a tuple, list or dict of tensors"
            f" (torch.as_tensor makes one from a number or an array)."
        )

    skeleton = walk(state, where)
    return found, skeleton


def _fill(skeleton: Any, values: list[Tensor]) -> State:
    if isinstance(skeleton, int):
        return values[skeleton]
    if isinstance(skeleton, dict):
        return {key: _fill(value, values) for key, value in skeleton.items()}
    parts = [_fill(value, values) for value in skeleton]
    return type(skeleton)(*parts) if hasattr(skeleton, "_fields") else type(skeleton)(parts)


def map_state(function: Any, state: State) -> State:
    """``function`` applied to every tensor of ``state``."""
    found, skeleton = leaves_of(state, "state")
    return _fill(skeleton, [function(leaf) for _, leaf in found])


@dataclass(frozen=True)
class StateSpec:
    """How to pack a structured state into one tensor and back. Made by :func:`pack`."""

    skeleton: Any
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    batched: bool

    def _sizes(self) -> list[int]:
        tails = [shape[1:] if self.batched else shape for shape in self.shapes]
        doubled = [2 if d.is_complex and not self.dtype.is_complex else 1 for d in self.dtypes]
        return [tail.numel() * n for tail, n in zip(tails, doubled, strict=True)]

    def flatten(self, state: State, where: str = "the right-hand side's return value") -> Tensor:
        """The packed tensor of a state of this structure: ``(n,)``, or ``(batch, n)`` when batched.

        Raises:
            ShapeError, DtypeError: it is not of this structure, with these shapes and dtypes.
        """
        found, skeleton = leaves_of(state, where)
        if skeleton != self.skeleton or tuple(leaf.shape for _, leaf in found) != self.shapes:
            got = ", ".join(f"{path}: {tuple(leaf.shape)}" for path, leaf in found)
            wanted = ", ".join(str(tuple(shape)) for shape in self.shapes)
            raise ShapeError(
                f"{where} does not have the structure of y0: got {got}; y0's tensors have the shapes {wanted}."
            )
        rows = []
        for (path, leaf), dtype in zip(found, self.dtypes, strict=True):
            if leaf.dtype != dtype:
                raise DtypeError(f"{path} is {leaf.dtype} where y0 is {dtype}; convert it by .to({dtype}), or y0.")
            if dtype.is_complex and not self.dtype.is_complex:
                leaf = torch.view_as_real(leaf.resolve_conj())
            leaf = leaf.to(self.dtype)
            rows.append(leaf.reshape(leaf.shape[0], -1) if self.batched else leaf.reshape(-1))
        return torch.cat(rows, dim=-1)

    def unflatten(self, packed: Tensor) -> State:
        """The user's structure again; leading dimensions (time, say) of ``packed`` stay in front."""
        lead = packed.shape[: -2 if self.batched else -1]
        values = []
        for piece, shape, dtype in zip(packed.split(self._sizes(), dim=-1), self.shapes, self.dtypes, strict=True):
            if dtype.is_complex and not self.dtype.is_complex:
                values.append(torch.view_as_complex(piece.reshape((*lead, *shape, 2)).contiguous()).to(dtype))
            else:
                values.append(piece.reshape((*lead, *shape)).to(dtype))
        return _fill(self.skeleton, values)


def pack(y0: State, *, batched: bool = False) -> tuple[Tensor, StateSpec | None]:
    """One tensor for ``y0`` and how to get back; a plain tensor comes back as it is, with ``None``.

    Leaves may mix real and complex dtypes: complex ones then travel as pairs of reals.

    Raises:
        InvalidStateError: a leaf that is not a tensor, is empty, or has an integer or boolean dtype.
        DtypeError: leaves on different devices.
        ShapeError: ``batched`` with leaves whose first dimensions differ.
    """
    if type(y0) is Tensor and y0.is_floating_point() and y0.numel() and (y0.dim() or not batched):
        return y0, None  # the usual case
    found, skeleton = leaves_of(y0, "y0")
    if not found:
        raise InvalidStateError("y0 holds no tensor at all; a state needs at least one.")
    for path, leaf in found:
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise InvalidStateError(
                f"{path} has dtype {leaf.dtype}; a state must be floating point or complex: {path}.double(), say."
            )
        if leaf.numel() == 0:
            raise InvalidStateError(f"{path} is empty (shape {tuple(leaf.shape)}); there is nothing to solve.")
    devices = {str(leaf.device) for _, leaf in found}
    if len(devices) > 1:
        raise DtypeError(f"the tensors of y0 are on different devices, {', '.join(sorted(devices))}: move them to one.")
    if batched:
        firsts = {leaf.shape[0] if leaf.dim() else None for _, leaf in found}
        if len(firsts) != 1 or None in firsts:
            raise ShapeError(
                f"with independent rows every tensor of y0 needs the same first dimension (the batch); got the"
                f" shapes {[tuple(leaf.shape) for _, leaf in found]}."
            )
    if isinstance(y0, Tensor):
        return y0, None
    dtypes = tuple(leaf.dtype for _, leaf in found)
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    if dtype.is_complex and not all(d.is_complex for d in dtypes):
        dtype = dtype.to_real()
    spec = StateSpec(skeleton, tuple(leaf.shape for _, leaf in found), dtypes, dtype, batched)
    return spec.flatten(y0, "y0"), spec


def flat_rows(states: State) -> Tensor:
    """``states`` (time first) as one real table ``(T, n)`` in double precision, without a gradient."""
    found, _ = leaves_of(states, "ys")
    rows = [torch.view_as_real(x).flatten(1) if x.is_complex() else x.flatten(1) for _, x in found]
    return torch.cat([row.detach().cpu().double() for row in rows], dim=1)
