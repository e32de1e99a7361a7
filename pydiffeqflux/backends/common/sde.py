"""A stochastic equation as the schemes see it: drift, diffusion, their products with noise; counted and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import DtypeError, ShapeError, UnsupportedError
from ...tracking import transforming
from .path import Path
from .rhs import Rhs, Scalar


class Sde(Rhs):
    """``dy = drift(t, y) dt + diffusion(t, y) dW``; calling it evaluates the drift.

    Args:
        drift, diffusion: the user's functions.
        like: a state, for shape, dtype and device.
        noise: one of ``NOISES``.
        interpretation: ``"ito"`` or ``"stratonovich"``.
    """

    path: Path

    def __init__(
        self,
        drift: Callable[[Tensor, Any], Any],
        diffusion: Callable[[Tensor, Any], Any],
        like: Tensor,
        noise: str,
        interpretation: str,
    ):
        super().__init__(drift, None, like)
        self.diffuse, self.noise, self.interpretation = diffusion, noise, interpretation
        #: The diffusion multiplies the noise entry by entry; otherwise it is a matrix.
        self.elementwise = noise == "diagonal"
        self._known = False

    # -- the parts, and what schemes make of them -------------------------------------------------

    def diffusion(self, t: Scalar, y: Tensor) -> Tensor:
        """The diffusion, ``(*, d)`` or ``(*, d, m)``."""
        self.ng += 1
        if self._known:
            return self.diffuse(self.time(t), y)
        g = self._guarded(self.diffuse, "the diffusion", self.time(t), y)
        self._check_diffusion(g, y)
        self._known = True
        return g

    def both(self, t: Scalar, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion."""
        return self(t, y), self.diffusion(t, y)

    def times(self, g: Tensor, w: Tensor) -> Tensor:
        """The diffusion ``g`` times noise ``w``."""
        return g * w if self.elementwise else (g @ w.unsqueeze(-1)).squeeze(-1)

    def product(self, t: Scalar, y: Tensor, w: Tensor) -> Tensor:
        """``diffusion(t, y) w``."""
        return self.times(self.diffusion(t, y), w)

    def both_product(self, t: Scalar, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Drift, and ``diffusion(t, y) w``."""
        return self(t, y), self.product(t, y, w)

    def flow(self, t: Scalar, y: Tensor, dt: float, w: Tensor) -> Tensor:
        """``drift(t, y) dt + diffusion(t, y) w``."""
        f, noise = self.both_product(t, y, w)
        return f * dt + noise

    def columns(self, g: Tensor) -> list[Tensor]:
        """The vector fields ``g_k (*, d)`` of a diffusion that is a matrix."""
        return list(g.unbind(-1))

    # -- derivatives of the diffusion along itself ------------------------------------------------

    def along_itself(self, t: Scalar, y: Tensor, v: Tensor | float) -> tuple[Tensor, Tensor]:
        """``g``, and ``sum_k v_k (dg_k/dy) g_k``: what Milstein's term and the Ito correction are made of.

        ``v`` is shaped like the noise, or one number. Differentiable where gradients are enabled.

        Raises:
            UnsupportedError: inside a ``torch.func`` transform, in which autograd cannot be asked for it.
        """
        self._outside_transforms()
        nested = torch.is_grad_enabled()
        with torch.enable_grad():
            at = y.view_as(y) if nested and y.requires_grad else y.detach().requires_grad_()
            g = self.diffusion(t, at)
            if self.noise == "additive" or not g.requires_grad:
                found = torch.zeros_like(y)
            elif self.elementwise:
                found = self._diagonal(g, at, nested) * g * v
            else:
                weights = v if isinstance(v, float) else v.unsqueeze(-2)
                found = self._jacobian_products(g, g * weights, at)
        return (g, found) if nested else (g.detach(), found.detach())

    def along(self, t: Scalar, y: Tensor, directions: Tensor) -> Tensor:
        """``sum_k (dg_k/dy) directions_k`` for directions ``(*, d, m)``, the columns of a matrix."""
        self._outside_transforms()
        nested = torch.is_grad_enabled()
        with torch.enable_grad():
            at = y.view_as(y) if nested and y.requires_grad else y.detach().requires_grad_()
            g = self.diffusion(t, at)
            if self.noise == "additive" or not g.requires_grad:
                found = torch.zeros_like(y)
            else:
                found = self._jacobian_products(g, directions, at)
        return found if nested else found.detach()

    def _outside_transforms(self) -> None:
        if transforming() and self.noise != "additive":
            raise UnsupportedError(
                "this method differentiates the diffusion by autograd, which it cannot inside a torch.func transform"
                " (grad, vmap, ...): take 'sosri' or 'sriw1' (Ito), or 'heun' or 'midpoint' (Stratonovich)."
            )

    def _diagonal(self, g: Tensor, y: Tensor, nested: bool) -> Tensor:
        """``d g_i / d y_i``, exactly, also where entry i depends on the others: one product for each i."""
        entries = []
        for i in range(y.shape[-1]):
            (row,) = torch.autograd.grad(
                g[..., i].sum(), y, create_graph=nested, retain_graph=True, materialize_grads=True
            )
            entries.append(row[..., i])
        return torch.stack(entries, dim=-1)

    def _jacobian_products(self, g: Tensor, directions: Tensor, y: Tensor) -> Tensor:
        """``sum_k (dg_k/dy) directions_k`` by differentiating twice, once for each k (forward from reverse mode)."""
        total = torch.zeros_like(y)
        columns, along = self.columns(g), self.columns(directions)
        for column, direction in zip(columns, along, strict=True):
            if not column.requires_grad:
                continue
            dummy = torch.zeros_like(column, requires_grad=True)
            (back,) = torch.autograd.grad(column, y, dummy, create_graph=True, allow_unused=True)
            if back is None or not back.requires_grad:
                continue
            (forth,) = torch.autograd.grad(back, dummy, direction, create_graph=True, allow_unused=True)
            if forth is not None:
                total = total + forth
        return total

    def stratonovich_product(self, t: Scalar, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The drift of the same equation in Stratonovich form, and ``diffusion(t, y) w``.

        ``f - 1/2 sum_k (dg_k/dy) g_k`` where the equation is Ito's (Kloeden & Platen, section 4.9).
        """
        if self.interpretation == "stratonovich" or self.noise == "additive":
            return self.both_product(t, y, w)
        f = self(t, y)
        g, correction = self.along_itself(t, y, 0.5)
        return f - correction, self.times(g, w)

    # -- checks -----------------------------------------------------------------------------------

    def noise_shape(self, t: float, y: Tensor) -> tuple[int, ...]:
        """The shape of the noise, from a first evaluation of drift and diffusion, which checks them."""
        with torch.no_grad():
            self(t, y)
            g = self.diffusion(t, y)
        return tuple(y.shape) if self.elementwise else (*y.shape[:-1], g.shape[-1])

    def probe(self, t: Tensor, y: Tensor) -> Tensor:
        g = self.diffusion(t, y)
        return torch.cat([self.evaluate(t, y).flatten(), g.flatten()])

    @property
    def models(self) -> tuple[Any, ...]:
        return self.func, self.diffuse

    def _check_diffusion(self, g: Any, y: Tensor) -> None:
        if not isinstance(g, Tensor):
            raise ShapeError(f"the diffusion returned a {type(g).__name__}; it must return a tensor.")
        shape, state = tuple(g.shape), tuple(y.shape)
        matrix = len(shape) == len(state) + 1 and shape[:-1] == state and shape[-1] > 0
        if self.noise == "additive" and shape == state:
            self.elementwise = True
        elif self.noise == "diagonal" and shape != state:
            hint = " a matrix is noise='general'." if matrix else " entry i multiplies a Brownian motion of its own."
            raise ShapeError(
                f"the diffusion returned shape {shape} for a state of shape {state}; with noise='diagonal' it must have"
                f" the shape of the state:{hint}"
            )
        elif self.noise != "diagonal" and not matrix:
            raise ShapeError(
                f"the diffusion returned shape {shape} for a state of shape {state}; with noise={self.noise!r} it must"
                f" be a matrix for each row, {(*state, 1 if self.noise == 'scalar' else 'm')}"
                f"{'' if shape != state else ', or say noise=' + repr('diagonal')}."
            )
        elif self.noise == "scalar" and shape[-1] != 1:
            raise ShapeError(
                f"the diffusion returned shape {shape}: {shape[-1]} Brownian motions; noise='scalar' has one,"
                f" {(*state, 1)}, and noise='general' any number."
            )
        if g.dtype != y.dtype or g.device != y.device:
            raise DtypeError(
                f"the diffusion returned {g.dtype} on {g.device} for a state of {y.dtype} on {y.device}; convert it"
                f" (diffusion.to(y0)) or y0 (y0.to({g.dtype}))."
            )
