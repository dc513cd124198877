"""A small convolutional network for images of 32 x 32, in the manner of LeNet with LeakyRelu.

Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
IEEE 86 (11), 1998: convolution and pooling in turn, then fully connected layers.
"""

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.graph import GraphBuilder
from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_opset,
)
from leakyforge.models.random_weights import RandomWeights

COLORS = 3
STAGES = 3


def small_cnn(
    *,
    size: int = 32,
    classes: int = 10,
    features: int = 16,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the classifier with random weights.

    Input `image`: [batch, 3, size, size] float32 in [0, 1]. Output `logits`: [batch, classes]
    float32.

    Args:
        size: Height and width of the image, a multiple of 8.
        classes: Number of classes.
        features: Channels of the first convolution; the next two have twice and four times as many.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    if checked_int("size", size, minimum=1) % 2**STAGES:
        raise ExportError(f"size={size} is not a multiple of {2**STAGES}")
    classes = checked_int("classes", classes, minimum=1)
    features = checked_int("features", features, minimum=1)
    alpha, batch, opset = checked_float("alpha", alpha), checked_batch(batch), checked_opset(opset)
    graph, weights = GraphBuilder(), RandomWeights(alpha=alpha, seed=seed)
    x, inputs = "image", COLORS
    for number in range(1, STAGES + 1):
        outputs = features * 2 ** (number - 1)
        weight = weights.kernel(outputs, inputs, 3, 3, inputs=9 * inputs)
        bias = weights.uniform(-0.1, 0.1, outputs)
        x = graph.conv(x, weight, name=f"conv{number}", bias=bias, pad=1)
        x = graph.leaky_relu(x, name=f"leaky{number}", alpha=alpha)
        x = graph.max_pool(x, name=f"pool{number}", size=2, stride=2)
        inputs = outputs
    inputs *= (size // 2**STAGES) ** 2
    x = graph.flatten(x, name="flatten")
    for name, outputs in (("dense", 8 * features), ("logits", classes)):
        weight = weights.kernel(outputs, inputs, inputs=inputs)
        x = graph.gemm(x, weight, weights.uniform(-0.1, 0.1, outputs), name=name)
        if name != "logits":
            x = graph.leaky_relu(x, name="leaky4", alpha=alpha)
        inputs = outputs
    return graph.build(
        "small-cnn",
        inputs={"image": (batch, COLORS, size, size)},
        outputs={"logits": (batch, classes)},
        opset=opset,
        metadata={"leakyforge.input_range.image": "0,1"},
    )
