"""SRA1. Roessler (2010), SIAM J. Numer. Anal. 48, 922-952."""

from ..sra import SraTableau

TABLEAU = SraTableau(
    c0=(0, 3 / 4),
    c1=(1, 0),
    a0=((), (3 / 4,)),
    b0=((), (3 / 2,)),
    alpha=(1 / 3, 2 / 3),
    beta1=(1, 0),
    beta2=(-1, 1),
)
