"""Types of fewer than 8 bits, in the graph as the types of 8 bits that hold all of their values.

TVM packs such elements, and no array of a caller's is packed: in kernels a tensor of one is a
tensor of its carrier (see `CARRIERS`), and a session converts inputs and outputs. Only what rounds
to such a type has to know of it: Cast and QuantizeLinear, by an attribute.

Source: ONNX, "Int4 type", "Float4 type" (https://onnx.ai/onnx/technical/int4.html, float4.html).
"""

import onnx
from onnx import helper, numpy_helper

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import numpy_name
from leakyforge.onnx_graph import light_copy, nodes_within
from leakyforge.runtime.tensors import CARRIERS, numpy_dtype

# Element types, and those of their carriers.
PACKED_TYPES = {
    helper.np_dtype_to_tensor_dtype(numpy_dtype(name)): helper.np_dtype_to_tensor_dtype(
        numpy_dtype(carrier)
    )
    for name, carrier in CARRIERS.items()
}


def widen_packed_types(model: onnx.ModelProto) -> None:
    """Change the packed types of a model in place; it then fails ONNX's checker.

    Raises:
        ModelError: an operator that looks at the bits of a packed type.
    """
    graph = onnx.shape_inference.infer_shapes(light_copy(model)).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    if not PACKED_TYPES.keys() & types.values():
        return
    for node in nodes_within(model.graph):
        _name_types(node, types)
        for attribute in node.attribute:
            _widen(attribute.t)
    for tensor in model.graph.initializer:
        _widen(tensor)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor_type = value.type.tensor_type
        tensor_type.elem_type = PACKED_TYPES.get(tensor_type.elem_type, tensor_type.elem_type)


def _name_types(node: onnx.NodeProto, types: dict[str, int]) -> None:
    """Name in an attribute what a node took from the packed type of an input."""
    kinds = [types.get(name, 0) for name in (*node.input, *node.output)]
    if node.op_type == "BitCast" and PACKED_TYPES.keys() & set(kinds):
        raise ModelError(
            f"BitCast (node {node.name or node.output[0]!r}) from {numpy_name(kinds[0])} to "
            f"{numpy_name(kinds[1])} is not supported; cast in the model"
        )
    if node.op_type == "CastLike" and kinds[1] in PACKED_TYPES:
        node.op_type = "Cast"
        del node.input[1:]
        node.attribute.append(helper.make_attribute("to", kinds[1]))
    if node.op_type == "QuantizeLinear" and len(node.input) > 2 and kinds[2] in PACKED_TYPES:
        kept = [item for item in node.attribute if item.name != "output_dtype"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("output_dtype", kinds[2])])


def _widen(tensor: onnx.TensorProto) -> None:
    """Change the type of a constant in place."""
    if tensor.data_type in PACKED_TYPES:
        array = numpy_helper.to_array(tensor)
        wide = array.astype(numpy_dtype(numpy_name(PACKED_TYPES[tensor.data_type])))
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
