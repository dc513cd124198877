"""Implicit matrix products in tiles of shared memory and registers.

Before, with the operands arranged as matrices (see `product`):

    for row, column, depth:  out[row, column] += left[row, depth] * right[column, depth]

After, for a tile of rows and columns to each work-group and a part of it to each work item:

    for tile in blockIdx:
        sums[own rows, own columns] = 0                                 in registers
        held = own elements of the first step's parts                   in registers
        for step of the depth:
            left_shared, right_shared = held                            read by all work items
            barrier
            held = own elements of the next step's parts
            for k in step:  sums += left_shared[k, own rows] * right_shared[k, own columns]
            barrier
        out[own rows, own columns] = epilogue(sums)                     bias, LeakyRelu, residual

The loads of the next step are on their way during the multiply-adds (CUTLASS, "Efficient GEMM in
CUDA", software pipelining): in ptxas's code for sm_80 and sm_90, LDG stands in front of the FFMAs,
and what waits for it is the next step's STS behind them. A second pair of buffers in shared memory
could save one of the two barriers, but TVM's software pipeline keeps both. A product of one step
holds nothing.

FLOPs: 2 * rows * columns * depth, rows and columns rounded up to tiles. Bytes from global memory:
each operand once for every tile along the other's axis.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm import ir, s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.gpu.elementwise import takes_vectors
from leakyforge.kernels.gpu.limits import VECTOR, WANTED_THREADS, DeviceLimits
from leakyforge.kernels.gpu.product import Axis, Product, Run, find_product, inline_epilogue
from leakyforge.kernels.schedules import NoMatch, inline_producers, loop_extent

# Bytes of the widest element that is added up in a register.
_WORD = 4
# Sums of one work item: with operands and addresses, they fit the 128 registers that leave two
# work-groups of 256 on a multiprocessor of 64 Ki registers.
_MOST_SUMS = 64
# Elements that it holds besides for the next step; with 12, ptxas spilled in a layer of pix2pix.
_MOST_HELD = 10
# More work items wait for each other at more barriers; several groups fill a multiprocessor.
_MOST_THREADS = 256
# Work items that GPUs run in step: of a smaller group, some of them would idle.
_WARP = 32
# What shared and global memory cost, of a multiply-add whose operands are in registers: a load
# from shared memory is issued once for four lanes of the multiply-adds that wait for it.
_SHARED_COST = 0.5
_GLOBAL_COST = 8.0
# Shared memory of one depth begins this far behind a multiple of twice as much, so that stores of
# one row at several depths fall into different banks and vectors stay aligned.
_BANK_OFFSET = VECTOR


@dataclass(frozen=True)
class GemmConfig:
    """Tiles of a product; lanes are the axis that is contiguous in the output, rows the other.

    Attributes:
        row_threads: work items along the rows.
        lane_threads: work items along the lanes.
        rows: of one work item.
        lanes: of one work item.
        depth: of a step.
    """

    row_threads: int
    lane_threads: int
    rows: int
    lanes: int
    depth: int

    @property
    def threads(self) -> int:
        """Work items of a group."""
        return self.row_threads * self.lane_threads

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and lanes of a work-group."""
        return self.row_threads * self.rows, self.lane_threads * self.lanes

    @property
    def held(self) -> int:
        """Elements of a step that a work item loads."""
        return sum(math.ceil(size * self.depth / self.threads) for size in self.tile)

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of a work-group."""
        padded = sum(size + 2 * _BANK_OFFSET for size in self.tile)
        return padded * self.depth * itemsize


def choose_config(
    rows: int, lanes: int, depth: int, batch: int, itemsize: int, limits: DeviceLimits
) -> GemmConfig:
    """The tiles of least cost that the device's limits allow."""
    candidates = _candidates(depth, itemsize, limits)
    return min(candidates, key=lambda config: _cost(config, rows, lanes, batch))


def estimated_products(
    rows: int, lanes: int, depth: int, batch: int, itemsize: int, limits: DeviceLimits
) -> float:
    """Multiply-adds of whole tiles, with what they wait for in their place."""
    config = choose_config(rows, lanes, depth, batch, itemsize, limits)
    steps = math.ceil(depth / config.depth)
    return steps * config.depth * _cost(config, rows, lanes, batch)


