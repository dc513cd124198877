"""HiFi-GAN's generator: from mel spectrograms to sound.

Source: Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity
Speech Synthesis", arXiv:2010.05646, table of hyperparameters in appendix A.1.
"""

from dataclasses import dataclass

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_size,
)
from leakyforge.models.random_network import Vocoder

# The authors' program uses torch's default slope before the last convolution.
LAST_ALPHA = 0.01


@dataclass(frozen=True)
class Version:
    """Hyperparameters of one version.

    Attributes:
        channels: before the first upsampling; each upsampling halves them.
        upsampling: rate and kernel of each transposed convolution.
        kernels: of the residual blocks, whose results are averaged.
        dilations: of each residual block, a tuple for every residual sum.
    """

    channels: int
    upsampling: tuple[tuple[int, int], ...]
    kernels: tuple[int, ...]
    dilations: tuple[tuple[tuple[int, ...], ...], ...]


_TYPE_1 = ((1, 1), (3, 1), (5, 1))
VERSIONS = {
    1: Version(512, ((8, 16), (8, 16), (2, 4), (2, 4)), (3, 7, 11), (_TYPE_1,) * 3),
    2: Version(128, ((8, 16), (8, 16), (2, 4), (2, 4)), (3, 7, 11), (_TYPE_1,) * 3),
    3: Version(
        256,
        ((8, 16), (8, 16), (4, 8)),
        (3, 5, 7),
        (((1,), (2,)), ((2,), (6,)), ((3,), (12,))),
    ),
}


def hifigan(
    *,
    version: int = 2,
    frames: int | str = 64,
    mels: int = 80,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the generator with random weights.

    Input `mel`: [batch, mels, frames] float32, scaled to [0, 1]. Output `sound`: [batch, 1,
    256 * frames] float32 in [-1, 1].

    Args:
        version: 1, 2 or 3 of the paper.
        frames: Columns of the spectrogram, or the name of a symbolic dimension.
        mels: Rows of the spectrogram.
        alpha: Slope of every LeakyRelu below zero but the last, whose slope is 0.01.
        batch: Number of spectrograms, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    if checked_int("version", version, minimum=1) not in VERSIONS:
        raise ExportError(f"version={version} is not 1, 2 or 3")
    frames = checked_size("frames", frames)
    mels = checked_int("mels", mels, minimum=1)
    batch = checked_batch(batch)
    plan = VERSIONS[version]
    net = HifiGan(alpha=checked_float("alpha", alpha), seed=seed)
    rate = net.generate("mel", mels, plan, "sound")
    return net.graph.build(
        "hifigan",
        inputs={"mel": (batch, mels, frames)},
        outputs={"sound": (batch, 1, "samples" if isinstance(frames, str) else rate * frames)},
        opset=opset,
        metadata={"leakyforge.input_range.mel": "0,1"},
    )


class HifiGan(Vocoder):
    """The network over a `GraphBuilder`."""

    def generate(self, x: str, inputs: int, plan: Version, name: str) -> int:
        """The whole generator, whose last node has the name given.

        Returns:
            Samples for each column of `x`, which has so many `inputs` as channels.
        """
        channels, rate = plan.channels, 1
        x = self.conv(x, "pre", inputs, channels, 7)
        for stage, (stride, kernel) in enumerate(plan.upsampling):
            x = self.upsample(self.leaky(x), f"up{stage}", channels, stride, kernel)
            channels, rate = channels // 2, rate * stride
            fields = [
                self.residual(x, f"stage{stage}_kernel{size}", channels, size, dilations)
                for size, dilations in zip(plan.kernels, plan.dilations, strict=True)
            ]
            total = fields[0]
            for number, field in enumerate(fields[1:], start=2):
                total = self.graph.add(total, field, name=f"stage{stage}_sum{number}")
            x = self.graph.scale(total, 1 / len(fields), name=f"stage{stage}_mean")
        x = self.graph.leaky_relu(x, name="last_leaky", alpha=LAST_ALPHA)
        self.graph.tanh(self.conv(x, "post", channels, 1, 7), name=name)
        return rate

    def conv(
        self, x: str, name: str, inputs: int, outputs: int, size: int, dilation: int = 1
    ) -> str:
        """Convolution with bias that keeps the length."""
        weight = self._weights.kernel(outputs, inputs, size, inputs=inputs * size, scale=0.7)
        bias = self._weights.uniform(-0.1, 0.1, outputs)
        pad = dilation * (size - 1) // 2
        return self.graph.conv(x, weight, name=name, bias=bias, pad=pad, dilation=dilation)

    def residual(
        self, x: str, name: str, channels: int, size: int, dilations: tuple[tuple[int, ...], ...]
    ) -> str:
        """Sums of the input and of convolutions, each behind a LeakyRelu."""
        for number, chain in enumerate(dilations, start=1):
            y = x
            for step, dilation in enumerate(chain, start=1):
                y = self.graph.leaky_relu(y, name=f"{name}_leaky{number}_{step}", alpha=self._alpha)
                y = self.conv(y, f"{name}_conv{number}_{step}", channels, channels, size, dilation)
            x = self.graph.add(y, x, name=f"{name}_sum{number}")
        return x
