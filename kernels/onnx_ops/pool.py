"""ONNX operators AveragePool, MaxPool and LpPool where the front end's pooling is not ONNX's.

https://onnx.ai/onnx/operators/onnx__AveragePool.html, MaxPool, LpPool. The front end lacks the
indices of MaxPool, drops dilations of LpPool, and counts other elements than ONNX where the last
window reaches beyond the padding (`ceil_mode`). Formula, over the offsets k of a window:

    result[n, c, o] = reduce over k of data[n, c, o * stride + k * dilation - pad]

where elements of the padding are left out of the maximum and are 0 in sums.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from leakyforge.kernels.onnx_ops.node import Node, dtype_of, static_shape

_INDEX = "int64"


@dataclass(frozen=True)
class Window:
    """Pooling along one axis.

    Attributes:
        size: of the input.
        kernel: elements of a window.
        stride: from one window to the next.
        dilation: from one element of a window to the next.
        before: padding in front of the first element.
        after: padding behind the last.
        result: number of windows.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    result: int

    def places(self, padded: bool) -> list[int]:
        """Elements in each window that count: of the input, or of its padding too."""
        low, high = (-self.before, self.size + self.after) if padded else (0, self.size)
        return [
            sum(
                low <= start * self.stride + offset * self.dilation - self.before < high
                for offset in range(self.kernel)
            )
            for start in range(self.result)
        ]


def windows(node: Node) -> tuple[Window, ...]:
    """The window along each spatial axis, with padding as `auto_pad` asks for."""
    sizes = static_shape(node.input(0), node.operator, first=2)
    attributes, rank = node.attributes, len(sizes)
    kernels = attributes["kernel_shape"]
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    auto, up = node.text("auto_pad", "NOTSET"), bool(attributes.get("ceil_mode", 0))
    found = []
    for axis, (size, kernel, stride, dilation) in enumerate(
        zip(sizes, kernels, strides, dilations, strict=True)
    ):
        extent = (kernel - 1) * dilation + 1
        before, after = (0, 0) if auto == "VALID" else (pads[axis], pads[axis + rank])
        if auto.startswith("SAME"):
            result = math.ceil(size / stride)
            total = max((result - 1) * stride + extent - size, 0)
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after = total - before
        else:
            steps = (size + before + after - extent) / stride
            result = (math.ceil(steps) if up else math.floor(steps)) + 1
            # A window may not begin in the padding behind the input.
            if up and (result - 1) * stride >= size + before:
                result -= 1
        found.append(Window(size, kernel, stride, dilation, before, after, result))
    return tuple(found)


def convert_max_pool(node: Node) -> relax.Expr:
    """MaxPool, with the indices of the maxima where they are asked for."""
    if _is_plain(node):
        return node.standard()
    data, along = node.input(0), windows(node)
    largest = node.emit_te(lambda tensor: _maximum(tensor, along), data)
    if node.attributes["tvm_custom"]["num_outputs"] == 1:
        return largest
    column_major = bool(node.attributes.get("storage_order", 0))
    indices = node.emit_te(
        lambda tensor, maximum: _indices(tensor, maximum, along, column_major), data, largest
    )
    return relax.Tuple([largest, indices])


def convert_average_pool(node: Node) -> relax.Expr:
    """AveragePool."""
    if _is_plain(node):
        return node.standard()
    data, along = node.input(0), windows(node)
    padded = bool(node.attributes.get("count_include_pad", 0))
    counts = np.ones((), np.float64)
    for window in along:
        counts = counts[..., None] * np.array(window.places(padded), np.float64)
    total = node.emit_te(lambda tensor: _sum(tensor, along, lambda value: value), data)
    return relax.op.divide(total, relax.const(counts.astype(dtype_of(data)), dtype_of(data)))


