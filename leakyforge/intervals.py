"""Means with Student's confidence intervals.

Source: Student, "The Probable Error of a Mean", Biometrika 6, 1908.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_STEPS = 512


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval that holds the true one with the confidence `CONFIDENCE`.

    Of a single value the interval is infinite; of equal ones it is that value.
    """

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        return (self.low > 0) - (self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent, about normally distributed values, at least one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, -math.inf, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = student_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return Estimate(mean, mean - half, mean + half)


def paired(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """The difference of two series of values that belong together, such as those of one seed."""
    return estimate([a - b for a, b in zip(values, reference, strict=True)])


def regression_slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line that fits values at places by least squares."""
    slope: float = statistics.linear_regression(places, values).slope
    return slope


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's distribution with `freedom` degrees, for a probability of 0.5 or more.

    With t = sqrt(freedom) * tan(angle) its density is a power of a cosine, which Simpson's rule
    integrates; the angle is found by bisection.
    """
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(math.pi) * math.gamma(freedom / 2))

    def above_half(angle: float) -> float:
        width = angle / _STEPS
        inner = sum(
            (4 if step % 2 else 2) * math.cos(step * width) ** (freedom - 1)
            for step in range(1, _STEPS)
        )
        return scale * width / 3 * (1 + inner + math.cos(angle) ** (freedom - 1))

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if above_half(middle) < probability - 0.5:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)
