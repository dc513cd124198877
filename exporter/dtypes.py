"""The element types that a model can be exported in."""

import onnx

from leakyforge.exporter.float16 import to_float16
from leakyforge.exporter.quantize import calibration_feeds, quantize_qdq

DTYPES = ("float32", "float16", "int8")


def convert(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """A float32 model in `float16`, or in `int8` with QuantizeLinear and DequantizeLinear.

    Raises:
        ExportError: It cannot be converted.
    """
    if dtype == "float16":
        return to_float16(model)
    return quantize_qdq(model, calibration_feeds(model))
