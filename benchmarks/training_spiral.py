"""500 Adam steps of the spiral neural ODE, timed from outside by ``compiled.py``: everything counts.

    python benchmarks/training_spiral.py pydiffeqflux
"""

from __future__ import annotations

import os
import sys

import numpy as np

STEPS, SAVES, TOL = 500, 30, 1e-6


def data() -> np.ndarray:
    """The true spiral at the saved times, by small steps of Kutta's method."""
    a = np.array([[-0.1, 2.0], [-2.0, -0.1]])
    f = lambda y: y**3 @ a  # noqa: E731
    y, rows, h = np.array([[2.0, 0.0]]), [], 1.5 / (SAVES - 1) / 40
    for _ in range(SAVES):
        rows.append(y)
        for _ in range(40):
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3))
    return np.stack(rows).astype(np.float32)


def ours() -> float:
    import torch

    import pydiffeqflux as pdf

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))
    node = pdf.NeuralODE(lambda t, y: net(y**3), (0.0, 1.5), saveat=torch.linspace(0, 1.5, SAVES), rtol=TOL, atol=TOL)
    wanted, y0 = torch.from_numpy(data()), torch.tensor([[2.0, 0.0]])
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(STEPS):
        adam.zero_grad()
        loss = ((node(y0) - wanted) ** 2).mean()
        loss.backward()
        adam.step()
    return float(loss)


def diffrax() -> float:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from diffrax import ODETerm, PIDController, RecursiveCheckpointAdjoint, SaveAt, Tsit5, diffeqsolve

    net = eqx.nn.MLP(2, 2, 50, 1, activation=jnp.tanh, key=jax.random.PRNGKey(0))
    wanted, y0, ts = jnp.asarray(data()), jnp.array([[2.0, 0.0]]), jnp.linspace(0, 1.5, SAVES)
    adam = optax.adam(1e-2)

    def loss_of(net: eqx.nn.MLP) -> jax.Array:
        field = ODETerm(lambda t, y, args: jax.vmap(net)(y**3))
        ys = diffeqsolve(
            field, Tsit5(), 0.0, 1.5, None, y0, saveat=SaveAt(ts=ts), adjoint=RecursiveCheckpointAdjoint(),
            stepsize_controller=PIDController(rtol=TOL, atol=TOL),
        ).ys  # fmt: skip
        return ((ys - wanted) ** 2).mean()

    @eqx.filter_jit
    def step(net: eqx.nn.MLP, state: optax.OptState) -> tuple[eqx.nn.MLP, optax.OptState, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(loss_of)(net)
        updates, state = adam.update(grads, state)
        return eqx.apply_updates(net, updates), state, loss

    state = adam.init(eqx.filter(net, eqx.is_array))
    for _ in range(STEPS):
        net, state, loss = step(net, state)
    return float(loss)


if __name__ == "__main__":
    print({"pydiffeqflux": ours, "diffrax": diffrax}[sys.argv[1]]())
