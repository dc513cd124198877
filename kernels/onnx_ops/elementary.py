"""Elementwise ONNX operators that the front end lacks or whose definition it misses.

Each function names its operator; specifications: https://onnx.ai/onnx/operators/.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import (
    Node,
    dtype_of,
    is_static,
    numpy_name,
    static_shape,
)

# The formula has as many terms as there are orders of the rows.
_MOST_ROWS = 4


def convert_celu(node: Node) -> relax.Expr:
    """Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    data = node.input(0)
    dtype = dtype_of(data)
    alpha = float(node.attributes.get("alpha", 1.0))

    def number(value: float) -> relax.Expr:
        return relax.const(value, dtype)

    exponential = relax.op.exp(relax.op.divide(data, number(alpha)))
    negative = relax.op.multiply(number(alpha), relax.op.subtract(exponential, number(1)))
    return relax.op.add(relax.op.maximum(data, number(0)), relax.op.minimum(negative, number(0)))


def convert_elu(node: Node) -> relax.Expr:
    """Elu: x above 0, alpha * (exp(x) - 1) below."""
    data = node.input(0)
    dtype = dtype_of(data)
    alpha = relax.const(float(node.attributes.get("alpha", 1.0)), dtype)
    negative = relax.op.subtract(relax.op.exp(data), relax.const(1, dtype))
    above = relax.op.greater(data, relax.const(0, dtype))
    return relax.op.where(above, data, relax.op.multiply(alpha, negative))


def convert_cosh(node: Node) -> relax.Expr:
    """Cosh: (exp(x) + exp(-x)) / 2; LLVM has no intrinsic of the name."""
    data = node.input(0)
    both = relax.op.add(relax.op.exp(data), relax.op.exp(relax.op.negative(data)))
    return relax.op.multiply(both, relax.const(0.5, dtype_of(data)))


def convert_sinh(node: Node) -> relax.Expr:
    """Sinh: tanh(x) * cosh(x), which loses nothing near 0."""
    return relax.op.multiply(relax.op.tanh(node.input(0)), convert_cosh(node))


def convert_mod(node: Node) -> relax.Expr:
    """Mod: of floats and with the sign of the divisor, as numpy's; else the front end's."""
    data, divisor = node.input(0), node.input(1)
    dtype = dtype_of(data)
    if node.attributes.get("fmod", 0) or "float" not in dtype:
        return node.standard()
    zero = relax.const(0, dtype)
    rest = relax.op.mod(data, divisor)
    negative = relax.op.less(divisor, zero)
    differ = relax.op.logical_xor(relax.op.less(rest, zero), negative)
    signed_zero = relax.op.where(negative, relax.const(-0.0, dtype), zero)
    moved = relax.op.where(differ, relax.op.add(rest, divisor), rest)
    return relax.op.where(relax.op.equal(rest, zero), signed_zero, moved)


def convert_reduce_max(node: Node) -> relax.Expr:
    """ReduceMax: of no elements, the least value; of minus infinities, minus infinity."""
    return _extreme(node, -math.inf, "min")


def convert_reduce_min(node: Node) -> relax.Expr:
    """ReduceMin: of no elements, the largest value; of infinities, infinity."""
    return _extreme(node, math.inf, "max")


def _extreme(node: Node, infinity: float, end: str) -> relax.Expr:
    """A maximum or minimum; the front end's of floats begins at a finite value.

    Args:
        node: the operator.
        infinity: the result of no floats.
        end: of the range of an integer type, the result of none of these.
    """
    data = node.input(0)
    dtype = dtype_of(data)
    if dtype == "bool":
        bits = node.builder.emit(relax.op.astype(data, "uint8"))
        as_bits = dataclasses.replace(node, inputs=[bits, *list(node.inputs)[1:]])
        return relax.op.astype(_extreme(as_bits, infinity, end), "bool")
    is_empty = is_static(data) and 0 in static_shape(data, node.operator)
    if "float" not in dtype and not is_empty:
        return node.standard()
    given = node.attributes.get("axes") or node.constant(1, "axes")
    rank = len(data.ty.shape)
    if given is None or not len(given):
        if node.attributes.get("noop_with_empty_axes", 0):
            return data
        given = range(rank)
    axes = sorted({int(axis) % rank for axis in given})
    keeps = bool(node.attributes.get("keepdims", 1))
    if is_empty:
        shape = static_shape(data, node.operator)
        sizes = [1 if axis in axes else size for axis, size in enumerate(shape)
                 if keeps or axis not in axes]  # fmt: skip
        fill = infinity if "float" in dtype else getattr(np.iinfo(dtype), end)
        return relax.const(np.full(sizes, fill, dtype), dtype)
    start = relax.const(infinity, dtype)
    others = relax.op.astype(relax.op.not_equal(data, start), "int32")
    counted = relax.op.greater(relax.op.max(others, axes, keeps), relax.const(0, "int32"))
    return relax.op.where(counted, node.standard(), start)


