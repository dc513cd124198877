"""Layers in words, for `compile --explain`."""

from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.conv_transpose import TransposedShape


def convolution(shape: Conv2dShape, *, is_1d: bool) -> str:
    """Such as `conv 3x3 /1, 256 -> 512, 13x13`: kernel, stride, channels, size of the output."""
    size = (shape.out_height, shape.out_width)
    text = _sizes("conv", shape.kernel, shape.strides, is_1d=is_1d)
    if shape.dilation != (1, 1):
        text += f" dilated {_joined(shape.dilation, is_1d=is_1d)}"
    channels = f"{shape.in_channels} -> {shape.out_channels}"
    if shape.groups > 1:
        channels += f" in {shape.groups} groups"
    return f"{text}, {channels}, {_joined(size, is_1d=is_1d)}"


def transposed(shape: TransposedShape, *, is_1d: bool) -> str:
    """As of a convolution."""
    size = (shape.out_height, shape.out_width)
    text = _sizes("transposed conv", shape.kernel, shape.strides, is_1d=is_1d)
    channels = f"{shape.in_channels} -> {shape.out_channels}"
    return f"{text}, {channels}, {_joined(size, is_1d=is_1d)}"


def product(shape: Conv2dShape, rows: str) -> str:
    """Such as `product 784 -> 512, 64 rows`."""
    return f"product {shape.in_channels} -> {shape.out_channels}, {rows} rows"


def _sizes(name: str, kernel: tuple[int, int], strides: tuple[int, int], *, is_1d: bool) -> str:
    """Kernel and stride; one number where rows and columns have the same stride."""
    stride = str(strides[1]) if is_1d or strides[0] == strides[1] else _joined(strides, is_1d=False)
    return f"{name} {_joined(kernel, is_1d=is_1d)} /{stride}"


def _joined(sizes: tuple[int, int], *, is_1d: bool) -> str:
    """Rows and columns; of one dimension the columns."""
    return str(sizes[1]) if is_1d else f"{sizes[0]}x{sizes[1]}"
