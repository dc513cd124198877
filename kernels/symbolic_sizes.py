"""Which sizes of a graph's values are the same, where they are not known: by names.

ONNX's own inference gives a size that it does not know a name of its own wherever it appears, and
a stage that takes two values cannot add them up then. ONNX Runtime's symbolic inference computes
with names (`onnxruntime.tools.symbolic_shape_infer`).
"""

import logging

import onnx

from leakyforge.exporter.shapes import value_shape


def name_sizes(types: dict[str, onnx.ValueInfoProto], model: onnx.ModelProto) -> None:
    """Give names to the sizes that ONNX's inference left open; equal sizes have the same name.

    Args:
        types: of the model's values; changed in place.
        model: without large weights.
    """
    names: dict[str, str] = {}
    for name, sizes in _symbolic_shapes(model).items():
        if name not in types:
            continue
        tensor = types[name].type.tensor_type
        if not tensor.HasField("shape"):
            for _ in sizes:
                tensor.shape.dim.add()
        if len(tensor.shape.dim) != len(sizes):
            continue
        for dim, size in zip(tensor.shape.dim, sizes, strict=True):
            if dim.HasField("dim_value"):
                continue
            if isinstance(size, int):
                dim.dim_value = size
            elif size.isidentifier():
                dim.dim_param = size
            elif size != "?":
                # An expression is a size like others.
                dim.dim_param = names.setdefault(size, f"computed_size_{len(names)}")


def _symbolic_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shapes by ONNX Runtime's inference; none where it fails."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    logging.getLogger("onnxruntime.tools.symbolic_shape_infer").setLevel(logging.ERROR)
    try:
        inferred = SymbolicShapeInference.infer_shapes(model, int_max=2**31 - 1)
    except Exception:  # noqa: BLE001 - whatever it raises, the graph is cut without it
        return {}
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    shapes = {value.name: value_shape(value) for value in values}
    return {name: shape for name, shape in shapes.items() if shape is not None}
