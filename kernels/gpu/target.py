"""GPU targets: the language that kernels are written in, and the limits that schedules keep to.

`opencl` is any OpenCL device, `webgpu` any of WebGPU, `cuda:sm_80` NVIDIA's GPUs of an architecture
that nvcc knows.
"""

from dataclasses import dataclass

import tvm

from leakyforge.errors import TargetError
from leakyforge.kernels.gpu.nvcc import architectures
from leakyforge.runtime.manifest import CUDA, OPENCL, WEBGPU

# What every device runs. OpenCL: Khronos, "The OpenCL Specification", 3.0, table 5, gives
# CL_DEVICE_LOCAL_MEM_SIZE at least 32 KiB; groups of 256 work items run on all GPUs in use, and on
# PoCL. CUDA: NVIDIA, "CUDA C++ Programming Guide", technical specifications per compute capability;
# 48 KiB is the most of shared memory that a kernel has without asking for more. WebGPU: W3C,
# "WebGPU", 3.6.2, the limits that every device has.
_LIMITS = {
    OPENCL: {"max_num_threads": 256, "max_shared_memory_per_block": 32 << 10},
    CUDA: {
        "max_num_threads": 1024,
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 48 << 10,
        "registers_per_block": 64 << 10,
        "thread_warp_size": 32,
    },
    WEBGPU: {"max_num_threads": 256, "max_shared_memory_per_block": 16 << 10},
}


@dataclass(frozen=True)
class GpuTarget:
    """A kind of device to compile for.

    Attributes:
        name: of the variant: `opencl`, `webgpu`, or nvcc's name of the architecture.
        machine: what the manifest calls the machine: `opencl`, `webgpu` or `cuda`.
        tvm: TVM's own target, with the limits that schedules keep to.
    """

    name: str
    machine: str
    tvm: tvm.target.Target


def parse_gpu_target(text: str) -> GpuTarget | None:
    """The target of a name, None where it is no GPU's.

    Raises:
        TargetError: nvcc does not know the architecture.
        MissingDependencyError: a CUDA target without nvcc.
    """
    if text in (OPENCL, WEBGPU):
        return GpuTarget(text, text, _tvm_target(text, {}))
    kind, _, architecture = text.partition(":")
    if kind != CUDA:
        return None
    known = architectures()
    if architecture not in known:
        names = ", ".join(f"{CUDA}:{name}" for name in known)
        raise TargetError(f"nvcc knows no architecture for target {text!r}; use one of: {names}")
    return GpuTarget(architecture, CUDA, _tvm_target(CUDA, {"arch": architecture}))


def _tvm_target(kind: str, options: dict[str, str]) -> tvm.target.Target:
    return tvm.target.Target({"kind": kind, **_LIMITS[kind], **options}, host="llvm")
