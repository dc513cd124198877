"""Inputs and outputs of a compiled model, as an artifact describes them."""

import dataclasses
from collections.abc import Mapping

import onnx
import tvm
from tvm import relax

from leakyforge.errors import ModelError, ShapeError
from leakyforge.exporter.rounding import quantisations, rounding_steps
from leakyforge.exporter.shapes import value_shape
from leakyforge.kernels.onnx_ops.node import numpy_name
from leakyforge.kernels.packed import PACKED_TYPES
from leakyforge.onnx_graph import graph_inputs, input_range
from leakyforge.runtime.tensors import Shape, TensorSpec


def input_specs(proto: onnx.ModelProto, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Inputs under their ONNX names, with the shapes that were compiled."""
    specs = []
    for value, variable in zip(graph_inputs(proto), module["main"].params, strict=True):
        low, high = input_range(proto, value.name, ModelError) or (None, None)
        specs.append(_tensor_spec(value, variable.ty, low=low, high=high))
    return tuple(specs)


def output_specs(folded: onnx.ModelProto, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Outputs under their ONNX names, with the shapes that TVM inferred."""
    steps, quantised = rounding_steps(folded), quantisations(folded)
    values = folded.graph.output
    result = module["main"].ret_ty
    types = [result] if len(values) == 1 else list(result.fields)
    return tuple(
        _tensor_spec(
            value, kind, rounding_steps=steps[value.name], quantisations=quantised[value.name]
        )
        for value, kind in zip(values, types, strict=True)
    )


def _tensor_spec(
    value: onnx.ValueInfoProto, kind: relax.TensorType, **fields: float | None
) -> TensorSpec:
    """Describe a Relax tensor type; a packed type that it carries is ONNX's."""
    name = value.name
    if not isinstance(kind, relax.TensorType) or kind.ndim < 0:
        raise ShapeError(
            f"the rank of {name!r} is not known at compile time; fix the inputs with --shape"
        )
    shape: Shape
    if kind.shape is None:
        # Of values that were computed: the model may have names for its sizes.
        declared = value_shape(value) or ("?",) * kind.ndim
        shape = tuple(
            f"{name}_dim{axis}" if size == "?" else size for axis, size in enumerate(declared)
        )
    else:
        shape = tuple(
            int(size) if isinstance(size, tvm.tirx.IntImm) else str(size) for size in kind.shape
        )
    element = value.type.tensor_type.elem_type
    dtype = numpy_name(element) if element in PACKED_TYPES else str(kind.dtype)
    return TensorSpec(name, shape, dtype, **fields)  # type: ignore[arg-type]


def onnx_specs(
    model: onnx.ModelProto, folded: onnx.ModelProto, types: Mapping[str, onnx.ValueInfoProto]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs with the shapes that ONNX infers, for a model that TVM takes in parts.

    Args:
        model: as the caller gave it.
        folded: as it was compiled.
        types: of the values of `folded`.

    Raises:
        ModelError: one is no tensor of numbers.
        ShapeError: the rank of one is not known.
    """
    steps, quantised = rounding_steps(folded), quantisations(folded)
    inputs = []
    for value in graph_inputs(model):
        low, high = input_range(model, value.name, ModelError) or (None, None)
        inputs.append(dataclasses.replace(_onnx_spec(value), low=low, high=high))
    outputs = [
        dataclasses.replace(
            _onnx_spec(value if value_shape(value) is not None else types[value.name]),
            rounding_steps=steps[value.name],
            quantisations=quantised[value.name],
        )
        for value in folded.graph.output
    ]
    return tuple(inputs), tuple(outputs)


def _onnx_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Describe an ONNX tensor type; a size that has no name gets one."""
    kind = value.type.tensor_type
    shape = value_shape(value)
    if not value.type.HasField("tensor_type") or kind.elem_type == onnx.TensorProto.STRING:
        raise ModelError(f"{value.name!r} is no tensor of numbers, and an artifact takes no other")
    if shape is None:
        raise ShapeError(
            f"the rank of {value.name!r} is not known; declare its shape in the model, with names "
            "for the sizes that vary"
        )
    named = (f"{value.name}_dim{axis}" if size == "?" else size for axis, size in enumerate(shape))
    return TensorSpec(
        value.name, tuple(named), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    )
