"""Histograms of errors: where the bins end, and what they count."""

import numpy as np
import pytest

from leakyforge.runtime.histogram import UPPER_ENDS, histogram
from leakyforge.runtime.parity import compare_outputs
from leakyforge.runtime.tensors import TensorSpec
from leakyforge.tolerance import tolerance

SPEC = TensorSpec("y", (4,), "float32", rounding_steps=100)


@pytest.mark.parametrize(
    ("share", "place"),
    [
        (0.0, 0),
        (5e-324, 1),
        (1e-6, 1),
        (np.nextafter(1e-6, 1), 2),
        (1.0, UPPER_ENDS.index(1.0) + 1),
        (np.nextafter(1.0, 2), UPPER_ENDS.index(1.0) + 2),
        (10.0, len(UPPER_ENDS)),
        (np.inf, len(UPPER_ENDS) + 1),
    ],
)
def test_a_share_is_in_the_bin_whose_end_it_does_not_exceed(share, place):
    counts = histogram(np.array([[share, share]]))
    assert len(counts) == len(UPPER_ENDS) + 2
    assert [at for at, count in enumerate(counts) if count] == [place]
    assert counts[place] == 2


def test_of_no_elements():
    assert sum(histogram(np.zeros((0, 3)))) == 0


def rows(*samples):
    desired = np.array([1, -1, 0.5, 0], np.float32)
    pairs = [({"y": sample}, {"y": desired}) for sample in samples]
    return compare_outputs([SPEC], *zip(*pairs, strict=True), "reference")


def test_all_samples_are_counted():
    desired = np.array([1, -1, 0.5, 0], np.float32)
    limits = tolerance(SPEC.dtype, SPEC.rounding_steps)
    far = desired + np.array([0, 0, 0, 2 * limits.range_share], np.float32)
    (row,) = rows(desired, far, desired)
    assert not row.passed
    assert row.histogram[0] == 11
    wrong = UPPER_ENDS.index(1.0) + 2
    assert sum(row.histogram[wrong:]) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_none_where_a_sample_has_a_problem(place):
    samples = [np.array([9, 9, 9, 9], np.float32)] * 2
    samples[place] = samples[place][:3]
    (row,) = rows(*samples)
    assert row.histogram == ()
