"""YOLOv3-tiny with random weights: 13 convolutions, of which 11 end in LeakyRelu.

Sources: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767; the layers
and their numbers are those of darknet's cfg/yolov3-tiny.cfg.
"""

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.graph import Array, GraphBuilder
from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_opset,
)
from leakyforge.models.random_weights import RandomWeights

STRIDE_LARGE = 32
STRIDE_SMALL = 16
ANCHORS_PER_CELL = 3
BOX_VALUES = 5  # x, y, width, height, objectness


def yolov3_tiny(
    *,
    size: int = 416,
    classes: int = 80,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build YOLOv3-tiny up to its two raw heads (no decoding of boxes, no suppression).

    Input `input`: [batch, 3, size, size] float32 in [0, 1]. Outputs, float32 with
    C = 3 * (classes + 5): `head_large` [batch, C, size / 32, size / 32] for large objects and
    `head_small` [batch, C, size / 16, size / 16] for small ones.

    Args:
        size: Height and width of the image, a multiple of 32.
        classes: Number of classes.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    size = checked_int("size", size, minimum=STRIDE_LARGE)
    if size % STRIDE_LARGE != 0:
        below = size - size % STRIDE_LARGE
        raise ExportError(
            f"size={size} is not a multiple of {STRIDE_LARGE}; "
            f"use {below} or {below + STRIDE_LARGE}"
        )
    batch = checked_batch(batch)
    opset = checked_opset(opset)
    channels = ANCHORS_PER_CELL * (checked_int("classes", classes, minimum=1) + BOX_VALUES)

    net = _Darknet(alpha=checked_float("alpha", alpha), seed=checked_int("seed", seed, minimum=0))
    x = net.block("input", 0, 3, 16)
    x = net.block(net.pool(x, 1), 2, 16, 32)
    x = net.block(net.pool(x, 3), 4, 32, 64)
    x = net.block(net.pool(x, 5), 6, 64, 128)
    fine = net.block(net.pool(x, 7), 8, 128, 256)
    x = net.block(net.pool(fine, 9), 10, 256, 512)
    x = net.block(net.pool(x, 11, stride=1), 12, 512, 1024)
    coarse = net.block(x, 13, 1024, 256, kernel=1)
    x = net.block(coarse, 14, 256, 512)
    net.head(x, "head_large", 512, channels)

    x = net.block(coarse, 18, 256, 128, kernel=1)
    upsampled = net.graph.upsample(x, name="layer19_upsample", factor=2)
    x = net.graph.concat([upsampled, fine], name="layer20_concat")
    x = net.block(x, 21, 128 + 256, 256)
    net.head(x, "head_small", 256, channels)

    large, small = size // STRIDE_LARGE, size // STRIDE_SMALL
    return net.graph.build(
        "yolov3-tiny",
        inputs={"input": (batch, 3, size, size)},
        outputs={
            "head_large": (batch, channels, large, large),
            "head_small": (batch, channels, small, small),
        },
        opset=opset,
        # Inference forgets the name of a symbolic batch at Resize.
        shapes={upsampled: (batch, 128, small, small)},
        # The parity check draws its inputs from this range.
        metadata={"leakyforge.input_range.input": "0,1"},
    )


class _Darknet:
    """Darknet's three kinds of layer over a `GraphBuilder`, with weights from one generator."""

    def __init__(self, *, alpha: float, seed: int) -> None:
        self.graph = GraphBuilder()
        self._alpha = alpha
        self._weights = RandomWeights(alpha=alpha, seed=seed)

    def block(self, x: str, layer: int, inputs: int, outputs: int, *, kernel: int = 3) -> str:
        """Convolution without bias, batch normalization, LeakyRelu; height and width stay."""
        prefix = f"layer{layer}"
        weight = self._kernel(inputs, outputs, kernel)
        x = self.graph.conv(x, weight, name=f"{prefix}_conv", pad=kernel // 2)
        x = self.graph.batch_norm(x, *self._weights.norm(outputs), name=f"{prefix}_norm")
        return self.graph.leaky_relu(x, name=f"{prefix}_leaky", alpha=self._alpha)

    def pool(self, x: str, layer: int, *, stride: int = 2) -> str:
        """2 x 2 max pooling; at stride 1 darknet pads bottom and right to keep the size."""
        pads = (0, 0, 1, 1) if stride == 1 else (0, 0, 0, 0)
        return self.graph.max_pool(x, name=f"layer{layer}_pool", size=2, stride=stride, pads=pads)

    def head(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """1 x 1 convolution with bias and no activation."""
        bias = self._weights.uniform(-0.2, 0.2, outputs)
        return self.graph.conv(x, self._kernel(inputs, outputs, 1), name=name, bias=bias)

    def _kernel(self, inputs: int, outputs: int, size: int) -> Array:
        return self._weights.kernel(outputs, inputs, size, size, inputs=inputs * size * size)
