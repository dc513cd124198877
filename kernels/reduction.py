"""Reductions and what is computed from them, row by row: softmax, normalisations, means.

Such a function is a chain of stages over one tensor, for instance of softmax

    maximum[r] = max over k of x[r, k]          power[r, k] = exp(x[r, k] - maximum[r])
    total[r] = sum over k of power[r, k]        y[r, k] = power[r, k] / total[r]

    before   for r, k:  maximum       for r, k:  power       for r, k:  total       for r, k:  y
    after    parallel r:  for k:  maximum   for k:  power   for k:  total   for k:  y

so that a row stays in the first-level cache from its first stage to its last. Where a row is
contiguous, its sum is taken by lanes, which are added up at the end by halves; elsewhere the lanes
are neighbouring rows, as many as fill a vector.

Bytes: input and output once, where a row fits the cache.
"""

import math

from tvm import ir, s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.elementary import count_calls
from leakyforge.kernels.schedules import (
    PARALLEL_WORK,
    NoMatch,
    is_reduction,
    lanes_of,
    loop_extent,
    total_work,
    vectorize_and_unroll,
    vectorize_last,
)
from leakyforge.kernels.target import CpuTarget

# An addition has a latency of four cycles: so many vectors are summed side by side.
_CHAINS = 4


def match_reduction(schedule: s_tir.Schedule, target: CpuTarget) -> NoMatch | None:
    """Schedule a function of reductions and elementwise stages around them.

    1. Inline the stages that another one of the same size reads alone.
    2. Where the rows are contiguous, sum by lanes.
    3. Order the output's loops: those over rows, then those along a row, then the lanes.
    4. Compute every other stage for each row.
    5. Run the rows in parallel where the work pays for the threads.
    6. Take vectors along the rows, or across them; initialise before each reduction.
    """
    root = schedule.get_sblock("root")
    blocks = schedule.get_child_blocks(root)
    outputs = [block for block in blocks if not schedule.get_consumers(block)]
    reductions = [block for block in blocks if is_reduction(schedule, block)]
    if not reductions:
        return NoMatch("it does not reduce")
    if len(outputs) != 1:
        return NoMatch(f"it has {len(outputs)} outputs")
    if any(len(schedule.get(block).writes) != 1 for block in reductions):
        return NoMatch("a reduction keeps several values")
    if any(_slides(schedule, block) for block in reductions):
        return NoMatch("it slides a window")
    kinds = set().union(*(_is_along_memory(schedule, block) for block in reductions))
    if len(kinds) != 1:
        return NoMatch("it reduces the innermost axis and others apart")
    (last,) = outputs
    work = max(total_work(schedule, block) for block in reductions)
    lanes = lanes_of(schedule, last, target)
    # 1
    for block in blocks:
        if not schedule.get_loops(block):
            schedule.add_unit_loop(block)
    _inline_single(schedule, blocks)
    # 2
    along = kinds.pop()
    if along:
        for block in reductions:
            _sum_by_lanes(schedule, block, lanes)
    # 3
    row, width = _order_loops(schedule, last, along, lanes)
    # 4
    for block in reversed(schedule.get_child_blocks(root)):
        if schedule.get(block).name_hint != schedule.get(last).name_hint:
            schedule.compute_at(block, row, preserve_unit_loops=True)
    # 5
    if work >= PARALLEL_WORK:
        schedule.parallel(row)
    # 6
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        _vectorize_stage(schedule, block, width)
    return None


def _is_along_memory(schedule: s_tir.Schedule, block: SBlockRV) -> set[bool]:
    """Whether a reduction runs over the innermost axis of what it reads, for each tensor."""
    reduced = [
        variable.var
        for variable in schedule.get(block).iter_vars
        if variable.iter_type == tirx.IterVar.CommReduce
    ]
    return {
        _uses(read.region[-1].min, reduced)
        for read in schedule.get(block).reads
        if any(_uses(index.min, reduced) for index in read.region)
    }


