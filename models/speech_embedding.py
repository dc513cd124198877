"""A speech embedding of mel frames: 20 convolutions of 3 x 3, 1 x 3 and 3 x 1, 19 LeakyRelu.

Source: Lin et al., "Training Keyword Spotters with Limited and Synthesized Speech Data",
arXiv:2002.01322, section 3; sizes, and the floor of -0.4 behind every LeakyRelu, are those of the
published TensorFlow Hub model google/speech_embedding. Its batch normalization is folded into the
convolutions.
"""

from typing import NamedTuple

import onnx

from leakyforge.models.options import (
    DEFAULT_OPSET,
    checked_batch,
    checked_float,
    checked_int,
    checked_opset,
)
from leakyforge.models.random_network import RandomNetwork

MELS = 32
FRAMES = 76  # which make one embedding
FLOOR = -0.4


class _Stage(NamedTuple):
    """Two pairs of convolutions, 1 x 3 over mels and 3 x 1 over frames, and then max pooling."""

    multiple: int
    pool: tuple[int, int]


_STAGES = (_Stage(2, (1, 2)), _Stage(3, (2, 2)), _Stage(4, (1, 2)), _Stage(4, (2, 2)))


def speech_embedding(
    *,
    frames: int = FRAMES,
    features: int = 24,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the network with random weights.

    Input `mel`: [batch, 1, frames, 32] float32, scaled to [0, 1]. Output `embedding`: [batch,
    4 * features, E, 1] float32, with E = (frames - 76) // 8 + 1. 0.33 million parameters.

    Args:
        frames: Rows of the spectrogram, 76 or more.
        features: Channels of the first convolution.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of spectrograms, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    frames = checked_int("frames", frames, minimum=FRAMES)
    features = checked_int("features", features, minimum=1)
    batch, opset = checked_batch(batch), checked_opset(opset)
    net = _SpeechEmbedding(alpha=checked_float("alpha", alpha), seed=seed)
    x = net.block("mel", "first", 1, features, (3, 3))
    x = net.pair(x, "stage0_pair1", features, features)
    x = net.graph.max_pool(x, name="stage0_pool", size=2, stride=2)
    inputs = features
    for number, stage in enumerate(_STAGES, start=1):
        outputs = stage.multiple * features
        x = net.pair(x, f"stage{number}_pair1", inputs, outputs)
        x = net.pair(x, f"stage{number}_pair2", outputs, outputs)
        x = net.graph.max_pool(x, name=f"stage{number}_pool", size=stage.pool, stride=stage.pool)
        inputs = outputs
    net.conv(x, "embedding", inputs, inputs, (3, 1), bias=False)
    return net.graph.build(
        "speech-embedding",
        inputs={"mel": (batch, 1, frames, MELS)},
        outputs={"embedding": (batch, inputs, (frames - FRAMES) // 8 + 1, 1)},
        opset=opset,
        metadata={"leakyforge.input_range.mel": "0,1"},
    )


class _SpeechEmbedding(RandomNetwork):
    """The parts of the network over a `GraphBuilder`."""

    def conv(
        self,
        x: str,
        name: str,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        *,
        bias: bool = True,
    ) -> str:
        """Convolution that keeps the mels and drops the frames at both ends."""
        count = inputs * size[0] * size[1]
        weight = self._weights.kernel(outputs, inputs, *size, inputs=count)
        values = self._weights.uniform(-0.1, 0.1, outputs) if bias else None
        return self.graph.conv(x, weight, name=name, bias=values, pad=(0, size[1] // 2))

    def block(self, x: str, name: str, inputs: int, outputs: int, size: tuple[int, int]) -> str:
        """Convolution, LeakyRelu, floor."""
        x = self.conv(x, name, inputs, outputs, size)
        x = self.graph.leaky_relu(x, name=f"{name}_leaky", alpha=self._alpha)
        return self.graph.at_least(x, FLOOR, name=f"{name}_floor")

    def pair(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """A block over three mels and one over three frames."""
        x = self.block(x, f"{name}_mels", inputs, outputs, (1, 3))
        return self.block(x, f"{name}_frames", outputs, outputs, (3, 1))
