"""ONNX operator RoiAlign: https://onnx.ai/onnx/operators/onnx__RoiAlign.html.

A region's bin is sampled at points (y, x) on a grid; each is between four pixels. With a(y) the
part of y above its lower pixel, the weights of the four are

    (1 - a(y)) * (1 - a(x)), (1 - a(y)) * a(x), a(y) * (1 - a(x)), a(y) * a(x)

The mean is of the four's sums, which is the front end's; the maximum is of the weighted pixels.
"""

from typing import Any

from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import STANDARD, Node, dtype_of, static_shape

# From this opset on, pixels are squares, and an attribute says otherwise.
_HALF_PIXELS = 16


def convert_roi_align(node: Node) -> relax.Expr:
    """RoiAlign."""
    default = "half_pixel" if node.opset >= _HALF_PIXELS else "output_half_pixel"
    is_half_pixel = node.text("coordinate_transformation_mode", default) == "half_pixel"
    scale = float(node.attributes.get("spatial_scale", 1.0))
    if node.text("mode", "avg") == "max":
        return _maxima(node, scale, is_half_pixel)
    if not is_half_pixel:
        return node.standard()
    # The front end takes half a pixel off before it scales.
    regions = node.input(1)
    offset = relax.const(0.5 - 0.5 / scale, dtype_of(regions))
    moved = node.builder.normalize(relax.op.add(regions, offset))
    convert = STANDARD[node.operator].get_converter(node.opset)
    inputs = [node.input(0), moved, node.input(2)]
    return convert(node.builder, inputs, dict(node.attributes), node.context)


def _maxima(node: Node, scale: float, is_half_pixel: bool) -> relax.Expr:
    """The maximum over each bin."""
    samples = int(node.attributes.get("sampling_ratio", 0))
    if samples < 1:
        raise ModelError(
            f"{node.operator}: sampling_ratio 0 makes the number of samples depend on the regions, "
            "which mode max does not support; set a sampling_ratio"
        )
    _, channels, height, width = static_shape(node.input(0), node.operator)
    (count, _) = static_shape(node.input(1), node.operator)
    bins = [int(node.attributes.get(f"output_{name}", 1)) for name in ("height", "width")]
    offset = 0.5 if is_half_pixel else 0.0

    def sample(data: te.Tensor, regions: te.Tensor, batches: te.Tensor) -> te.Tensor:
        dtype = str(data.dtype)
        rows, columns = (te.reduce_axis((0, samples), name) for name in ("row", "column"))

        def along(n: Any, axis: int, place: Any, step: Any, size: int) -> tuple[Any, ...]:
            """Both pixels of a sample, their weights, and whether it is in the image."""
            start = regions[n, 1 - axis] * scale - offset
            length = regions[n, 3 - axis] * scale - offset - start
            if not is_half_pixel:
                length = tirx.max(length, tirx.const(1, dtype))
            step = (tirx.Cast(dtype, step) + 0.5) / samples
            at = start + (tirx.Cast(dtype, place) + step) * length / bins[axis]
            inside = tirx.all(at >= -1.0, at <= float(size))
            at = tirx.min(tirx.max(at, tirx.const(0, dtype)), tirx.const(size - 1, dtype))
            low = tirx.Cast("int32", at)
            high = tirx.min(low + 1, size - 1)
            above = at - tirx.Cast(dtype, low)
            return (low, 1 - above), (high, above), inside

        def element(n: Any, channel: Any, row: Any, column: Any) -> Any:
            *vertical, in_height = along(n, 0, row, rows, height)
            *horizontal, in_width = along(n, 1, column, columns, width)
            image = tirx.Cast("int32", batches[n])
            weighted = [
                data[image, channel, y, x] * (a * b) for y, a in vertical for x, b in horizontal
            ]
            largest = tirx.max(
                tirx.max(weighted[0], weighted[1]), tirx.max(weighted[2], weighted[3])
            )
            is_inside = tirx.all(in_height, in_width)
            value = tirx.if_then_else(is_inside, largest, tirx.const(0, dtype))
            return te.max(value, axis=[rows, columns])

        return te.compute((count, channels, *bins), element, name="roi_align")

    return node.emit_te(sample, *(node.input(place) for place in range(3)))
