"""GPU targets: schedules for devices, and launch plans for launchers that have no TVM."""

from leakyforge.kernels.gpu.build import Origin, build_plan
from leakyforge.kernels.gpu.convolutions import lower_convolutions
from leakyforge.kernels.gpu.cubin import build_cubin
from leakyforge.kernels.gpu.rules import schedule_gpu
from leakyforge.kernels.gpu.target import GpuTarget, parse_gpu_target
from leakyforge.kernels.gpu.transposed import split_phases
from leakyforge.kernels.gpu.wgsl import build_wgsl

__all__ = [
    "GpuTarget",
    "Origin",
    "build_cubin",
    "build_plan",
    "build_wgsl",
    "lower_convolutions",
    "parse_gpu_target",
    "schedule_gpu",
    "split_phases",
]
