"""The layers of darknet's .cfg files over a `GraphBuilder`: numbered, and with known shapes.

Source: https://github.com/pjreddie/darknet, src/parser.c and src/*_layer.c.
"""

import math
from typing import NamedTuple

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.graph import Array, GraphBuilder
from leakyforge.models.options import checked_batch, checked_float, checked_int, checked_opset
from leakyforge.models.random_weights import RandomWeights

STRIDE = 32  # from the image to the coarsest head of every YOLO
BOX_VALUES = 5  # x, y, width, height, objectness
ACTIVATIONS = ("leaky", "linear", "logistic", "relu")
# Darknet counts the elements of a layer in a C int.
_MOST_ELEMENTS = 2**31 - 1


class Convolution(NamedTuple):
    """Weights of a convolution.

    Attributes:
        weight: [out, in, size, size].
        bias: [out], added behind the batch normalization where there is one.
        norm: scale, mean and variance of a batch normalization, each [out].
    """

    weight: Array
    bias: Array
    norm: tuple[Array, Array, Array] | None = None


class _Layer(NamedTuple):
    """Name of a layer's output, and its shape without the batch."""

    output: str
    channels: int
    height: int
    width: int


class DarknetLayers:
    """A network that grows by one layer for each call; layers are numbered from 0 as in darknet.

    Batch normalization divides by sqrt(variance + 1e-5), as darknet does on a GPU, where these
    networks were trained; on a CPU it divides by sqrt(variance) + 1e-6.

    Raises:
        ExportError: from every method, where the layer does not fit those before it.
    """

    def __init__(
        self, *, channels: int, height: int, width: int, batch: int | str, alpha: float = 0.1
    ) -> None:
        self.heads: dict[str, _Layer] = {}
        self._graph = GraphBuilder()
        self._alpha = checked_float("alpha", alpha)
        self._batch = checked_batch(batch)
        self._input = _checked(_Layer("input", channels, height, width))
        # None stands for a head: its decoded boxes are no part of the graph.
        self._layers: list[_Layer | None] = []
        self._unknown_to_inference: dict[str, tuple[int | str, ...]] = {}

    @property
    def channels(self) -> int:
        """Channels that the next layer reads."""
        return self._last.channels

    def convolutional(
        self,
        weights: Convolution,
        *,
        stride: int = 1,
        pad: int,
        activation: str = "leaky",
        name: str | None = None,
    ) -> None:
        """Convolution, batch normalization if it has any, activation; `name` is the output's."""
        x, size = self._last, weights.weight.shape[-1]
        prefix = f"layer{len(self._layers)}"
        plain = weights.norm is None
        y = self._graph.conv(
            x.output,
            weights.weight,
            name=name or f"{prefix}_conv",
            bias=weights.bias if plain else None,
            stride=stride,
            pad=pad,
        )
        if weights.norm is not None:
            scale, mean, variance = weights.norm
            y = self._graph.batch_norm(
                y, scale, weights.bias, mean, variance, name=f"{prefix}_norm", epsilon=1e-5
            )
        y = self._activation(y, activation)
        height, width = ((n + 2 * pad - size) // stride + 1 for n in (x.height, x.width))
        self._append(_Layer(y, weights.weight.shape[0], height, width))

    def maxpool(self, *, size: int, stride: int, padding: int | None = None) -> None:
        """Max pooling over an image with `padding` more rows and columns, half of them before.

        By default there are size - 1 of them, which makes ceil(n / stride) pixels of n.
        """
        x = self._last
        padding = size - 1 if padding is None else padding
        if padding // 2 >= size:
            raise ExportError(f"padding={padding} has windows of {size} x {size} without a pixel")
        before = padding // 2
        height, width = ((n + padding - size) // stride + 1 for n in (x.height, x.width))
        # What no window reaches is no padding in ONNX.
        bottom, right = (
            max(0, (out - 1) * stride + size - before - n)
            for out, n in ((height, x.height), (width, x.width))
        )
        if max(bottom, right) >= size:
            raise ExportError(f"padding={padding} has windows of {size} x {size} without a pixel")
        y = self._graph.max_pool(
            x.output,
            name=f"layer{len(self._layers)}_pool",
            size=size,
            stride=stride,
            pads=(before, before, bottom, right),
        )
        self._append(_Layer(y, x.channels, height, width))

    def route(self, *layers: int, groups: int = 1, group: int = 0) -> None:
        """Concatenate layers (negative: counted from here), or one of `groups` of their channels.

        One whole layer adds no node.
        """
        prefix = f"layer{len(self._layers)}"
        parts = [self._find(layer) for layer in layers]
        if len({(part.height, part.width) for part in parts}) > 1:
            sizes = ", ".join(f"{part.height} x {part.width}" for part in parts)
            raise ExportError(f"route joins images of different sizes: {sizes}")
        outputs, channels = [], 0
        for number, part in enumerate(parts):
            count, rest = divmod(part.channels, groups)
            if rest or group >= groups:
                raise ExportError(f"{part.channels} channels have no group {group} of {groups}")
            channels += count
            y = part.output
            if groups > 1:
                start = group * count
                name = f"{prefix}_slice{number}"
                y = self._graph.channels(y, start, start + count, name=name)
            outputs.append(y)
        y = outputs[0]
        if len(outputs) > 1:
            y = self._graph.concat(outputs, name=f"{prefix}_concat")
        self._append(_Layer(y, channels, parts[0].height, parts[0].width))

    def shortcut(self, layer: int, *, activation: str = "linear") -> None:
        """Sum of the last layer and another of its shape."""
        x, other = self._last, self._find(layer)
        if x[1:] != other[1:]:
            shapes = " and ".join(" x ".join(map(str, each[1:])) for each in (x, other))
            raise ExportError(f"shortcut adds layers of different shapes: {shapes}")
        name = f"layer{len(self._layers)}_sum"
        y = self._graph.add(x.output, other.output, name=name)
        self._append(x._replace(output=self._activation(y, activation)))

    def upsample(self, stride: int) -> None:
        """Nearest neighbour, `stride` times the height and width."""
        x = self._last
        y = self._graph.upsample(x.output, name=f"layer{len(self._layers)}_upsample", factor=stride)
        layer = _Layer(y, x.channels, stride * x.height, stride * x.width)
        self._append(layer)
        # Inference forgets the name of a symbolic batch at Resize.
        self._unknown_to_inference[y] = (self._batch, *layer[1:])

    def head(self) -> None:
        """Darknet's `yolo` or `region`: the last layer is an output, as it is."""
        if not self._layers:
            raise ExportError("a head reads the image itself; put layers before it")
        self.heads[self._last.output] = self._last
        self._layers.append(None)

    def build(self, name: str, *, opset: int) -> onnx.ModelProto:
        """Return the model: input `input`, and an output for every head, else the last layer."""
        outputs = self.heads or {self._last.output: self._last}
        if "input" in outputs:
            raise ExportError("the network has no layer that computes anything")
        return self._graph.build(
            name,
            inputs={"input": (self._batch, *self._input[1:])},
            outputs={key: (self._batch, *layer[1:]) for key, layer in outputs.items()},
            opset=opset,
            shapes=self._unknown_to_inference,
            # The parity check draws its inputs from this range.
            metadata={"leakyforge.input_range.input": "0,1"},
        )

    @property
    def _last(self) -> _Layer:
        return self._find(-1) if self._layers else self._input

    def _find(self, layer: int) -> _Layer:
        index = layer + len(self._layers) if layer < 0 else layer
        if not 0 <= index < len(self._layers):
            raise ExportError(f"there is no layer {layer} before layer {len(self._layers)}")
        found = self._layers[index]
        if found is None:
            raise ExportError(f"layer {index} is a head, whose boxes are not in the ONNX graph")
        return found

    def _append(self, layer: _Layer) -> None:
        self._layers.append(_checked(layer))

    def _activation(self, x: str, activation: str) -> str:
        prefix = f"layer{len(self._layers)}"
        if activation == "leaky":
            return self._graph.leaky_relu(x, name=f"{prefix}_leaky", alpha=self._alpha)
        if activation == "relu":
            return self._graph.relu(x, name=f"{prefix}_relu")
        if activation == "logistic":
            return self._graph.sigmoid(x, name=f"{prefix}_sigmoid")
        if activation == "linear":
            return x
        raise ExportError(f"activation={activation} is not one of {', '.join(ACTIVATIONS)}")


class RandomDarknet(DarknetLayers):
    """A YOLO with random weights for square images in three colours.

    Raises:
        ExportError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        size: int,
        features: int,
        classes: int,
        anchors: int,
        alpha: float,
        batch: int | str,
        seed: int,
        opset: int,
    ) -> None:
        size = checked_int("size", size, minimum=STRIDE)
        if size % STRIDE != 0:
            below = size - size % STRIDE
            raise ExportError(
                f"size={size} is not a multiple of {STRIDE}; use {below} or {below + STRIDE}"
            )
        checked_int("features", features, minimum=1)
        # Before the weights are drawn, which takes a second for the largest network.
        checked_opset(opset)
        super().__init__(channels=3, height=size, width=size, batch=batch, alpha=alpha)
        self._head_channels = anchors * (checked_int("classes", classes, minimum=1) + BOX_VALUES)
        self._weights = RandomWeights(alpha=alpha, seed=seed)

    def block(self, filters: int, *, size: int = 3, stride: int = 1, scale: float = 1.0) -> None:
        """Convolution, batch normalization, LeakyRelu, with weights of the size `scale`."""
        weight = self._kernel(filters, size, scale)
        gamma, bias, mean, variance = self._weights.norm(filters)
        weights = Convolution(weight, bias, (gamma, mean, variance))
        self.convolutional(weights, stride=stride, pad=size // 2)

    def raw_head(self, name: str) -> None:
        """1 x 1 convolution with bias and no activation to the values of all boxes: an output."""
        bias = self._weights.uniform(-0.2, 0.2, self._head_channels)
        weights = Convolution(self._kernel(self._head_channels, 1, 1.0), bias)
        self.convolutional(weights, pad=0, activation="linear", name=name)
        self.head()

    def _kernel(self, filters: int, size: int, scale: float) -> Array:
        inputs = self.channels
        return self._weights.kernel(
            filters, inputs, size, size, inputs=inputs * size * size, scale=scale
        )


def _checked(layer: _Layer) -> _Layer:
    shape = " x ".join(map(str, layer[1:]))
    if min(layer[1:]) < 1:
        raise ExportError(f"the layer would have {shape} values")
    if math.prod(layer[1:]) > _MOST_ELEMENTS:
        raise ExportError(f"the layer would have {shape} values, more than darknet can count")
    return layer
