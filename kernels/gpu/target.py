"""GPU targets: the language that kernels are written in, and the limits that schedules keep to."""

from dataclasses import dataclass

import tvm

from leakyforge.runtime.manifest import OPENCL

# What every OpenCL device of the embedded profile or better runs: Khronos, "The OpenCL
# Specification", 3.0, table 5, gives CL_DEVICE_LOCAL_MEM_SIZE at least 32 KiB; groups of 256 work
# items run on all GPUs in use, and on PoCL.
_LIMITS = {OPENCL: {"max_num_threads": 256, "max_shared_memory_per_block": 32 << 10}}


@dataclass(frozen=True)
class GpuTarget:
    """A kind of device to compile for.

    Attributes:
        name: of the variant, `opencl`.
        machine: what the manifest calls it.
        max_threads: work items of a group.
        shared_bytes: memory that a group shares.
        tvm: TVM's own target.
    """

    name: str
    machine: str
    max_threads: int
    shared_bytes: int
    tvm: tvm.target.Target


def parse_gpu_target(text: str) -> GpuTarget | None:
    """The target of a name, None where it is no GPU's."""
    limits = _LIMITS.get(text)
    if limits is None:
        return None
    device = {"kind": text, **limits}
    return GpuTarget(
        text,
        text,
        limits["max_num_threads"],
        limits["max_shared_memory_per_block"],
        tvm.target.Target(device, host="llvm"),
    )
