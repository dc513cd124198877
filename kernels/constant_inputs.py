"""Inputs of a graph that decide shapes, which the compiler wants as constants, and binding them."""

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from leakyforge.onnx_graph import graph_inputs, nodes_within, subgraphs
from leakyforge.runtime.tensors import Array

# Operator of ai.onnx: positions of the inputs whose values decide a shape or what is computed.
_POSITIONS = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "GRU": (4,),
    "If": (0,),
    "LSTM": (4,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "RNN": (4,),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
_CONSTANTS_BY_THEMSELVES = 4
# Of these the value depends on the shape of their input only.
_READ_SHAPES = ("Shape", "Size")


def constant_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the graph's inputs that decide shapes, in order.

    Those are the inputs from which a value is computed that an operator takes as amounts, axes,
    sizes or the like; of a subgraph, that all its results may be such a value.
    """
    needed: set[str] = set()
    # Backwards: nodes are sorted, so that all uses of a value come before what computes it.
    for node in reversed(model.graph.node):
        if needed & set(node.output) and node.op_type not in _READ_SHAPES:
            inner = (each for graph in subgraphs(node) for each in nodes_within(graph))
            needed.update(name for each in (node, *inner) for name in each.input)
        needed.update(
            node.input[position]
            for position in _POSITIONS.get(node.op_type, ())
            if position < len(node.input) and not node.domain
        )
    return [value.name for value in graph_inputs(model) if value.name in needed]


def bind_inputs(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model in which the named inputs are constants.

    Args:
        model: with its weights inside.
        values: an array for each input to bind, of its dtype and shape.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    # Before version 4 of the format every constant is an input too, with a default value.
    bound.ir_version = max(bound.ir_version, _CONSTANTS_BY_THEMSELVES)
    kept = [value for value in bound.graph.input if value.name not in values]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in values.items()
    )
    return bound
