"""Whether a scheduled function keeps to the limits of its target: dlight's rules do not look."""

import tvm
from tvm import s_tir, tirx

from leakyforge.kernels.gpu.target import GpuTarget

# As far as the buffers of the blocks are allocations of the size that is used.
_LOWER = tvm.transform.Sequential(
    [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)


def fits(function: tirx.PrimFunc, target: GpuTarget) -> bool:
    """Whether threads and shared memory of a block are within the target's limits."""
    lowered = _LOWER(tvm.IRModule({"main": function}))["main"]
    limits = {
        "max_threads_per_block": int(target.tvm.attrs["max_num_threads"]),
        "max_shared_memory_per_block": int(target.tvm.attrs["max_shared_memory_per_block"]),
    }
    return bool(s_tir.analysis.verify_gpu_code(lowered, limits))
