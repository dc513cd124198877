"""ONNX operators Scan and Loop of a known number of steps are replaced by their bodies, in order.

https://onnx.ai/onnx/operators/onnx__Scan.html and onnx__Loop.html; the front end has neither. With
states s, slices x[t] of what is scanned, and collected outputs y[t]:

    for t:  s, y[t] = body(s, x[t])       ->       s1, y0 = body(s0, x[0]);  s2, y1 = body(s1, x[1])
                                                   ...;  y = concat(y0, y1, ...)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leakyforge.kernels.onnx_limits import MOST_NODES
from leakyforge.onnx_graph import light_copy, subgraphs

_LOOPS = ("Scan", "Loop")


def unroll_loops(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every loop of a known number of steps unrolled; itself where there is none.

    Loops whose number of steps, or whose end, depends on an input stay as they are, and those that
    would have more nodes than are compiled.
    """
    if not any(node.op_type in _LOOPS and not node.domain for node in model.graph.node):
        return model
    unroller = _Unroller(model)
    nodes = [each for node in model.graph.node for each in unroller.replaced(node)]
    if not unroller.unrolled:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(unroller.constants)
    return changed


class _Unroller:
    """Replaces the loops of one graph.

    Attributes:
        constants: that the new nodes read, for the graph's initializers.
        unrolled: loops that were replaced.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(light_copy(model), data_prop=True).graph
        self._shapes = {
            value.name: [dim.dim_value if dim.HasField("dim_value") else None
                         for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }  # fmt: skip
        self._values = {tensor.name: tensor for tensor in model.graph.initializer}
        self._shapes |= {name: list(tensor.dims) for name, tensor in self._values.items()}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._values[node.output[0]] = node.attribute[0].t
        self.constants: list[onnx.TensorProto] = []
        self.unrolled = 0

    def replaced(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, or the steps of a loop in its place."""
        steps = self._steps(node)
        if steps is None or steps * len(next(subgraphs(node)).node) > MOST_NODES:
            yield node
            return
        (body,) = subgraphs(node)
        prefix = f"{node.name or node.output[0]}/{self.unrolled}"
        self.unrolled += 1
        if node.op_type == "Scan":
            yield from self._scan(node, body, steps, prefix)
        else:
            yield from self._loop(node, body, steps, prefix)

    def _steps(self, node: onnx.NodeProto) -> int | None:
        """How often a loop's body runs; None if it is no loop, or that is not known."""
        if node.op_type not in _LOOPS or node.domain:
            return None
        if node.op_type == "Scan":
            scanned = _attribute(node, "num_scan_inputs", 0)
            axes = _attribute(node, "scan_input_axes", [0] * scanned)
            shape = self._shapes.get(node.input[len(node.input) - scanned])
            # Without a step there is nothing to put together.
            return (shape[axes[0]] or None) if shape else None
        trips, condition = (self._values.get(name) for name in node.input[:2])
        (body,) = subgraphs(node)
        is_endless = not node.input[1] or (
            condition is not None and bool(numpy_helper.to_array(condition).reshape(()))
        )
        if trips is None or not is_endless or not _goes_on(body):
            return None
        return int(numpy_helper.to_array(trips).reshape(()).item()) or None

    def _scan(
        self, node: onnx.NodeProto, body: onnx.GraphProto, steps: int, prefix: str
    ) -> Iterator[onnx.NodeProto]:
        """Scan: slices of its last inputs go into the body."""
        scanned = _attribute(node, "num_scan_inputs", 0)
        first = len(node.input) - scanned
        axes = _attribute(node, "scan_input_axes", [0] * scanned)
        backwards = _attribute(node, "scan_input_directions", [0] * scanned)
        states, collected = list(node.input[:first]), []
        for step in range(steps):
            slices = []
            for name, axis, back in zip(node.input[first:], axes, backwards, strict=True):
                slices.append(f"{prefix}/{step}/{name}")
                index = self._constant(np.array(steps - 1 - step if back else step))
                yield onnx.helper.make_node("Gather", [name, index], [slices[-1]], axis=axis)
            inlined = self._inlined(body, [*states, *slices], f"{prefix}/{step}")
            yield from inlined.nodes
            states, outputs = inlined.outputs[:first], inlined.outputs[first:]
            collected.append(outputs)
        count = len(node.output) - first
        yield from self._collected(
            node.output[first:],
            collected,
            _attribute(node, "scan_output_axes", [0] * count),
            _attribute(node, "scan_output_directions", [0] * count),
        )
        yield from _named(states, node.output[:first])

    def _loop(
        self, node: onnx.NodeProto, body: onnx.GraphProto, steps: int, prefix: str
    ) -> Iterator[onnx.NodeProto]:
        """Loop: the number of the step and the condition, which is true, go into the body."""
        states, collected = list(node.input[2:]), []
        true, count = self._constant(np.array(True)), len(states)
        for step in range(steps):
            number = self._constant(np.array(step))
            inlined = self._inlined(body, [number, true, *states], f"{prefix}/{step}")
            yield from inlined.nodes
            _, *results = inlined.outputs
            states, outputs = results[:count], results[count:]
            collected.append(outputs)
        made = len(node.output) - count
        yield from self._collected(node.output[count:], collected, [0] * made, [0] * made)
        yield from _named(states, node.output[:count])

    def _inlined(self, body: onnx.GraphProto, arguments: Sequence[str], prefix: str) -> "_Inlined":
        names = dict(zip((value.name for value in body.input), arguments, strict=True))
        for tensor in body.initializer:
            names[tensor.name] = f"{prefix}/{tensor.name}"
            constant = onnx.TensorProto()
            constant.CopyFrom(tensor)
            constant.name = names[tensor.name]
            self.constants.append(constant)
        return _Inlined(body, names, prefix)

    def _collected(
        self,
        results: Sequence[str],
        collected: Sequence[Sequence[str]],
        axes: Sequence[int],
        backwards: Sequence[int],
    ) -> Iterator[onnx.NodeProto]:
        """What every step gave, along a new axis."""
        for index, (result, axis, back) in enumerate(zip(results, axes, backwards, strict=True)):
            if not result:
                continue
            where = self._constant(np.array([axis]))
            parts = []
            for step, outputs in enumerate(collected):
                parts.append(f"{result}/{step}")
                yield onnx.helper.make_node("Unsqueeze", [outputs[index], where], [parts[-1]])
            ordered = parts[::-1] if back else parts
            yield onnx.helper.make_node("Concat", ordered, [result], axis=axis)

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"leakyforge_loop_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


