"""YOLOv3 with random weights: Darknet-53 and three heads, 75 convolutions, 72 LeakyRelu.

Sources: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767; the layers
and their numbers are those of darknet's cfg/yolov3.cfg.
"""

import onnx

from leakyforge.models.darknet_layers import RandomDarknet
from leakyforge.models.options import DEFAULT_OPSET

# Residual blocks at 1/2, 1/4, ... 1/32 of the image's height and width.
BLOCKS = (1, 2, 8, 8, 4)
# Of a residual branch's weights: 23 sums in a row stay of order one.
BRANCH_SCALE = 0.1


def yolov3(
    *,
    size: int = 416,
    features: int = 32,
    classes: int = 80,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build YOLOv3 up to its three raw heads (no decoding of boxes, no suppression).

    Input `input`: [batch, 3, size, size] float32 in [0, 1]. Outputs, float32 with
    C = 3 * (classes + 5): `head_large` [batch, C, size / 32, size / 32] for large objects,
    `head_medium` [batch, C, size / 16, size / 16] and `head_small` [batch, C, size / 8, size / 8].
    62 million parameters.

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
    net.block(features)
    for number, blocks in enumerate(BLOCKS, start=1):
        channels = features * 2**number
        net.block(channels, stride=2)
        for _ in range(blocks):
            net.block(channels // 2, size=1)
            net.block(channels, scale=BRANCH_SCALE)
            net.shortcut(-3)
    # The last layers at 1/16 and 1/8 of the image are 61 and 36.
    for name, channels, finer in (
        ("head_large", 16 * features, 61),
        ("head_medium", 8 * features, 36),
        ("head_small", 4 * features, None),
    ):
        for _ in range(3):
            net.block(channels, size=1)
            net.block(2 * channels)
        net.raw_head(name)
        if finer is not None:
            net.route(-4)
            net.block(channels // 2, size=1)
            net.upsample(2)
            net.route(-1, finer)
    return net.build("yolov3", opset=opset)
