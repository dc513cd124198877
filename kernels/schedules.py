"""Schedule rules for functions of any kind, and the steps that rules share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.target import CpuTarget

Config = TypeVar("Config")
Limits = TypeVar("Limits")

# Multiply-adds, or elements, below which waking the other threads costs more than it saves.
PARALLEL_WORK = 1 << 16
# Iterations that give every thread an equal share.
_PARALLEL_ROWS = 64
# Vectors that are reduced side by side: their latency is hidden, and few registers are taken.
_POOL_VECTORS = 4
# Elements of a window from which on it is a loop.
_MOST_TAPS = 16
# Vectors of fewer elements are not worth their loop.
_LEAST_LANES = 4


@dataclass(frozen=True)
class NoMatch:
    """A rule did not apply, and why."""

    reason: str


def first_match(
    function: tirx.PrimFunc,
    rules: Mapping[str, Callable[[s_tir.Schedule, Limits], NoMatch | None]],
    limits: Limits,
    refused: dict[str, str],
) -> tuple[str, tirx.PrimFunc] | None:
    """Schedule a function by the first rule that fits.

    Args:
        function: not scheduled.
        rules: in order; one that fits schedules what it is given and returns None.
        limits: what rules are told of the target.
        refused: takes the reason of each rule that does not apply.

    Returns:
        The rule and what it made of the function; None where none fits.
    """
    for rule, match in rules.items():
        attempt = s_tir.Schedule(tvm.IRModule({"main": function}))
        try:
            no_match = match(attempt, limits)
        except s_tir.ScheduleError as error:
            no_match = NoMatch(f"ScheduleError: {str(error).strip().splitlines()[-1]}")
        except ValueError as error:
            no_match = NoMatch(f"its blocks or loops are not what the rule unpacks: {error}")
        if no_match is None:
            return rule, attempt.mod["main"]
        refused[rule] = no_match.reason
    return None


def block_names(schedule: s_tir.Schedule) -> list[str]:
    """Names of the blocks of the scheduled function; none where it is written as loops."""
    body = schedule.mod["main"].body
    if not isinstance(body, s_tir.SBlockRealize) or body.block.name_hint != "root":
        return []
    root = schedule.get_sblock("root")
    return [str(schedule.get(block).name_hint) for block in schedule.get_child_blocks(root)]


def read_config(schedule: s_tir.Schedule, block: str, key: str, kind: type[Config]) -> Config:
    """The configuration, a dataclass of integers and booleans, that a block carries as `key`."""
    annotation = schedule.get(schedule.get_sblock(block)).annotations[key]
    values: dict[str, Any] = {
        field.name: (bool if field.type is bool else int)(annotation[field.name])
        for field in fields(kind)  # type: ignore[arg-type]
    }
    return kind(**values)


def loop_extent(schedule: s_tir.Schedule, loop: LoopRV) -> int | None:
    """Iterations of a loop, None where they are symbolic."""
    extent = schedule.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def total_work(schedule: s_tir.Schedule, block: SBlockRV) -> int:
    """Iterations of all loops of a block, symbolic ones taken as one."""
    return math.prod(loop_extent(schedule, loop) or 1 for loop in schedule.get_loops(block))


def inline_producers(schedule: s_tir.Schedule, block: SBlockRV, keep: str) -> list[SBlockRV]:
    """Inline every block before `block`, except one of the name `keep`, which is returned."""
    kept = []
    for producer in schedule.get_producers(block):
        kept += inline_producers(schedule, producer, keep)
        if schedule.get(producer).name_hint == keep:
            kept.append(producer)
        else:
            schedule.compute_inline(producer)
    return kept


def inline_consumers(schedule: s_tir.Schedule, block: SBlockRV) -> SBlockRV:
    """Inline every block after `block` into the last one, which is returned."""
    while True:
        consumers = schedule.get_consumers(block)
        inner = [consumer for consumer in consumers if schedule.get_consumers(consumer)]
        if not inner:
            (last,) = consumers
            return last
        schedule.compute_inline(inner[0])


def vectorize_and_unroll(schedule: s_tir.Schedule, loops: Sequence[LoopRV], lanes: int) -> None:
    """Vectorise the last loop where vectors fill it; unroll the others and what is left.

    Vectors are of `lanes` elements, or of half or a quarter of them where only those fill the loop.

    A tile's memory becomes registers only when every index into it is a constant.
    """
    if not loops:
        return
    *outer, last = loops
    extent = loop_extent(schedule, last)
    fitting = [width for width in (lanes, lanes // 2, lanes // 4)
               if width > 1 and extent is not None and extent % width == 0]  # fmt: skip
    if fitting and not _is_guarded(schedule, last):
        vector, lane = schedule.split(last, [None, fitting[0]])
        schedule.vectorize(lane)
        outer.append(vector)
    else:
        outer.append(last)
    for loop in outer:
        schedule.unroll(loop)


def vectorize_last(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Vectorise a block's innermost loop where vectors, or halves or quarters, fill it."""
    last = schedule.get_loops(block)[-1]
    extent = loop_extent(schedule, last)
    for width in (lanes, lanes // 2, lanes // 4):
        if width > 1 and extent is not None and extent % width == 0:
            _, lane = schedule.split(last, [None, width])
            schedule.vectorize(lane)
            return


def _is_guarded(schedule: s_tir.Schedule, loop: LoopRV) -> bool:
    """Whether a condition on the block inside reads the loop: a vector cannot skip lanes."""
    statement = schedule.get(loop)
    variable = statement.loop_var
    while isinstance(statement, tirx.For):
        statement = statement.body
    guards = tirx.analysis.undefined_vars(statement.predicate)
    return any(guard.same_as(variable) for guard in guards)


def schedule_elementwise(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Run a block's outer loops in parallel and its innermost one in vectors.

    1. Split the innermost loop by the lanes, where they divide it.
    2. Fuse the other loops, without the innermost axis where enough are left; run them in parallel
       if there is enough work.
    """
    loops = list(schedule.get_loops(block))
    if not loops:
        return
    extents = [loop_extent(schedule, loop) for loop in loops]
    work = math.prod(extent or 1 for extent in extents)
    # 1
    last = extents[-1]
    if last is not None and last % lanes == 0:
        loops[-1], lane = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(lane)
        outer = loops
    else:
        outer = loops[:-1]
    # 2
    if len(outer) > 1 and math.prod(extent or 1 for extent in extents[:-1]) >= _PARALLEL_ROWS:
        # The channels stay a loop of their own, with conditions and divisions outside of it.
        outer = loops[: len(extents) - 1]
    if outer:
        fused = schedule.fuse(*outer)
        if work >= PARALLEL_WORK or None in extents:
            schedule.parallel(fused)


def schedule_flat(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> bool:
    """Run a block whose arrays are all used at one index in vectors, across its axes.

    For 16 lanes,

        for i, j, k in grid(64, 256, 17): y[i, j, k] = f(x[i, j, k])
    becomes
        for i in parallel(64):
            for v in range(272): y[i, 16 * v: 16 * v + 16] = f(x[i, 16 * v: 16 * v + 16])

    1. Take axes from the last one on, up to the first of an even size: a row. Where sizes in
       between are even too, TVM no longer sees that the divisions of the index cancel out.
    2. Fuse its loops, and those outside.
    3. Where the row is all there is, split off what does not fill a vector; otherwise take narrower
       vectors if only those fill a row.
    4. Vectorise; run in parallel if there is enough work.

    Returns:
        Whether it was scheduled; not where a row has no vectors of four elements.
    """
    loops = list(schedule.get_loops(block))
    work = total_work(schedule, block)
    # 1
    row, outer = 1, len(loops)
    while outer and row % 2:
        outer -= 1
        row *= loop_extent(schedule, loops[outer]) or 1
    whole = row // lanes * lanes
    width = lanes if row == work and whole else math.gcd(lanes, row)
    if width < _LEAST_LANES:
        return False
    # 2
    elements = schedule.fuse(*loops[outer:])
    # 3
    if row == work and whole not in (0, row):
        elements, _ = schedule.loop_partition(elements, [whole, None])
    # 4
    vectors, lane = schedule.split(elements, [None, width])
    schedule.vectorize(lane)
    if outer and work // row >= _PARALLEL_ROWS:
        shared = schedule.fuse(*loops[:outer])
    else:
        shared = vectors if row == work else schedule.fuse(*loops[:outer], vectors)
    if work >= PARALLEL_WORK:
        schedule.parallel(shared)
    return True


def is_flat(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether a block uses arrays of one known shape only, each at the block's own index."""
    statement = schedule.get(block)
    index = [variable.var for variable in statement.iter_vars]
    shape = [variable.dom.extent for variable in statement.iter_vars]
    if not index or not all(isinstance(size, tirx.IntImm) for size in shape):
        return False
    return all(
        len(region.region) == len(index)
        and all(
            part.min.same_as(variable)
            and isinstance(size, tirx.IntImm)
            and int(size) == int(extent)
            for part, variable, size, extent in zip(
                region.region, index, region.source.shape, shape, strict=True
            )
        )
        for region in (*statement.reads, *statement.writes)
    )


def match_elementwise(schedule: s_tir.Schedule, target: CpuTarget) -> NoMatch | None:
    """Schedule a function whose blocks all map elements, as one loop nest over its output."""
    root = schedule.get_sblock("root")
    blocks = schedule.get_child_blocks(root)
    if any(is_reduction(schedule, block) for block in blocks):
        return NoMatch("it reduces")
    outputs = [block for block in blocks if not schedule.get_consumers(block)]
    if len(outputs) != 1:
        return NoMatch(f"it has {len(outputs)} outputs")
    inline_producers(schedule, outputs[0], keep="")
    lanes = lanes_of(schedule, outputs[0], target)
    if not (is_flat(schedule, outputs[0]) and schedule_flat(schedule, outputs[0], lanes)):
        schedule_elementwise(schedule, outputs[0], lanes)
    return None


def match_pool(schedule: s_tir.Schedule, target: CpuTarget) -> NoMatch | None:
    """Schedule one reduction over windows, channels last, such as a pooling.

    1. Inline the padding, and the operators behind the reduction into their last block.
    2. Reduce a few vectors of the innermost axis at a time, in registers where vectors fill it.
    3. Run the outer loops in parallel if there is enough work.
    4. Compute the last block on each tile of vectors, where there is one.
    5. Initialise before the reduction; unroll vectors, and windows of few elements.
    """
    block = only_reduction(schedule)
    if isinstance(block, NoMatch):
        return block
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    if len(schedule.get(block).writes) != 1:
        return NoMatch("its reduction keeps several values")
    outputs = [other for other in blocks if not schedule.get_consumers(other)]
    if len(outputs) != 1:
        return NoMatch(f"it has {len(outputs)} outputs")
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    spatial = sum(kind == tirx.IterVar.DataPar for kind in kinds)
    loops = schedule.get_loops(block)
    if loops[:spatial] and loop_extent(schedule, loops[spatial - 1]) == 1:
        # TVM's reverse_compute_at would find wrong regions for the last block.
        return NoMatch("its innermost axis has one element")
    if spatial < 2 or len(loops) != len(kinds) or tirx.IterVar.CommReduce in kinds[:spatial]:
        return NoMatch("its loops are not output axes and then a window")
    elements = math.prod(loop_extent(schedule, loop) or 1 for loop in loops[:spatial])
    if schedule.get_consumers(block) and total_work(schedule, outputs[0]) != elements:
        return NoMatch("operators of another size are fused behind its reduction")
    # 1
    inline_producers(schedule, block, keep="")
    last = inline_consumers(schedule, block) if schedule.get_consumers(block) else None
    # 2
    *outer, channel = loops[:spatial]
    window = loops[spatial:]
    work = total_work(schedule, block)
    lanes = lanes_of(schedule, block, target)
    extent = loop_extent(schedule, channel) or 0
    is_tiled = extent > 0 and extent % lanes == 0
    if is_tiled:
        vectors = math.gcd(extent // lanes, _POOL_VECTORS)
        tile, inner = schedule.split(channel, [None, vectors * lanes])
        if last is None:
            last = schedule.cache_write(block, 0, "local")
    else:
        tile, inner = schedule.add_unit_loop(channel), channel
    schedule.reorder(*outer, tile, *window, inner)
    # 3
    fused = schedule.fuse(*outer)
    if work >= PARALLEL_WORK:
        schedule.parallel(fused)
    # 4
    if last is not None:
        schedule.reverse_compute_at(last, tile)
        schedule.set_scope(block, 0, "local")
        vectorize_last(schedule, last, lanes)
    # 5
    if is_tiled:
        vectorize_and_unroll(schedule, [inner], lanes)
    initial = schedule.decompose_reduction(block, window[0])
    if is_tiled:
        vectorize_and_unroll(schedule, schedule.get_loops(initial)[-1:], lanes)
    if math.prod(loop_extent(schedule, loop) or _MOST_TAPS for loop in window) < _MOST_TAPS:
        for loop in window:
            schedule.unroll(loop)
    return None


def only_reduction(schedule: s_tir.Schedule) -> SBlockRV | NoMatch:
    """The block that reduces an axis, where there is one."""
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    reductions = [block for block in blocks if is_reduction(schedule, block)]
    if len(reductions) != 1:
        return NoMatch(f"it has {len(reductions)} reductions")
    return reductions[0]


def is_reduction(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether a block reduces an axis."""
    return any(
        variable.iter_type != tirx.IterVar.DataPar for variable in schedule.get(block).iter_vars
    )


def lanes_of(schedule: s_tir.Schedule, block: SBlockRV, target: CpuTarget) -> int:
    """Elements of the block's output in the target's widest vector."""
    dtype = tvm_ffi.dtype(str(schedule.get(block).writes[0].source.dtype))
    return max(1, target.vector_bits // max(8, int(dtype.bits)))
