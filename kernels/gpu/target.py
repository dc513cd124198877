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
        name: of the variant.
        tvm: TVM's own target, with the limits that schedules keep to.
    """

    name: str
    tvm: tvm.target.Target

    @property
    def machine(self) -> str:
        """What the manifest calls the machine."""
        return self.name


def parse_gpu_target(text: str) -> GpuTarget | None:
    """The target of a name, None where it is no GPU's."""
    limits = _LIMITS.get(text)
    if limits is None:
        return None
    return GpuTarget(text, tvm.target.Target({"kind": text, **limits}, host="llvm"))
