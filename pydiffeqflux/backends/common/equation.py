"""From a problem and the options of a solve to the equation that is stepped along."""

from __future__ import annotations

from ...dae_problem import DAEProblem
from ...errors import InvalidArgumentError, ShapeError
from ...methods import Method
from ...problem import ODEProblem
from ...sde_methods import SDEMethod
from ...sde_problem import SDEProblem
from ..backend import Problem, SolveOptions
from . import path as paths
from .autocast import as_called
from .implicit_rhs import implicit_rhs
from .mass import mass_rhs
from .rhs import Rhs
from .sde import Sde
from .tree import Tree


def equation_of(problem: Problem, method: Method, options: SolveOptions) -> Rhs:
    """The right-hand side, with a Brownian path where the problem is a stochastic one."""
    if isinstance(problem, ODEProblem):
        if problem.mass_matrix is not None:
            return mass_rhs(problem, options)
        return Rhs(as_called(problem.func, problem.packed), problem.spec, problem.packed)
    if isinstance(problem, DAEProblem):
        return implicit_rhs(problem, options)
    assert isinstance(problem, SDEProblem) and isinstance(method, SDEMethod)
    drift, diffusion = (as_called(func, problem.packed) for func in (problem.drift, problem.diffusion))
    sde = Sde(drift, diffusion, problem.packed, problem.noise, problem.interpretation)
    sde.path = _path(sde, problem, method, options)
    if options.dt is not None and options.dt < 10 * sde.path.resolution:
        raise InvalidArgumentError(
            f"dt={options.dt} is too small for a Brownian path that is resolved to {sde.path.resolution:.3g}: take"
            f" larger steps, or give a finer path as brownian (a BrownianInterval with tol=0)."
        )
    return sde


def _path(sde: Sde, problem: SDEProblem, method: SDEMethod, options: SolveOptions) -> paths.Path:
    """The problem's own, or that of its seed."""
    t0, t1, like = problem.t0.value, problem.t1.value, problem.packed
    shape = sde.noise_shape(t0, like)
    if problem.noise_dim not in (None, shape[-1]):
        raise ShapeError(
            f"the diffusion returned a shape for {shape[-1]} Brownian motions, and noise_dim (nbrown of a NeuralSDE)"
            f" says {problem.noise_dim}; with noise={problem.noise!r} its last dimension must be that."
        )
    saves = () if options.saves is None else options.saves.values
    doses = [point.value for dose in options.doses for point in dose.points()]
    marks = [t0, t1, *saves, *options.stops, *doses]
    if problem.brownian is not None:
        return paths.Path(paths.checked(problem.brownian, t0, t1, like, shape, method.area), marks)
    seed = paths.new_seed() if problem.seed is None else int(problem.seed)
    motion = Tree(seed, t0, t1, shape, like.dtype, like.device)
    return paths.Path(motion, marks, paths.RESOLUTION * (t1 - t0), seed)
