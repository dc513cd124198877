"""A float32 model becomes an int8 one with QuantizeLinear and DequantizeLinear (QDQ).

The quantiser is ONNX Runtime's: convolutions and products take activations in uint8, with a scale
for each tensor from the least and greatest value seen, and weights in int8, with a scale for each
output channel.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from leakyforge.errors import ExportError, InputError
from leakyforge.exporter.check import ONNX_DOMAINS, check_bytes, one_line
from leakyforge.onnx_graph import graph_inputs, input_range, is_large, weight_bytes

Feeds = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class QuantizationError:
    """How far a quantised model is from its float32 model, over some inputs.

    Attributes:
        output: name of the output.
        max_share: largest absolute difference, as a share of the output's range.
        snr_db: signal-to-noise ratio in decibels.
    """

    output: str
    max_share: float
    snr_db: float


def quantize_qdq(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """Quantise a model to int8, its inputs and outputs in float32 as they were.

    BatchNormalization is folded into convolutions first, by ONNX Runtime's own preparation.
    Weights take 7 of the 8 bits, so that ONNX Runtime gives the same on every x86-64 CPU:
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

    Args:
        model: float32, with its weights inside; stays as it is.
        feeds: inputs to calibrate with, an array for each input of the model; see
            `calibration_feeds`.

    Raises:
        ExportError: there are no feeds, the model is larger than 2 GiB, or the quantiser fails.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not feeds:
        raise ExportError("quantisation needs at least one input to calibrate with; give feeds")
    if is_large(model):
        check_bytes(sum(map(weight_bytes, model.graph.initializer)))
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as name, _quiet():
        folder = Path(name)
        source, prepared, quantised = (folder / f"{step}.onnx" for step in range(3))
        source.write_bytes(model.SerializeToString())
        try:
            # A path: of a model in memory it moves the weights into a file and fails on them.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared)
            _keep_standard_domains(graph)
            quantization.quantize_static(
                graph,
                quantised,
                _Reader(feeds),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                # CPUs without VNNI add two 8-bit products in 16 bits, which saturate otherwise.
                reduce_range=True,
            )
            result = onnx.load(quantised)
        except Exception as error:
            raise ExportError(
                f"model {model.graph.name!r} cannot be quantised: {one_line(error)}; check that "
                "the calibration inputs fit it, or export it in float32"
            ) from error
    _keep_standard_domains(result)
    return result


def calibration_feeds(model: onnx.ModelProto, samples: int = 64, seed: int = 0) -> list[Feeds]:
    """Seeded random inputs, uniform in the range that the model's metadata declares.

    Without a range (`leakyforge.input_range.NAME` = `LOW,HIGH`) they are standard normal. Real
    inputs calibrate better. Symbolic dimensions are 1.

    Raises:
        ExportError: an input is not of floating point, or its range is not LOW,HIGH.
    """
    generator = np.random.default_rng(seed)
    inputs = graph_inputs(model)
    feeds: list[Feeds] = []
    for _ in range(samples):
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for value in inputs:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if dtype.kind != "f":
                raise ExportError(
                    f"input {value.name!r} is {dtype}, which is not drawn at random; give inputs "
                    "to calibrate with"
                )
            shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
            bounds = input_range(model, value.name, ExportError)
            drawn = (
                generator.standard_normal(shape)
                if bounds is None
                else generator.uniform(*bounds, shape)
            )
            arrays[value.name] = np.asarray(drawn).astype(dtype)
        feeds.append(arrays)
    return feeds


def quantization_error(
    model: onnx.ModelProto, quantised: onnx.ModelProto, feeds: Sequence[Feeds]
) -> list[QuantizationError]:
    """Run both models in ONNX Runtime and compare each output, over all inputs together.

    Raises:
        InputError: the inputs do not fit the model.
    """
    import onnxruntime

    names = [value.name for value in model.graph.output]
    results = []
    for proto in (model, quantised):
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        try:
            results.append([session.run(names, dict(feed)) for feed in feeds])
        except Exception as error:
            raise InputError(
                f"ONNX Runtime does not run {proto.graph.name!r} on the inputs: {one_line(error)}"
            ) from error
    errors = []
    for index, name in enumerate(names):
        desired, actual = (
            np.concatenate([np.asarray(run[index], np.float64).ravel() for run in runs])
            for runs in results
        )
        noise, signal = float(np.linalg.norm(actual - desired)), float(np.linalg.norm(desired))
        extent = float(np.abs(desired).max(initial=0.0)) or 1.0
        share = float(np.abs(actual - desired).max(initial=0.0)) / extent
        snr = float("inf") if noise == 0 else 20 * float(np.log10(signal / noise or 1e-30))
        errors.append(QuantizationError(name, share, snr))
    return errors


class _Reader:
    """What ONNX Runtime's quantiser reads its calibration inputs from."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs; None after the last."""
        return next((dict(feed) for feed in self._feeds), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger, which the quantiser gives advice to."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _keep_standard_domains(model: onnx.ModelProto) -> None:
    """Drop the imports of ONNX Runtime's own operators, which it adds whether used or not."""
    used = {node.domain for node in model.graph.node} | set(ONNX_DOMAINS)
    kept = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
