"""How many roundings lie on the way to each output: what a parity tolerance is made from.

A sum of K products rounds about K times. Under independent roundings errors add in quadrature
(Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput.
41(5), 2019), so the counts of all operators above an output are simply added up; `tolerance`
takes the square root.
"""

import math
from collections.abc import Iterator, Mapping

import onnx

from leakyforge.exporter.shapes import value_shape

Shape = tuple[int | str, ...]

# Results that are exact: they move, choose or compare values. LeakyRelu is one of them here
# because its single multiplication is the same in the reference, to the last bit.
_EXACT = frozenset(
    """
    Abs And ArgMax ArgMin Ceil Clip Compress Concat Constant ConstantOfShape DepthToSpace Dropout
    Equal Expand Flatten Floor Gather GatherElements GatherND GlobalMaxPool Greater GreaterOrEqual
    Identity LeakyRelu Less LessOrEqual Max MaxPool Min Neg NonZero Not OneHot Or Pad ReduceMax
    ReduceMin Relu Reshape Round ScatterElements ScatterND Shape Sign Size Slice SpaceToDepth Split
    Squeeze Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - a list of eighty quoted words is harder to read
)
_ONE_ROUNDING = frozenset(
    """
    Add Cast DequantizeLinear Div Mul PRelu QuantizeLinear Reciprocal Sqrt Sub
    """.split()  # noqa: SIM905 - like the list above
)
# A library's exp or tanh may be off by up to four ULP, here and in the reference.
_TRANSCENDENTAL = 4**2
# The reduction length where shapes do not tell.
_UNKNOWN = 1024


def rounding_steps(proto: onnx.ModelProto) -> dict[str, int]:
    """Roundings above each output of a model whose shapes were inferred, by output name."""
    graph = proto.graph
    shapes: dict[str, Shape | None] = {
        value.name: value_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    low_precision = {
        value.name
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    }
    steps = {}
    for output in graph.output:
        total = 0
        for node in _above(graph, output.name):
            total += node_steps(node, shapes)
            if node.op_type == "LeakyRelu" and node.input[0] in low_precision:
                # The reference rounds alpha and the product to bfloat16, ours only the result.
                total += 2
        steps[output.name] = total
    return steps


def quantisations(proto: onnx.ModelProto) -> dict[str, int]:
    """Roundings to 8 bits above each output, by output name."""
    return {
        output.name: sum(
            node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
            for node in _above(proto.graph, output.name)
        )
        for output in proto.graph.output
    }


def _above(graph: onnx.GraphProto, output: str) -> Iterator[onnx.NodeProto]:
    """Every node that an output depends on, once."""
    producers = {name: node for node in graph.node for name in node.output}
    pending, seen = [output], set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        yield node
        pending += node.input


def node_steps(node: onnx.NodeProto, shapes: Mapping[str, Shape | None]) -> int:
    """Roundings of one operator for each element of its result."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in _EXACT:
        return 0
    if node.op_type in _ONE_ROUNDING:
        return 1
    if node.op_type == "Resize":
        return 0 if attributes.get("mode", b"nearest") == b"nearest" else _TRANSCENDENTAL
    if node.op_type == "Conv":
        return _product(shapes.get(node.input[1]), slice(1, None))
    if node.op_type == "ConvTranspose":
        weight = shapes.get(node.input[1])
        channels = _product(weight, slice(0, 1)) // int(attributes.get("group", 1))
        return channels * _product(weight, slice(2, None))
    if node.op_type == "Gemm":
        axis = 0 if attributes.get("transA", 0) else 1
        return _product(shapes.get(node.input[0]), slice(axis, axis + 1))
    if node.op_type == "MatMul":
        return _product(shapes.get(node.input[0]), slice(-1, None))
    if node.op_type == "DFT":
        return _transform_steps(shapes.get(node.input[0]), slice(1, -1))
    if node.op_type == "STFT":
        has_window = len(node.input) > 2 and node.input[2]
        frames = shapes.get(node.input[2] if has_window else node.input[0])
        return _transform_steps(frames, slice(0, 1) if has_window else slice(1, 2))
    if node.op_type == "AveragePool":
        return math.prod(attributes["kernel_shape"])
    if node.op_type == "GlobalAveragePool":
        return _product(shapes.get(node.input[0]), slice(2, None))
    if node.op_type.startswith("Reduce") or "Normalization" in node.op_type:
        return _product(shapes.get(node.input[0]), slice(1, None)) + _TRANSCENDENTAL
    return _TRANSCENDENTAL


def _transform_steps(shape: Shape | None, axes: slice) -> int:
    """Roundings of a Fourier transform along the longest of some axes.

    Of each of both parts a factor, a product and a sum; where the number of points is no power of
    two, the angles of ONNX Runtime's factors, up to that number of turns, are rounded to float32.
    """
    sizes = () if shape is None else shape[axes]
    points = max((_UNKNOWN if isinstance(size, str) else size for size in sizes), default=_UNKNOWN)
    is_power_of_two = points & (points - 1) == 0
    return 6 * points + (0 if is_power_of_two else points**2)


def _product(shape: Shape | None, axes: slice) -> int:
    """Product of some sizes of a shape; a guess where one is not known."""
    if shape is None or any(isinstance(size, str) for size in shape[axes]):
        return _UNKNOWN
    return math.prod(int(size) for size in shape[axes])
