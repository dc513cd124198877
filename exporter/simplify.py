"""Simplify an ONNX model: what is constant is computed, and LeakyRelu is one node."""

import logging
import math

import onnx
from onnxscript import ir, optimizer

from leakyforge.errors import ModelError
from leakyforge.exporter.check import one_line
from leakyforge.exporter.recognise import recognise

# Elements of a ConstantOfShape that is folded.
_LARGEST_FILL = 1 << 16


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that computes the same with fewer nodes.

    1. Functions are inlined.
    2. Constants are folded, BatchNormalization and Pad go into Conv (onnxscript's optimizer).
    3. LeakyRelu is recognised where it was written with other operators (see `recognise`).
    4. Nodes and weights that no output needs are removed.

    Inputs and outputs keep their names. Results change by roundings where BatchNormalization or
    constants are folded.

    Raises:
        ModelError: a BatchNormalization is in training mode, or the optimizer fails on the graph.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        simplified = ir.from_proto(model)
        ir.passes.common.InlinePass()(simplified)
        _refuse_training(simplified)
        # ConstantOfShape, which the optimizer keeps by itself, is where torch's pads come from.
        optimizer.optimize_ir(
            simplified,
            should_fold=lambda node: True if _is_small_fill(node) else None,
        )
        recognise(simplified)
        return ir.to_proto(simplified)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"constant folding of graph {model.graph.name!r} failed: {one_line(_cause(error))}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What a pass of onnxscript failed with, without the passes' names around it."""
    while isinstance(error, ir.passes.PassError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_small_fill(node: ir.Node) -> bool:
    """Whether a node is a ConstantOfShape that is worth no more memory than a shape or a pad."""
    if node.op_type != "ConstantOfShape":
        return False
    sizes = ir.convenience.get_const_tensor(node.inputs[0])
    return sizes is None or math.prod(sizes.numpy().tolist()) <= _LARGEST_FILL


def _refuse_training(model: ir.Model) -> None:
    """The optimizer would fold a BatchNormalization with the batch's own statistics like others."""
    for node in model.graph.all_nodes():
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        mode = node.attributes.get("training_mode")
        # Before opset 14 the outputs tell, and since then only training may have several.
        if len(node.outputs) > 1 or (mode is not None and mode.as_int() != 0):
            raise ModelError(
                f"BatchNormalization {node.name or node.outputs[0].name!r} is in training mode, "
                "where a result depends on the whole batch; export the model in evaluation mode"
            )
