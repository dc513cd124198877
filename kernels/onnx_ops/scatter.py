"""ONNX operators that move elements to places that other tensors or attributes name.

https://onnx.ai/onnx/operators/onnx__Col2Im.html, ReverseSequence, TensorScatter. Each gathers: one
expression per element of the result, so that threads never write to the same place.
"""

import itertools
import math
from typing import Any

import tvm
from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, dtype_of, static_shape


def convert_reverse_sequence(node: Node) -> relax.Expr:
    """ReverseSequence: result[t, b] = data[length[b] - 1 - t, b] for t < length[b], else data."""
    batch = int(node.attributes.get("batch_axis", 1))
    time = int(node.attributes.get("time_axis", 0))

    def reverse(data: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> Any:
            t = tirx.Cast("int64", at[time])
            length = lengths[at[batch]]
            place = tirx.Select(t < length, length - 1 - t, t)
            return data[(*at[:time], place, *at[time + 1 :])]

        return te.compute(data.shape, element, name="reverse_sequence")

    return node.emit_te(reverse, node.input(0), node.input(1))


def convert_tensor_scatter(node: Node) -> relax.Expr:
    """TensorScatter: a cache with an update written at an index of each batch, maybe around."""
    cache, update, starts = node.input(0), node.input(1), node.input(2)
    shape, part = (static_shape(each, node.operator) for each in (cache, update))
    axis = int(node.attributes.get("axis", -2)) % len(shape)
    circular = node.text("mode", "linear") == "circular"

    def scatter(old: te.Tensor, new: te.Tensor, *first: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> Any:
            start = first[0][at[0]] if first else tirx.const(0, "int64")
            place = tirx.Cast("int64", at[axis]) - start
            if circular:
                place = tirx.floormod(place, tirx.const(shape[axis], "int64"))
            inside = tirx.all(place >= 0, place < part[axis])
            return tirx.if_then_else(inside, new[(*at[:axis], place, *at[axis + 1 :])], old[at])

        return te.compute(shape, element, name="tensor_scatter")

    return node.emit_te(scatter, cache, update, *([] if starts is None else [starts]))


def convert_col2im(node: Node) -> relax.Expr:
    """Col2Im: sums of the blocks [batch, channels * block, number] at their places in an image."""
    data = node.input(0)
    batch, planes, _ = static_shape(data, node.operator)
    image, block = (node.constant(place, name) for place, name in ((1, "image"), (2, "block")))
    if image is None or block is None:
        raise ModelError(f"{node.operator}: the shapes of its image and of its blocks are missing")
    sizes, kernel = [int(size) for size in image], [int(size) for size in block]
    rank = len(sizes)
    dilations = node.attributes.get("dilations", [1] * rank)
    strides = node.attributes.get("strides", [1] * rank)
    pads = node.attributes.get("pads", [0] * 2 * rank)
    counts = [
        (size + pads[axis] + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1)
        // strides[axis]
        + 1
        for axis, size in enumerate(sizes)
    ]
    offsets = list(itertools.product(*map(range, kernel)))

    def gather(columns: te.Tensor) -> te.Tensor:
        def element(n: Any, c: Any, *at: Any) -> Any:
            total = zero = tirx.const(0, str(columns.dtype))
            for index, offset in enumerate(offsets):
                inside, number = tirx.const(True, "bool"), tirx.const(0, "int32")
                for axis, place in enumerate(at):
                    shifted = place + pads[axis] - offset[axis] * dilations[axis]
                    step = tirx.floordiv(shifted, strides[axis])
                    fits = tirx.floormod(shifted, strides[axis]) == 0
                    inside = tirx.all(inside, fits, step >= 0, step < counts[axis])
                    number = number * counts[axis] + step
                value = columns[n, c * len(offsets) + index, number]
                total = total + tirx.if_then_else(inside, value, zero)
            return total

        shape = (batch, planes // len(offsets), *sizes)
        return te.compute(shape, element, name="col2im")

    return node.emit_te(gather, data)


def convert_space_to_depth(node: Node) -> relax.Expr:
    """SpaceToDepth: blocks of pixels to channels, in front of the channels or behind them."""
    data, size = node.input(0), int(node.attributes["blocksize"])
    batch, channels, height, width = static_shape(data, node.operator)
    split = [batch, channels, height // size, size, width // size, size]
    order = [0, 1, 3, 5, 2, 4] if node.text("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    moved = relax.op.permute_dims(relax.op.reshape(data, split), order)
    shape = [batch, channels * size * size, height // size, width // size]
    return relax.op.reshape(moved, shape)


def convert_reshape(node: Node) -> relax.Expr:
    """Reshape; where `allowzero` takes a size of 0 as it is, there are no elements to keep."""
    sizes = node.input(1)
    if node.attributes.get("allowzero", 0) and isinstance(sizes, tvm.ir.GenericConst):
        shape = [int(size) for size in sizes.value.numpy()]
        if 0 in shape and isinstance(node.input(0).ty, relax.TensorType):
            return relax.op.zeros(shape, dtype_of(node.input(0)))
    return node.standard()


def convert_split(node: Node) -> relax.Expr:
    """Split; parts without elements are constants, which the front end cannot cut out."""
    sizes = node.constant(1, "sizes")
    if sizes is None or 0 not in sizes:
        return node.standard()
    data = node.input(0)
    shape = list(static_shape(data, node.operator))
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    parts, start = [], 0
    for size in map(int, sizes):
        if size:
            parts.append(relax.op.strided_slice(data, [axis], [start], [start + size]))
        else:
            empty = [*shape[:axis], 0, *shape[axis + 1 :]]
            parts.append(relax.op.zeros(empty, dtype_of(data)))
        start += size
    if math.prod(shape) and start != shape[axis]:
        raise ModelError(f"{node.operator}: parts of {start} out of {shape[axis]}")
    return relax.Tuple([node.builder.emit(part) for part in parts])