class _Inlined:
    """A body's nodes with names of their own.

    Args:
        body: of a loop.
        names: what its inputs and weights are called outside.
        prefix: for all others.

    Attributes:
        nodes: renamed copies.
        outputs: names of the body's outputs.
    """

    def __init__(self, body: onnx.GraphProto, names: dict[str, str], prefix: str) -> None:
        self.nodes = []
        for node in body.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{prefix}/{node.name}" if node.name else ""
            names |= {name: f"{prefix}/{name}" for name in node.output if name}
            _rename(copy, names)
            self.nodes.append(copy)
        self.outputs = [names.get(value.name, value.name) for value in body.output]


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads and writes, and what graphs in it read from outside."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in graph.node:
            _rename(inner, outer)
        for value in graph.output:
            value.name = outer.get(value.name, value.name)


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether a loop's body always asks for another step: it hands on what it was asked."""
    condition = body.output[0].name
    producers = {name: node for node in body.node for name in node.output}
    constants = {tensor.name: tensor for tensor in body.initializer}
    while condition in producers:
        node = producers[condition]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return bool(numpy_helper.to_array(node.attribute[0].t).reshape(()))
        if node.op_type != "Identity":
            return False
        condition = node.input[0]
    if condition in constants:
        return bool(numpy_helper.to_array(constants[condition]).reshape(()))
    return bool(condition == body.input[1].name)


def _named(values: Sequence[str], names: Sequence[str]) -> Iterator[onnx.NodeProto]:
    """The values under other names."""
    for value, name in zip(values, names, strict=True):
        if name:
            yield onnx.helper.make_node("Identity", [value], [name])


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    found = [item for item in node.attribute if item.name == name]
    return onnx.helper.get_attribute_value(found[0]) if found else default
