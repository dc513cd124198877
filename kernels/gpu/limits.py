"""What schedules take into account of a device."""

from dataclasses import dataclass

import tvm

# WebGPU's default limits, which every GPU in use exceeds: for targets that say nothing.
_LEAST_THREADS = 256
_LEAST_SHARED_BYTES = 16 << 10
# Work items that keep a GPU of a few dozen multiprocessors busy while others wait for memory.
WANTED_THREADS = 1 << 14
# Elements of a vector load or store: 16 bytes in float32, the widest access of GPUs in use.
VECTOR = 4


@dataclass(frozen=True)
class DeviceLimits:
    """Limits of one work-group.

    Attributes:
        threads: most work items in it.
        shared_bytes: memory that its work items share.
    """

    threads: int
    shared_bytes: int


def device_limits(target: tvm.target.Target) -> DeviceLimits:
    """The limits that a target's attributes give."""
    attributes = target.attrs
    return DeviceLimits(
        int(attributes.get("max_num_threads", _LEAST_THREADS)),
        int(attributes.get("max_shared_memory_per_block", _LEAST_SHARED_BYTES)),
    )
