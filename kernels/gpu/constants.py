"""Constants to the last bit: TVM writes seven digits of them into OpenCL C and WGSL."""

from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx

from leakyforge.runtime.manifest import OPENCL

# Of each width, the integer with the same bits and OpenCL's function that takes them for a number.
_BITS = {"float32": ("int32", "as_float"), "float64": ("int64", "as_double")}


def keep_constants(function: tirx.PrimFunc, kind: str) -> tirx.PrimFunc:
    """A function whose constants are bit patterns where seven digits are another number.

    Args:
        function: before its source is generated; seven digits are enough for float16.
        kind: of the target: `opencl` or `webgpu`. CUDA's source has all digits.
    """

    def keep(constant: tirx.FloatImm, _: Any) -> Any:
        dtype = str(constant.ty.dtype)
        if dtype not in _BITS:
            return constant
        value, (integer, call) = np.dtype(dtype).type(constant.value), _BITS[dtype]
        if value.dtype.type(f"{value:e}") == value or not np.isfinite(value):
            return constant
        bits = tirx.IntImm(integer, int(value.view(integer)))
        if kind == OPENCL:
            # TVM would take the address of the integer, which is no variable.
            return tirx.call_pure_extern(dtype, call, bits)
        return tirx.reinterpret(dtype, bits)

    return tvm_ffi.structural_mutate(function, (tirx.FloatImm, keep))