def _candidates(depth: int, itemsize: int, limits: DeviceLimits) -> Iterator[GemmConfig]:
    """Tiles within the limits; of equal costs, the first one is taken."""
    threads = min(limits.threads, _MOST_THREADS)
    steps = (16, 8) if depth > 8 else (8,)
    tiles = itertools.product(steps, (16, 8, 4, 2, 1), (32, 16, 8), (8, 4, 2, 1), (8, 4, 2, 1))
    for step, row_threads, lane_threads, rows, lanes in tiles:
        config = GemmConfig(row_threads, lane_threads, rows, lanes, step)
        if (
            config.threads <= threads
            and config.shared_bytes(itemsize) <= limits.shared_bytes
            and rows * lanes * itemsize <= _MOST_SUMS * _WORD
            and config.held * itemsize <= _MOST_HELD * _WORD
        ):
            yield config


def _cost(config: GemmConfig, rows: int, lanes: int, batch: int) -> float:
    """Multiply-adds, with loads in their place, for a device that is busy or waits for work."""
    tile_rows, tile_lanes = config.tile
    groups = batch * math.ceil(rows / tile_rows) * math.ceil(lanes / tile_lanes)
    work = groups * tile_rows * tile_lanes
    shared = _SHARED_COST * (1 / config.rows + 1 / config.lanes)
    loads = _GLOBAL_COST * (1 / tile_rows + 1 / tile_lanes)
    idle = max(1.0, WANTED_THREADS / (groups * config.threads))
    partial = max(1.0, _WARP / config.threads)
    return work * (1 + shared + loads) * idle * partial


def match_gemm(schedule: s_tir.Schedule, limits: DeviceLimits) -> NoMatch | None:
    """Schedule a function with one sum of products, and elementwise operators behind it."""
    product = find_product(schedule)
    if isinstance(product, NoMatch):
        return product
    batch, rows, columns, depth = product.sizes
    if rows == 1 or columns == 1:
        # `pad_einsum` would add up to one sum in all work items along such an axis.
        return NoMatch("an operand is a vector")
    itemsize = _itemsize(schedule, product.block)
    columns_are_lanes = product.output.axis is not Axis.ROW
    along = (rows, columns) if columns_are_lanes else (columns, rows)
    config = choose_config(*along, depth, batch, itemsize, limits)
    schedule_gemm(schedule, product, config, columns_are_lanes=columns_are_lanes)
    return None


def _itemsize(schedule: s_tir.Schedule, block: SBlockRV) -> int:
    """Bytes of a sum."""
    return int(schedule.get(block).writes[0].source.dtype.bits) // 8