def convert_lp_pool(node: Node) -> relax.Expr:
    """LpPool: the p-norm of each window."""
    data, along = node.input(0), windows(node)
    dtype = dtype_of(data)
    p = float(node.attributes.get("p", 2))
    total = node.emit_te(
        lambda tensor: _sum(
            tensor, along, lambda value: tirx.power(te.abs(value), tirx.const(p, dtype))
        ),
        data,
    )
    return relax.op.power(total, relax.const(1 / p, dtype))


def _is_plain(node: Node) -> bool:
    """Whether the front end's pooling, which has schedules, computes the same."""
    attributes = node.attributes
    return (
        node.text("auto_pad", "NOTSET") == "NOTSET"
        and not attributes.get("ceil_mode", 0)
        and all(step == 1 for step in attributes.get("dilations", ()))
        and attributes["tvm_custom"]["num_outputs"] == 1
        and dtype_of(node.input(0)) == "float32"
    )


def _element(
    tensor: te.Tensor, along: tuple[Window, ...], place: tuple[Any, ...], offsets: Any, pad: Any
) -> Any:
    """The element of a window at an offset, `pad` outside of the input."""
    at, conditions = [], []
    for window, start, offset in zip(along, place[2:], offsets, strict=True):
        position = start * window.stride + offset * window.dilation - window.before
        at.append(position)
        conditions += [position >= 0, position < window.size]
    inside = tirx.all(*conditions)
    return tirx.if_then_else(inside, tensor[(*place[:2], *at)], pad)


def _reduce(
    tensor: te.Tensor,
    along: tuple[Window, ...],
    reducer: Callable[..., Any],
    element: Callable[[tuple[Any, ...], Any], Any],
) -> te.Tensor:
    """A reduction over every window."""
    offsets = [te.reduce_axis((0, window.kernel), f"k{i}") for i, window in enumerate(along)]
    return te.compute(
        (*tensor.shape[:2], *(window.result for window in along)),
        lambda *place: reducer(element(place, offsets), axis=offsets),
        name="pool",
    )


def _maximum(tensor: te.Tensor, along: tuple[Window, ...]) -> te.Tensor:
    lowest = te.min_value(str(tensor.dtype))
    return _reduce(
        tensor,
        along,
        te.max,
        lambda place, offsets: _element(tensor, along, place, offsets, lowest),
    )


def _sum(tensor: te.Tensor, along: tuple[Window, ...], term: Callable[[Any], Any]) -> te.Tensor:
    zero = tirx.const(0, str(tensor.dtype))
    return _reduce(
        tensor,
        along,
        te.sum,
        lambda place, offsets: term(_element(tensor, along, place, offsets, zero)),
    )


def _indices(
    tensor: te.Tensor, maximum: te.Tensor, along: tuple[Window, ...], column_major: bool
) -> te.Tensor:
    """Index of each window's first maximum in the flattened input."""
    sizes = [window.size for window in along]
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if column_major:
        steps = list(itertools.accumulate(sizes[:-1], lambda a, b: a * b, initial=1))
    plane = math.prod(sizes)
    beyond = tirx.const(np.iinfo(np.int64).max, _INDEX)

    def index(place: tuple[Any, ...], offsets: Any) -> Any:
        channel = place[0] * tensor.shape[1] + place[1]
        flat = tirx.Cast(_INDEX, channel) * plane
        for window, step, start, offset in zip(along, steps, place[2:], offsets, strict=True):
            position = start * window.stride + offset * window.dilation - window.before
            flat = flat + tirx.Cast(_INDEX, position) * step
        lowest = te.min_value(str(tensor.dtype))
        is_maximum = _element(tensor, along, place, offsets, lowest) == maximum[place]
        conditions = [is_maximum]
        for window, start, offset in zip(along, place[2:], offsets, strict=True):
            position = start * window.stride + offset * window.dilation - window.before
            conditions += [position >= 0, position < window.size]
        return tirx.if_then_else(tirx.all(*conditions), flat, beyond)

    return _reduce(tensor, along, te.min, index)