def convert_det(node: Node) -> relax.Expr:
    """Det: the determinants of matrices of up to four rows, by the Leibniz formula."""
    *outer, rows, columns = static_shape(node.input(0), node.operator)
    if rows != columns or rows > _MOST_ROWS:
        raise ModelError(
            f"{node.operator}: of square matrices of up to {_MOST_ROWS} rows, and it is given "
            f"{rows}x{columns}; have ONNX Runtime run it with --fallback onnxruntime"
        )

    def determinant(tensor: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> Any:
            total = tirx.const(0, str(tensor.dtype))
            for order in itertools.permutations(range(rows)):
                swaps = sum(a > b for a, b in itertools.combinations(order, 2))
                product = tirx.const(-1 if swaps % 2 else 1, str(tensor.dtype))
                for row, column in enumerate(order):
                    product = product * tensor[(*at, row, column)]
                total = total + product
            return total

        return te.compute(outer, element, name="det")

    return node.emit_te(determinant, node.input(0))


def convert_is_inf(node: Node) -> relax.Expr:
    """IsInf: of the signs that are asked for."""
    data = node.input(0)
    dtype = dtype_of(data)
    found = []
    for name, value in (("detect_positive", math.inf), ("detect_negative", -math.inf)):
        if node.attributes.get(name, 1):
            found.append(relax.op.equal(data, relax.const(value, dtype)))
    if not found:
        return relax.const(np.zeros(static_shape(data, node.operator), bool), "bool")
    return found[0] if len(found) == 1 else relax.op.logical_or(*found)


def convert_pow(node: Node) -> relax.Expr:
    """Pow: the exponent may be of another type; the result has the base's."""
    base, exponent = node.input(0), node.input(1)
    if not _are_tensors(base, exponent):
        return node.standard()
    if "int" in dtype_of(base) and "int" in dtype_of(exponent):
        return _whole_power(node, base, relax.op.astype(exponent, "int64"))
    if dtype_of(base) == dtype_of(exponent):
        return node.standard()
    # Of the two types, the one that holds fractions.
    kinds = [dtype_of(base), dtype_of(exponent)]
    floats = [kind for kind in kinds if "float" in kind]
    common = floats[0] if floats else kinds[0]
    power = relax.op.power(relax.op.astype(base, common), relax.op.astype(exponent, common))
    return relax.op.astype(power, kinds[0])


def _whole_power(node: Node, base: relax.Expr, exponent: relax.Expr) -> relax.Expr:
    """Powers of integers by squaring, modulo 2 to the number of their bits; 1 / x rounds to 0.

    Beyond an exponent of 127 only those of even bases, 1 and -1 are right: others have overflown.

    Args:
        node: the operator.
        base: of any integer type.
        exponent: in int64.
    """
    dtype = dtype_of(base)
    zero, one, minus_one = (
        relax.const(np.array(value).astype(dtype), dtype) for value in (0, 1, -1)
    )
    none, unit, last = (relax.const(value, "int64") for value in (0, 1, 127))
    odd = relax.op.bitwise_and(exponent, unit)
    # Those of 1 and -1 repeat, and of an even base's no bit is left.
    repeated = relax.op.where(
        relax.op.greater(exponent, last), relax.op.add(relax.const(126, "int64"), odd), exponent
    )
    bits = node.builder.emit(relax.op.where(relax.op.less(exponent, none), odd, repeated))
    result, square = one, base
    for bit in range(7):
        taken = relax.op.bitwise_and(bits, relax.const(1 << bit, "int64"))
        longer = relax.op.multiply(result, square)
        result = node.builder.emit(relax.op.where(relax.op.not_equal(taken, none), longer, result))
        square = node.builder.emit(relax.op.multiply(square, square))
    is_unit = relax.op.logical_or(relax.op.equal(base, one), relax.op.equal(base, minus_one))
    inverse = relax.op.where(is_unit, result, zero)
    return relax.op.where(relax.op.less(exponent, none), inverse, result)


def convert_bit_shift(node: Node) -> relax.Expr:
    """BitShift: by more bits than there are, or by a negative number, no bit but the sign stays."""
    data, amount = node.input(0), node.input(1)
    # ONNX has both of one type.
    dtype = np.dtype(dtype_of(data))
    none, most, limit = (
        relax.const(value, dtype.name) for value in (0, 8 * dtype.itemsize - 1, 8 * dtype.itemsize)
    )
    fits = relax.op.less(amount, limit)
    if dtype.kind == "i":
        fits = relax.op.logical_and(fits, relax.op.greater_equal(amount, none))
    is_right = node.text("direction", "") == "RIGHT"
    shift = relax.op.right_shift if is_right else relax.op.left_shift
    if is_right and dtype.kind == "i":
        return shift(data, relax.op.where(fits, amount, most))
    shifted = shift(data, relax.op.where(fits, amount, none))
    return relax.op.where(fits, shifted, none)


def _are_tensors(*values: relax.Expr) -> bool:
    """Whether none of some values is a shape, which the front end takes for a tensor too."""
    return all(isinstance(value.ty, relax.TensorType) for value in values)


def convert_bit_cast(node: Node) -> relax.Expr:
    """BitCast: the same bits as another type of as many."""
    data = node.input(0)
    kind = numpy_name(node.attributes["to"])
    if kind == "bool":
        return relax.op.not_equal(data, relax.const(0, dtype_of(data)))
    if dtype_of(data) == "bool":
        return relax.op.astype(data, kind)
    return node.emit_te(
        lambda tensor: te.compute(
            tensor.shape, lambda *at: tirx.reinterpret(kind, tensor[at]), name="bit_cast"
        ),
        data,
    )


def convert_lp_normalization(node: Node) -> relax.Expr:
    """LpNormalization: divided by the 1-norm or 2-norm along an axis; 0 where that is 0."""
    data = node.input(0)
    dtype, axis = dtype_of(data), int(node.attributes.get("axis", -1))
    if int(node.attributes.get("p", 2)) == 1:
        norm = relax.op.sum(relax.op.abs(data), axis=axis, keepdims=True)
    else:
        norm = relax.op.sqrt(relax.op.sum(relax.op.multiply(data, data), axis, keepdims=True))
    zero, one = relax.const(0, dtype), relax.const(1, dtype)
    divisor = relax.op.where(relax.op.equal(norm, zero), one, norm)
    return relax.op.divide(data, divisor)


def convert_eye_like(node: Node) -> relax.Expr:
    """EyeLike: ones on a diagonal, in the shape of the input."""
    rows, columns = static_shape(node.input(0), node.operator)
    kind = node.attributes.get("dtype")
    dtype = dtype_of(node.input(0)) if kind is None else numpy_name(kind)
    values = np.eye(rows, columns, int(node.attributes.get("k", 0)))
    return relax.const(values.astype(dtype), dtype)


def convert_one_hot(node: Node) -> relax.Expr:
    """OneHot: values[1] where an index is, values[0] elsewhere; indices count from the end too."""
    indices, values = node.input(0), node.input(2)
    depth = node.constant(1, "depth")
    if depth is None:
        raise ModelError(f"{node.operator}: its depth is missing")
    count = int(depth.reshape(()).item())
    rank = len(indices.ty.shape)
    axis = int(node.attributes.get("axis", -1)) % (rank + 1)
    kind = "int64"
    places = np.arange(count).reshape(-1, *(1,) * (rank - axis))
    wrapped = relax.op.floor_mod(relax.op.astype(indices, kind), relax.const(count, kind))
    inside = relax.op.logical_and(
        relax.op.greater_equal(relax.op.astype(indices, kind), relax.const(-count, kind)),
        relax.op.less(relax.op.astype(indices, kind), relax.const(count, kind)),
    )
    hot = relax.op.logical_and(
        relax.op.equal(relax.op.expand_dims(wrapped, axis), relax.const(places, kind)),
        relax.op.expand_dims(inside, axis),
    )
    off, on = (_element(values, position) for position in (0, 1))
    return relax.op.where(hot, on, off)


def _element(values: relax.Expr, position: int) -> relax.Expr:
    """One element of a vector, as a scalar."""
    return relax.op.take(values, relax.const(np.array(position), "int64"), axis=0)


def convert_cum_prod(node: Node) -> relax.Expr:
    """CumProd: products of the elements up to each along an axis; may leave it out, or reverse."""
    data = node.input(0)
    position = node.constant(1, "axis")
    if position is None:
        raise ModelError(f"{node.operator}: its axis is missing")
    shape = static_shape(data, node.operator)
    axis = int(position.reshape(()).item()) % len(shape)
    reverse = bool(node.attributes.get("reverse", 0))
    exclusive = bool(node.attributes.get("exclusive", 0))
    product = te.comm_reducer(lambda a, b: a * b, lambda kind: tirx.const(1, kind), name="product")

    def products(tensor: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, shape[axis]), "k")

        def element(*at: Any) -> Any:
            here = at[axis]
            if reverse:
                counts = k > here if exclusive else k >= here
            else:
                counts = k < here if exclusive else k <= here
            one = tirx.const(1, str(tensor.dtype))
            source = tensor[(*at[:axis], k, *at[axis + 1 :])]
            return product(tirx.Select(counts, source, one), axis=k)

        return te.compute(shape, element, name="cum_prod")

    return node.emit_te(products, data)


def convert_compress(node: Node) -> relax.Expr:
    """Compress: the slices along an axis, or the elements, where a condition of constants is."""
    data, condition = node.input(0), node.constant(1, "condition")
    if condition is None:
        raise ModelError(f"{node.operator}: its condition is missing")
    axis = node.attributes.get("axis")
    if axis is None:
        data = relax.op.flatten(data)
    index = relax.const(np.flatnonzero(condition), "int64")
    return relax.op.take(data, index, axis=0 if axis is None else int(axis))
