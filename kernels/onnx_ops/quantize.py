"""ONNX operators on quantised tensors that the front end lacks or takes in part.

https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, DequantizeLinear, QLinearMatMul,
QLinearConv, ConvInteger. With a scale s and a zero point z of a tensor, of its axis, or of blocks:

    quantize     q = saturate(round(x / s) + z), ties to even
    dequantize   x = (q - z) * s

Products of quantised tensors are sums of integers, exact in int32; their one scale is applied in
float64, so that it adds no rounding of its own before the last.
"""

from typing import Any

import ml_dtypes
from tvm import relax

from leakyforge.kernels.onnx_ops.float8 import FORMATS, OURS, decode, encode
from leakyforge.kernels.onnx_ops.node import STANDARD, Node, dtype_of, numpy_name, static_shape
from leakyforge.runtime.tensors import CARRIERS

_SUMS, _SCALES = "int32", "float64"


def convert_quantize_linear(node: Node) -> relax.Expr:
    """QuantizeLinear; ours with blocks, and to all types but integers of 8 and 16 bits."""
    data, scale, zero = (node.input(place) for place in range(3))
    kind = node.attributes.get("output_dtype") or 0
    to = "uint8" if zero is None else dtype_of(zero)
    if kind:
        to = numpy_name(kind)
    if not _is_blocked(node) and to not in OURS:
        return node.standard()
    quotient = relax.op.divide(data, _spread(node, scale))
    if to in FORMATS:
        # Their zero point is 0.
        return encode(node, relax.op.astype(quotient, "float32"), FORMATS[to])
    rounded = relax.op.astype(relax.op.round(quotient), _SUMS)
    if zero is not None:
        rounded = relax.op.add(rounded, relax.op.astype(_spread(node, zero), _SUMS))
    return _saturated(rounded, _SUMS, to)


def convert_dequantize_linear(node: Node) -> relax.Expr:
    """DequantizeLinear; ours with blocks, and of 8-bit floats."""
    data, scale, zero = (node.input(place) for place in range(3))
    source = dtype_of(data)
    if not _is_blocked(node) and source not in FORMATS:
        return node.standard()
    kind = node.attributes.get("output_dtype") or 0
    to = numpy_name(kind) if kind else dtype_of(scale)
    if source in FORMATS:
        values = decode(node, data, FORMATS[source])
    else:
        values = relax.op.astype(data, "float32")
        if zero is not None:
            zeros = relax.op.astype(_spread(node, zero), "float32")
            values = relax.op.subtract(values, zeros)
    scales = relax.op.astype(_spread(node, scale), "float32")
    return relax.op.astype(relax.op.multiply(values, scales), to)


def convert_q_linear_mat_mul(node: Node) -> relax.Expr:
    """QLinearMatMul: a, its scale and zero point, b, its scale and zero point, the result's."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = (node.input(at) for at in range(8))
    product = relax.op.matmul(_centred(a, a_zero), _centred(b, b_zero))
    return _requantised(product, [a_scale, b_scale, scale], zero)


def convert_q_linear_conv(node: Node) -> relax.Expr:
    """QLinearConv: as QLinearMatMul's inputs, and a bias in int32; weights may have many scales."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = (node.input(at) for at in range(8))
    channels, *window = static_shape(w, node.operator)
    many = [channels, *(1 for _ in window)]
    convolved = _convolved(node, _centred(x, x_zero), _centred(w, _per_channel(w_zero, many)))
    if node.input(8) is not None:
        convolved = relax.op.add(convolved, relax.op.reshape(node.input(8), [1, *many[:-1]]))
    scales = [x_scale, _per_channel(w_scale, [1, *many[:-1]]), scale]
    return _requantised(convolved, scales, zero)


def convert_conv_integer(node: Node) -> relax.Expr:
    """ConvInteger: a convolution of integers, less their zero points, in int32."""
    x, w, x_zero, w_zero = (node.input(at) for at in range(4))
    channels, *window = static_shape(w, node.operator)
    zeros = _per_channel(w_zero, [channels, *(1 for _ in window)])
    return _convolved(node, _centred(x, x_zero), _centred(w, zeros))


def _is_blocked(node: Node) -> bool:
    return bool(node.attributes.get("block_size", 0))


def _spread(node: Node, value: relax.Expr) -> relax.Expr:
    """A scale or zero point in a shape that the data's elements are combined with."""
    shape = static_shape(node.input(0), node.operator)
    sizes = static_shape(value, node.operator)
    if not sizes or sizes == (1,):
        return value
    axis = int(node.attributes.get("axis", 1))
    if not _is_blocked(node):
        along = [1] * len(shape)
        along[axis] = sizes[0]
        return relax.op.reshape(value, along)
    axis %= len(shape)
    repeated = relax.op.repeat(value, int(node.attributes["block_size"]), axis)
    return relax.op.strided_slice(repeated, [axis], [0], [shape[axis]])


def _per_channel(value: Any, shape: list[int]) -> Any:
    """A vector in the shape of the channels; a scalar and None as they are."""
    if value is None or not value.ty.shape or int(value.ty.shape[0]) == 1:
        return value
    return relax.op.reshape(value, shape)


def _centred(data: relax.Expr, zero: Any) -> relax.Expr:
    """A quantised tensor less its zero point, in int32."""
    sums = relax.op.astype(data, _SUMS)
    return sums if zero is None else relax.op.subtract(sums, relax.op.astype(zero, _SUMS))


def _convolved(node: Node, x: relax.Expr, w: relax.Expr) -> relax.Expr:
    """The convolution of two int32 tensors, as the front end makes Conv of the attributes."""
    inputs = [node.builder.normalize(x), node.builder.normalize(w), None]
    convert = STANDARD["Conv"].get_converter(node.opset)
    return convert(node.builder, inputs, dict(node.attributes), node.context)


def _requantised(sums: relax.Expr, scales: list[relax.Expr], zero: relax.Expr) -> relax.Expr:
    """Sums times the scales of both factors, over the result's, rounded to its type."""
    first, second, last = scales
    scale = relax.op.divide(relax.op.multiply(first, second), last)
    scaled = relax.op.multiply(relax.op.astype(sums, _SCALES), relax.op.astype(scale, _SCALES))
    shifted = relax.op.add(scaled, relax.op.astype(zero, _SCALES))
    return _saturated(relax.op.round(shifted), _SCALES, dtype_of(zero))


def _saturated(values: relax.Expr, dtype: str, to: str) -> relax.Expr:
    """Whole numbers of a dtype, those out of the range of `to` at its ends."""
    # Behind a convolution, TVM's choice of layouts loses the limits of `relax.clip`.
    ends = ml_dtypes.iinfo(to)
    least, most = (relax.const(end, dtype) for end in (int(ends.min), int(ends.max)))
    limited = relax.op.minimum(relax.op.maximum(values, least), most)
    return relax.op.astype(limited, CARRIERS.get(to, to))
