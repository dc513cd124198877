"""Functions that map elements: activations, additions, concatenations, resizes, paddings.

Where all arrays are used at one index, the axes are forgotten:

    before   for n, c, y, x:  out[n, c, y, x] = f(a[n, c, y, x], b[n, c, y, x])
    after    for group in blockIdx, item in threadIdx:  out[4 * i: 4 * i + 4] = f(a[...], b[...])

Elsewhere the last axis is one of the grid, so that neither it nor what lies along it is computed by
a division, and the others are fused:

    after    for n, c, y in blockIdx.x and threadIdx.y:
                 for x in blockIdx.y and threadIdx.x:  out[n, c, y, 4 * x: 4 * x + 4] = ...

Bytes: each input and the output once. dlight's fallback computes an element in each work item, and
all indices from its number.
"""

import math

import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.gpu.limits import VECTOR, DeviceLimits
from leakyforge.kernels.schedules import (
    NoMatch,
    inline_producers,
    is_flat,
    is_reduction,
    loop_extent,
)

# Work items of a group: several warps, and several groups on a multiprocessor.
THREADS = 256
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def match_elementwise(schedule: s_tir.Schedule, limits: DeviceLimits) -> NoMatch | None:
    """Schedule a function whose blocks all map elements, as one kernel.

    1. Inline what is before the output.
    2. Bind its loops to work-groups and work items.
    3. Vectorise what a work item computes.
    """
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    if any(is_reduction(schedule, block) for block in blocks):
        return NoMatch("it reduces")
    outputs = [block for block in blocks if not schedule.get_consumers(block)]
    if len(outputs) != 1:
        return NoMatch(f"it has {len(outputs)} outputs")
    (block,) = outputs
    loops = schedule.get_loops(block)
    if not loops or None in [loop_extent(schedule, loop) for loop in loops]:
        return NoMatch("it is a scalar, or a size is symbolic")
    # 1
    inline_producers(schedule, block, keep="")
    # 2
    width = VECTOR if takes_vectors(schedule, block) else 1
    if is_flat(schedule, block):
        loops = [schedule.fuse(*loops)]
    lane = bind_rows(schedule, list(loops), min(THREADS, limits.threads), width)
    # 3
    if (loop_extent(schedule, lane) or 1) > 1:
        schedule.vectorize(lane)
    return None


def takes_vectors(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether a block computes the same in vectors.

    TVM's OpenCL is right for vectors of float32 only. A comparison of vectors gives -1 for true
    there: it may choose between two values, and be nothing else.
    """
    statement = schedule.get(block)
    regions = (*statement.reads, *statement.writes)
    choices: list[tirx.Select] = []
    casts: list[tirx.Cast] = []
    tvm_ffi.structural_walk(
        statement.body, [(tirx.Select, choices.append), (tirx.Cast, casts.append)]
    )
    return (
        all(str(region.source.dtype) == "float32" for region in regions)
        and all(isinstance(choice.condition, _COMPARISONS) for choice in choices)
        and all(str(cast.value.ty.dtype) != "bool" for cast in casts)
    )


def bind_rows(schedule: s_tir.Schedule, loops: list[LoopRV], threads: int, width: int) -> LoopRV:
    """Give the last loop, and the others fused, an axis of the grid each.

    Args:
        schedule: of the loops.
        loops: of one block, outermost first.
        threads: of a work-group; as many along the last loop as fill it, the rest along the others.
        width: elements of the last loop for each work item, fewer where these do not divide it.

    Returns:
        The loop over a work item's elements.
    """
    *outer, last = loops
    size = loop_extent(schedule, last) or 1
    width = math.gcd(width, size)
    across = min(threads, _next_power(size // width))
    groups, across_thread, lane = schedule.split(last, [None, across, width])
    rows = schedule.fuse(*outer) if outer else schedule.add_unit_loop(groups)
    along = min(threads // across, _next_power(loop_extent(schedule, rows) or 1))
    row_groups, row_thread = schedule.split(rows, [None, along])
    schedule.reorder(row_groups, groups, row_thread, across_thread, lane)
    # The first axis of a grid may be far longer than the others.
    long, short = (row_groups, groups) if outer else (groups, row_groups)
    schedule.bind(long, "blockIdx.x")
    schedule.bind(short, "blockIdx.y")
    schedule.bind(row_thread, "threadIdx.y")
    schedule.bind(across_thread, "threadIdx.x")
    return lane


def _next_power(number: int) -> int:
    """The least power of two that is not below a number above 0."""
    return 1 << (number - 1).bit_length()
