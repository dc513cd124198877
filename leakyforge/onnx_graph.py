"""Facts and passes of ONNX graphs that every room needs, for models of any size.

ONNX's C++ passes take a serialised model, and protobuf serialises 2 GiB at most. `light_copy`
leaves the large weights out: they become inputs, whose types say all that these passes ask of them.
onnx is imported when it is first used: a machine that only runs artifacts has none.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakyforge.errors import LeakyforgeError

if TYPE_CHECKING:
    import onnx

# Operators that add up products.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Of a model's metadata: after it the name of an input; the value is LOW,HIGH.
RANGE_PROPERTY = "leakyforge.input_range."
# What protobuf serialises, less the room that the rest of a model takes.
MAX_WEIGHT_BYTES = 2**31 - 2**24
# Smaller tensors stay: shapes, axes and scales, whose values the passes read.
_SMALL = 1024
# Types of which a byte holds several elements, and how many.
_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}


def graph_inputs(model: "onnx.ModelProto") -> "list[onnx.ValueInfoProto]":
    """Inputs that a caller feeds: those without an initializer."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def input_range(
    model: "onnx.ModelProto", name: str, error: type[LeakyforgeError]
) -> tuple[float, float] | None:
    """Least and greatest value that a model declares for an input; None where it does not.

    Raises:
        error: the metadata are not LOW,HIGH.
    """
    for item in model.metadata_props:
        if item.key == RANGE_PROPERTY + name:
            try:
                low, high = (float(part) for part in item.value.split(","))
            except ValueError as problem:
                raise error(
                    f"metadata {item.key}={item.value!r} of the model is not LOW,HIGH"
                ) from problem
            return low, high
    return None


def light_copy(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of a model in which weights of more than 1 KiB are inputs, after the others."""
    import onnx

    light = onnx.ModelProto()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if is_small(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def restore_weights(light: "onnx.ModelProto", model: "onnx.ModelProto") -> None:
    """Give a light copy, or what a pass made of it, the weights of its model."""
    kept = {tensor.name for tensor in light.graph.initializer}
    weights = [tensor for tensor in model.graph.initializer if not is_small(tensor)]
    light.graph.initializer.extend(tensor for tensor in weights if tensor.name not in kept)
    names = {tensor.name for tensor in light.graph.initializer}
    inputs = [value for value in light.graph.input if value.name not in names]
    del light.graph.input[:]
    light.graph.input.extend(inputs)


def external_copy(
    model: "onnx.ModelProto", location: str
) -> "tuple[onnx.ModelProto, list[onnx.TensorProto]]":
    """A copy of a model whose weights of more than 1 KiB refer to a file, and those weights.

    Args:
        model: of any size, its weights inside.
        location: name of the file, which is to hold the weights' raw data one after the other.
    """
    import onnx

    external = light_copy(model)
    weights = [tensor for tensor in model.graph.initializer if not is_small(tensor)]
    shells, offset = [], 0
    for tensor in weights:
        shell = onnx.TensorProto(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        size = weight_bytes(tensor)
        for key, value in (("location", location), ("offset", offset), ("length", size)):
            shell.external_data.add(key=key, value=str(value))
        shells.append(shell)
        offset += size
    restored = onnx.ModelProto()
    restored.graph.initializer.extend(shells)
    restore_weights(external, restored)
    return external, weights


def save_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model, where it is larger than 2 GiB with a file of weights beside it."""
    from onnx import numpy_helper

    if not is_large(model):
        path.write_bytes(model.SerializeToString())
        return
    weights_path = path.with_name(f"{path.name}.data")
    external, weights = external_copy(model, weights_path.name)
    with weights_path.open("wb") as stream:
        for tensor in weights:
            stream.write(numpy_helper.to_array(tensor).tobytes())
    path.write_bytes(external.SerializeToString())


def is_small(tensor: "onnx.TensorProto") -> bool:
    """Whether a tensor stays in a light copy."""
    return weight_bytes(tensor) <= _SMALL


def is_large(model: "onnx.ModelProto") -> bool:
    """Whether a model's weights are more than protobuf serialises."""
    return sum(map(weight_bytes, model.graph.initializer)) > MAX_WEIGHT_BYTES


def weight_bytes(tensor: "onnx.TensorProto") -> int:
    """Bytes of a tensor's elements, wherever they are."""
    return element_bytes(int(math.prod(tensor.dims)), tensor.data_type)


def element_bytes(count: int, kind: int) -> int:
    """Bytes of a number of elements of an ONNX type; 8 for each text."""
    from onnx import TensorProto, helper

    if kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 8 * count
    packed = _PACKED.get(TensorProto.DataType.Name(kind))
    if packed is not None:
        return math.ceil(count / packed)
    return int(count * helper.tensor_dtype_to_np_dtype(kind).itemsize)


def value_shapes(model: "onnx.ModelProto") -> dict[str, tuple[int, ...]]:
    """Shape of every value that ONNX's shape inference knows, weights too; symbols count as 1."""
    shapes = {name: shape for name, (shape, _) in value_types(model).items()}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def value_types(model: "onnx.ModelProto") -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and ONNX element type of every value that shape inference knows, without weights.

    Symbols count as 1.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(light_copy(model), data_prop=True).graph
    weights = {tensor.name for tensor in model.graph.initializer}
    types: dict[str, tuple[tuple[int, ...], int]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and value.name not in weights:
            shape = tuple(dim.dim_value or 1 for dim in tensor.shape.dim)
            types[value.name] = shape, tensor.elem_type
    return types


def model_flops(model: "onnx.ModelProto") -> int:
    """Floating-point operations of convolutions and products: two for each multiplication.

    Symbolic sizes count as 1.
    """
    shapes = value_shapes(model)
    return sum(node_flops(node, shapes) for node in model.graph.node)


def subgraphs(node: "onnx.NodeProto") -> "Iterator[onnx.GraphProto]":
    """Graphs in a node's attributes, such as the branches of If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_within(graph: "onnx.GraphProto") -> "Iterator[onnx.NodeProto]":
    """Nodes of a graph and of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_within(inner)


def node_flops(node: "onnx.NodeProto", shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Floating-point operations of one node, 0 for all but convolutions and products."""
    if node.op_type not in PRODUCTS:
        return 0
    data, weight = shapes.get(node.input[0], ()), shapes.get(node.input[1], ())
    result = shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return 2 * math.prod(result) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(data) * math.prod(weight[1:])
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return 2 * math.prod(result) * data[0 if transposed else -1] if data else 0


def _copy_fields(source: Any, target: Any, skipped: str) -> None:
    """Copy every field of a message but one."""
    for field, value in source.ListFields():
        if field.name == skipped:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
