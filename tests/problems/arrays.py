"""Right-hand sides and solves for Julia's code for arrays, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from problems.in_julia import julia
from problems.modules import MODULES
from torch import Tensor, nn

import pydiffeqflux as pdf

D = torch.float64


def _wide() -> Any:
    """Products that are large enough for the array type's own."""
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30)).double()
    return lambda t, y: net(y) * torch.cos(t), torch.randn(50, 30, dtype=D)


def _long() -> Any:
    """Reductions that are long enough to be shared."""
    a = torch.randn(3, dtype=D, requires_grad=True)
    return lambda t, y: y * a[0] - (y * y).mean() * a[1] + torch.amax(y) * a[2], torch.randn(2500, dtype=D)


MANY: dict[str, Callable[[], Any]] = {**MODULES, "wide": _wide, "long": _long}


def products(name: str, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A function's value and its vector-Jacobian products, each by Julia and by torch."""
    from pydiffeqflux.backends.julia.engine import _Tools
    from pydiffeqflux.backends.julia.session import session

    torch.manual_seed(0)
    func, y = MANY[name]()
    t, y = torch.tensor(0.3, dtype=D, device=device), y.to(device).requires_grad_()
    tools = _Tools.of(session())
    model = tools.models.get(func, func, t, y.detach(), "the right-hand side", None, tools.places.of(y.device))
    model.need("vjp", "vjp_y")
    expected = func(t, y)
    v, p, constants = torch.randn_like(expected), model.values(), model.constants()
    flat = y.detach().reshape(-1)
    yield model.evaluate(0.3, flat, p, constants), expected.detach().reshape(-1)
    to_y, to_p = torch.empty_like(flat), torch.empty_like(p)
    julia(f"""
        k = P.HELD[{model.handle}]
        P.arrive(k)
        at(address, n) = P.memory(k, address, n)
        f = P.odefunction(k)
        y, v = at({flat.data_ptr()}, k.n), at({v.data_ptr()}, k.m)
        p = at({p.data_ptr()}, k.np)
        f.vjp(at({to_y.data_ptr()}, k.n), v, y, p, 0.3)
        f.vjp_p(at({to_p.data_ptr()}, k.np), v, y, p, 0.3)
        P.settle(k)
        0
    """)
    wanted = [y, *model.params]
    exact = torch.autograd.grad(expected, wanted, v, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, exact, strict=True)]
    yield to_y, grads[0].reshape(-1)
    yield to_p, torch.cat([g.reshape(-1) for g in grads[1:]]) if grads[1:] else to_p.new_zeros(0)


def solved(device: str, method: str, sensealg: Any, **options: Any) -> list[Tensor]:
    """A solution and the gradients of a loss, on the CPU."""
    torch.manual_seed(0)
    dtype = options.pop("dtype", D)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(device, dtype)
    y0 = torch.linspace(-1, 1, 8, dtype=dtype, device=device).reshape(4, 2).requires_grad_()
    saveat = torch.linspace(0, 1, 5, dtype=dtype, device=device)[1:]

    def func(t: Tensor, y: Tensor) -> Tensor:
        return net(torch.cat([y, t.expand(4, 1)], 1))

    tol = {"rtol": 1e-8, "atol": 1e-8, **options}
    sol = pdf.solve(
        pdf.ODEProblem(func, y0, (0.0, 1.0)), method, saveat=saveat, sensealg=sensealg, backend="julia", **tol
    )
    assert sol.ys.device == sol.ts.device == y0.device
    weight = torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=dtype, device=device).reshape(sol.ys.shape)
    grads = torch.autograd.grad((weight * sol.ys).sum(), (y0, *net.parameters()))
    return [sol.ys.detach().cpu(), *(g.cpu() for g in grads)]
