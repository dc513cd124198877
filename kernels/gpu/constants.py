"""Constants to the last bit: TVM writes seven digits of them into OpenCL C and WGSL.

A pass behind TVM's, which look for constants such as the least number that a maximum begins with.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from leakyforge.kernels.gpu.barriers import AdvanceBarriers
from leakyforge.runtime.manifest import OPENCL, WEBGPU

# Name of the pipeline for `tirx.build`.
PIPELINE = "leakyforge-device"
# Of each width, the integer with the same bits and OpenCL's function that takes them for a number.
# Seven digits are enough for float16.
_BITS = {"float32": ("int32", "as_float"), "float64": ("int64", "as_double")}


@tirx.transform.prim_func_pass(opt_level=0)
class _KeepConstants:
    """Pass over kernels: a constant is a bit pattern where seven digits are another number.

    CUDA's source has all digits.
    """

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        kind = str(function.attrs["target"].kind.name)
        if kind not in (OPENCL, WEBGPU):
            return function
        return tvm_ffi.structural_mutate(
            function,
            [
                (tirx.FloatImm, lambda constant, _: _exact(constant, kind)),
                (tirx.IntImm, lambda constant, _: _least(constant) if kind == WEBGPU else constant),
            ],
        )


def _exact(constant: tirx.FloatImm, kind: str) -> Any:
    """The constant, or the expression that gives it."""
    dtype = str(constant.ty.dtype)
    if dtype not in _BITS:
        return constant
    value, (integer, call) = np.dtype(dtype).type(constant.value), _BITS[dtype]
    if np.isinf(value) and kind == WEBGPU:
        # WGSL has no way to write it.
        return tirx.FloatImm(dtype, float(np.copysign(np.finfo(value.dtype).max, value)))
    if value.dtype.type(f"{value:e}") == value or not np.isfinite(value):
        return constant
    bits = tirx.IntImm(integer, int(value.view(integer)))
    if kind == OPENCL:
        # TVM would take the address of the integer, which is no variable.
        return tirx.call_pure_extern(dtype, call, bits)
    return tirx.reinterpret(dtype, bits)


def _least(constant: tirx.IntImm) -> Any:
    """The constant; the least int32 by its bits, as WGSL's literals have their sign outside."""
    if str(constant.ty.dtype) == "int32" and constant.value == np.iinfo("int32").min:
        return tirx.reinterpret("int32", tirx.const(1 << 31, "uint32"))
    return constant


def _pipeline() -> tuple[object, Callable[[], object], Callable[[], object]]:
    """TVM's pipeline, and our passes behind it."""
    lower, finalize_host, finalize_device = default_s_tir_pipeline()
    return (
        lower,
        finalize_host,
        lambda: tvm.transform.Sequential([finalize_device(), AdvanceBarriers(), _KeepConstants()]),
    )


register_tir_pipeline(PIPELINE, _pipeline)
