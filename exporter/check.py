"""What every ONNX model has to pass before it is written."""

import textwrap
from collections.abc import Iterator
from typing import Any

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.options import checked_opset
from leakyforge.onnx_graph import subgraphs

ONNX_DOMAINS = ("", "ai.onnx")
MAX_BYTES = int(onnx.checker.MAXIMUM_PROTOBUF)


def checked_model(model: onnx.ModelProto, *, opset: int | None = None) -> onnx.ModelProto:
    """Return a copy of `model` with the inferred shapes, after all checks.

    Args:
        model: The model, with its weights inside.
        opset: The opset that it has to be at; None for any from 13 to 23.

    Raises:
        ExportError: It is larger than 2 GiB, has weights in other files, uses operators outside
            ai.onnx, is at an opset that is not asked for or not supported, or ONNX's checker or
            its strict shape inference refuses it.
    """
    check_bytes(model.ByteSize())
    _check_weights(model)
    _check_operators(model, _checked_opset(model, opset))
    try:
        # First, since the checker wants a shape for every output and not every model states it.
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(inferred, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ExportError(f"{_title(model)} is not valid ONNX: {one_line(error)}") from error
    return inferred


def check_bytes(count: int) -> None:
    """Raise `ExportError` if a model of `count` bytes does not fit into one ONNX file."""
    if count > MAX_BYTES:
        raise ExportError(
            f"the model has {count / 2**30:.1f} GiB, and an ONNX file holds at most 2 GiB; "
            "split it or store its weights in float16"
        )


def all_nodes(model: onnx.ModelProto) -> Iterator[Any]:
    """Every node: of the graph, of its subgraphs and of the model's functions."""
    waiting = list(model.graph.node)
    for function in model.functions:
        waiting.extend(function.node)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def one_line(error: object) -> str:
    """Return the text of an error of another package on one line of at most 300 characters."""
    return textwrap.shorten(str(error), width=300, placeholder=" ...")


def _title(model: onnx.ModelProto) -> str:
    return f"model {model.graph.name!r}"


def _check_weights(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if onnx.external_data_helper.uses_external_data(tensor):
            raise ExportError(
                f"weight {tensor.name!r} of {_title(model)} is in another file; "
                "read the model with onnx.load(path), which loads the weights too"
            )


def _check_operators(model: onnx.ModelProto, opset: int) -> None:
    for node in all_nodes(model):
        where = f"node {node.name or ', '.join(node.output)!r} of {_title(model)}"
        if node.domain not in ONNX_DOMAINS:
            raise ExportError(
                f"{where} is {node.domain}.{node.op_type}, and only operators of ai.onnx can be "
                "exported; replace or inline it"
            )
        if not onnx.defs.has(node.op_type, opset, ""):
            raise ExportError(f"{where} is {node.op_type}, which opset {opset} of ai.onnx lacks")


def _checked_opset(model: onnx.ModelProto, opset: int | None) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS]
    if len(versions) != 1:
        raise ExportError(
            f"{_title(model)} imports {len(versions)} versions of ai.onnx; set exactly one"
        )
    found = checked_opset(versions[0])
    if opset not in (None, found):
        raise ExportError(
            f"{_title(model)} is at opset {found}, not {opset}; "
            f"ask for opset {found} or use onnx.version_converter first"
        )
    return found


def _tensors(model: onnx.ModelProto) -> Iterator[Any]:
    """Every stored tensor: initializers of all graphs and tensors in attributes."""
    yield from model.graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
        for graph in subgraphs(node):
            yield from graph.initializer
