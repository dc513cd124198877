"""A convolution's result by numpy in float64, which candidates are compared with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import te

from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.measure import Layer
from leakyforge.tolerance import tolerance

Array = npt.NDArray[Any]


def random_weights(shape: Conv2dShape, seed: int) -> Array:
    """Weights [out][row][column][in], standard normal, in the layer's dtype."""
    sizes = (shape.out_channels, *shape.kernel, shape.in_channels // shape.groups)
    drawn = np.random.default_rng(seed).standard_normal(sizes)
    return drawn.astype(f"float{8 * shape.itemsize}")


def read_input(layer: Layer, inputs: Sequence[Array]) -> Array:
    """What the convolution reads, [n, y, x, k], from what the layer before it wrote."""
    data = [te.placeholder(shape, str(each.dtype)) for shape, each in
            zip(layer.inputs, inputs, strict=True)]  # fmt: skip
    source = layer.read(*data)
    copied = te.compute(source.shape, lambda *index: source(*index), name="copied")
    kernel = tvm.compile(te.create_prim_func([*data, copied]), target="llvm")["main"]
    result = tvm.runtime.empty([int(size) for size in copied.shape], str(inputs[0].dtype))
    kernel(*map(tvm.runtime.tensor, inputs), result)
    return np.asarray(result.numpy())


def convolve(data: Array, weights: Array, shape: Conv2dShape) -> Array:
    """Convolution, channels last, of one group, and the pool behind it; in float64.

    (ONNX operator specification, Conv and MaxPool.)
    """
    top, left, bottom, right = shape.padding
    padded = np.pad(data.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    result = np.zeros((len(data), shape.out_height, shape.out_width, shape.out_channels))
    kernel = weights.astype(np.float64)
    for i in range(shape.kernel[0]):
        for j in range(shape.kernel[1]):
            y, x = i * shape.dilation[0], j * shape.dilation[1]
            rows = slice(y, y + (shape.out_height - 1) * shape.strides[0] + 1, shape.strides[0])
            columns = slice(x, x + (shape.out_width - 1) * shape.strides[1] + 1, shape.strides[1])
            result += padded[:, rows, columns] @ kernel[:, i, j].T
    if not shape.pooled:
        return result
    windows = result.reshape(len(data), shape.out_height // 2, 2, shape.out_width // 2, 2, -1)
    return np.asarray(windows.max(axis=(2, 4)))


def difference(actual: Array, desired: Array, roundings: int) -> str:
    """Why a result is wrong; empty where it is within the tolerance of its dtype and sums."""
    allowed = tolerance(str(actual.dtype), roundings).range_share
    finite = np.isfinite(desired)
    if not np.array_equal(actual[~finite], desired[~finite], equal_nan=True):
        return "has other infinities and NaNs"
    largest = float(np.max(np.abs(actual[finite] - desired[finite]), initial=0.0))
    share = largest / (float(np.max(np.abs(desired[finite]), initial=0.0)) or 1.0)
    if share <= allowed:
        return ""
    return f"differs by {share:.1e} of the range, {allowed:.1e} is allowed"
