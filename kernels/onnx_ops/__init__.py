"""Converters of ours for ONNX operators that TVM's front end lacks or gets wrong."""

from leakyforge.kernels.onnx_ops.float8 import convert_cast, convert_cast_like
from leakyforge.kernels.onnx_ops.node import Converter
from leakyforge.kernels.onnx_ops.pool import (
    convert_average_pool,
    convert_lp_pool,
    convert_max_pool,
)
from leakyforge.kernels.onnx_ops.resize import convert_resize

CONVERTERS: dict[str, Converter] = {
    name: Converter(name, convert)
    for name, convert in {
        "AveragePool": convert_average_pool,
        "Cast": convert_cast,
        "CastLike": convert_cast_like,
        "LpPool": convert_lp_pool,
        "MaxPool": convert_max_pool,
        "Resize": convert_resize,
    }.items()
}

__all__ = ["CONVERTERS"]
