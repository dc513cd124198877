"""The data of the digits classifier, split into what it is trained on and what it is tested on.

Source: scikit-learn's `load_digits`, the test set of Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998 (1797 images of 8 x 8).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from leakyforge.errors import MissingDependencyError


class DigitsSplit(NamedTuple):
    """Images are [count, 1, 8, 8] float32 in [0, 1], labels [count] int64 from 0 to 9."""

    train_images: npt.NDArray[np.float32]
    test_images: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    test_labels: npt.NDArray[np.int64]


def digits_split() -> DigitsSplit:
    """Return the split: a quarter, stratified by digit and always the same, is held out.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError(
            "the digits data need scikit-learn; pip install 'leakyforge[dev]'"
        ) from error
    data: Any = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    return DigitsSplit(
        *train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    )
