"""MelGAN's generator: from mel spectrograms to sound.

Source: Kumar et al., "MelGAN: Generative Adversarial Networks for Conditional Waveform Synthesis",
arXiv:1910.06711, table 4 (a), with the 1 x 1 shortcuts of the authors' program; weight
normalization is folded into the weights.
"""

import onnx

from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_opset,
)
from leakyforge.models.random_network import Vocoder

RATES = (8, 8, 2, 2)
DILATIONS = (1, 3, 9)


def melgan(
    *,
    frames: int = 64,
    mels: int = 80,
    features: int = 32,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the generator with random weights.

    Input `mel`: [batch, mels, frames] float32, scaled to [0, 1]. Output `sound`: [batch, 1,
    256 * frames] float32 in [-1, 1]. 4.26 million parameters.

    Args:
        frames: Columns of the spectrogram, 4 or more.
        mels: Rows of the spectrogram.
        features: Channels before the last convolution.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of spectrograms, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    # Three columns are mirrored at each end, which takes a fourth.
    frames = checked_int("frames", frames, minimum=4)
    mels = checked_int("mels", mels, minimum=1)
    channels = checked_int("features", features, minimum=1) * 2 ** len(RATES)
    batch, opset = checked_batch(batch), checked_opset(opset)
    net = _MelGan(alpha=checked_float("alpha", alpha), seed=seed)
    x = net.conv("mel", "pre", mels, channels, 7)
    length = frames
    for stage, rate in enumerate(RATES):
        x = net.upsample(net.leaky(x), f"up{stage}", channels, rate, 2 * rate)
        channels, length = channels // 2, length * rate
        for dilation in DILATIONS:
            x = net.residual(x, f"stage{stage}_dilation{dilation}", channels, dilation)
    net.graph.tanh(net.conv(net.leaky(x), "post", channels, 1, 7), name="sound")
    return net.graph.build(
        "melgan",
        inputs={"mel": (batch, mels, frames)},
        outputs={"sound": (batch, 1, length)},
        opset=opset,
        metadata={"leakyforge.input_range.mel": "0,1"},
    )


class _MelGan(Vocoder):
    """The parts of the network over a `GraphBuilder`."""

    def conv(
        self, x: str, name: str, inputs: int, outputs: int, size: int, dilation: int = 1
    ) -> str:
        """Convolution with bias that keeps the length by mirrored columns."""
        pad = dilation * (size - 1) // 2
        if pad:
            x = self.graph.reflect_pad(x, name=f"{name}_pad", pad=pad)
        weight = self._weights.kernel(outputs, inputs, size, inputs=inputs * size, scale=0.7)
        bias = self._weights.uniform(-0.1, 0.1, outputs)
        return self.graph.conv(x, weight, name=name, bias=bias, dilation=dilation)

    def residual(self, x: str, name: str, channels: int, dilation: int) -> str:
        """Two convolutions behind LeakyRelu, and a 1 x 1 convolution around them."""
        y = self.conv(self.leaky(x), f"{name}_conv1", channels, channels, 3, dilation)
        y = self.conv(self.leaky(y), f"{name}_conv2", channels, channels, 1)
        shortcut = self.conv(x, f"{name}_shortcut", channels, channels, 1)
        return self.graph.add(shortcut, y, name=f"{name}_sum")
