"""ResNet-18 with LeakyRelu, or with the ReLU of the paper.

Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1, with
the 1 x 1 convolutions of option B where a shortcut changes its shape.
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
ACTIVATIONS = ("leaky_relu", "relu")
# Of the second convolution of a block: eight sums in a row stay of order one.
BRANCH_SCALE = 0.5


def resnet18(
    *,
    size: int = 224,
    classes: int = 1000,
    features: int = 64,
    activation: str = "leaky_relu",
    alpha: float = 0.01,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the classifier with random weights.

    Input `image`: [batch, 3, size, size] float32 in [0, 1]. Output `logits`: [batch, classes]
    float32. 11.7 million parameters.

    Args:
        size: Height and width of the image.
        classes: Number of classes.
        features: Channels of the first convolution.
        activation: `leaky_relu` or `relu`.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    size = checked_int("size", size, minimum=1)
    classes = checked_int("classes", classes, minimum=1)
    features = checked_int("features", features, minimum=1)
    if activation not in ACTIVATIONS:
        raise ExportError(f"activation={activation!r} is not {' or '.join(ACTIVATIONS)}")
    # ReLU is alpha = 0, of the weights' gain too.
    slope = checked_float("alpha", alpha) if activation == "leaky_relu" else 0.0
    batch, opset = checked_batch(batch), checked_opset(opset)
    net = _ResNet(relu=activation == "relu", alpha=slope, seed=seed)
    x = net.activation(net.conv("image", "first", COLORS, features, 7, stride=2))
    x = net.graph.max_pool(x, name="pool", size=3, stride=2, pads=(1, 1, 1, 1))
    inputs = features
    for stage in range(4):
        outputs = features * 2**stage
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = net.block(x, f"stage{stage}_block{block}", inputs, outputs, stride)
            inputs = outputs
    x = net.graph.flatten(net.graph.global_average_pool(x, name="mean"), name="flatten")
    weight = net.weights.kernel(classes, inputs, inputs=inputs)
    net.graph.gemm(x, weight, net.weights.uniform(-0.1, 0.1, classes), name="logits")
    return net.graph.build(
        "resnet18",
        inputs={"image": (batch, COLORS, size, size)},
        outputs={"logits": (batch, classes)},
        opset=opset,
        metadata={"leakyforge.input_range.image": "0,1"},
    )


class _ResNet:
    """The parts of the network over a `GraphBuilder`."""

    def __init__(self, *, relu: bool, alpha: float, seed: int) -> None:
        self.graph = GraphBuilder()
        self.weights = RandomWeights(alpha=alpha, seed=seed)
        self._relu, self._alpha = relu, alpha

    def activation(self, x: str) -> str:
        """ReLU or LeakyRelu behind a node."""
        if self._relu:
            return self.graph.relu(x, name=f"{x}_relu")
        return self.graph.leaky_relu(x, name=f"{x}_leaky", alpha=self._alpha)

    def conv(
        self,
        x: str,
        name: str,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        scale: float = 1.0,
    ) -> str:
        """Convolution without bias, batch normalization."""
        count = inputs * size * size
        weight = self.weights.kernel(outputs, inputs, size, size, inputs=count, scale=scale)
        x = self.graph.conv(x, weight, name=name, stride=stride, pad=size // 2)
        return self.graph.batch_norm(x, *self.weights.norm(outputs), name=f"{name}_norm")

    def block(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        """Two 3 x 3 convolutions and a shortcut around them."""
        y = self.activation(self.conv(x, f"{name}_conv1", inputs, outputs, 3, stride=stride))
        y = self.conv(y, f"{name}_conv2", outputs, outputs, 3, scale=BRANCH_SCALE)
        if inputs != outputs:
            x = self.conv(x, f"{name}_shortcut", inputs, outputs, 1, stride=stride, scale=0.7)
        return self.activation(self.graph.add(y, x, name=f"{name}_sum"))
