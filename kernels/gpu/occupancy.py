"""Occupancy: how many threads of a kernel a streaming multiprocessor holds at a time.

    warps       = ceil(threads of a block / 32)
    registers   = ceil(32 * registers of a thread / 256) * 256, of a warp
    by registers = 4 * floor(16384 / registers) // warps, since each of the four partitions of a
                   multiprocessor has registers of its own
    by shared   = shared memory of a multiprocessor // (shared memory of a block and what the driver
                  takes of it, in whole units)
    by threads  = most warps // warps
    resident    = 32 * warps * min(by registers, by shared, by threads, most blocks)

Source: NVIDIA, cuda_occupancy.h of the CUDA toolkit 13.0, with which a test compares, and the table
of technical specifications per compute capability in the "CUDA C++ Programming Guide".
"""

from dataclasses import dataclass

_WARP = 32
_PARTITIONS = 4
_PARTITION_REGISTERS = 16 << 10
_REGISTER_UNIT = 256


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a streaming multiprocessor.

    Attributes:
        threads: that it holds.
        blocks: that it holds.
        shared: bytes of shared memory.
        shared_unit: bytes that a block is given at a time.
        shared_reserved: bytes that the driver takes of each block's.
    """

    threads: int
    blocks: int
    shared: int
    shared_unit: int = 128
    shared_reserved: int = 1 << 10


_BY_ARCHITECTURE = {
    "sm_75": Multiprocessor(1024, 16, 64 << 10, 256, 0),
    "sm_80": Multiprocessor(2048, 32, 164 << 10),
    "sm_86": Multiprocessor(1536, 16, 100 << 10),
    "sm_87": Multiprocessor(1536, 16, 164 << 10),
    "sm_89": Multiprocessor(1536, 24, 100 << 10),
    "sm_90": Multiprocessor(2048, 32, 228 << 10),
    "sm_100": Multiprocessor(2048, 32, 228 << 10),
    "sm_103": Multiprocessor(2048, 32, 228 << 10),
    "sm_120": Multiprocessor(1536, 24, 100 << 10),
    "sm_121": Multiprocessor(1536, 24, 100 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """How full a kernel fills a multiprocessor.

    Attributes:
        resident: threads that are on it at a time; 0 where not one block fits.
        share: of the threads that it holds.
        limit: what keeps it from more: "registers", "shared memory", "threads" or "blocks".
    """

    resident: int
    share: float
    limit: str


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> Occupancy | None:
    """Occupancy of a kernel; None for architectures whose limits are not in the table.

    Args:
        architecture: nvcc's name, such as sm_80.
        threads: of a block.
        registers: of a thread, at least 1.
        shared: bytes of a block.
    """
    limits = _BY_ARCHITECTURE.get(architecture)
    if limits is None:
        return None
    warps = -(-threads // _WARP)
    warp_registers = _round_up(_WARP * registers, _REGISTER_UNIT)
    block_shared = _round_up(shared + limits.shared_reserved, limits.shared_unit)
    blocks = {
        "threads": limits.threads // _WARP // warps,
        "blocks": limits.blocks,
        "registers": _PARTITIONS * (_PARTITION_REGISTERS // warp_registers) // warps,
        "shared memory": limits.shared // block_shared if block_shared else limits.blocks,
    }
    limit = min(blocks, key=lambda name: blocks[name])
    resident = _WARP * warps * blocks[limit]
    return Occupancy(resident, resident / limits.threads, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
