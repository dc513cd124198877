"""Convolutions of one dimension, and products of matrices, as convolutions of two."""

from collections.abc import Callable

from tvm import te

from leakyforge.kernels.conv2d import Conv2dShape

# Data [n, y, x, k] and packed weights to [n, y, x, c].
Convolve = Callable[[te.Tensor, te.Tensor], te.Tensor]


def conv1d(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    convolve: Convolve,
    keep_rows: bool = False,
) -> te.Tensor:
    """Convolution over [n, x, k] as one over a single row; [n, x, c], or [n, 1, x, c] with rows."""
    view = te.compute(
        (data.shape[0], 1, *data.shape[1:]), lambda n, y, x, k: data[n, x, k], name="view"
    )
    total = convolve(view, packed)
    if keep_rows:
        return total
    return te.compute(
        (data.shape[0], shape.out_width, shape.out_channels),
        lambda n, x, c: total[n, 0, x, c],
        name="row",
    )


def matmul(left: te.Tensor, packed: te.Tensor, shape: Conv2dShape, convolve: Convolve) -> te.Tensor:
    """Product of [m, k] with a packed [k, c] as a convolution over one row of m pixels.

    A symbolic m becomes the batch instead: then each row is a tile of its own.
    """
    rows = left.shape[0]
    if shape.width == 1:
        data = te.compute((rows, 1, 1, left.shape[1]), lambda n, y, x, k: left[n, k], name="rows")
        total = convolve(data, packed)
        return te.compute(
            (rows, shape.out_channels), lambda m, c: total[m, 0, 0, c], name="product"
        )
    data = te.compute((1, 1, rows, left.shape[1]), lambda n, y, x, k: left[x, k], name="rows")
    total = convolve(data, packed)
    return te.compute((rows, shape.out_channels), lambda m, c: total[0, 0, m, c], name="product")
