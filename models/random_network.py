"""What networks with random weights are built with: a graph, the weights, one alpha."""

from leakyforge.models.graph import GraphBuilder
from leakyforge.models.random_weights import RandomWeights


class RandomNetwork:
    """The parts of a network over a `GraphBuilder`, with weights from one generator.

    Raises:
        ExportError: alpha is no finite number, or the seed no integer of 0 or more.
    """

    def __init__(self, *, alpha: float, seed: int) -> None:
        self.graph = GraphBuilder()
        self._alpha = alpha
        self._weights = RandomWeights(alpha=alpha, seed=seed)

    def leaky(self, x: str) -> str:
        """LeakyRelu behind a node."""
        return self.graph.leaky_relu(x, name=f"{x}_leaky", alpha=self._alpha)


class Vocoder(RandomNetwork):
    """The parts that generators of sound have in common."""

    def upsample(self, x: str, name: str, channels: int, stride: int, size: int) -> str:
        """Transposed convolution to `stride` times the length and half the channels."""
        inputs = channels * size // stride
        weight = self._weights.kernel(channels, channels // 2, size, inputs=inputs)
        bias = self._weights.uniform(-0.1, 0.1, channels // 2)
        pad = (size - stride) // 2
        return self.graph.conv_transpose(x, weight, name=name, bias=bias, stride=stride, pad=pad)
