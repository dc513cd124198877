"""Converters of ours for ONNX operators that TVM's front end lacks or gets wrong."""

from leakyforge.kernels.onnx_ops.conv_transpose import convert_conv_transpose
from leakyforge.kernels.onnx_ops.elementary import (
    convert_bit_cast,
    convert_celu,
    convert_compress,
    convert_cosh,
    convert_cum_prod,
    convert_elu,
    convert_eye_like,
    convert_is_inf,
    convert_lp_normalization,
    convert_one_hot,
    convert_pow,
)
from leakyforge.kernels.onnx_ops.float8 import convert_cast
from leakyforge.kernels.onnx_ops.node import Converter
from leakyforge.kernels.onnx_ops.pool import (
    convert_average_pool,
    convert_lp_pool,
    convert_max_pool,
)
from leakyforge.kernels.onnx_ops.recurrent import convert_gru, convert_lstm, convert_rnn
from leakyforge.kernels.onnx_ops.resize import convert_resize

CONVERTERS: dict[str, Converter] = {
    name: Converter(name, convert)
    for name, convert in {
        "AveragePool": convert_average_pool,
        "BitCast": convert_bit_cast,
        "Cast": convert_cast,
        "Celu": convert_celu,
        "Compress": convert_compress,
        "ConvTranspose": convert_conv_transpose,
        "Cosh": convert_cosh,
        "CumProd": convert_cum_prod,
        "Elu": convert_elu,
        "EyeLike": convert_eye_like,
        "GRU": convert_gru,
        "IsInf": convert_is_inf,
        "LSTM": convert_lstm,
        "LpNormalization": convert_lp_normalization,
        "LpPool": convert_lp_pool,
        "MaxPool": convert_max_pool,
        "OneHot": convert_one_hot,
        "Pow": convert_pow,
        "RNN": convert_rnn,
        "Resize": convert_resize,
    }.items()
}

__all__ = ["CONVERTERS"]
