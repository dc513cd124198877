"""Verified export: the ONNX model has to compute what the framework computes.

Tolerance: the roundings on the way to each output and its dtype (`leakyforge.tolerance`), as in the
parity check of artifacts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter.check import all_nodes, one_line
from leakyforge.exporter.rounding import rounding_steps
from leakyforge.exporter.shapes import value_shape
from leakyforge.exporter.source import Array, Framework, Source, is_floating
from leakyforge.tolerance import Tolerance, tolerance

SEED = 0
# Batch sizes that a symbolic dimension 0 takes in turn.
_BATCHES = (1, 3)


@dataclass(frozen=True)
class OutputError:
    """How far an output is from the framework's.

    Attributes:
        output: its name.
        error: largest absolute difference over all samples.
        tolerance: absolute tolerance where that difference is.
    """

    output: str
    error: float
    tolerance: float


def verify(source: Source, model: onnx.ModelProto) -> tuple[OutputError, ...]:
    """Compare an ONNX model with the framework that it is from, on two seeded random inputs.

    Floating-point inputs are standard normal; a symbolic dimension 0 is 1, then 3,
    unless the framework fixes it.

    Args:
        source: Where the model is from.
        model: The model after the checks, with inferred shapes.

    Returns:
        A row for each output; none where there is no framework.

    Raises:
        ExportError: An output differs by more than its tolerance, in its shape or in its dtype, or
            either of the two cannot run.
        MissingDependencyError: onnxruntime cannot be imported.
    """
    framework = source.framework
    if framework is None:
        return ()
    run = _runner(source, model)
    names = [value.name for value in model.graph.input]
    steps = rounding_steps(model)
    worst: dict[str, OutputError] = {}
    for inputs in _samples(framework, model):
        try:
            desired = framework.run(inputs)
        # Whatever is wrong in the model's own code comes through here as well.
        except Exception as error:
            raise ExportError(
                f"{source.title} does not run in {framework.name} on inputs of shape "
                f"{_shapes(inputs)}: {one_line(error)}; give other example inputs, or leave out a "
                "symbolic batch"
            ) from error
        try:
            actual = run(dict(zip(names, inputs, strict=True)))
        except Exception as error:
            raise ExportError(
                f"the ONNX model of {source.title} does not run on inputs of shape "
                f"{_shapes(inputs)}: {one_line(error)}; report it to the exporter of "
                f"{framework.name}"
            ) from error
        if len(actual) != len(desired):
            raise ExportError(
                f"{source.title} has {len(desired)} outputs in {framework.name} and "
                f"{len(actual)} as ONNX; return tensors only"
            )
        for value, ours, theirs in zip(model.graph.output, actual, desired, strict=True):
            limits = _limits(model, str(theirs.dtype), steps[value.name])
            row = _compared(source, framework, value.name, ours, theirs, limits)
            if value.name not in worst or row.error > worst[value.name].error:
                worst[value.name] = row
    return tuple(worst.values())


def _samples(framework: Framework, model: onnx.ModelProto) -> list[list[Array]]:
    generator = np.random.default_rng(SEED)
    samples = []
    for batch in _BATCHES:
        arrays = []
        for value, example in zip(model.graph.input, framework.examples, strict=True):
            declared = value_shape(value) or ()
            shape = example.shape
            if shape and isinstance(declared[0], str) and not framework.sizes_fixed:
                shape = (batch, *shape[1:])
            if is_floating(example):
                arrays.append(np.asarray(generator.standard_normal(shape)).astype(example.dtype))
            else:
                arrays.append(np.resize(example, shape))
        samples.append(arrays)
    return samples


def _runner(source: Source, model: onnx.ModelProto) -> Callable[[dict[str, Array]], list[Array]]:
    """ONNX Runtime, or ONNX's own evaluator for bfloat16, which ONNX Runtime's Python lacks."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime, which every export is compared with, is not installed; "
            "run: pip install onnxruntime"
        ) from error
    bfloat16 = onnx.TensorProto.BFLOAT16
    values = (*model.graph.input, *model.graph.output)
    try:
        if any(value.type.tensor_type.elem_type == bfloat16 for value in values):
            from onnx.reference import ReferenceEvaluator

            evaluator = ReferenceEvaluator(model)
            return lambda feeds: list(evaluator.run(None, feeds))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    # Their errors have no common base.
    except Exception as error:
        raise ExportError(
            f"the ONNX model of {source.title} cannot be loaded to compare it: {one_line(error)}"
        ) from error
    return lambda feeds: list(session.run(None, feeds))


def _limits(model: onnx.ModelProto, dtype: str, steps: int) -> Tolerance:
    """The tolerance of an output."""
    # An attribute of ONNX is float32: in a float64 model alpha = 0.2 is another number than 0.2.
    rounded = sum(
        attribute.type == onnx.AttributeProto.FLOAT and attribute.f not in (0.0, 1.0)
        for node in all_nodes(model)
        for attribute in node.attribute
    )
    if dtype == "float64" and rounded > 0:
        return tolerance("float32", rounded)
    return tolerance(dtype, steps)


def _compared(
    source: Source, framework: Framework, name: str, ours: Any, theirs: Any, limits: Tolerance
) -> OutputError:
    """The row of one output in one sample."""
    actual, desired = np.asarray(ours), np.asarray(theirs)
    where = f"output {name!r} of {source.title}"
    if (actual.shape, actual.dtype) != (desired.shape, desired.dtype):
        raise ExportError(
            f"{where} is {desired.dtype} {list(desired.shape)} in {framework.name} and "
            f"{actual.dtype} {list(actual.shape)} as ONNX; change the model so that the exporter "
            "keeps its shapes and dtypes"
        )
    x, y = actual.astype(np.float64), desired.astype(np.float64)
    finite = np.isfinite(y)
    largest = float(np.abs(y[finite]).max(initial=0.0))
    allowed = limits.range_share * largest + limits.rtol * np.abs(np.where(finite, y, 0.0))
    # NaN and infinities have to be the same: any difference there is infinite.
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.where(finite & np.isfinite(x), np.abs(x - y), np.inf))
    if error.size == 0:
        return OutputError(name, 0.0, 0.0)
    at = np.unravel_index(int(np.argmax(error - allowed)), error.shape)
    if error[at] > allowed[at]:
        raise ExportError(
            f"{where} differs between {framework.name} and ONNX Runtime by {error[at]:.2e} at "
            f"{[int(index) for index in at]}, tolerance {allowed[at]:.2e} ({limits.origin}); "
            "nothing was written: a model must give equal outputs for equal inputs, without random "
            "numbers or state; otherwise the exporter translates it wrongly"
        )
    at = np.unravel_index(int(np.argmax(error)), error.shape)
    return OutputError(name, float(error[at]), float(allowed[at]))


def _shapes(arrays: Sequence[Array]) -> str:
    return ", ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays)
