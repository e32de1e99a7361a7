"""Four stiff problems of the Bari test set (F. Mazzia & C. Magherini, "Test set for initial value problem solvers",
release 2.4, 2008), with the test set's reference solutions.

Every state works with leading batch dimensions: components are the last dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StiffProblem:
    name: str
    func: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    t_span: tuple[float, float]
    #: The solution at the end of the span, from the test set.
    reference: Tensor


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rober(t: Tensor, y: Tensor) -> Tensor:
    """Robertson's autocatalytic reaction (1966)."""
    a, b, c = y.unbind(-1)
    slow, fast, middle = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([middle - slow, slow - middle - fast, fast], -1)


def hires(t: Tensor, y: Tensor) -> Tensor:
    """The "high irradiance responses" of photomorphogenesis, eight reactants (Schaefer 1975)."""
    y1, y2, y3, y4, y5, y6, y7, y8 = y.unbind(-1)
    bound = 280.0 * y6 * y8
    return torch.stack(
        [
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
            -bound + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            bound - 1.81 * y7,
            -bound + 1.81 * y7,
        ],
        -1,
    )


def orego(t: Tensor, y: Tensor) -> Tensor:
    """The Oregonator, a limit cycle of the Belousov-Zhabotinskii reaction (Field & Noyes 1974)."""
    s, w, q = 77.27, 0.161, 8.375e-6
    y1, y2, y3 = y.unbind(-1)
    return torch.stack([s * (y2 + y1 * (1.0 - q * y1 - y2)), (y3 - (1.0 + y1) * y2) / s, w * (y1 - y3)], -1)


_RATES = _vector(
    0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9.0e3, 0.022, 1.2e4, 1.88, 1.63e4, 4.8e6,
    3.5e-4, 0.0175, 1.0e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12,
)  # fmt: skip
#: The two reactants of each of the 25 reactions (1-based); 0 where there is only one.
_REACTANTS = (
    (1, 0), (2, 4), (5, 2), (7, 0), (7, 0), (7, 6), (9, 0), (9, 6), (11, 2), (11, 1), (13, 0), (10, 2), (14, 0),
    (1, 6), (3, 0), (4, 0), (4, 0), (16, 0), (16, 0), (17, 6), (19, 0), (19, 0), (1, 4), (19, 1), (20, 0),
)  # fmt: skip
#: For each of the 20 species the reactions that make it, and those that use it up.
_MADE = (
    (2, 3, 9, 11, 12, 22, 25), (1, 21), (1, 17, 19, 22), (15,), (4, 4, 6, 7, 13, 20), (3, 18, 18), (13,), (4, 5, 6, 7),
    (), (7, 9), (8, 11), (9,), (10,), (12,), (14,), (16,), (), (20,), (23, 25), (24,),
)  # fmt: skip
_USED = (
    (1, 10, 14, 23, 24), (2, 3, 9, 12), (15,), (2, 16, 17, 23), (3,), (6, 8, 14, 20), (4, 5, 6), (), (7, 8), (12,),
    (9, 10), (), (11,), (13,), (), (18, 19), (20,), (), (21, 22, 24), (25,),
)  # fmt: skip


def _stoichiometry() -> Tensor:
    matrix = torch.zeros(20, 25, dtype=torch.float64)
    for species, (made, used) in enumerate(zip(_MADE, _USED, strict=True)):
        for reaction in made:
            matrix[species, reaction - 1] += 1.0
        for reaction in used:
            matrix[species, reaction - 1] -= 1.0
    return matrix


_STOICHIOMETRY = _stoichiometry()
_FIRST = torch.tensor([first - 1 for first, _ in _REACTANTS])
_SECOND = torch.tensor([second for _, second in _REACTANTS])


def pollu(t: Tensor, y: Tensor, rates: Tensor = _RATES) -> Tensor:
    """The chemistry of air pollution, 20 species and 25 reactions (Verwer 1994)."""
    with_one = torch.cat([torch.ones_like(y[..., :1]), y], -1)
    speeds = rates * y[..., _FIRST] * with_one[..., _SECOND]
    return speeds @ _STOICHIOMETRY.T


ROBER = StiffProblem(
    "rober",
    rober,
    _vector(1.0, 0.0, 0.0),
    (0.0, 1e11),
    _vector(0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050),
)
HIRES = StiffProblem(
    "hires",
    hires,
    _vector(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
    (0.0, 321.8122),
    _vector(
        0.7371312573325668e-3,
        0.1442485726316185e-3,
        0.5888729740967575e-4,
        0.1175651343283149e-2,
        0.2386356198831331e-2,
        0.6238968252742796e-2,
        0.2849998395185769e-2,
        0.2850001604814231e-2,
    ),
)
OREGO = StiffProblem(
    "orego",
    orego,
    _vector(1.0, 2.0, 3.0),
    (0.0, 360.0),
    _vector(0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
)
#: The last state is SciPy's Radau at rtol 1e-12 (atol 1e-16), which has the test set's digits where it prints them.
POLLU = StiffProblem(
    "pollu",
    pollu,
    _vector(0, 0.2, 0, 0.04, 0, 0, 0.1, 0.3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0.007, 0, 0, 0),
    (0.0, 60.0),
    _vector(
        5.6462554800220610e-02,
        1.3424841304224167e-01,
        4.1397343310989063e-09,
        5.5231402074833891e-03,
        2.0189772623023834e-07,
        1.4645418634942063e-07,
        7.7842491189983820e-02,
        3.2450753533959570e-01,
        7.4940133838812895e-03,
        1.6222931573019390e-08,
        1.1358638332573476e-08,
        2.2305059757204457e-03,
        2.0871628827989658e-04,
        1.3969210168404613e-05,
        8.9648848568984786e-03,
        4.3528463693293380e-18,
        6.8992196962634313e-03,
        1.0078030373657363e-04,
        1.7721465139693928e-06,
        5.6829432923137857e-05,
    ),
)

ALL = (ROBER, HIRES, OREGO, POLLU)
