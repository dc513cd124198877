"""The activations that the study compares: value, derivative, gain, and their ONNX nodes.

    sigmoid(x) = 1 / (1 + e^-x)            derivative e / (1 + e)^2,    e = e^-|x|
    tanh(x)                                derivative 4e / (1 + e)^2,   e = e^-2|x|
    rectifier(x) = x where x > 0, else slope * x

A rectifier of slope 0 is ReLU, of another number LeakyReLU. PReLU learns a slope for each unit,
from 0.25 on. RReLU draws one for each unit and image in training, and takes their mean otherwise.

Sources: Maas et al., "Rectifier Nonlinearities Improve Neural Network Acoustic Models", ICML 2013
(LeakyReLU); He et al., arXiv:1502.01852 (PReLU); Xu et al., arXiv:1505.00853 (RReLU, its bounds
as PyTorch has them).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from leakyforge.models.graph import GraphBuilder

Values = npt.NDArray[np.floating[Any]]

RRELU_BOUNDS = (1 / 8, 1 / 3)


@dataclass(frozen=True)
class Activation:
    """One activation, elementwise over arrays of float32 or float64.

    Attributes:
        name: as reports call it.
        kind: the formula.
        slope: of a rectifier below zero; PReLU's first one, RReLU's mean.
        learned: whether every unit learns its own slope.
        bounds: of the slopes that are drawn in training, None where none are.
    """

    name: str
    kind: Literal["sigmoid", "tanh", "rectifier"] = "rectifier"
    slope: float = 0.0
    learned: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def gain(self) -> float:
        """What a layer's weights are scaled by, so that values keep their order of magnitude.

        That of He et al. for rectifiers; 5/3 for tanh and 1 for sigmoid as in PyTorch's
        `torch.nn.init.calculate_gain`.
        """
        if self.kind == "rectifier":
            return math.sqrt(2 / (1 + self.slope**2))
        return 5 / 3 if self.kind == "tanh" else 1.0

    def value(self, x: Values, slope: Values | float) -> Values:
        """The activation of an array; `slope` broadcasts to it and is read by rectifiers only."""
        if self.kind == "tanh":
            values: Values = np.tanh(x)
        elif self.kind == "sigmoid":
            power = np.exp(-np.abs(x))
            values = np.where(x < 0, power, 1) / (1 + power)
        else:
            values = np.where(x > 0, x, slope * x)
        return values

    def derivative(self, x: Values, slope: Values | float) -> Values:
        """The derivative at each element; at 0 a rectifier's is its slope."""
        if self.kind == "rectifier":
            return np.where(x > 0, x.dtype.type(1), slope).astype(x.dtype, copy=False)
        factor = 2 if self.kind == "tanh" else 1
        power = np.exp(-factor * np.abs(x))
        derivative: Values = factor**2 * power / (1 + power) ** 2
        return derivative

    def add_to(self, graph: GraphBuilder, x: str, slope: Values | float, *, name: str) -> str:
        """Add the node that computes it at inference; `slope` is an array where it is learned."""
        if self.kind == "sigmoid":
            return graph.sigmoid(x, name=name)
        if self.kind == "tanh":
            return graph.tanh(x, name=name)
        if self.learned:
            return graph.prelu(x, np.asarray(slope, np.float32), name=name)
        if self.slope == 0:
            return graph.relu(x, name=name)
        return graph.leaky_relu(x, name=name, alpha=self.slope)


RELU = Activation("ReLU")
LEAKY_RELUS = tuple(
    Activation(f"LeakyReLU {slope:g}", slope=slope) for slope in (0.01, 0.05, 0.1, 0.2)
)
ACTIVATIONS = (
    Activation("sigmoid", "sigmoid"),
    Activation("tanh", "tanh"),
    RELU,
    *LEAKY_RELUS,
    Activation("PReLU", slope=0.25, learned=True),
    Activation("RReLU", slope=sum(RRELU_BOUNDS) / 2, bounds=RRELU_BOUNDS),
)
