"""pix2pix: the U-Net that turns an image into another, and the PatchGAN that judges pairs of them.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks",
arXiv:1611.07004, appendix 6.1. Its batch normalization works on one image at a time and with that
image's statistics, in use too, which is instance normalization. Dropout is left out. Which
convolutions have a bias is as in the authors' PyTorch program.
"""

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_opset,
)
from leakyforge.models.random_network import RandomNetwork

COLORS = 3
KERNEL = 4
# `features` times this is the width of the deepest layers.
WIDEST = 8
# Of a smaller image the discriminator's last convolution would make nothing.
SMALLEST_PAIR = 24


def pix2pix_unet(
    *,
    size: int = 256,
    depth: int = 8,
    features: int = 64,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the generator with random weights.

    Input `image`: [batch, 3, size, size] float32 in [0, 1]. Output `translated`: [batch, 3, size,
    size] float32 in [-1, 1]. 54.4 million parameters.

    Args:
        size: Height and width of the image, a multiple of 2 ** depth.
        depth: Convolutions of stride 2, and as many transposed ones, 2 to 16.
        features: Channels of the first convolution.
        alpha: Slope of every LeakyRelu below zero; the second half of the network has ReLU.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    if checked_int("depth", depth, minimum=2) > 16:
        raise ExportError(f"depth={depth} is above 16")
    step = 2**depth
    if checked_int("size", size, minimum=1) % step:
        raise ExportError(f"size={size} is not a multiple of {step}, which is 2 ** depth")
    features = checked_int("features", features, minimum=1)
    batch, opset = checked_batch(batch), checked_opset(opset)
    net = _Pix2Pix(alpha=checked_float("alpha", alpha), seed=seed)
    widths = [min(2**number, WIDEST) * features for number in range(depth)]

    x, inputs, skips = "image", COLORS, []
    for number, outputs in enumerate(widths, start=1):
        if number > 1:
            x = net.leaky(x)
        x = net.down(x, f"down{number}", inputs, outputs, norm=1 < number < depth)
        skips.append(x)
        inputs = outputs
    skips.pop()
    for number in range(depth, 1, -1):
        x = net.graph.relu(x, name=f"up{number}_relu")
        x = net.up(x, f"up{number}", inputs, widths[number - 2])
        x = net.graph.concat([skips.pop(), x], name=f"up{number}_join")
        inputs = 2 * widths[number - 2]
    x = net.graph.relu(x, name="up1_relu")
    net.graph.tanh(net.up(x, "up1", inputs, COLORS, norm=False), name="translated")
    return net.graph.build(
        "pix2pix-unet",
        inputs={"image": (batch, COLORS, size, size)},
        outputs={"translated": (batch, COLORS, size, size)},
        opset=opset,
        metadata={"leakyforge.input_range.image": "0,1"},
    )


def patchgan(
    *,
    size: int = 256,
    features: int = 64,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the discriminator of patches of 70 x 70 pixels with random weights.

    Input `pair`: [batch, 6, size, size] float32 in [0, 1], two images joined along the channels.
    Output `scores`: [batch, 1, P, P] float32 with P = size // 8 - 2, above zero for patches that
    look real. 2.77 million parameters.

    Args:
        size: Height and width of the images, 24 or more.
        features: Channels of the first convolution.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of pairs, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    size = checked_int("size", size, minimum=SMALLEST_PAIR)
    features = checked_int("features", features, minimum=1)
    batch, opset = checked_batch(batch), checked_opset(opset)
    net = _Pix2Pix(alpha=checked_float("alpha", alpha), seed=seed)
    x, inputs = "pair", 2 * COLORS
    for number, stride in enumerate((2, 2, 2, 1), start=1):
        outputs = features * 2 ** (number - 1)
        norm = number > 1
        x = net.down(x, f"conv{number}", inputs, outputs, stride=stride, norm=norm, bias=not norm)
        x = net.leaky(x)
        inputs = outputs
    net.down(x, "scores", inputs, 1, stride=1, norm=False, bias=True)
    patches = size // 8 - 2
    return net.graph.build(
        "patchgan",
        inputs={"pair": (batch, 2 * COLORS, size, size)},
        outputs={"scores": (batch, 1, patches, patches)},
        opset=opset,
        metadata={"leakyforge.input_range.pair": "0,1"},
    )


class _Pix2Pix(RandomNetwork):
    """The parts of both networks over a `GraphBuilder`; every kernel is 4 x 4."""

    def down(
        self,
        x: str,
        name: str,
        inputs: int,
        outputs: int,
        *,
        norm: bool,
        stride: int = 2,
        bias: bool = False,
    ) -> str:
        """Convolution, and normalization if asked for."""
        count = inputs * KERNEL * KERNEL
        weight = self._weights.kernel(outputs, inputs, KERNEL, KERNEL, inputs=count)
        values = self._weights.uniform(-0.1, 0.1, outputs) if bias else None
        x = self.graph.conv(x, weight, name=name, bias=values, stride=stride, pad=1)
        return self._norm(x, name, outputs) if norm else x

    def up(self, x: str, name: str, inputs: int, outputs: int, *, norm: bool = True) -> str:
        """Transposed convolution to twice the height and width; normalization, else a bias."""
        # Every output is a sum over a quarter of the kernel.
        weight = self._weights.kernel(inputs, outputs, KERNEL, KERNEL, inputs=4 * inputs)
        bias = None if norm else self._weights.uniform(-0.1, 0.1, outputs)
        x = self.graph.conv_transpose(x, weight, name=name, bias=bias, stride=2, pad=1)
        return self._norm(x, name, outputs) if norm else x

    def _norm(self, x: str, name: str, channels: int) -> str:
        scale = self._weights.uniform(0.8, 1.2, channels)
        bias = self._weights.uniform(-0.2, 0.2, channels)
        return self.graph.instance_norm(x, scale, bias, name=f"{name}_norm")
