"""A float32 model becomes a float16 one, by the converter that comes with ONNX Runtime."""

import logging
import warnings

import numpy as np
import onnx
from onnx import numpy_helper

from leakyforge.errors import ExportError
from leakyforge.exporter.check import check_bytes, one_line
from leakyforge.onnx_graph import is_large, weight_bytes

LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights, inputs, outputs and arithmetic in float16.

    Operators that have no float16, like TopK, stay in float32 between two Casts, and so do inputs
    that have to be float32, like the scales of Resize. Weights are rounded to the nearest;
    magnitudes below 6e-8, the least of float16, become that.

    Args:
        model: with its weights inside; stays as it is. One without float32 comes back unchanged.

    Raises:
        ExportError: a weight is beyond float16's 65504, the model is larger than 2 GiB, or the
            converter fails on it.
    """
    # Only here: it loads ONNX Runtime, which no other export needs.
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if is_large(model):
        check_bytes(sum(map(weight_bytes, model.graph.initializer)))
    for tensor in model.graph.initializer:
        _check_range(tensor)
    try:
        with warnings.catch_warnings():
            # It warns of every weight that becomes 0 or 6e-8.
            warnings.simplefilter("ignore")
            logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
            return convert_float_to_float16(model, keep_io_types=False)
    except Exception as error:
        raise ExportError(
            f"model {model.graph.name!r} cannot be converted to float16: {one_line(error)}; "
            "export it in float32"
        ) from error


def _check_range(tensor: onnx.TensorProto) -> None:
    """Refuse a weight that the converter would silently clip."""
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return
    largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
    if np.isfinite(largest) and largest > LARGEST:
        raise ExportError(
            f"weight {tensor.name!r} reaches {largest:g}, and float16 ends at {LARGEST:g}; export "
            "the model in float32, or scale the weight"
        )
