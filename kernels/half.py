"""Products of float16 are added up in float32, as ONNX Runtime does, and rounded once.

    y = Conv(x, w)   ->   y = Cast_float16(Conv(Cast_float32(x), w_float32))

A sum of K products in float16 has an error that grows with K, and the schedules are written for
float32: in float16 the loops have none, and take up to hundreds of times as long. The Casts of
activations are fused into the kernels; the artifact holds the weights in float32.
"""

import onnx
from onnx import TensorProto, helper, numpy_helper

from leakyforge.onnx_graph import value_types

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Of the names of float32 values that stand for float16 ones.
WIDE = ".float32"


def add_up_in_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose float16 convolutions and products compute in float32, rounded once.

    Returns:
        A copy, or the model itself where it has no product in float16.
    """
    half = {name for name, (_, kind) in value_types(proto).items() if kind == TensorProto.FLOAT16}
    if not any(_is_half_product(node, half) for node in proto.graph.node):
        return proto
    widened = onnx.ModelProto()
    widened.CopyFrom(proto)
    del widened.graph.node[:]
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    wide: set[str] = set()
    for node in proto.graph.node:
        if not _is_half_product(node, half):
            widened.graph.node.append(node)
            continue
        for name in set(filter(None, node.input)) - wide:
            wide.add(name)
            if name in weights:
                array = numpy_helper.to_array(weights[name]).astype("float32")
                widened.graph.initializer.append(numpy_helper.from_array(array, name + WIDE))
            else:
                widened.graph.node.append(_cast(name, name + WIDE, TensorProto.FLOAT))
        product = widened.graph.node.add()
        product.CopyFrom(node)
        product.input[:] = [name and name + WIDE for name in node.input]
        product.output[0] += f"_sum{WIDE}"
        widened.graph.node.append(_cast(product.output[0], node.output[0], TensorProto.FLOAT16))
    return widened


def layer_name(output: str) -> str:
    """Name of a product's result in the model that `add_up_in_float32` was given."""
    return output.removesuffix(f"_sum{WIDE}")


def _is_half_product(node: onnx.NodeProto, half: set[str]) -> bool:
    return node.op_type in _PRODUCTS and node.output[0] in half


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind)
