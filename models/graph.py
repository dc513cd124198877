"""A builder of ONNX graphs with the operators that the zoo needs, valid for opsets 13 to 23.

Source: ONNX operator specification, https://onnx.ai/onnx/operators/.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from leakyforge.models.options import checked_opset

Array = npt.NDArray[np.float32]
Shape = Sequence[int | str]
# The same number along every spatial axis, or one for each.
Sizes = int | Sequence[int]


class GraphBuilder:
    """Collects nodes and weights in order, then builds a model of them.

    Every operator method adds one node called `name`, whose only output has that name too, and
    returns it. Weights are float32 and called after their node: `<name>.weight`. Layout is NCHW, or
    NCW in one dimension. A `pad` stands on both sides of its axis.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def conv(
        self,
        x: str,
        weight: Array,
        *,
        name: str,
        bias: Array | None = None,
        stride: int = 1,
        pad: Sizes = 0,
        dilation: int = 1,
    ) -> str:
        """Convolution with `weight` [out, in, ...sizes] and `bias` [out]."""
        attributes = {"dilations": [dilation] * (weight.ndim - 2)}
        return self._convolution("Conv", x, weight, bias, stride, pad, name, **attributes)

    def conv_transpose(
        self,
        x: str,
        weight: Array,
        *,
        name: str,
        bias: Array | None = None,
        stride: int = 1,
        pad: int = 0,
    ) -> str:
        """Transposed convolution with `weight` [in, out, ...sizes] and `bias` [out]."""
        return self._convolution("ConvTranspose", x, weight, bias, stride, pad, name)

    def _convolution(
        self,
        operator: str,
        x: str,
        weight: Array,
        bias: Array | None,
        stride: int,
        pad: Sizes,
        name: str,
        **attributes: Any,
    ) -> str:
        inputs = [x, self._weight(name, "weight", weight)]
        if bias is not None:
            inputs.append(self._weight(name, "bias", bias))
        sizes = weight.shape[2:]
        return self._node(
            operator,
            inputs,
            name,
            kernel_shape=list(sizes),
            strides=[stride] * len(sizes),
            pads=_each(pad, len(sizes)) * 2,
            **attributes,
        )

    def batch_norm(
        self,
        x: str,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        *,
        name: str,
        epsilon: float = 1e-5,
    ) -> str:
        """Batch normalization at inference: scale * (x - mean) / sqrt(var + epsilon) + bias."""
        parameters = {"scale": scale, "bias": bias, "mean": mean, "var": var}
        inputs = [x, *(self._weight(name, part, value) for part, value in parameters.items())]
        return self._node("BatchNormalization", inputs, name, epsilon=epsilon)

    def instance_norm(
        self, x: str, scale: Array, bias: Array, *, name: str, epsilon: float = 1e-5
    ) -> str:
        """Normalization by the mean and variance of each channel of each image."""
        inputs = [x, self._weight(name, "scale", scale), self._weight(name, "bias", bias)]
        return self._node("InstanceNormalization", inputs, name, epsilon=epsilon)

    def leaky_relu(self, x: str, *, name: str, alpha: float) -> str:
        """X where x >= 0, alpha * x elsewhere."""
        return self._node("LeakyRelu", [x], name, alpha=alpha)

    def relu(self, x: str, *, name: str) -> str:
        """The larger one of x and 0."""
        return self._node("Relu", [x], name)

    def prelu(self, x: str, slope: Array, *, name: str) -> str:
        """X where x >= 0, slope * x elsewhere; `slope` broadcasts to x."""
        return self._node("PRelu", [x, self._weight(name, "slope", slope)], name)

    def sigmoid(self, x: str, *, name: str) -> str:
        """1 / (1 + exp(-x))."""
        return self._node("Sigmoid", [x], name)

    def tanh(self, x: str, *, name: str) -> str:
        """Hyperbolic tangent."""
        return self._node("Tanh", [x], name)

    def add(self, x: str, y: str, *, name: str) -> str:
        """Elementwise sum."""
        return self._node("Add", [x, y], name)

    def scale(self, x: str, factor: float, *, name: str) -> str:
        """Every element times a constant."""
        return self._node("Mul", [x, self._weight(name, "factor", np.float32(factor))], name)

    def at_least(self, x: str, floor: float, *, name: str) -> str:
        """The larger of every element and a constant."""
        return self._node("Max", [x, self._weight(name, "floor", np.float32(floor))], name)

    def max_pool(
        self,
        x: str,
        *,
        name: str,
        size: Sizes,
        stride: Sizes,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> str:
        """Largest value of each window of an image; `pads` are top, left, bottom, right."""
        return self._node(
            "MaxPool",
            [x],
            name,
            kernel_shape=_each(size, 2),
            strides=_each(stride, 2),
            pads=list(pads),
        )

    def global_average_pool(self, x: str, *, name: str) -> str:
        """Mean of every channel; spatial axes become 1."""
        return self._node("GlobalAveragePool", [x], name)

    def reflect_pad(self, x: str, *, name: str, pad: int) -> str:
        """Mirror `pad` columns of [batch, channels, columns] at both ends, the last one once."""
        pads = self._weight(name, "pads", np.array([0, 0, pad, 0, 0, pad]))
        return self._node("Pad", [x, pads], name, mode="reflect")

    def channels(self, x: str, start: int, end: int, *, name: str) -> str:
        """Channels `start` to `end` - 1."""
        bounds = {"starts": start, "ends": end, "axes": 1}
        inputs = [self._weight(name, part, np.array([value])) for part, value in bounds.items()]
        return self._node("Slice", [x, *inputs], name)

    def concat(self, xs: Sequence[str], *, name: str, axis: int = 1) -> str:
        """Join tensors along `axis`."""
        return self._node("Concat", list(xs), name, axis=axis)

    def upsample(self, x: str, *, name: str, factor: int) -> str:
        """Repeat every pixel `factor` times in height and width (nearest neighbour)."""
        scales = self._weight(name, "scales", np.array([1, 1, factor, factor], np.float32))
        return self._node(
            "Resize",
            # roi is empty: only the crop-and-resize mode reads it.
            [x, "", scales],
            name,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def flatten(self, x: str, *, name: str, axis: int = 1) -> str:
        """Make a matrix: dimensions before `axis` become rows, the others columns."""
        return self._node("Flatten", [x], name, axis=axis)

    def gemm(self, x: str, weight: Array, bias: Array, *, name: str) -> str:
        """X @ weight.T + bias, with `weight` [out, in] and `bias` [out]."""
        inputs = [x, self._weight(name, "weight", weight), self._weight(name, "bias", bias)]
        return self._node("Gemm", inputs, name, transB=1)

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Any operator that has no method of its own."""
        return self._node(operator, list(inputs), name, **attributes)

    def constant(self, value: npt.ArrayLike, *, name: str) -> str:
        """A constant called `name`: float32, or int64 for integers."""
        return self._constant(name, np.asarray(value))

    def build(
        self,
        name: str,
        *,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        opset: int,
        integers: Collection[str] = (),
        shapes: Mapping[str, Shape] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """Return the model, at the lowest IR version that `opset` allows.

        Args:
            name: Name of the graph.
            inputs: Shape of each input, float32 but for `integers`; a str is a symbolic dimension.
            outputs: Shape of each float32 output, whose name is that of a node.
            opset: Version of the ONNX operator set, 13 to 23.
            integers: Inputs that are int64.
            shapes: Shapes of float32 tensors in between that ONNX's inference would not find.
            metadata: Becomes `metadata_props` of the model.

        Raises:
            ExportError: `opset` is not in 13 to 23.
        """
        opset_imports = [onnx.helper.make_opsetid("", checked_opset(opset))]
        graph = onnx.helper.make_graph(
            self._nodes,
            name,
            _value_infos(inputs, integers),
            _value_infos(outputs),
            self._weights,
            value_info=_value_infos(shapes or {}),
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=opset_imports,
            ir_version=onnx.helper.find_min_ir_version_for(opset_imports),
            producer_name="leakyforge",
        )
        onnx.helper.set_model_props(model, dict(metadata or {}))
        return model

    def _node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self._nodes.append(onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def _weight(self, node: str, part: str, value: npt.NDArray[Any] | np.float32) -> str:
        return self._constant(f"{node}.{part}", value)

    def _constant(self, name: str, value: npt.NDArray[Any] | np.float32) -> str:
        # Integers are sizes, which ONNX wants in int64.
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
        self._weights.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def _each(sizes: Sizes, axes: int) -> list[int]:
    return [sizes] * axes if isinstance(sizes, int) else list(sizes)


def _value_infos(shapes: Mapping[str, Shape], integers: Collection[str] = ()) -> list[Any]:
    kinds = dict.fromkeys(integers, onnx.TensorProto.INT64)
    return [
        onnx.helper.make_tensor_value_info(
            name, kinds.get(name, onnx.TensorProto.FLOAT), list(shape)
        )
        for name, shape in shapes.items()
    ]
