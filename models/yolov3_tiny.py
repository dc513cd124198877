"""YOLOv3-tiny with random weights: 13 convolutions, of which 11 end in LeakyRelu.

Sources: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767; the layers
and their numbers are those of darknet's cfg/yolov3-tiny.cfg.
"""

import onnx

from leakyforge.models.darknet_layers import RandomDarknet
from leakyforge.models.options import DEFAULT_OPSET


def yolov3_tiny(
    *,
    size: int = 416,
    features: int = 16,
    classes: int = 80,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build YOLOv3-tiny up to its two raw heads (no decoding of boxes, no suppression).

    Input `input`: [batch, 3, size, size] float32 in [0, 1]. Outputs, float32 with
    C = 3 * (classes + 5): `head_large` [batch, C, size / 32, size / 32] for large objects and
    `head_small` [batch, C, size / 16, size / 16] for small ones. 8.9 million parameters.

    Args:
        size: Height and width of the image, a multiple of 32.
        features: Channels of the first convolution; the others have multiples of them.
        classes: Number of classes.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    net = RandomDarknet(
        size=size,
        features=features,
        classes=classes,
        anchors=3,
        alpha=alpha,
        batch=batch,
        seed=seed,
        opset=opset,
    )
    for number in range(6):
        net.block(features * 2**number)
        net.maxpool(size=2, stride=2 if number < 5 else 1)
    net.block(64 * features)
    net.block(16 * features, size=1)
    net.block(32 * features)
    net.raw_head("head_large")
    net.route(-4)
    net.block(8 * features, size=1)
    net.upsample(2)
    net.route(-1, 8)
    net.block(16 * features)
    net.raw_head("head_small")
    return net.build("yolov3-tiny", opset=opset)