def schedule_gemm(
    schedule: s_tir.Schedule, product: Product, config: GemmConfig, *, columns_are_lanes: bool
) -> None:
    """Apply tiles to a product.

    1. Pad the matrices with zeros to whole tiles; the output is cropped where it is written.
    2. Tiles to work-groups and parts of them to work items. A work item's vectors of lanes are
       virtual threads: they lie so far apart that neighbours use vectors side by side.
    3. Sums in registers; the epilogue is computed where they are written.
    4. Both operands' part of a step in shared memory, depth first, read by all work items; what
       each stores there is in its registers before.
    5. Zero the sums before the depth.
    6. Where there are several steps, load the next one between the stores and the multiply-adds.
    """
    block = product.block
    tile_rows, tile_lanes = config.tile
    vector = min(config.lanes, VECTOR)
    # 1
    tiles = (tile_rows, tile_lanes) if columns_are_lanes else (tile_lanes, tile_rows)
    schedule.pad_einsum(block, [1, *tiles, config.depth])
    # 2
    batch, row, column, depth = schedule.get_loops(block)
    if not columns_are_lanes:
        row, column = column, row
    row_block, row_thread, own_row = schedule.split(row, [None, config.row_threads, config.rows])
    lane_block, part, lane_thread, lane = schedule.split(
        column, [None, config.lanes // vector, config.lane_threads, vector]
    )
    step, inner = schedule.split(depth, [None, config.depth])
    schedule.reorder(
        batch, row_block, lane_block, part, row_thread, lane_thread, step, inner, own_row, lane
    )
    # WebGPU has no third axis of the grid to spare.
    schedule.bind(schedule.fuse(batch, row_block), "blockIdx.y")
    schedule.bind(lane_block, "blockIdx.x")
    schedule.bind(part, "vthread.x")
    schedule.bind(row_thread, "threadIdx.y")
    schedule.bind(lane_thread, "threadIdx.x")
    # 3
    written = schedule.cache_write(block, 0, "local")
    if not columns_are_lanes:
        schedule.transform_layout(block, ("write", 0), lambda b, i, j: (b, j, i))
    schedule.reverse_compute_at(written, lane_thread, preserve_unit_loops=True)
    inline_epilogue(schedule, written)
    _schedule_output(schedule, written, product.output, columns_are_lanes=columns_are_lanes)
    # 4
    for index, run in enumerate((product.left, product.right)):
        _share(schedule, block, index, step, run, config)
    schedule.vectorize(lane)
    schedule.unroll(own_row)
    # 5
    schedule.decompose_reduction(block, step)
    # 6
    if _has_several(schedule, step):
        # For each operand its loads and its stores, then the multiply-adds. With the loads behind
        # the stores, TVM needs one set of registers only.
        schedule.annotate(step, "software_pipeline_stage", [0, 1, 0, 1, 1])
        schedule.annotate(step, "software_pipeline_order", [2, 0, 3, 1, 4])


def _has_several(schedule: s_tir.Schedule, loop: LoopRV) -> bool:
    """Whether a loop has more than one iteration."""
    return (loop_extent(schedule, loop) or 1) > 1


def _schedule_output(
    schedule: s_tir.Schedule, block: SBlockRV, run: Run, *, columns_are_lanes: bool
) -> None:
    """Write vectors where the lanes' memory consists of whole ones, in registers' order."""
    row, lane = schedule.get_loops(block)[-2:]
    if not columns_are_lanes:
        row, lane = lane, row
        schedule.reorder(row, lane)
    schedule.unroll(row)
    whole = run.length % VECTOR == 0 and loop_extent(schedule, lane) == VECTOR
    if whole and takes_vectors(schedule, block):
        schedule.vectorize(lane)
    else:
        schedule.unroll(lane)


def _share(
    schedule: s_tir.Schedule,
    block: SBlockRV,
    operand: int,
    step: LoopRV,
    run: Run,
    config: GemmConfig,
) -> None:
    """Read an operand's part of a step into shared memory, in the order of its own memory.

    Neighbouring work items read neighbouring elements, or vectors where rows consist of them.
    """
    shared = schedule.cache_read(block, operand, "shared")
    schedule.compute_at(shared, step, preserve_unit_loops=True)
    inline_producers(schedule, shared, keep="")
    along, depth = schedule.get_loops(shared)[-2:]
    outer, contiguous = (along, depth) if run.axis is Axis.DEPTH else (depth, along)
    schedule.transform_layout(shared, ("write", 0), lambda b, i, k: (b, k, i))
    if run.axis is Axis.DEPTH:
        schedule.storage_align(shared, 0, axis=1, factor=2 * _BANK_OFFSET, offset=_BANK_OFFSET)
    width = math.gcd(VECTOR, run.length, loop_extent(schedule, contiguous) or 1)
    vectors, lane = schedule.split(contiguous, [None, width])
    schedule.reorder(outer, vectors, lane)
    own, row_thread, lane_thread = schedule.split(
        schedule.fuse(outer, vectors), [None, config.row_threads, config.lane_threads]
    )
    schedule.bind(row_thread, "threadIdx.y")
    schedule.bind(lane_thread, "threadIdx.x")
    if width > 1:
        schedule.vectorize(lane)
    if _has_several(schedule, step):
        _hold(schedule, shared, own, config)


def _hold(schedule: s_tir.Schedule, shared: SBlockRV, own: LoopRV, config: GemmConfig) -> None:
    """Load into registers what a block stores to shared memory.

    1. A block of its own for the loads, made when the function is lowered.
    2. Unroll the work item's elements: registers have no index. TVM splits no loop that is unrolled
       before.
    3. Take the tensors as lines: of several axes, TVM would not see that the elements of a vector
       in the next step are neighbours.
    """
    # 1
    schedule.annotate(shared, "tirx.manifest_shared_memory_local_stage", 1)
    # 2
    schedule.annotate(own, "pragma_auto_unroll_max_step", config.held)
    # 3
    for index, region in enumerate(schedule.get(shared).reads):
        shape = [int(size) for size in region.source.shape]
        schedule.transform_layout(shared, ("read", index), _line(shape))


def _line(shape: Sequence[int]) -> Callable[..., ir.Expr]:
    """The map from the axes of a tensor to the place in its memory."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return lambda *index: sum(each * stride for each, stride in zip(index, strides, strict=True))
