"""The one table of tolerances: how far two correct results may lie apart, by dtype.

A tolerance comes from the arithmetic, never from the observed error: n roundings of unit roundoff
u leave, with a probability above 1 - 2 exp(-LAMBDA^2 / 2) for each element, an error below
LAMBDA * sqrt(n) * u of the values that were added up (Higham and Mary, SIAM J. Sci. Comput. 41(5),
2019, Theorem 2.4). The range of the reference output stands for those values.

Quantised models round to 8 bits as well. Two correct results differ in float32's last bits, so a
value beside the middle of two steps is rounded up in one and down in the other, the next layer
spreads that, and some layers on any element may be a step away: the same bound, with the unit
roundoff of 8 bits.
"""

import math
from dataclasses import dataclass

# Two in 10^8 elements would exceed the bound by chance.
LAMBDA = 6.0

UNIT_ROUNDOFF = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
}

# However deep the model, no more of the range than this.
LARGEST_SHARE_OF_RANGE = {
    "float16": 5e-2,
    "bfloat16": 2e-1,
    "float32": 1e-4,
    "float64": 1e-10,
}

# Of 255 steps from -range to range, half a step; and the cap, as for bfloat16, which has as many.
QUANTISED_ROUNDOFF = 2.0**-8
QUANTISED_LARGEST_SHARE = 2e-1


@dataclass(frozen=True)
class Tolerance:
    """Largest difference allowed: `range_share * range + rtol * |desired|`.

    Attributes:
        range_share: absolute tolerance as a share of the reference's largest finite magnitude.
        rtol: relative tolerance.
        origin: how the figures came about, for the report.
    """

    range_share: float
    rtol: float
    origin: str


def tolerance(dtype: str, rounding_steps: int, quantisations: int = 0) -> Tolerance:
    """Tolerance of an output of a dtype with a number of roundings above it, some to 8 bits."""
    if quantisations > 0:
        share = LAMBDA * math.sqrt(quantisations) * QUANTISED_ROUNDOFF
        origin = (
            f"{dtype}, {quantisations} roundings to 8 bits: "
            f"{LAMBDA:g}·√{quantisations}·{QUANTISED_ROUNDOFF:.1e}"
        )
        if share > QUANTISED_LARGEST_SHARE:
            share = QUANTISED_LARGEST_SHARE
            origin += f", at most {share:g}"
        return Tolerance(share, 0.0, origin)
    if dtype not in UNIT_ROUNDOFF:
        return Tolerance(0.0, 0.0, f"{dtype}: exact")
    if rounding_steps == 0:
        return Tolerance(0.0, 0.0, f"{dtype}, no rounding that may differ: exact")
    roundoff = UNIT_ROUNDOFF[dtype]
    share = LAMBDA * math.sqrt(rounding_steps) * roundoff
    origin = f"{dtype}, {rounding_steps} roundings: {LAMBDA:g}·√{rounding_steps}·{roundoff:.1e}"
    if share > LARGEST_SHARE_OF_RANGE[dtype]:
        share = LARGEST_SHARE_OF_RANGE[dtype]
        origin += f", at most {share:g}"
    return Tolerance(share, 2 * roundoff, origin)
