"""The same workloads in diffrax: jitted, RecursiveCheckpointAdjoint, one thread, the networks' weights handed over."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

Array = Any
# Float32 arrays stay what they are: some workloads are in double precision.
jax.config.update("jax_enable_x64", True)


def weights(net: Any) -> list[tuple[Array, Array]]:
    """The layers of a torch network, first to last, as (matrix, bias)."""
    import torch

    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    return [(jnp.asarray(m.weight.detach().numpy()), jnp.asarray(m.bias.detach().numpy())) for m in layers]


def mlp(layers: list[tuple[Array, Array]], y: Array, activation: Callable[[Array], Array] = jnp.tanh) -> Array:
    for w, b in layers[:-1]:
        y = activation(y @ w.T + b)
    w, b = layers[-1]
    return y @ w.T + b


def solve(
    field: Any, y0: Array, ts: Array, args: Any, tol: float, *, solver: Any = None, rtol: float | None = None
) -> Any:  # fmt: skip
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5() if solver is None else solver, ts[0], ts[-1], None, y0, args,
        saveat=diffrax.SaveAt(ts=ts), adjoint=diffrax.RecursiveCheckpointAdjoint(), max_steps=100_000,
        stepsize_controller=diffrax.PIDController(rtol=tol if rtol is None else rtol, atol=tol),
    )  # fmt: skip


def gradient(field: Any, tol: float, *, solver: Any = None) -> Callable[..., Any]:
    """``(args, y0, ts, data) -> (states, gradient by args)`` of the sum of squares, jitted."""

    def loss(args: Any, y0: Array, ts: Array, data: Array) -> Any:
        ys = solve(field, y0, ts, args, tol, solver=solver).ys
        return ((ys - data) ** 2).sum(), ys

    return jax.jit(jax.grad(loss, has_aux=True))


def ready(x: Any) -> Any:
    return jax.block_until_ready(x)


def spiral(t: Any, y: Array, layers: Any) -> Array:
    return mlp(layers, y**3)


def flat(tree: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(x).ravel() for pair in tree for x in pair])
