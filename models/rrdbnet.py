"""RRDBNet: the generator of ESRGAN, which enlarges an image four times.

Source: Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks",
arXiv:1809.00219, section 3.1: residual-in-residual dense blocks without batch normalization.
"""

import onnx

from leakyforge.models.graph import GraphBuilder
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_float, checked_int
from leakyforge.models.random_weights import RandomWeights

COLORS = 3
# The paper's residual scaling, and its factor for initial weights.
RESIDUAL_SCALE = 0.2
WEIGHT_SCALE = 0.1


def rrdbnet(
    *,
    blocks: int = 23,
    features: int = 64,
    growth: int = 32,
    height: int = 64,
    width: int = 64,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the generator with random weights.

    Input `image`: [batch, 3, height, width] float32 in [0, 1]. Output `large`: [batch, 3,
    4 * height, 4 * width] float32.

    Args:
        blocks: Residual-in-residual dense blocks.
        features: Channels between the blocks.
        growth: Channels that each convolution of a dense block adds.
        height: Rows of the image.
        width: Columns of the image.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    blocks = checked_int("blocks", blocks, minimum=1)
    height, width = (
        checked_int(name, value, minimum=1)
        for name, value in (("height", height), ("width", width))
    )
    batch = checked_batch(batch)
    net = _RrdbNet(
        features=checked_int("features", features, minimum=1),
        growth=checked_int("growth", growth, minimum=1),
        alpha=checked_float("alpha", alpha),
        weights=RandomWeights(alpha=alpha, seed=seed),
    )
    first = net.conv("image", "first", COLORS, features)
    x = first
    for block in range(blocks):
        x = net.block(x, f"block{block}")
    x = net.graph.add(first, net.conv(x, "trunk", features, features), name="features")
    shapes = {}
    for number in (1, 2):
        x = net.graph.upsample(x, name=f"upsample{number}", factor=2)
        shapes[x] = (batch, features, height * 2**number, width * 2**number)
        x = net.leaky(net.conv(x, f"up{number}", features, features))
    x = net.leaky(net.conv(x, "high", features, features))
    net.conv(x, "large", features, COLORS)
    return net.graph.build(
        "rrdbnet",
        inputs={"image": (batch, COLORS, height, width)},
        outputs={"large": (batch, COLORS, 4 * height, 4 * width)},
        opset=opset,
        # Inference forgets the name of a symbolic batch at Resize.
        shapes=shapes,
        metadata={"leakyforge.input_range.image": "0,1"},
    )


class _RrdbNet:
    """The parts of the network over a `GraphBuilder`."""

    def __init__(self, *, features: int, growth: int, alpha: float, weights: RandomWeights) -> None:
        self.graph = GraphBuilder()
        self._features, self._growth = features, growth
        self._alpha, self._weights = alpha, weights

    def conv(self, x: str, name: str, inputs: int, outputs: int, *, scale: float = 1.0) -> str:
        """3 x 3 convolution with bias; height and width stay."""
        weight = self._weights.kernel(outputs, inputs, 3, 3, inputs=9 * inputs, scale=scale)
        bias = self._weights.uniform(-0.1, 0.1, outputs)
        return self.graph.conv(x, weight, name=name, bias=bias, pad=1)

    def leaky(self, x: str) -> str:
        """LeakyRelu behind a node."""
        return self.graph.leaky_relu(x, name=f"{x}_leaky", alpha=self._alpha)

    def block(self, x: str, name: str) -> str:
        """Three dense blocks and a scaled residual around them."""
        y = x
        for number in (1, 2, 3):
            y = self._dense(y, f"{name}_dense{number}")
        return self._residual(x, y, name)

    def _dense(self, x: str, name: str) -> str:
        """Five convolutions, each over all that came before it, and a scaled residual."""
        parts, inputs = [x], self._features
        for number in (1, 2, 3, 4):
            y = self._joined(parts, f"{name}_join{number}")
            y = self.conv(y, f"{name}_conv{number}", inputs, self._growth, scale=WEIGHT_SCALE)
            parts.append(self.leaky(y))
            inputs += self._growth
        y = self._joined(parts, f"{name}_join5")
        y = self.conv(y, f"{name}_conv5", inputs, self._features, scale=WEIGHT_SCALE)
        return self._residual(x, y, name)

    def _joined(self, parts: list[str], name: str) -> str:
        return parts[0] if len(parts) == 1 else self.graph.concat(parts, name=name)

    def _residual(self, x: str, y: str, name: str) -> str:
        scaled = self.graph.scale(y, RESIDUAL_SCALE, name=f"{name}_scaled")
        return self.graph.add(scaled, x, name=name)
