"""Steady states as layers: deep equilibrium models, differentiated by the implicit function theorem."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InvalidArgumentError, InvalidStateError, ShapeError, UnknownNameError, UnsupportedError
from ..methods import Method, resolve
from ..tracking import transforming
from . import roots
from .solver_layer import check_callable, check_options

SOLVERS = ("newton", "anderson", "ode")
FORMS = ("rate", "fixed_point")
LINEAR = ("dense", "gmres")


class _Implicit(torch.autograd.Function):
    """The root ``u`` of ``f(u, p) = 0``: ``du/dp = -J^-1 df/dp``."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, root: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return root.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return -ctx.solve(grad), None, None


class SteadyState(nn.Module):
    """The state at which nothing changes any more: ``u`` with ``model(u, *inputs) = 0``.

    Its gradient is that of the root, whatever way led there: one linear system with the transposed Jacobian, and no
    memory of the iterations. It does not depend on where the search began, so ``u0`` gets no gradient.

    Args:
        model: ``model(u, *inputs)``: the rate of change of the state, or with ``form="fixed_point"`` the next state
            (a deep equilibrium layer: ``u = model(u, x)``).
        solver: ``"newton"``, the default; ``"anderson"``, which needs no Jacobian (for contractions); ``"ode"``, which
            follows ``du/dt = f(u)`` until it stands still, and finds stable states only.
        form: ``"rate"`` or ``"fixed_point"``.
        rtol, atol: a state is steady where ``|f| <= atol + rtol |u|`` in every entry.
        max_iterations: of Newton's or Anderson's method.
        t_max: how long ``"ode"`` may take.
        method: of that solve; a stiff one for stiff models.
        batched: the rows of the state do not interact: one small Jacobian a row.
        linear: how linear systems are solved: ``"dense"``, or ``"gmres"``, without ever forming a Jacobian.
        **options: with ``"ode"``, keyword arguments of :func:`pydiffeqflux.solve` other than its tolerances, which are
            a tenth of these.

    Raises:
        InvalidArgumentError, UnknownNameError, UnknownOptionError: for the arguments above.
        InvalidStateError, ShapeError: ``u0`` is no floating tensor, or the model returns another shape.
        ConvergenceError: no steady state was found, or it is not an isolated one.
        UnsupportedError: inside a ``torch.func`` transform.

    Shapes:
        ``layer(u0, *inputs)`` has the shape of ``u0``.

    Source: Bai, Kolter & Koltun, "Deep equilibrium models" (2019), arXiv:1909.01377; SciMLSensitivity's
    ``SteadyStateAdjoint``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> root = pdf.SteadyState(lambda u, a: a - u**2)
        >>> a = torch.tensor([4.0], requires_grad=True)
        >>> u = root(torch.ones(1), a)
        >>> u.sum().backward()  # d sqrt(a) / da = 1 / (2 sqrt(a))
        >>> round(u.item(), 4), round(a.grad.item(), 4)
        (2.0, 0.25)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        solver: str = "newton",
        *,
        form: str = "rate",
        rtol: float = 1e-6,
        atol: float = 1e-8,
        max_iterations: int = 100,
        t_max: float = 1e6,
        method: Method | str | None = None,
        batched: bool = False,
        linear: str = "dense",
        **options: Any,
    ):
        super().__init__()
        check_callable(model, "model(u, *inputs)")
        for name, value, known in (("solver", solver, SOLVERS), ("form", form, FORMS), ("linear", linear, LINEAR)):
            if value not in known:
                raise UnknownNameError(name, value, known)
        own = ("solver", "form", "max_iterations", "t_max", "method", "batched", "linear")
        check_options("SteadyState", options, own)
        if method is not None:
            options["method"] = resolve(method)
        if options and solver != "ode":
            raise InvalidArgumentError(f"{next(iter(options))} is an option of solve, which only solver='ode' calls.")
        for name, number in (("rtol", rtol), ("atol", atol), ("max_iterations", max_iterations), ("t_max", t_max)):
            if isinstance(number, bool) or not isinstance(number, numbers.Real) or not number > 0:
                raise InvalidArgumentError(f"{name}={number!r} must be a positive number.")
        self.model, self.solver, self.form, self.t_max, self.options = model, solver, form, t_max, options
        self.settings = roots.RootSettings(rtol, atol, max_iterations, batched, linear)

    def _field(self, u: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        out = self.model(u, *inputs)
        if not isinstance(out, Tensor) or out.shape != u.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"model returned {got} for a state of shape {tuple(u.shape)}; it must have that shape.")
        return out - u if self.form == "fixed_point" else out

    def forward(self, u0: Tensor, *inputs: Any) -> Tensor:
        if not isinstance(u0, Tensor) or not u0.is_floating_point():
            got = u0.dtype if isinstance(u0, Tensor) else type(u0).__name__
            raise InvalidStateError(f"u0 is {got}; the search starts from a real floating tensor.")
        if transforming():
            raise UnsupportedError("SteadyState inside a torch.func transform: differentiate it by autograd instead.")

        def field(u: Tensor) -> Tensor:
            return self._field(u, inputs)

        with torch.no_grad():
            u = u0.detach()
            if self.solver == "newton":
                root = roots.newton(field, u, self.settings)
            elif self.solver == "anderson":
                root = roots.anderson(field, u, self.settings)
            else:
                # Steps that stability limits leave an error as large as is allowed: that must be well below.
                options = {"rtol": 0.1 * self.settings.rtol, "atol": 0.1 * self.settings.atol, **self.options}
                root = roots.by_time(field, u, self.settings, self.t_max, options)
        if not torch.is_grad_enabled():
            return root

        def transposed(grad: Tensor) -> Tensor:
            with torch.no_grad():
                return roots.solve_linear(field, root, grad, self.settings, transposed=True)

        found: Tensor = _Implicit.apply(field(root), root, transposed)
        return found

    def extra_repr(self) -> str:
        return f"solver={self.solver}, form={self.form}, linear={self.settings.linear}"
