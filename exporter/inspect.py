"""What is inside an ONNX file, as far as this project cares."""

import contextlib
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from leakyforge.errors import ModelError
from leakyforge.exporter.check import ONNX_DOMAINS
from leakyforge.exporter.shapes import value_shape
from leakyforge.onnx_graph import (
    element_bytes,
    external_copy,
    graph_inputs,
    is_small,
    model_flops,
    value_types,
    weight_bytes,
)


@dataclass(frozen=True)
class OnnxSummary:
    """Facts about an ONNX file.

    Attributes:
        path: the file.
        producer: what wrote it.
        opsets: version of each operator domain.
        inputs: name to type and shape.
        outputs: name to type and shape.
        operators: how often each operator occurs, after the model's own functions are inlined.
        alphas: alpha of each LeakyRelu, by node name.
        parameters: number of weights.
        flops: operations of convolutions and products, two for each multiplication.
        weight_bytes: of all weights.
        activation_bytes: of the results of all nodes, as if none shared its memory.
        largest_activation: name of the largest of them, empty where no shape is known.
        largest_activation_bytes: its bytes.
        unsupported: operators that the compiler lacks; None where it was not asked.

    Symbolic sizes count as 1.
    """

    path: str
    producer: str
    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: dict[str, int]
    alphas: dict[str, float]
    parameters: int
    flops: int
    weight_bytes: int
    activation_bytes: int
    largest_activation: str
    largest_activation_bytes: int
    unsupported: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        return asdict(self)


def inspect_onnx(path: str | Path) -> OnnxSummary:
    """Summarise an ONNX file; of its external data only shapes, axes and the like are read.

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
    _read_small(proto, path.parent)
    if proto.functions:
        # Only without the weights does the inliner take a model of any size.
        proto = onnx.inliner.inline_local_functions(external_copy(proto, "weights")[0])
        graph = proto.graph
    results = {name for node in graph.node for name in node.output}
    activations = {
        name: element_bytes(math.prod(shape), kind)
        for name, (shape, kind) in value_types(proto).items()
        if name in results
    }
    largest = max(activations, key=activations.__getitem__, default="")
    return OnnxSummary(
        path=str(path),
        producer=f"{proto.producer_name} {proto.producer_version}".strip() or "unknown",
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        inputs={value.name: _type(value) for value in graph_inputs(proto)},
        outputs={value.name: _type(value) for value in graph.output},
        operators=dict(Counter(map(_operator, graph.node)).most_common()),
        alphas={
            node.name or node.output[0]: next(
                (float(item.f) for item in node.attribute if item.name == "alpha"), 0.01
            )
            for node in graph.node
            if node.op_type == "LeakyRelu"
        },
        parameters=sum(math.prod(tensor.dims) for tensor in graph.initializer),
        flops=model_flops(proto),
        weight_bytes=sum(map(weight_bytes, graph.initializer)),
        activation_bytes=sum(activations.values()),
        largest_activation=largest,
        largest_activation_bytes=activations.get(largest, 0),
    )


def _read_small(proto: onnx.ModelProto, folder: Path) -> None:
    """Read the tensors in other files that shape inference needs; one that is absent stays out."""
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor) and is_small(tensor):
            with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
                load_external_data_for_tensor(tensor, str(folder))


def _operator(node: onnx.NodeProto) -> str:
    """Name of a node's operator, after its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"


def _type(value: onnx.ValueInfoProto) -> str:
    """Type and shape of a graph value, as in `float32 1x3x416x416`."""
    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = value_shape(value)
    if shape is None:
        return f"{dtype} of unknown rank"
    return f"{dtype} {'x'.join(map(str, shape)) or 'scalar'}"
