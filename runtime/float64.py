"""A model evaluated in float64: what its outputs are before any rounding to its own dtype.

ONNX Runtime has no convolution in float64, so ONNX's reference evaluator computes, on a copy of the
model in which every floating-point type is float64. Its convolutions and pools take minutes for a
real model; those here are a product of matrices for each tap of the kernel:

    Conv            y[n, :, o] += w[:, :, t] @ x[n, :, o * stride + t * dilation]
    ConvTranspose   y[n, :, i * stride + t * dilation] += w[:, :, t].T @ x[n, :, i]
    MaxPool         y[n, :, o] = max over t of x[n, :, o * stride + t * dilation]

This module imports onnx and is itself imported only where an ONNX model is at hand.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_conv, op_conv_transpose, op_max_pool

from leakyforge.errors import ModelError
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array

_FLOATS = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE}
_BFLOAT16 = "bfloat16"

Pair = tuple[int, int]


def evaluate_float64(
    proto: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """Outputs of a model by name, floating-point ones in float64, for each of the inputs.

    Args:
        proto: of any floating-point dtype; it is left as it is.
        feeds: arrays by input name; floating-point ones of any dtype.

    Raises:
        ModelError: the evaluator lacks an operator, or fails on these inputs.
    """
    wide = _widened(proto)
    names = [value.name for value in wide.graph.output]
    try:
        evaluator = ReferenceEvaluator(wide, new_ops=[Conv, ConvTranspose, MaxPool])
        results = [
            evaluator.run(names, {name: widen(array) for name, array in feed.items()})
            for feed in feeds
        ]
    except Exception as error:
        raise ModelError(
            f"graph {proto.graph.name!r} cannot be evaluated in float64: {one_line(error)}"
        ) from error
    return [dict(zip(names, map(np.asarray, result), strict=True)) for result in results]


def widen(array: Array) -> Array:
    """The array in float64 where it is floating-point, else as it is."""
    is_float = array.dtype.kind == "f" or str(array.dtype) == _BFLOAT16
    return array.astype(np.float64) if is_float else array


def _widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every floating-point type is float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    _widen_graph(wide.graph)
    for function in wide.functions:
        _widen_nodes(function.node)
    return wide


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@dataclass(frozen=True)
class _Window:
    """How a kernel moves over the last axes of a tensor, one entry for each of them.

    Attributes:
        kernel: its size.
        strides: from one position to the next.
        dilations: from one of its taps to the next.
        pads: before and behind the tensor.
        outputs: number of positions.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[Pair, ...]
    outputs: tuple[int, ...]

    def padded(self, data: Array, value: float) -> Array:
        """The tensor with `value` around it, behind it as far as the last position reaches."""
        widths = []
        for axis, size in enumerate(data.shape[2:]):
            before, behind = self.pads[axis]
            last = (self.outputs[axis] - 1) * self.strides[axis]
            last += (self.kernel[axis] - 1) * self.dilations[axis] + 1
            widths.append((before, max(behind, last - before - size)))
        return np.pad(data, [(0, 0), (0, 0), *widths], constant_values=value)

    def taps(self) -> Iterable[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Each tap of the kernel, and the elements that it meets over all positions."""
        for tap in itertools.product(*map(range, self.kernel)):
            slices = []
            for axis, index in enumerate(tap):
                start, stride = index * self.dilations[axis], self.strides[axis]
                slices.append(slice(start, start + (self.outputs[axis] - 1) * stride + 1, stride))
            yield tap, tuple(slices)


def _window(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str | None,
    *,
    ceil_mode: bool = False,
) -> _Window:
    """The window of ONNX's attributes over an input of these sizes."""
    rank = len(sizes)
    strides, dilations = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    flat = tuple(pads or (0,) * (2 * rank))
    around = list(zip(flat[:rank], flat[rank:], strict=True))
    outputs = []
    for axis, size in enumerate(sizes):
        stride, reach = strides[axis], (kernel[axis] - 1) * dilations[axis] + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = math.ceil(size / stride)
            total = max((count - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            around[axis] = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        else:
            room = size + sum(around[axis]) - reach
            count = (-(-room // stride) if ceil_mode else room // stride) + 1
            # A position that would start in the padding behind is none.
            if ceil_mode and (count - 1) * stride >= size + around[axis][0]:
                count -= 1
        outputs.append(count)
    return _Window(tuple(kernel), strides, dilations, tuple(around), tuple(outputs))


class Conv(op_conv.Conv):  # type: ignore[misc]
    """ONNX operator Conv."""

    def _run(
        self, X: Any, W: Any, B: Any = None, **attributes: Any,  # noqa: N803 - ONNX's names
    ) -> tuple[Array]:  # fmt: skip
        window = _window(
            X.shape[2:],
            W.shape[2:],
            attributes["strides"],
            attributes["dilations"],
            attributes["pads"],
            attributes["auto_pad"],
        )
        groups = int(attributes["group"] or 1)
        data = window.padded(X, 0.0)
        result: Any = np.zeros((X.shape[0], W.shape[0], *window.outputs))
        for group, (read, written) in enumerate(_channels(data.shape[1], W.shape[0], groups)):
            weight: Any = np.split(W, groups)[group]
            for tap, slices in window.taps():
                product = np.tensordot(
                    weight[(..., *tap)], data[(slice(None), read, *slices)], ([1], [1])
                )
                result[:, written] += np.moveaxis(product, 0, 1)
        return (result if B is None else result + _per_channel(B, result.ndim),)


class ConvTranspose(op_conv_transpose.ConvTranspose):  # type: ignore[misc]
    """ONNX operator ConvTranspose; with `auto_pad` or `output_shape` it is the evaluator's own."""

    def _run(
        self, X: Any, W: Any, B: Any = None, **attributes: Any,  # noqa: N803 - ONNX's names
    ) -> tuple[Array]:  # fmt: skip
        if attributes["output_shape"] or attributes["auto_pad"] not in (None, "NOTSET"):
            own: tuple[Array] = super()._run(X, W, B, **attributes)
            return own
        rank, sizes, kernel = X.ndim - 2, X.shape[2:], W.shape[2:]
        strides = tuple(attributes["strides"] or (1,) * rank)
        dilations = tuple(attributes["dilations"] or (1,) * rank)
        pads = tuple(attributes["pads"] or (0,) * (2 * rank))
        extra = tuple(attributes["output_padding"] or (0,) * rank)
        groups = int(attributes["group"] or 1)
        window = _Window(kernel, strides, dilations, ((0, 0),) * rank, sizes)
        full = [
            (sizes[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            + extra[axis]
            for axis in range(rank)
        ]  # fmt: skip
        result: Any = np.zeros((X.shape[0], W.shape[1] * groups, *full))
        for group, (read, written) in enumerate(_channels(X.shape[1], result.shape[1], groups)):
            weight: Any = np.split(W, groups)[group]
            for tap, slices in window.taps():
                product = np.tensordot(weight[(..., *tap)], X[:, read], ([0], [1]))
                result[(slice(None), written, *slices)] += np.moveaxis(product, 0, 1)
        inside = [slice(pads[axis], full[axis] - pads[rank + axis]) for axis in range(rank)]
        result = result[(..., *inside)]
        return (result if B is None else result + _per_channel(B, result.ndim),)


class MaxPool(op_max_pool.MaxPool):  # type: ignore[misc]
    """ONNX operator MaxPool; with indices as a second output it is the evaluator's own."""

    def _run(self, x: Any, **attributes: Any) -> tuple[Array, ...]:
        if len(self.output) > 1:
            own: tuple[Array, ...] = super()._run(x, **attributes)
            return own
        window = _window(
            x.shape[2:],
            attributes["kernel_shape"],
            attributes["strides"],
            attributes["dilations"],
            attributes["pads"],
            attributes["auto_pad"],
            ceil_mode=bool(attributes["ceil_mode"]),
        )
        data: Any = window.padded(x, -np.inf)
        parts = [data[(..., *slices)] for _, slices in window.taps()]
        return (np.maximum.reduce(parts),)


def _channels(inputs: int, outputs: int, groups: int) -> Iterable[tuple[slice, slice]]:
    """Channels that each group reads and writes."""
    read, written = inputs // groups, outputs // groups
    for group in range(groups):
        yield (
            slice(group * read, (group + 1) * read),
            slice(group * written, (group + 1) * written),
        )


def _per_channel(bias: Any, rank: int) -> Any:
    """A bias that is added along axis 1."""
    return bias.reshape(1, -1, *[1] * (rank - 2))
