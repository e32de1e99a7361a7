"""What Julia throws, as the package's own exceptions, with Julia's message inside."""

from __future__ import annotations

from ...errors import InvalidLagError, JuliaError, PyDiffEqFluxError, SolveError, UnsupportedError


def translated(error: BaseException) -> BaseException:
    """The exception to raise for one that a call of Julia raised."""
    if isinstance(error, PyDiffEqFluxError | KeyboardInterrupt):
        return error
    lines = str(error).strip().splitlines()
    if lines and "InterruptException" in lines[0]:
        return KeyboardInterrupt()
    if lines and "ArgumentError: no controller but" in lines[0]:
        return UnsupportedError(
            f"controller does not go with this method on backend='julia' ({lines[0].removeprefix('ArgumentError: ')}):"
            f" leave it out, or take an explicit or a Rosenbrock method."
        )
    if any("Scalar indexing is disallowed" in line for line in lines[:2]):
        return UnsupportedError(
            "this method, or this sensealg with it, reads single numbers of a state on a GPU, which is refused there:"
            " take an explicit method, or a stiff one with GaussAdjoint(); or move the problem to the CPU (y0.cpu() and"
            " the model's .cpu()), or use backend='torch'."
        )
    if lines and "no gradient: " in lines[0]:
        return SolveError(
            f"{lines[0]}: loosen the sensealg's rtol and atol, or take GaussAdjoint() or InterpolatingAdjoint(), which"
            f" do not solve the state backwards, or a stiff method such as 'rodas5p'."
        )
    if lines and "a lag is not positive: " in lines[0]:
        return InvalidLagError(
            f"{lines[0].removeprefix('ArgumentError: ')}; a lag must be positive at all times, or the equation would"
            f" need states that are not known yet: bound it from below (torch.clamp)."
        )
    # The first line says what; the rest is Julia's stack, which the cause keeps.
    return JuliaError(f"Julia raised {lines[0] if lines else type(error).__name__}")
