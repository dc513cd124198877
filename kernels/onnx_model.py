"""Reading ONNX: load, check, fix symbolic shapes, and fold what is constant.

Folding happens on the ONNX side, in the exporter, because TVM's front end refuses computed pads,
scales and axes, and `Constant` nodes that carry a `value_float`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from leakyforge.errors import ModelError, ShapeError
from leakyforge.exporter.shapes import value_shape
from leakyforge.exporter.simplify import simplify
from leakyforge.kernels.onnx_functions import expand_functions
from leakyforge.kernels.onnx_limits import check_graph, check_sizes
from leakyforge.kernels.onnx_loops import unroll_loops
from leakyforge.kernels.onnx_training import define_batch_statistics
from leakyforge.onnx_graph import is_large, light_copy, restore_weights
from leakyforge.opsets import at_least, check_opset
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.source import read_onnx
from leakyforge.runtime.tensors import Shape, format_shape

# What TVM's front end and onnxscript's folding take as it is; older models are raised to it.
_OLDEST_OPSET = 13


@dataclass(frozen=True)
class SourceModel:
    """An ONNX model that passed the checker.

    Attributes:
        proto: the model as written.
        name: file name without its ending, or the graph's name.
        sha256: hash of the file and of its external data, in hexadecimal.
        path: where it was read from, None for a model in memory.
    """

    proto: onnx.ModelProto
    name: str
    sha256: str
    path: Path | None


def load_onnx(source: str | Path | onnx.ModelProto) -> SourceModel:
    """Load and check an ONNX model.

    Raises:
        ModelError: no such file, not ONNX, truncated, refused by the checker, of absurd sizes (see
            `onnx_limits`), or at an opset that is not read; a model in memory of more than 2 GiB.
    """
    if isinstance(source, onnx.ModelProto):
        check_graph(source, f"model {source.graph.name!r}")
        if is_large(source):
            raise ModelError(
                f"model {source.graph.name!r} in memory has more than 2 GiB; save it with "
                "onnx.save_model(..., save_as_external_data=True) and give the path"
            )
        _check(source, f"model {source.graph.name!r}")
        digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
        return SourceModel(source, source.graph.name or "model", digest, None)
    path = Path(source)
    proto, digest = read_onnx(path)
    check_graph(proto, str(path))
    _check(proto, str(path))
    return SourceModel(proto, path.stem, digest, path.resolve())


def _check(proto: onnx.ModelProto, where: str) -> None:
    """Run ONNX's checker, which wants a graph, known operators and matching types."""
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{where} holds no ONNX graph with an output; export the model again")
    try:
        onnx.checker.check_model(light_copy(proto) if is_large(proto) else proto, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        # Of its C++, over element types and attributes that no case of it expects.
        ValueError,
        RuntimeError,
    ) as error:
        raise ModelError(f"{where} fails the ONNX checker: {one_line(error)}") from error
    check_opset(proto, where)
    check_sizes(proto, where)


def fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it is imported: raised to an opset that is read, and simplified.

    Operators that only ONNX's own definition brings to the front end are replaced by it, and loops
    by their steps.
    """
    raised = define_batch_statistics(at_least(proto, _OLDEST_OPSET))
    simplified = simplify(expand_functions(raised))
    unrolled = unroll_loops(simplified)
    # Their number of steps may have been computed, and their bodies may hold other functions.
    return simplified if unrolled is simplified else simplify(expand_functions(unrolled))


def fix_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy of the model whose inputs have the given shapes.

    A symbol that one input's shape fixes is fixed in the other inputs too.

    Raises:
        ShapeError: no such input, another rank, or a dimension that the model fixes otherwise.
    """
    if not shapes:
        return proto
    fixed = light_copy(proto)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value for value in fixed.graph.input if value.name not in weights}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ShapeError(f"the model has no input {name!r}; its inputs: {', '.join(inputs)}")
        value = inputs[name]
        declared = value_shape(value)
        if declared is not None:
            _match_shape(name, declared, shape, symbols)
        value.type.tensor_type.shape.ClearField("dim")
        for size in shape:
            value.type.tensor_type.shape.dim.add().dim_value = size
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    # Shapes recorded for the old sizes would contradict the new ones.
    fixed.graph.ClearField("value_info")
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        wanted = ", ".join(f"{name}={format_shape(shape)}" for name, shape in shapes.items())
        raise ShapeError(f"the model does not take {wanted}: {one_line(error)}") from error
    restore_weights(inferred, proto)
    return inferred


def _match_shape(
    name: str, declared: Shape, wanted: tuple[int, ...], symbols: dict[str, int]
) -> None:
    """Check one wanted shape against the declared one and note what its symbols become."""
    fits = len(declared) == len(wanted)
    for old, new in zip(declared, wanted, strict=False):
        if isinstance(old, int):
            fits = fits and old == new
        elif old != "?":
            fits = fits and symbols.setdefault(old, new) == new
    if not fits:
        raise ShapeError(
            f"shape {format_shape(wanted)} does not fit input {name!r} of shape "
            f"{format_shape(declared)}; only symbolic dimensions can be given a size"
        )
