"""Shapes of the values of an ONNX graph."""

import onnx


def value_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """Shape of a graph value: integers, symbol names, `?` where unnamed; None without a rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
