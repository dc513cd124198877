"""ONNX operator BatchNormalization in training mode, by its definition.

https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, since opset 14. Over all axes of x but
the channels:

    mean, var = of x itself
    y = (x - mean) / sqrt(var + epsilon) * scale + bias
    running_mean = input_mean * momentum + mean * (1 - momentum), and running_var alike
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leakyforge.onnx_graph import light_copy

# Opset from which an attribute says so, and from which the axes of a mean are an input.
_HAS_MODE, _AXES_ARE_INPUT = 14, 18


def define_batch_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the definition of every such node of known rank; itself without one."""
    opset = max((item.version for item in model.opset_import if not item.domain), default=0)
    nodes = [node for node in model.graph.node if opset >= _HAS_MODE and _is_training(node)]
    if not nodes:
        return model
    graph = onnx.shape_inference.infer_shapes(light_copy(model)).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    for node in model.graph.node:
        if _is_training(node) and node.input[0] in ranks:
            definition = _Definition(node, ranks[node.input[0]], opset)
            changed.graph.node.extend(definition.nodes())
            changed.graph.initializer.extend(definition.constants)
        else:
            changed.graph.node.append(node)
    return changed


def _is_training(node: onnx.NodeProto) -> bool:
    return (
        node.op_type == "BatchNormalization"
        and not node.domain
        and any(item.name == "training_mode" and item.i for item in node.attribute)
    )


class _Definition:
    """The nodes in place of one.

    Attributes:
        constants: that they read.
    """

    def __init__(self, node: onnx.NodeProto, rank: int, opset: int) -> None:
        self._node, self._rank, self._opset = node, rank, opset
        self.constants: list[onnx.TensorProto] = []

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """In order."""
        values = {item.name: item.f for item in self._node.attribute}
        x, scale, bias, *running = self._node.input
        y, *results = self._node.output
        make = onnx.helper.make_node
        mean, centred, squared, var, root = (f"{y}/{name}" for name in "mcsvr")
        yield self._mean(x, mean)
        yield make("Sub", [x, mean], [centred])
        yield make("Mul", [centred, centred], [squared])
        yield self._mean(squared, var)
        # In x's type, which the scale and the mean need not have.
        epsilon, cast = self._number(x, values.get("epsilon", 1e-5))
        yield cast
        yield make("Add", [var, epsilon], [f"{y}/shifted"])
        yield make("Sqrt", [f"{y}/shifted"], [root])
        yield make("Div", [centred, root], [f"{y}/normal"])
        tail = self._constant(np.arange(1, self._rank - 1))
        for name, vector in (("scale", scale), ("bias", bias)):
            yield make("CastLike", [vector, x], [f"{y}/{name}_like"])
            yield make("Unsqueeze", [f"{y}/{name}_like", tail], [f"{y}/{name}"])
        yield make("Mul", [f"{y}/normal", f"{y}/scale"], [f"{y}/scaled"])
        yield make("Add", [f"{y}/scaled", f"{y}/bias"], [y])
        momentum = values.get("momentum", 0.9)
        for result, old, new in zip(results, running, (mean, var), strict=False):
            if result:
                yield from self._moved(result, old, new, momentum)

    def _moved(self, result: str, old: str, new: str, momentum: float) -> Iterator[onnx.NodeProto]:
        """A running statistic, moved towards the batch's."""
        make = onnx.helper.make_node
        yield make("Squeeze", [new, self._constant(np.array(self._others()))], [f"{result}/flat"])
        yield make("CastLike", [f"{result}/flat", old], [f"{result}/new"])
        parts = []
        for name, factor in ((old, momentum), (f"{result}/new", 1 - momentum)):
            number, cast = self._number(old, factor)
            yield cast
            parts.append(f"{number}/part")
            yield make("Mul", [name, number], [parts[-1]])
        yield make("Add", parts, [result])

    def _others(self) -> list[int]:
        """All axes but the channels'."""
        return [axis for axis in range(self._rank) if axis != 1]

    def _mean(self, value: str, result: str) -> onnx.NodeProto:
        """The mean over all axes but the channels', which stay with one element."""
        axes = self._others()
        if self._opset >= _AXES_ARE_INPUT:
            inputs = [value, self._constant(np.array(axes))]
            return onnx.helper.make_node("ReduceMean", inputs, [result])
        return onnx.helper.make_node("ReduceMean", [value], [result], axes=axes)

    def _number(self, like: str, value: float) -> tuple[str, onnx.NodeProto]:
        """A number in the type of another value, and the node that makes it."""
        name = self._constant(np.array(value, np.float32))
        cast = onnx.helper.make_node("CastLike", [name, like], [f"{name}_like"])
        return f"{name}_like", cast

    def _constant(self, array: "np.ndarray[Any, Any]") -> str:
        name = f"{self._node.output[0]}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name
