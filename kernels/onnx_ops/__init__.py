"""Converters of ours for ONNX operators that TVM's front end lacks or gets wrong."""

from leakyforge.kernels.onnx_ops.conv_transpose import convert_conv_transpose
from leakyforge.kernels.onnx_ops.deform_conv import convert_deform_conv
from leakyforge.kernels.onnx_ops.elementary import (
    convert_bit_cast,
    convert_bit_shift,
    convert_celu,
    convert_compress,
    convert_cosh,
    convert_cum_prod,
    convert_det,
    convert_elu,
    convert_eye_like,
    convert_is_inf,
    convert_lp_normalization,
    convert_mod,
    convert_one_hot,
    convert_pow,
    convert_reduce_max,
    convert_reduce_min,
    convert_sinh,
)
from leakyforge.kernels.onnx_ops.float8 import convert_cast, convert_cast_like
from leakyforge.kernels.onnx_ops.node import Converter
from leakyforge.kernels.onnx_ops.pool import (
    convert_average_pool,
    convert_lp_pool,
    convert_max_pool,
)
from leakyforge.kernels.onnx_ops.quantize import (
    convert_conv_integer,
    convert_dequantize_linear,
    convert_q_linear_conv,
    convert_q_linear_mat_mul,
    convert_quantize_linear,
)
from leakyforge.kernels.onnx_ops.recurrent import convert_gru, convert_lstm, convert_rnn
from leakyforge.kernels.onnx_ops.resize import convert_resize
from leakyforge.kernels.onnx_ops.roi_align import convert_roi_align
from leakyforge.kernels.onnx_ops.scatter import (
    convert_col2im,
    convert_reshape,
    convert_reverse_sequence,
    convert_space_to_depth,
    convert_split,
    convert_tensor_scatter,
)
from leakyforge.kernels.onnx_ops.selection import convert_non_max_suppression
from leakyforge.kernels.onnx_ops.spectral import convert_dft, convert_stft
from leakyforge.kernels.onnx_ops.tf_idf import convert_tf_idf_vectorizer

CONVERTERS: dict[str, Converter] = {
    name: Converter(name, convert)
    for name, convert in {
        "AveragePool": convert_average_pool,
        "BitCast": convert_bit_cast,
        "BitShift": convert_bit_shift,
        "Cast": convert_cast,
        "CastLike": convert_cast_like,
        "Celu": convert_celu,
        "Col2Im": convert_col2im,
        "Compress": convert_compress,
        "ConvInteger": convert_conv_integer,
        "ConvTranspose": convert_conv_transpose,
        "Cosh": convert_cosh,
        "CumProd": convert_cum_prod,
        "DFT": convert_dft,
        "DeformConv": convert_deform_conv,
        "DequantizeLinear": convert_dequantize_linear,
        "Det": convert_det,
        "Elu": convert_elu,
        "EyeLike": convert_eye_like,
        "GRU": convert_gru,
        "IsInf": convert_is_inf,
        "LSTM": convert_lstm,
        "LpNormalization": convert_lp_normalization,
        "LpPool": convert_lp_pool,
        "MaxPool": convert_max_pool,
        "Mod": convert_mod,
        "NonMaxSuppression": convert_non_max_suppression,
        "OneHot": convert_one_hot,
        "Pow": convert_pow,
        "QLinearConv": convert_q_linear_conv,
        "QLinearMatMul": convert_q_linear_mat_mul,
        "QuantizeLinear": convert_quantize_linear,
        "RNN": convert_rnn,
        "ReduceMax": convert_reduce_max,
        "ReduceMin": convert_reduce_min,
        "Reshape": convert_reshape,
        "Resize": convert_resize,
        "ReverseSequence": convert_reverse_sequence,
        "RoiAlign": convert_roi_align,
        "STFT": convert_stft,
        "Sinh": convert_sinh,
        "SpaceToDepth": convert_space_to_depth,
        "Split": convert_split,
        "TensorScatter": convert_tensor_scatter,
        "TfIdfVectorizer": convert_tf_idf_vectorizer,
    }.items()
}

__all__ = ["CONVERTERS"]