def _slides(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether a reduction reads elements at a sum of what it reduces and of what it keeps."""
    statement = schedule.get(block)
    reduced, kept = (
        [variable.var for variable in statement.iter_vars if variable.iter_type == kind]
        for kind in (tirx.IterVar.CommReduce, tirx.IterVar.DataPar)
    )
    indices = [index.min for read in statement.reads for index in read.region]
    return any(_uses(index, reduced) and _uses(index, kept) for index in indices)


def _uses(expression: ir.Expr, variables: list[tirx.Var]) -> bool:
    """Whether an expression has one of these variables."""
    used = tirx.analysis.undefined_vars(expression)
    return any(variable.same_as(other) for variable in used for other in variables)


def _inline_single(schedule: s_tir.Schedule, blocks: list[SBlockRV]) -> None:
    """Inline elementwise stages that are read once for each of their elements."""
    for block in blocks:
        consumers = schedule.get_consumers(block)
        if is_reduction(schedule, block) or len(consumers) != 1:
            continue
        # LLVM's own vectors suit long code better than the lanes of a sum do.
        is_long = is_reduction(schedule, consumers[0]) and count_calls(schedule.get(block).body)
        if not is_long and total_work(schedule, block) >= total_work(schedule, consumers[0]):
            schedule.compute_inline(block)


def _sum_by_lanes(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Split a reduction into one for each lane, and additions of halves."""
    reduced = _reduced_loops(schedule, block)
    axis = len(schedule.get_loops(block)) - len(reduced)
    loop = schedule.fuse(*reduced)
    extent = loop_extent(schedule, loop)
    if extent is None:
        return
    widths = [width for width in range(1, lanes * _CHAINS + 1) if extent % width == 0]
    # The fullest vectors, and then the most of them; LLVM pads 28 lanes to two vectors of 16.
    width = max(widths, key=lambda width: (width / math.ceil(width / lanes), width))
    _, lane = schedule.split(loop, [None, width])
    if width > 1:
        schedule.rfactor(lane, axis)
    while width % 2 == 0 and width > 2:
        width //= 2
        _, lane = schedule.split(schedule.get_loops(block)[-1], [None, width])
        schedule.rfactor(lane, axis)


def _reduced_loops(schedule: s_tir.Schedule, block: SBlockRV) -> list[LoopRV]:
    """The loops over what a block reduces."""
    if not is_reduction(schedule, block):
        return []
    loops = schedule.get_loops(block)
    statement = schedule.get(loops[-1]).body
    reduced = [
        used
        for variable, value in zip(statement.block.iter_vars, statement.iter_values, strict=True)
        if variable.iter_type == tirx.IterVar.CommReduce
        for used in tirx.analysis.undefined_vars(value)
    ]
    return [
        loop for loop in loops if any(schedule.get(loop).loop_var.same_as(var) for var in reduced)
    ]


def _order_loops(
    schedule: s_tir.Schedule, last: SBlockRV, along: bool, lanes: int
) -> tuple[LoopRV, int]:
    """Put the output's loops over rows outside and fuse them; also the lanes of its vectors."""
    reduced = _reduced_loops(schedule, last)
    spatial = schedule.get_loops(last)[: len(schedule.get_loops(last)) - len(reduced)]
    is_row = _row_axes(schedule, last)
    rows = [loop for loop, row in zip(spatial, is_row, strict=True) if row]
    inside = [loop for loop, row in zip(spatial, is_row, strict=True) if not row]
    across: list[LoopRV] = []
    width = lanes
    if not along:
        inner = rows.pop()
        extent = loop_extent(schedule, inner)
        fitting = (w for w in (lanes, lanes // 2, lanes // 4) if extent and w and extent % w == 0)
        width = next(fitting, 1)
        if width > 1:
            outer, inner = schedule.split(inner, [None, width])
            rows.append(outer)
        across = [inner]
    schedule.reorder(*rows, *inside, *reduced, *across)
    if rows:
        return schedule.fuse(*rows), width
    loops = schedule.get_loops(last)
    return schedule.add_unit_loop(loops[0] if loops else last), width


def _row_axes(schedule: s_tir.Schedule, last: SBlockRV) -> list[bool]:
    """Whether each axis of the output numbers rows: what it reads of earlier stages has it."""
    statement = schedule.get(last)
    axes = [v.var for v in statement.iter_vars if v.iter_type == tirx.IterVar.DataPar]
    stages = [schedule.get(block).writes[0].source for block in schedule.get_producers(last)]
    smaller = [
        read
        for read in statement.reads
        if any(read.source.same_as(stage) for stage in stages)
        and _size(read.source) < _size(statement.writes[0].source)
    ]
    if is_reduction(schedule, last) or not smaller:
        return [True] * len(axes)
    indices = [index.min for read in smaller for index in read.region]
    return [any(_uses(index, [axis]) for index in indices) for axis in axes]


def _size(buffer: tirx.Buffer) -> int:
    """Elements of a buffer, symbolic sizes taken as one."""
    return math.prod(int(size) for size in buffer.shape if isinstance(size, tirx.IntImm))


def _vectorize_stage(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Take vectors over a stage's innermost elements, and initialise it before it is reduced."""
    reduced = _reduced_loops(schedule, block)
    # Without the loop over rows, which the stages share.
    own = schedule.get_loops(block)[1:]
    if not reduced:
        # LLVM vectorises other loops by itself and computes their rest; sums it may not reorder.
        if own and (loop_extent(schedule, own[-1]) or 1) % lanes == 0:
            vectorize_last(schedule, block, lanes)
        return
    names = [schedule.get(loop).loop_var for loop in reduced]
    elements = [
        loop for loop in own if not any(schedule.get(loop).loop_var.same_as(var) for var in names)
    ]
    schedule.reorder(*elements[:-1], *reduced, *elements[-1:])
    _vectorize_lanes(schedule, elements[-1:], lanes)
    initial = schedule.decompose_reduction(block, reduced[0])
    _vectorize_lanes(schedule, schedule.get_loops(initial)[1:][-1:], lanes)
    # Additions of halves: all of it in registers.
    if math.prod(loop_extent(schedule, loop) or _CHAINS for loop in reduced) < _CHAINS:
        for loop in reduced:
            schedule.unroll(loop)


def _vectorize_lanes(schedule: s_tir.Schedule, loops: list[LoopRV], lanes: int) -> None:
    """One vector of a loop of few elements, which may be no multiple of the lanes."""
    for loop in loops:
        extent = loop_extent(schedule, loop)
        if extent is not None and 1 < extent <= lanes * _CHAINS:
            if extent % lanes == 0:
                vectorize_and_unroll(schedule, [loop], lanes)
            else:
                schedule.vectorize(loop)
