"""ONNX operator NonMaxSuppression: https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html.

A function of the runtime computes it. TVM's own keeps boxes of negative scores whatever they
overlap with, and suppresses those whose overlap is equal to the threshold.
"""

import math

from tvm import relax, tirx

from leakyforge.kernels.onnx_ops.node import Node

# Inputs that may be left out: dtype and default.
_AMOUNTS = (("int64", 0), ("float32", 0.0), ("float32", -math.inf))
_FIRST_AMOUNT = 2


def convert_non_max_suppression(node: Node) -> relax.Expr:
    """NonMaxSuppression."""
    amounts = [
        relax.const(default, dtype) if node.input(place) is None else node.input(place)
        for place, (dtype, default) in enumerate(_AMOUNTS, _FIRST_AMOUNT)
    ]
    is_centre = relax.const(bool(node.attributes.get("center_point_box", 0)), "bool")
    found = relax.call_pure_packed(
        "leakyforge.non_max_suppression",
        node.input(0),
        node.input(1),
        *amounts,
        is_centre,
        ty_args=relax.TensorType(dtype="int64", ndim=2),
    )
    number = tirx.Var("selected_boxes", "int64")
    return node.builder.match_cast(
        node.builder.emit(found), relax.TensorType([number, tirx.IntImm("int64", 3)], "int64")
    )
