"""SRA3. Roessler (2010), SIAM J. Numer. Anal. 48, 922-952."""

from ..sra import SraTableau

TABLEAU = SraTableau(
    c0=(0, 1, 1 / 2),
    c1=(1, 0, 0),
    a0=((), (1,), (1 / 4, 1 / 4)),
    b0=((), (0,), (1, 1 / 2)),
    alpha=(1 / 6, 1 / 6, 2 / 3),
    beta1=(1, 0, 0),
    beta2=(-1, 1, 0),
    order=3,
)
