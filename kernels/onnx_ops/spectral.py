"""ONNX operators DFT and STFT as products with a constant matrix.

https://onnx.ai/onnx/operators/onnx__DFT.html and onnx__STFT.html. A transform of n points is linear
in its real and imaginary parts. With w = 2 pi / n, t counting points and k frequencies:

    forward   Y[k] = sum over t of X[t] exp(-i w k t)
    inverse   X[t] = 1 / n * sum over k of Y[k] exp(i w k t)

so that one matrix takes [t, part] to [k, part]: n^2 multiply-adds of the fastest kernels instead of
a fast transform's n log n in loops without a schedule. It is computed in float64.
"""

import math

import numpy as np
import numpy.typing as npt
from tvm import relax

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, dtype_of, static_shape

# Opset from which the axis of DFT is an input, and counts from the end by default.
_AXIS_IS_INPUT = 20

Matrix = npt.NDArray[np.float64]


def convert_dft(node: Node) -> relax.Expr:
    """DFT along one axis of a tensor whose last axis is [real] or [real, imaginary]."""
    data = node.input(0)
    shape = static_shape(data, node.operator)
    axis = int(node.attributes.get("axis", 1))
    if node.opset >= _AXIS_IS_INPUT:
        given = _size(node, 2, "axis")
        axis = -2 if given is None else given
    axis %= len(shape)
    inverse, onesided = (bool(node.attributes.get(name, 0)) for name in ("inverse", "onesided"))
    points = _size(node, 1, "length")
    if points is None:
        points = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    parts = shape[-1]
    if axis == len(shape) - 1 or parts not in (1, 2) or points < 1:
        raise ModelError(
            f"{node.operator}: the last axis of its input holds 1 or 2 parts, and has {parts}; "
            "the transform runs along another axis, over one point at least"
        )
    matrix = inverse_matrix(points, onesided) if inverse else forward_matrix(points, onesided)
    # Points beyond the length are left out, those that are missing are 0.
    read = min(shape[axis], len(matrix))
    cut = data
    if read < shape[axis]:
        cut = relax.op.strided_slice(data, [axis], [0], [read])
    order = [position for position in range(len(shape)) if position != axis]
    order.insert(len(shape) - 2, axis)
    moved = relax.op.permute_dims(cut, order)
    outer = [shape[each] for each in order[:-2]]
    result = _transform(moved, matrix[:read, :parts], outer, dtype_of(data))
    return relax.op.permute_dims(result, [int(each) for each in np.argsort(order)])


def convert_stft(node: Node) -> relax.Expr:
    """STFT: transforms of the windowed frames of [batch, length, 1 or 2]."""
    signal, window = node.input(0), node.input(2)
    batch, length, parts = static_shape(signal, node.operator)
    step, points = (_size(node, place, name) for place, name in ((1, "step"), (3, "length")))
    if points is None:
        points = length if window is None else static_shape(window, node.operator)[0]
    if step is None or not 0 < points <= length or step < 1:
        raise ModelError(f"{node.operator}: frames of {points} every {step} in {length} samples")
    frames = (length - points) // step + 1
    places = np.arange(frames)[:, np.newaxis] * step + np.arange(points)
    taken = relax.op.take(signal, relax.const(places.reshape(-1), "int64"), axis=1, mode="clip")
    framed = relax.op.reshape(taken, [batch, frames, points, parts])
    if window is not None:
        framed = relax.op.multiply(framed, relax.op.reshape(window, [points, 1]))
    onesided = bool(node.attributes.get("onesided", 1))
    matrix = forward_matrix(points, onesided)[:, :parts]
    return _transform(framed, matrix, [batch, frames], dtype_of(signal))


def forward_matrix(points: int, onesided: bool) -> Matrix:
    """[t, part of X, k, part of Y]; one-sided, frequencies up to the half."""
    frequencies = points // 2 + 1 if onesided else points
    t, k = np.arange(points)[:, np.newaxis], np.arange(frequencies)
    # The products of integers modulo the length keep the angles exact.
    angle = 2 * math.pi / points * (t * k % points)
    real, imaginary = np.cos(angle), -np.sin(angle)
    return np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)], 1)


def inverse_matrix(points: int, onesided: bool) -> Matrix:
    """[k, part of Y, t, part of X]; one-sided, of the frequencies up to the half to real points."""
    k, t = np.arange(points)[:, np.newaxis], np.arange(points)
    angle = 2 * math.pi / points * (k * t % points)
    real, imaginary = np.cos(angle) / points, np.sin(angle) / points
    both = np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)], 1)
    if not onesided:
        return both
    half = both[: points // 2 + 1, :, :, :1].copy()
    # Of each pair of conjugates one is given; the first frequency and an even length's last have
    # none.
    half[1 : (points + 1) // 2] *= 2
    return half


def _transform(data: relax.Expr, matrix: Matrix, outer: list[int], dtype: str) -> relax.Expr:
    """[outer..., t, part] times a matrix [t, part, k, part], as [outer..., k, part]."""
    t, parts, k, out_parts = matrix.shape
    flat = relax.op.reshape(data, [math.prod(outer), t * parts])
    constant = relax.const(matrix.reshape(t * parts, k * out_parts).astype(dtype), dtype)
    return relax.op.reshape(relax.op.matmul(flat, constant), [*outer, k, out_parts])


def _size(node: Node, position: int, meaning: str) -> int | None:
    """A number that is an input, None where it is left out."""
    given = node.constant(position, meaning)
    return None if given is None else int(given.reshape(()).item())
