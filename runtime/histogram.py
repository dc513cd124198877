"""How the errors of an output are spread, as shares of what its tolerance allows."""

import numpy as np

from leakyforge.runtime.tensors import Array

# Upper ends of the bins between no error at all and ten times the tolerance, two a decade.
UPPER_ENDS = tuple(float(10.0 ** (half / 2)) for half in range(-12, 3))


def histogram(shares: Array) -> tuple[int, ...]:
    """Counts of elements by their error.

    Args:
        shares: of each element, its error by the error that is allowed there; float64, not NaN.

    Returns:
        How many have no error; how many have one up to each of `UPPER_ENDS` and above the end
        before it, so that a share of 1, which passes, is counted below the tolerance; and how many
        are above the last end.
    """
    bins = np.where(shares == 0, 0, np.searchsorted(UPPER_ENDS, shares, side="left") + 1)
    return tuple(int(count) for count in np.bincount(bins.ravel(), minlength=len(UPPER_ENDS) + 2))
