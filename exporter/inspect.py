"""What is inside an ONNX file, as far as this project cares."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from leakyforge.errors import ModelError


@dataclass(frozen=True)
class OnnxSummary:
    """Facts about an ONNX file.

    Attributes:
        path: the file.
        producer: what wrote it.
        opsets: version of each operator domain.
        inputs: name to type and shape.
        outputs: name to type and shape.
        operators: how often each operator occurs.
        alphas: alpha of each LeakyRelu, by node name.
        parameters: number of weights.
    """

    path: str
    producer: str
    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: dict[str, int]
    alphas: dict[str, float]
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        return asdict(self)


def inspect_onnx(path: str | Path) -> OnnxSummary:
    """Summarise an ONNX file; its external data are not read.

    Raises:
        ModelError: the file is absent, is a directory, or is not ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give an .onnx or .lfa file")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is neither an ONNX file nor an artifact, or is truncated"
        ) from error
    graph = proto.graph
    if not graph.node:
        raise ModelError(f"{path} holds no ONNX graph")
    constants = {tensor.name for tensor in graph.initializer}
    return OnnxSummary(
        path=str(path),
        producer=f"{proto.producer_name} {proto.producer_version}".strip() or "unknown",
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        inputs={value.name: _type(value) for value in graph.input if value.name not in constants},
        outputs={value.name: _type(value) for value in graph.output},
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        alphas={
            node.name or node.output[0]: next(
                (float(item.f) for item in node.attribute if item.name == "alpha"), 0.01
            )
            for node in graph.node
            if node.op_type == "LeakyRelu"
        },
        parameters=sum(_size(tensor) for tensor in graph.initializer),
    )


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size


def _type(value: onnx.ValueInfoProto) -> str:
    """Type and shape of a graph value, as in `float32 1x3x416x416`."""
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{dtype} of unknown rank"
    sizes = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    return f"{dtype} {'x'.join(sizes) or 'scalar'}"
