"""Simplify an ONNX model: what is constant is computed, and LeakyRelu is one node."""

import logging

import onnx
from onnxscript import ir, optimizer

from leakyforge.errors import ModelError
from leakyforge.exporter.check import one_line
from leakyforge.exporter.recognise import recognise


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that computes the same with fewer nodes.

    1. Functions are inlined.
    2. Constants are folded, BatchNormalization and Pad go into Conv (onnxscript's optimizer).
    3. LeakyRelu is recognised where it was written with other operators (see `recognise`).
    4. Nodes and weights that no output needs are removed.

    Inputs and outputs keep their names. Results change by roundings where BatchNormalization or
    constants are folded.

    Raises:
        ModelError: the optimizer fails on the graph.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        simplified = ir.from_proto(model)
        # ConstantOfShape, which the optimizer keeps by itself, is where torch's pads come from.
        optimizer.optimize_ir(
            simplified,
            should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
        )
        recognise(simplified)
        return ir.to_proto(simplified)
    except Exception as error:
        raise ModelError(
            f"constant folding of graph {model.graph.name!r} failed: {one_line(error)}"
        ) from error
