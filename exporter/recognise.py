"""Recognise LeakyRelu where an exporter wrote it with other operators.

For each node that may end such a pattern, the operators before it are evaluated as a function of
one of their inputs (see `piecewise`). Where that function is LeakyRelu's, a node LeakyRelu takes
the place of the last one, and the others go unless something else reads them. Forms that are
found this way, in any order of their operands:

    Max(a*x, x)               0 < a <= 1; for a = 0 the product with inf is NaN
    Min(a*x, x)               a >= 1
    Where(x > 0, x, a*x)      a >= 0; >, >=, <, <=, with Not
    Relu(x) - a*Relu(-x)      a >= 0; for Relu also Max and Min with 0, and Clip(x, 0, inf)
    PRelu(x, a)               any a, all slopes equal

ONNX Runtime's results stay equal to the last bit, NaN and infinities included, except that sums,
Max and Where give a zero of either sign. Clip without an upper bound is no Relu: ONNX Runtime
makes the largest number of inf. LeakyRelu's alpha is a float32, so in float64 only what float32
holds is recognised. Operands that change the shape of x, integers and unknown dtypes are refused.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnxscript import ir

from leakyforge.exporter.piecewise import (
    IDENTITY,
    OPERATORS,
    Function,
    Operand,
    apply,
    leaky_relu_alpha,
)

Array: TypeAlias = npt.NDArray[Any]

# LeakyRelu's dtypes, with the first opset of ai.onnx that has them in the form we write.
_FIRST_OPSET = {
    ir.DataType.FLOAT: 6,
    ir.DataType.DOUBLE: 6,
    ir.DataType.FLOAT16: 6,
    ir.DataType.BFLOAT16: 16,
}
# Operators whose result may be LeakyRelu, and those that have a bend at zero.
_LAST = {"Add", "Max", "Min", "Neg", "PRelu", "Sub", "Sum", "Where"}
_BENDS = {"Clip", "Max", "Min", "PRelu", "Relu", "Where"}
# Nodes that are looked at before a last one; the longest form above has eight.
_MAX_NODES = 16


@dataclass(frozen=True)
class Recognised:
    """One LeakyRelu that was written with other operators.

    Attributes:
        output: name of the value that the LeakyRelu computes, as before.
        input: name of the value that it is a function of.
        alpha: slope below zero.
        pattern: the expression, like `Max(Mul(x, 0.1), x)`.
        nodes: names of its nodes, or of their outputs, the last one first.
    """

    output: str
    input: str
    alpha: float
    pattern: str
    nodes: tuple[str, ...]


def recognise_leaky_relu(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Recognised]]:
    """A copy of a model with LeakyRelu where other operators computed it, and what was found.

    The graph, its subgraphs and the bodies of functions are searched. Where nothing is found, the
    model itself comes back.
    """
    rewritten = ir.from_proto(model)
    found = recognise(rewritten)
    return (ir.to_proto(rewritten) if found else model), found


def recognise(model: ir.Model) -> list[Recognised]:
    """The same in place; nodes that nothing reads any more are removed where any was found."""
    ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    # Before version 4 every initializer is an input too, and not to be fed.
    overridable = model.ir_version >= 4
    found = []
    for graph, opset in _graphs(model):
        for node in list(graph):
            match = _match(node, opset, overridable)
            if match is not None:
                recognised, x = match
                _replace(graph, node, x, recognised.alpha)
                found.append(recognised)
    if found:
        ir.passes.common.RemoveUnusedNodesPass()(model)
    return found


def _graphs(model: ir.Model) -> Iterator[tuple[Any, int]]:
    """The graph, the functions and the subgraphs of both, each with its opset of ai.onnx."""
    for root in (model.graph, *model.functions.values()):
        for graph in (root, *root.subgraphs()):
            yield graph, root.opset_imports.get("", 0)


def _match(last: ir.Node, opset: int, overridable: bool) -> tuple[Recognised, ir.Value] | None:
    """The LeakyRelu that ends at a node, and what it is a function of."""
    if last.domain or last.op_type not in _LAST:
        return None
    cone = _Cone(last, overridable)
    for x in cone.inputs:
        expression = _Expression(cone, x)
        function = expression.function(last)
        alpha = None if function is None else leaky_relu_alpha(function)
        if alpha is None or _BENDS.isdisjoint(node.op_type for node in expression.nodes):
            continue
        # Which zero a negative alpha leaves is certain in PRelu only.
        if alpha < 0 and last.op_type != "PRelu":
            continue
        if expression.has_dtype_at(opset) and _is_float32(alpha):
            return Recognised(
                output=last.outputs[0].name,
                input=x.name,
                alpha=alpha,
                pattern=expression.text(last),
                nodes=tuple(node.name or node.outputs[0].name for node in expression.nodes),
            ), x
    return None


def _is_float32(alpha: float) -> bool:
    """Whether an attribute can hold the number."""
    with np.errstate(over="ignore"):
        return float(np.float32(alpha)) == alpha


def _replace(graph: Any, last: ir.Node, x: ir.Value, alpha: float) -> None:
    """Put a LeakyRelu in the place of a node."""
    leaky = ir.Node("", "LeakyRelu", [x], [ir.AttrFloat32("alpha", alpha)], name=last.name)
    ir.convenience.replace_nodes_and_values(
        graph, last, [last], [leaky], last.outputs, leaky.outputs
    )


@dataclass(frozen=True)
class _Constant:
    """A tensor whose elements are all equal."""

    value: float
    shape: tuple[int, ...]
    dtype: ir.DataType


class _Cone:
    """The operators before a node, and the node itself.

    Attributes:
        nodes: at most `_MAX_NODES`, the nearest first.
        inputs: what they read and is not constant, the nearest first.
        constants: the constants that they read; None for one whose elements differ.
    """

    def __init__(self, last: ir.Node, overridable: bool) -> None:
        self.nodes: dict[ir.Node, None] = {last: None}
        self.inputs: dict[ir.Value, None] = {}
        self.constants: dict[ir.Value, _Constant | None] = {}
        waiting = deque([last])
        while waiting:
            for value in waiting.popleft().inputs:
                if value is None or value in self.inputs or value in self.constants:
                    continue
                array = _constant_array(value, overridable)
                if array is not None:
                    self.constants[value] = _uniform(array)
                    continue
                self.inputs[value] = None
                node = value.producer()
                if _is_known(node) and len(self.nodes) < _MAX_NODES and node not in self.nodes:
                    self.nodes[node] = None
                    waiting.append(node)


def _is_known(node: ir.Node | None) -> bool:
    return node is not None and not node.domain and node.op_type in OPERATORS


def _constant_array(value: ir.Value, overridable: bool) -> Array | None:
    """The elements of a constant, of an initializer, or of either behind Cast or Identity."""
    node = value.producer()
    if node is not None and not node.domain and node.op_type in ("Cast", "Identity"):
        array = _constant_array(node.inputs[0], overridable)
        if array is None or node.op_type == "Identity":
            return array
        to = node.attributes["to"]
        if to.is_ref() or to.as_int() not in _FIRST_OPSET:
            return None
        return array.astype(ir.DataType(to.as_int()).numpy())
    if overridable and value.is_graph_input():
        return None
    if node is not None and "sparse_value" in node.attributes:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype.is_string() else tensor.numpy()


def _uniform(array: Array) -> _Constant | None:
    if array.size == 0 or not (array == array.flat[0]).all():
        return None
    return _Constant(float(array.flat[0]), array.shape, ir.DataType.from_numpy(array.dtype))


class _Expression:
    """The nodes of a cone as functions of one of its inputs.

    Attributes:
        nodes: those that were evaluated, the last one first.
    """

    def __init__(self, cone: _Cone, x: ir.Value) -> None:
        self.nodes: dict[ir.Node, Function | None] = {}
        self._cone = cone
        self._x = x
        self._dtypes = set() if x.dtype is None else {x.dtype}

    def function(self, node: ir.Node) -> Function | None:
        """What a node computes, None where that is no such function."""
        if node not in self.nodes:
            self.nodes[node] = None
            operands = []
            for index, value in enumerate(node.inputs):
                operand = self._operand(value, is_slope=node.op_type == "PRelu" and index == 1)
                if operand is None:
                    return None
                operands.append(operand)
            self.nodes[node] = apply(node.op_type, operands)
        return self.nodes[node]

    def _operand(self, value: ir.Value | None, *, is_slope: bool) -> Operand | None:
        if value is self._x:
            return IDENTITY
        if value in self._cone.constants:
            constant = self._cone.constants[value]
            # A slope is broadcast to x and never x to a slope.
            if constant is None or not (is_slope or _keeps_shape(constant.shape, self._x.shape)):
                return None
            self._dtypes.add(constant.dtype)
            return constant.value
        node = None if value is None else value.producer()
        return self.function(node) if node in self._cone.nodes else None

    def has_dtype_at(self, opset: int) -> bool:
        """Whether x has one of LeakyRelu's dtypes; that of a constant is x's too."""
        if len(self._dtypes) != 1:
            return False
        (dtype,) = self._dtypes
        return opset >= _FIRST_OPSET.get(dtype, math.inf)

    def text(self, node: ir.Node) -> str:
        """A node as an expression of x."""
        return f"{node.op_type}({', '.join(map(self._operand_text, node.inputs))})"

    def _operand_text(self, value: ir.Value) -> str:
        if value is self._x:
            return "x"
        constant = self._cone.constants.get(value)
        return self.text(value.producer()) if constant is None else f"{constant.value:g}"


def _keeps_shape(constant: tuple[int, ...], x: ir.Shape | None) -> bool:
    """Whether an operand that is broadcast against x leaves x's shape as it is."""
    if not constant:
        return True
    if x is None or len(constant) > len(x):
        return False
    pairs = zip(reversed(constant), reversed(list(x)), strict=False)
    return all(size == 1 or size == dim for size, dim in pairs)
