"""The rules that schedule a function for a GPU: ours in order, then those of TVM's dlight."""

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight

from leakyforge.errors import CompileError
from leakyforge.kernels.gpu.elementwise import match_elementwise
from leakyforge.kernels.gpu.fits import fits
from leakyforge.kernels.gpu.gemm import match_gemm
from leakyforge.kernels.gpu.gemv import match_gemv
from leakyforge.kernels.gpu.limits import DeviceLimits, device_limits
from leakyforge.kernels.gpu.target import GpuTarget
from leakyforge.kernels.gpu.windows import match_windows
from leakyforge.kernels.gpu.winograd import match_winograd
from leakyforge.kernels.pipeline import Decision, is_empty
from leakyforge.kernels.schedules import NoMatch, first_match

Rule = Callable[[s_tir.Schedule, DeviceLimits], NoMatch | None]

# Tried in this order; a rule that fits schedules the function and returns None.
RULES: dict[str, Rule] = {
    "winograd": match_winograd,
    "gemv": match_gemv,
    "gemm": match_gemm,
    "elementwise": match_elementwise,
    "windows": match_windows,
}
# For what is left, TVM's rules.
_DLIGHT = {
    "dlight-matmul": dlight.gpu.Matmul(),
    "dlight-gemv": dlight.gpu.GEMV(),
    "dlight-reduction": dlight.gpu.Reduction(),
    "dlight-general-reduction": dlight.gpu.GeneralReduction(),
    "dlight-fallback": dlight.gpu.Fallback(),
}


def schedule_gpu(module: tvm.IRModule, target: GpuTarget) -> tuple[tvm.IRModule, list[Decision]]:
    """Schedule every function by the first rule that fits.

    Raises:
        CompileError: none does.
    """
    decisions = []
    scheduled = dict(module.functions)
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            name = str(variable.name_hint)
            scheduled[variable], decision = _schedule_function(name, function, target)
            decisions.append(decision)
    return tvm.IRModule(scheduled, attrs=module.attrs), decisions


def _schedule_function(
    name: str, function: tirx.PrimFunc, target: GpuTarget
) -> tuple[tirx.PrimFunc, Decision]:
    """Try the rules on one function."""
    limits = device_limits(target.tvm)
    refused: dict[str, str] = {}
    # Index arithmetic of fused loops would divide by a size of 0.
    rules = {} if is_empty(function) else RULES
    with target.tvm:
        ours = first_match(function, rules, limits, refused)
        if ours is not None:
            return ours[1], Decision(name, ours[0], refused, target.name)
        for rule, dlight_rule in _DLIGHT.items():
            found = dlight_rule.apply(function, target.tvm, False)
            if found is None:
                refused[rule] = "it does not apply"
            elif fits(found.mod["main"], target):
                return found.mod["main"], Decision(name, rule, refused, target.name)
            else:
                refused[rule] = f"it exceeds the limits of {target.name}"
    raise CompileError(f"no schedule rule fits {name}")
