"""ONNX operator DeformConv: a convolution whose window reads between pixels, at given offsets.

https://onnx.ai/onnx/operators/onnx__DeformConv.html (Zhu et al., "Deformable ConvNets v2", CVPR
2019). With groups of offsets o over the input channels c and window places (i, j):

    sampled[n, c, i, j, y, x] = mask[n, o, i, j, y, x] * X[n, c] at
        (y * stride + i * dilation - pad + offset[n, o, i, j, 0, y, x], and the same along x)
    result[n, m, y, x] = sum over c, i, j of sampled * W[m, c, i, j] + B[m]

X between its pixels is bilinear, and 0 outside of them.
"""

from typing import Any

from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, static_shape


def convert_deform_conv(node: Node) -> relax.Expr:
    """DeformConv of images: sample, then the sum of a grouped convolution."""
    data, weight, offset, bias, mask = (node.input(place) for place in range(5))
    shape, kernel = (static_shape(each, node.operator) for each in (data, weight))
    if len(shape) != 4:
        raise ModelError(f"{node.operator}: of images only, and its input has {len(shape)} axes")
    batch, channels, height, width = shape
    features, group_channels, rows, columns = kernel
    _, _, out_height, out_width = static_shape(offset, node.operator)
    stride_y, stride_x = node.attributes.get("strides", (1, 1))
    step_y, step_x = node.attributes.get("dilations", (1, 1))
    top, left, *_ = node.attributes.get("pads", (0, 0, 0, 0))
    group_features = features // int(node.attributes.get("group", 1))
    shared = channels // int(node.attributes.get("offset_group", 1))

    def sample(image: te.Tensor, moved: te.Tensor, *scale: te.Tensor) -> te.Tensor:
        kind = str(image.dtype)

        def element(n: Any, c: Any, i: Any, j: Any, y: Any, x: Any) -> Any:
            place = (c // shared * rows + i) * columns + j
            row, column = (
                tirx.Cast(kind, start) + moved[n, 2 * place + part, y, x]
                for part, start in (
                    (0, y * stride_y + i * step_y - top),
                    (1, x * stride_x + j * step_x - left),
                )
            )
            value = _bilinear(image, n, c, row, column)
            return value * scale[0][n, place, y, x] if scale else value

        sizes = (batch, channels, rows, columns, out_height, out_width)
        return te.compute(sizes, element, name="deform_sample")

    def _bilinear(image: te.Tensor, n: Any, c: Any, row: Any, column: Any) -> Any:
        kind = str(image.dtype)
        above, before = tirx.floor(row), tirx.floor(column)
        total = tirx.const(0, kind)
        for down in (0, 1):
            for right in (0, 1):
                y, x = (tirx.Cast("int32", each) for each in (above + down, before + right))
                share = tirx.abs(1 - down - (row - above)) * tirx.abs(1 - right - (column - before))
                inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
                pixel = tirx.if_then_else(inside, image[n, c, y, x], tirx.const(0, kind))
                total = total + share * pixel
        return total

    def convolve(sampled: te.Tensor, weights: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, group_channels), "k")
        i = te.reduce_axis((0, rows), "i")
        j = te.reduce_axis((0, columns), "j")
        return te.compute(
            (batch, features, out_height, out_width),
            lambda n, m, y, x: te.sum(
                sampled[n, m // group_features * group_channels + k, i, j, y, x]
                * weights[m, k, i, j],
                axis=[k, i, j],
            ),
            name="deform_sum",
        )

    sampled = node.emit_te(sample, data, offset, *([] if mask is None else [mask]))
    result = node.emit_te(convolve, sampled, weight)
    if bias is None:
        return result
    return relax.op.add(result, relax.op.reshape(bias, [1, features, 1, 1]))
