"""The network of the study of activations, in numpy: forward, gradients, training, ONNX.

    h0 = image
    z[k] = h[k-1] @ W[k].T + b[k],  h[k] = activation(z[k])     for k in 1 .. depth
    logits = h[depth] @ W.T + b

A deep and narrow perceptron without normalization or skip connections, so that what an activation
does to the gradient multiplies from layer to layer. Weights are normal with the deviation
gain / sqrt(inputs) (He et al., arXiv:1502.01852), biases start at 0. `train_study` trains it.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from leakyforge.models.activations import Activation, Values
from leakyforge.models.graph import GraphBuilder
from leakyforge.models.options import DEFAULT_OPSET, checked_batch

PIXELS, CLASSES = 64, 10
WIDTH = 32

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """What a forward pass computed, for the backward pass and for statistics.

    Attributes:
        inputs: of every dense layer, [images, units].
        before: values before every hidden layer's activation, [images, width].
        slopes: below zero, of every hidden layer; broadcasts to `before`.
        logits: [images, 10].
    """

    inputs: list[Values]
    before: list[Values]
    slopes: list[Values | float]
    logits: Values


class StudyNetwork:
    """The network with its parameters.

    Args:
        activation: of every hidden layer.
        depth: hidden layers.
        seed: of the first weights, and of RReLU's slopes.
        width: units of each.
        dtype: float32, or float64 to check gradients.

    Attributes:
        parameters: by name: `dense<k>.weight` [out, in], `dense<k>.bias` [out], `logits.*`, and
            where slopes are learned `activation<k>.slope` [width].
    """

    def __init__(
        self,
        activation: Activation,
        depth: int,
        seed: int,
        *,
        width: int = WIDTH,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.activation = activation
        self.depth = depth
        self.parameters: dict[str, Values] = {}
        self._generator = np.random.default_rng(seed)
        sizes = [PIXELS, *[width] * depth, CLASSES]
        for layer, inputs, outputs in zip(self.layers, sizes, sizes[1:], strict=False):
            gain = 1.0 if layer == "logits" else activation.gain
            weight = self._generator.normal(0, gain / math.sqrt(inputs), (outputs, inputs))
            self.parameters[f"{layer}.weight"] = weight.astype(dtype)
            self.parameters[f"{layer}.bias"] = np.zeros(outputs, dtype)
        if activation.learned:
            for k in range(1, depth + 1):
                self.parameters[f"activation{k}.slope"] = np.full(width, activation.slope, dtype)

    @property
    def layers(self) -> list[str]:
        """Names of the dense layers, from the image to the logits."""
        return [*(f"dense{k}" for k in range(1, self.depth + 1)), "logits"]

    def forward(self, images: Values, *, training: bool = False) -> Trace:
        """Run the network on [images, 64]; in training RReLU draws its slopes."""
        x, inputs, before, slopes = images, [], [], []
        for k in range(1, self.depth + 1):
            inputs.append(x)
            z = self._dense(f"dense{k}", x)
            slope = self._slope(k, z, training)
            before.append(z)
            slopes.append(slope)
            x = self.activation.value(z, slope)
        inputs.append(x)
        return Trace(inputs, before, slopes, self._dense("logits", x))

    def gradients(self, trace: Trace, labels: Labels) -> dict[str, Values]:
        """Gradients of the mean cross-entropy by the parameters, under their names."""
        gradients: dict[str, Values] = {}
        logits = trace.logits - trace.logits.max(axis=1, keepdims=True)
        delta = np.exp(logits)
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        for k in range(self.depth, -1, -1):
            layer = self.layers[k]
            gradients[f"{layer}.weight"] = delta.T @ trace.inputs[k]
            gradients[f"{layer}.bias"] = delta.sum(axis=0)
            if k == 0:
                break
            z, slope = trace.before[k - 1], trace.slopes[k - 1]
            behind = delta @ self.parameters[f"{layer}.weight"]
            if self.activation.learned:
                products = np.where(z > 0, 0, z * behind)
                gradients[f"activation{k}.slope"] = products.sum(axis=0, dtype=z.dtype)
            delta = behind * self.activation.derivative(z, slope)
        return gradients

    def derivatives(self, trace: Trace) -> list[Values]:
        """The activation's derivative in every hidden layer, [images, width]."""
        return [
            self.activation.derivative(z, slope)
            for z, slope in zip(trace.before, trace.slopes, strict=True)
        ]

    def accuracy(self, images: Values, labels: Labels) -> float:
        """Share of the images that are classified rightly, 0 to 1."""
        return float((self.forward(images).logits.argmax(axis=1) == labels).mean())

    def to_onnx(self, batch: int | str, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
        """The network at inference: input `image` [batch, 64], output `logits` [batch, 10].

        Raises:
            ExportError: the batch or the opset is out of its range.
        """
        batch = checked_batch(batch)
        graph, x = GraphBuilder(), "image"
        for k, layer in enumerate(self.layers, start=1):
            weight, bias = (self.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
            x = graph.gemm(x, weight.astype(np.float32), bias.astype(np.float32), name=layer)
            if layer != "logits":
                slope = self.parameters.get(f"activation{k}.slope", self.activation.slope)
                x = self.activation.add_to(graph, x, slope, name=f"activation{k}")
        return graph.build(
            "study",
            inputs={"image": (batch, PIXELS)},
            outputs={"logits": (batch, CLASSES)},
            opset=opset,
            metadata={"leakyforge.input_range.image": "0,1"},
        )

    def _dense(self, layer: str, x: Values) -> Values:
        product: Values = x @ self.parameters[f"{layer}.weight"].T
        product += self.parameters[f"{layer}.bias"]
        return product

    def _slope(self, k: int, z: Values, training: bool) -> Values | float:
        if self.activation.bounds is not None and training:
            return self._generator.uniform(*self.activation.bounds, z.shape).astype(z.dtype)
        return self.parameters.get(f"activation{k}.slope", self.activation.slope)
