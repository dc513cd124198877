"""ONNX operator ConvTranspose where the size of its output is given.

https://onnx.ai/onnx/operators/onnx__ConvTranspose.html: the padding follows from that size,

    total = stride * (size - 1) + output_padding + (kernel - 1) * dilation + 1 - output_shape

and the front end leaves `output_shape` out.
"""

from tvm import relax

from leakyforge.kernels.onnx_ops.node import Node, static_shape


def convert_conv_transpose(node: Node) -> relax.Expr:
    """ConvTranspose."""
    wanted = node.attributes.get("output_shape")
    if wanted is None:
        return node.standard()
    sizes, kernels = (static_shape(node.input(place), node.operator, first=2) for place in (0, 1))
    rank = len(sizes)
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    paddings = list(node.attributes.get("output_padding", [0] * rank))
    starts, ends = [], []
    for axis, size in enumerate(sizes):
        extent = (kernels[axis] - 1) * dilations[axis] + 1
        # Some exporters write the batch and the channels too.
        total = strides[axis] * (size - 1) + paddings[axis] + extent - wanted[axis - rank]
        paddings[axis] += max(-total, 0)
        half = max(total, 0) // 2
        upper = node.text("auto_pad", "NOTSET") == "SAME_UPPER"
        starts.append(half if upper else max(total, 0) - half)
        ends.append(max(total, 0) - starts[-1])
    changed = {"auto_pad": b"NOTSET", "pads": [*starts, *ends], "output_padding": paddings}
    return node.standard(changed)
