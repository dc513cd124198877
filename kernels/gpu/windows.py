"""Short sums over windows: pooling, depthwise, grouped and transposed convolutions.

    before   for n, c, y, x, window:  sums[n, c, y, x] += term        in memory
             for n, c, y, x:          out[n, c, y, x] = epilogue(sums[n, c, y, x])
    after    for n, c, y in blockIdx.x and threadIdx.y, x in blockIdx.y and threadIdx.x:
                 for window:  sum += term                              in a register
                 out[n, c, y, x] = epilogue(sum)

Bytes: the windows, of which neighbouring work items share most by the cache, and the output once.
dlight's fallback keeps the sums in memory at each step, and the epilogue is a second kernel.
"""

import math

from tvm import s_tir, tirx

from leakyforge.kernels.gpu.elementwise import THREADS, bind_rows
from leakyforge.kernels.gpu.limits import DeviceLimits
from leakyforge.kernels.gpu.product import inline_epilogue
from leakyforge.kernels.schedules import (
    NoMatch,
    inline_consumers,
    inline_producers,
    loop_extent,
    only_reduction,
    total_work,
)


def match_windows(schedule: s_tir.Schedule, limits: DeviceLimits) -> NoMatch | None:
    """Schedule a function with one reduction, shorter than it has outputs, as one kernel.

    1. Inline what is before and behind the reduction.
    2. Keep its value in a register.
    3. Bind the loops over the outputs to work-groups and work items.
    4. Initialise before the window; compute the epilogue behind it.
    """
    block = only_reduction(schedule)
    if isinstance(block, NoMatch):
        return block
    statement = schedule.get(block)
    if statement.init is None or len(statement.writes) != 1:
        return NoMatch("its reduction keeps several values, or none")
    kinds = [axis.iter_type for axis in statement.iter_vars]
    loops = list(schedule.get_loops(block))
    spatial = kinds.count(tirx.IterVar.DataPar)
    extents = [loop_extent(schedule, loop) for loop in loops]
    if None in extents or len(loops) != len(kinds) or tirx.IterVar.CommReduce in kinds[:spatial]:
        return NoMatch("its loops are not output axes of known sizes and then a window")
    outputs = math.prod(extent or 1 for extent in extents[:spatial])
    window = math.prod(extent or 1 for extent in extents[spatial:])
    if window > outputs:
        return NoMatch(f"its sums are longer ({window}) than they are many ({outputs})")
    # 1
    inline_producers(schedule, block, keep="")
    if schedule.get_consumers(block):
        last = inline_consumers(schedule, block)
        if total_work(schedule, last) != outputs:
            return NoMatch("operators of another size are fused behind its reduction")
    # 2
    written = schedule.cache_write(block, 0, "local")
    inline_epilogue(schedule, written)
    # 3
    lane = bind_rows(schedule, loops[:spatial], min(THREADS, limits.threads), 1)
    # 4
    schedule.reverse_compute_at(written, lane, preserve_unit_loops=True)
    schedule.decompose_reduction(block, loops[spatial])
    return None
