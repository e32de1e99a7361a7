"""A device that is not the CPU, made of the CPU's memory.

Its tensors refuse to be mixed with the CPU's, as a GPU's do, and every value that is read off it is counted: what a GPU
would make the program wait for. It says nothing about how a GPU computes.

Importing this registers torch's one spare device type, and changes four constructors, for the whole process: do it in
a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

#: Operators that may see tensors of two devices; an index may lie on the CPU.
_CROSSING = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::is_same_size"}

#: Values read off the device so far.
reads = 0


class Elsewhere(torch.Tensor):
    """Holds a tensor of the CPU, and says that it is not one."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"

    def data_ptr(self) -> int:
        """Where it lies, for those who can reach this device: the arrays of Julia's JLArrays."""
        return self.held.data_ptr()

    def tolist(self) -> Any:
        global reads
        reads += 1
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    global reads
    leaves, spec = pytree.tree_flatten((args, kwargs))
    name = func._schema.name
    reads += name == "aten::_local_scalar_dense"
    mine = [x for x in leaves if isinstance(x, Elsewhere)]
    for x in leaves:
        if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.dim() > 0 and name not in _CROSSING:
            raise RuntimeError(f"{func}: a tensor of shape {tuple(x.shape)} is on {x.device}, not on {DEVICE}")
    device = kwargs.get("device")
    here = bool(mine) if device is None else torch.device(device).type == NAME
    plain = [_inside(x) for x in leaves]
    out_args, out_kwargs = pytree.tree_unflatten(plain, spec)
    out = func(*out_args, **out_kwargs)
    if name == "aten::copy_":
        return args[0]
    known = {id(x.held): x for x in mine}

    def outside(x):
        if id(x) in known:
            return known[id(x)]
        return Elsewhere(x) if here and isinstance(x, torch.Tensor) else x

    return pytree.tree_map(outside, out)


def _inside(x: Any) -> Any:
    if isinstance(x, Elsewhere):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _eye(n, m=None, *, dtype=None, **_):
    return Elsewhere(torch.eye(n, n if m is None else m, dtype=dtype))


_everything = torch.library.Library("_", "IMPL")
_everything.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl("eye", _eye, "PrivateUse1")
_aten.impl("eye.m", _eye, "PrivateUse1")


def _moved(constructor):
    """For those that torch resizes inside, or takes apart: made on the CPU and moved."""

    def construct(*args, device=None, requires_grad=False, **kwargs):
        if device is None or torch.device(device).type != NAME:
            return constructor(*args, device=device, **kwargs, **({"requires_grad": True} if requires_grad else {}))
        made = constructor(*args, **kwargs).to(device)
        return made.requires_grad_() if requires_grad else made

    return construct


for _name in ("tensor", "as_tensor", "arange", "linspace"):
    setattr(torch, _name, _moved(getattr(torch, _name)))
