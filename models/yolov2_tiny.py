"""YOLOv2-tiny with random weights: 9 convolutions, of which 8 end in LeakyRelu.

Sources: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv:1612.08242; the layers
and their numbers are those of darknet's cfg/yolov2-tiny.cfg.
"""

import onnx

from leakyforge.models.darknet_layers import RandomDarknet
from leakyforge.models.options import DEFAULT_OPSET


def yolov2_tiny(
    *,
    size: int = 416,
    features: int = 16,
    classes: int = 80,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build YOLOv2-tiny up to its raw head (no decoding of boxes, no suppression).

    Input `input`: [batch, 3, size, size] float32 in [0, 1]. Output `head`: [batch,
    5 * (classes + 5), size / 32, size / 32] float32. 11 million parameters.

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
        anchors=5,
        alpha=alpha,
        batch=batch,
        seed=seed,
        opset=opset,
    )
    for number in range(6):
        net.block(features * 2**number)
        net.maxpool(size=2, stride=2 if number < 5 else 1)
    net.block(64 * features)
    net.block(32 * features)
    net.raw_head("head")
    return net.build("yolov2-tiny", opset=opset)
