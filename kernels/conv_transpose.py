"""Transposed convolution without multiplications by zero, in two ways.

    out[n, i*s + r - p, c] += data[n, i, k] * weight[k, r, c]        (ONNX operator ConvTranspose)

An output position y + p = q*s + phase takes the kernel's elements r = t*s + phase only, so each of
the s phases (s*s in two dimensions) is a convolution of ceil(r / s) taps over the input at its own
resolution. All phases have the same input: they are the output channels of one convolution.

    phases[n, q, phase*C + c] = sum over t, k of data[n, q - t, k] * weight[k, t*s + phase, c]
    out[n, y, c]              = phases[n, (y + p) // s, (y + p) % s * C + c]

FLOPs: those of the definition where s divides the kernel, as in every GAN, but for the border: an
input of 4x4 has phases of 5x5. Shi et al., "Is the deconvolution layer the same as a convolutional
layer?", 2016, arXiv:1609.07009.

The other way is a product of every input pixel with all the kernel's elements, whose terms are then
added up where they fall: no border, but a larger intermediate result, and no Winograd.

    products[n, q, r*C + c] = sum over k of data[n, q, k] * weight[k, r, c]
    out[n, y, c]            = sum over t of products[n, (y + p) // s - t, ((y + p) % s + t*s)*C + c]
"""

import functools
import itertools
import math
import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import ir, te, tirx

from leakyforge.kernels.conv2d import Conv2dShape, pointwise_shape
from leakyforge.kernels.target import CpuTarget

# Cycles to add one term of `add_products` to a vector as wide as `multiply_add_bits`; Zen 4.
_ADD_CYCLES = 4.0


@dataclass(frozen=True)
class TransposedShape:
    """Sizes of a transposed convolution, channels last; one dimension is two with a height of 1.

    Attributes:
        height: input rows.
        width: input columns.
        in_channels: k above.
        out_channels: C above.
        kernel: rows and columns of the kernel.
        strides: s above, for rows and columns.
        padding: p above, at the top and at the left.
        out_height: output rows.
        out_width: output columns.
        itemsize: bytes of an element.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]
    out_height: int
    out_width: int
    itemsize: int

    @property
    def taps(self) -> tuple[int, int]:
        """Rows and columns of each phase's kernel."""
        rows, columns = (
            math.ceil(size / stride) for size, stride in zip(self.kernel, self.strides, strict=True)
        )
        return rows, columns

    def phases(self) -> Conv2dShape:
        """The convolution that computes all phases."""
        top, bottom = self._extent(0, self.height, self.out_height)
        left, right = self._extent(1, self.width, self.out_width)
        return Conv2dShape(
            self.height,
            self.width,
            self.in_channels,
            math.prod(self.strides) * self.out_channels,
            self.taps,
            (1, 1),
            (1, 1),
            (top, left, bottom, right),
            self.itemsize,
            # Every input element meets every element of its kernels.
            math.prod((self.height, self.width, self.in_channels, self.out_channels, *self.kernel)),
        )

    def products(self) -> Conv2dShape:
        """The convolution that multiplies every pixel with all the kernel's elements."""
        elements = math.prod(self.kernel) * self.out_channels
        return pointwise_shape(self.height, self.width, self.in_channels, elements, self.itemsize)

    def first(self, axis: int) -> int:
        """The least q on an axis that an output needs."""
        return self.padding[axis] // self.strides[axis]

    def _extent(self, axis: int, size: int, out_size: int) -> tuple[int, int]:
        """Padding of the input before and after; what is negative is cut off instead."""
        last = (self.padding[axis] + out_size - 1) // self.strides[axis]
        count = last - self.first(axis) + 1
        before = self.taps[axis] - 1 - self.first(axis)
        return before, count + self.taps[axis] - 1 - size - before


def phase_weights(
    weight: npt.NDArray[np.generic], shape: TransposedShape
) -> npt.NDArray[np.generic]:
    """Weights [in][r][r'][out] as [phase and out][tap][tap'][in], the taps turned around."""
    (rows, columns), (stride_y, stride_x) = shape.taps, shape.strides
    padded = np.zeros(
        (shape.in_channels, rows * stride_y, columns * stride_x, shape.out_channels), weight.dtype
    )
    padded[:, : shape.kernel[0], : shape.kernel[1]] = weight
    split = padded.reshape(shape.in_channels, rows, stride_y, columns, stride_x, shape.out_channels)
    turned = split[:, ::-1, :, ::-1].transpose(2, 4, 5, 1, 3, 0)
    return np.ascontiguousarray(turned.reshape(-1, rows, columns, shape.in_channels))


def shuffle_phases(phases: te.Tensor, shape: TransposedShape, rank: int) -> te.Tensor:
    """Rearrange [n, q, q', phase and c] to the output, of rank 4, or 3 without its rows."""
    (stride_y, stride_x), (top, left) = shape.strides, shape.padding
    channels = shape.out_channels

    def element(n: ir.Expr, y: ir.Expr, x: ir.Expr, c: ir.Expr) -> ir.Expr:
        phase = (y + top) % stride_y * stride_x + (x + left) % stride_x
        row, column = (y + top) // stride_y, (x + left) // stride_x
        return phases[n, row - shape.first(0), column - shape.first(1), phase * channels + c]

    batch, columns = phases.shape[0], shape.out_width
    if rank == 3:
        row = (batch, columns, channels)
        return te.compute(row, lambda n, x, c: element(n, 0, x, c), name="shuffle")
    return te.compute((batch, shape.out_height, columns, channels), element, name="shuffle")


def product_weights(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Weights [in][r][r'][out] as [r, r' and out][1][1][in]."""
    flat = weight.reshape(weight.shape[0], -1)
    return np.ascontiguousarray(flat.T[:, np.newaxis, np.newaxis])


def add_products(products: te.Tensor, shape: TransposedShape, rank: int) -> te.Tensor:
    """Add up [n, q, q', r, r' and c] to the output, of rank 4, or 3 without its rows."""
    (stride_y, stride_x), (top, left) = shape.strides, shape.padding
    (rows, columns), channels = shape.kernel, shape.out_channels

    def element(n: ir.Expr, y: ir.Expr, x: ir.Expr, c: ir.Expr) -> ir.Expr:
        terms = []
        for t, u in itertools.product(*(range(taps) for taps in shape.taps)):
            q, p = (y + top) // stride_y - t, (x + left) // stride_x - u
            row, column = (y + top) % stride_y + t * stride_y, (x + left) % stride_x + u * stride_x
            inside = tirx.all(
                q >= 0, q < shape.height, p >= 0, p < shape.width, row < rows, column < columns
            )
            value = products[n, q, p, (row * columns + column) * channels + c]
            terms.append(tirx.if_then_else(inside, value, tirx.const(0, products.dtype)))
        return functools.reduce(operator.add, terms)

    batch, width = products.shape[0], shape.out_width
    if rank == 3:
        line = (batch, width, channels)
        return te.compute(line, lambda n, x, c: element(n, 0, x, c), name="add_products")
    return te.compute((batch, shape.out_height, width, channels), element, name="add_products")


def add_cycles(shape: TransposedShape, target: CpuTarget) -> float:
    """Estimated cycles of `add_products`, with all cores at work."""
    terms = shape.out_height * shape.out_width * shape.out_channels * math.prod(shape.taps)
    vectors = 8 * terms * shape.itemsize / target.multiply_add_bits
    return _ADD_CYCLES * vectors / target.num_cores
