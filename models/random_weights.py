"""Random weights for architectures whose trained weights we do not ship.

He et al., "Delving Deep into Rectifiers", arXiv:1502.01852, with the gain of LeakyRelu: values keep
their order of magnitude from layer to layer.
"""

import math

import numpy as np

from leakyforge.models.graph import Array
from leakyforge.models.options import checked_float, checked_int


class RandomWeights:
    """Draws weights in order; the same seed gives the same weights.

    Raises:
        ExportError: alpha is no finite number, or the seed no integer of 0 or more.
    """

    def __init__(self, *, alpha: float, seed: int) -> None:
        self._gain = math.sqrt(2 / (1 + checked_float("alpha", alpha) ** 2))
        self._random = np.random.default_rng(checked_int("seed", seed, minimum=0))

    def kernel(self, *shape: int, inputs: int, scale: float = 1.0) -> Array:
        """Normal values for sums of `inputs` products."""
        deviation = np.float32(scale * self._gain / math.sqrt(inputs))
        kernel: Array = self._random.standard_normal(shape, dtype=np.float32) * deviation
        return kernel

    def uniform(self, low: float, high: float, count: int) -> Array:
        """Values between two bounds, for biases and batch normalization."""
        return self._random.uniform(low, high, count).astype(np.float32)

    def norm(self, channels: int) -> tuple[Array, Array, Array, Array]:
        """Scale, bias, mean and variance of a batch normalization."""
        return (
            self.uniform(0.8, 1.2, channels),
            self.uniform(-0.2, 0.2, channels),
            self.uniform(-0.2, 0.2, channels),
            self.uniform(0.5, 1.5, channels),
        )
