"""A multilayer perceptron: two hidden layers with LeakyRelu, for images of 28 x 28."""

import onnx

from leakyforge.models.graph import GraphBuilder
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_float, checked_int
from leakyforge.models.random_weights import RandomWeights

PIXELS = 784
CLASSES = 10


def mlp(
    *,
    hidden: int = 512,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the perceptron with random weights.

    Input `image`: [batch, 784] float32 in [0, 1]. Output `logits`: [batch, 10] float32.

    Args:
        hidden: Width of both hidden layers.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    hidden = checked_int("hidden", hidden, minimum=1)
    batch = checked_batch(batch)
    graph, weights = GraphBuilder(), RandomWeights(alpha=alpha, seed=seed)
    x, inputs = "image", PIXELS
    for number, outputs in enumerate((hidden, hidden, CLASSES), start=1):
        name = "logits" if number == 3 else f"dense{number}"
        weight = weights.kernel(outputs, inputs, inputs=inputs)
        x = graph.gemm(x, weight, weights.uniform(-0.2, 0.2, outputs), name=name)
        if number < 3:
            x = graph.leaky_relu(x, name=f"leaky{number}", alpha=checked_float("alpha", alpha))
        inputs = outputs
    return graph.build(
        "mlp",
        inputs={"image": (batch, PIXELS)},
        outputs={"logits": (batch, CLASSES)},
        opset=opset,
        metadata={"leakyforge.input_range.image": "0,1"},
    )
