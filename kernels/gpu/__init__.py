"""GPU targets: schedules for devices, and launch plans for launchers that have no TVM."""

from leakyforge.kernels.gpu.build import Origin, build_plan, schedule_gpu
from leakyforge.kernels.gpu.cubin import build_cubin
from leakyforge.kernels.gpu.target import GpuTarget, parse_gpu_target

__all__ = ["GpuTarget", "Origin", "build_cubin", "build_plan", "parse_gpu_target", "schedule_gpu"]
