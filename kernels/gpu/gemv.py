"""Products of a matrix with a vector: the depth is split among the work items of a group.

    before   for output, depth:  out[output] += matrix[output, depth] * vector[depth]
    after    for outputs in blockIdx:
                 for part of the depth in work items:
                     partial[own output] += matrix * vector       every so many steps of the depth
                 sums[outputs] = partial of all work items, added up in shared memory
                 out[outputs] = epilogue(sums)                    bias, LeakyRelu, residual

The matrix is read once, a line of memory by neighbouring work items in vectors, be it contiguous
along the outputs or along the depth: its bytes are what a product of batch 1 costs.
"""

import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.gpu.limits import VECTOR, DeviceLimits
from leakyforge.kernels.gpu.product import Axis, Product, Run, find_product, inline_epilogue
from leakyforge.kernels.schedules import NoMatch, inline_producers, vectorize_last

# Elements that neighbouring work items read together: 128 bytes of float32, a cache line of GPUs.
_LINE = 32
# More work items would spend longer on adding up than on their parts.
_MOST_THREADS = 256


def match_gemv(schedule: s_tir.Schedule, limits: DeviceLimits) -> NoMatch | None:
    """Schedule a function with one product of a matrix and a vector."""
    product = find_product(schedule)
    if isinstance(product, NoMatch):
        return product
    batch, rows, columns, _ = product.sizes
    if batch > 1:
        return NoMatch("it has several products")
    if (rows == 1) == (columns == 1):
        return NoMatch("its operands are no matrix and a vector")
    threads = min(limits.threads, _MOST_THREADS)
    matrix = product.left if columns == 1 else product.right
    along_depth = matrix.axis is Axis.DEPTH
    _schedule(schedule, product, threads, math.gcd(VECTOR, matrix.length), along_depth=along_depth)
    return None


def _schedule(
    schedule: s_tir.Schedule, product: Product, threads: int, vector: int, *, along_depth: bool
) -> None:
    """Split the depth of a product.

    1. Pad to whole tiles. Neighbours, which read a line of the matrix, differ in their outputs or
       in their parts of the depth, as it lies in memory.
    2. Outputs to work-groups.
    3. Partial sums in registers: each work item its outputs and its part of the depth.
    4. Add up the parts, and let the first work items compute the epilogue.
    """
    block, is_row = product.block, product.sizes[1] == 1
    neighbours = _LINE // vector
    others = threads // neighbours
    # 1
    tile_out, tile_depth = (others, _LINE) if along_depth else (_LINE, others)
    schedule.pad_einsum(block, [1, *((1, tile_out) if is_row else (tile_out, 1)), tile_depth])
    # 2
    _, row, column, depth = schedule.get_loops(block)
    out_lanes, depth_lanes = (1, vector) if along_depth else (vector, 1)
    group, thread, lane = schedule.split(
        column if is_row else row, [None, tile_out // out_lanes, out_lanes]
    )
    step, part, inner = schedule.split(depth, [None, tile_depth // depth_lanes, depth_lanes])
    schedule.reorder(group, thread, lane, part, step, inner)
    schedule.bind(group, "blockIdx.x")
    tags = ("threadIdx.y", "threadIdx.x")
    thread_tag, part_tag = tags if along_depth else tags[::-1]
    # 3
    partial = schedule.rfactor(part, 0)
    schedule.compute_at(partial, group, preserve_unit_loops=True)
    schedule.set_scope(partial, 0, "local")
    parts, *outputs, step, inner = _loops_inside(schedule, partial)
    own, lane = schedule.split(outputs[-1] if is_row else outputs[-2], [None, out_lanes])
    schedule.reorder(own, parts, step, inner, lane)
    schedule.bind(own, thread_tag)
    schedule.bind(parts, part_tag)
    if along_depth:
        _read_in_vectors(schedule, partial, step, (product.left, product.right))
    else:
        inline_producers(schedule, partial, keep="")
    schedule.unroll(inner)
    if out_lanes > 1:
        schedule.vectorize(lane)
    schedule.decompose_reduction(partial, step)
    # 4
    schedule.bind(thread, thread_tag)
    schedule.bind(part, part_tag)
    schedule.set_scope(block, 0, "shared")
    (written,) = schedule.get_consumers(block)
    inline_epilogue(schedule, written)
    schedule.reverse_compute_at(written, group, preserve_unit_loops=True)
    _, other, neighbour = schedule.split(
        schedule.fuse(*_loops_inside(schedule, written)), [None, others, neighbours]
    )
    schedule.bind(other, "threadIdx.y")
    schedule.bind(neighbour, "threadIdx.x")


def _loops_inside(schedule: s_tir.Schedule, block: SBlockRV) -> list[LoopRV]:
    """Loops of a block inside of the one over work-groups."""
    loops = list(schedule.get_loops(block))
    is_bound = [schedule.get(loop).thread_binding is not None for loop in loops]
    return loops[is_bound.index(True) + 1 :]


def _read_in_vectors(
    schedule: s_tir.Schedule, partial: SBlockRV, step: LoopRV, runs: tuple[Run, Run]
) -> None:
    """Read a step's elements into registers: a sum along the depth is no vector, these may be."""
    for index, run in enumerate(runs):
        read = schedule.cache_read(partial, index, "local")
        schedule.compute_at(read, step, preserve_unit_loops=True)
        inline_producers(schedule, read, keep="")
        if run.axis is Axis.DEPTH:
            vectorize_last(schedule, read, math.gcd(VECTOR, run.length))
