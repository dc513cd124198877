"""Direct convolution with few output channels: vectors run along the input channels.

A tile of `conv2d` would leave most lanes of its vectors empty where there are three output channels
(the last layer of a super-resolution network) or one (a vocoder, a discriminator). Here each lane
sums a share of the input channels, and the lanes are added up at the end, by halves:

    partial[n, y, x, c, l] = sum over i, j, k of data[n, y*s + i*d, x*s + j*d, k*L + l]
                                                 * weight[i, j, k, c, l]
    conv[n, y, x, c]       = sum over l of partial[n, y, x, c, l]       in L - 1 additions

    before   for n, y, x, c:  for i, j, k:  conv +=        for n, y, x, c:  bias, LeakyRelu, ...
    after    parallel rows:  for x tile:
                 for i, j, k:  unrolled pixels, channels; vector lanes:  partial +=   (registers)
                 unrolled:  add up the lanes;  bias, LeakyRelu, ... -> memory

FLOPs: those of the definition, and L - 1 additions for each output. Bytes: input and output once,
weights from the first-level cache.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te

from leakyforge.kernels.conv2d import Conv2dShape, bound_by_weights, padded_source
from leakyforge.kernels.schedules import (
    PARALLEL_WORK,
    NoMatch,
    block_names,
    inline_consumers,
    inline_producers,
    read_config,
    schedule_elementwise,
    total_work,
    vectorize_and_unroll,
)
from leakyforge.kernels.target import CpuTarget

BLOCK = "leakyforge_conv2d_dot"
CONFIG = "leakyforge.conv2d_dot"
FOLD = "fold"
# Cycles to add up the lanes of one output: 22 to 38 on Zen 4 with 16 lanes, 5 to 8 on Zen 3 with 8.
_FOLD_CYCLES, _WIDE_FOLD_CYCLES = 8.0, 30.0


@dataclass(frozen=True)
class DotConfig:
    """Tile sizes of a convolution with few output channels.

    Attributes:
        columns: output columns in a tile.
        channels: output channels, all of them in every tile.
        lanes: elements in a vector, a power of two.
        registers: vector registers that the tile may use, less those for weights and input.
    """

    columns: int
    channels: int
    lanes: int
    registers: int

    def __post_init__(self) -> None:
        """Check the register budget."""
        if self.columns * self.channels > self.registers:
            raise ValueError(f"{self.columns * self.channels} accumulators exceed the registers")


def dot_config(shape: Conv2dShape, target: CpuTarget) -> DotConfig | NoMatch:
    """Tile sizes, or why the vectors run along the output channels."""
    lanes = target.lane_choices(shape.itemsize)[0]
    if shape.in_channels % lanes:
        return NoMatch(f"its input channels are no multiple of {lanes}")
    # With more channels, the lanes that a tile of output channels leaves empty cost less than
    # adding up.
    if 4 * shape.out_channels > 3 * lanes:
        return NoMatch("its output channels fill most of a vector")
    weights = min(shape.out_channels, target.vector_registers // 4)
    budget = target.vector_registers - weights - target.load_registers
    limit = budget // shape.out_channels
    # Whole tiles only.
    columns = max(c for c in range(1, limit + 1) if shape.out_width % c == 0)
    return DotConfig(columns, shape.out_channels, lanes, budget)


def dot_cycles(shape: Conv2dShape, config: DotConfig, target: CpuTarget) -> float:
    """Estimated cycles of the whole convolution, with all cores at work; as `estimated_cycles`."""
    accumulators = config.columns * config.channels
    each = max(8 * config.lanes * shape.itemsize / target.multiply_add_bits, 0.5)
    steps = math.prod(shape.kernel) * shape.in_channels // config.lanes
    step = max(accumulators * each, (config.columns + config.channels) / 2, 4.0)
    folds = (_WIDE_FOLD_CYCLES if config.lanes > 8 else _FOLD_CYCLES) * accumulators
    tiles = shape.out_height * math.ceil(shape.out_width / config.columns)
    weights = steps * config.lanes * shape.out_channels * shape.itemsize
    return bound_by_weights(tiles * (steps * step + folds), weights, target)


def pack_dot_weights(weight: npt.NDArray[np.generic], config: DotConfig) -> npt.NDArray[np.generic]:
    """Weights [out][i][j][in] as [i][j][in / lanes][out][lanes]."""
    out_channels, rows, columns, _ = weight.shape
    split = weight.reshape(out_channels, rows, columns, -1, config.lanes)
    return np.ascontiguousarray(split.transpose(1, 2, 3, 0, 4))


def conv2d_dot(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    config: DotConfig,
    note: Mapping[str, str],
    copies: bool = False,
) -> te.Tensor:
    """Convolution over [n, y, x, k] with packed weights; returns [n, y, x, c]; as `conv2d`."""
    (stride_y, stride_x), (step_y, step_x) = shape.strides, shape.dilation
    source = padded_source(data, shape, shape.out_height, shape.out_width, copies)
    lanes = config.lanes
    i = te.reduce_axis((0, shape.kernel[0]), "i")
    j = te.reduce_axis((0, shape.kernel[1]), "j")
    k = te.reduce_axis((0, shape.in_channels // lanes), "k")
    total = te.compute(
        (data.shape[0], shape.out_height, shape.out_width, shape.out_channels, lanes),
        lambda n, y, x, c, lane: te.sum(
            source[n, y * stride_y + i * step_y, x * stride_x + j * step_x, k * lanes + lane]
            * packed[i, j, k, c, lane],
            axis=[i, j, k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    folded = te.compute(total.shape[:-1], functools.partial(_fold, total, lanes), name=FOLD)
    return te.compute(folded.shape, lambda *index: folded(*index), name="crop")


def _fold(total: te.Tensor, lanes: int, *index: ir.Expr) -> ir.Expr:
    """The lanes, added up by halves."""
    terms = [total[(*index, lane)] for lane in range(lanes)]
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [low + high for low, high in zip(terms[:half], terms[half:], strict=True)]
    return terms[0]


def schedule_conv2d_dot(schedule: s_tir.Schedule, config: DotConfig) -> None:
    """Schedule a function that holds one `conv2d_dot` and elementwise blocks around it.

    1. Inline what comes before the sum except its padding, and the epilogue into its last block.
    2. Tile the last block's columns.
    3. Compute the sum and add up its lanes for each tile, in registers: pixels and channels
       unrolled, lanes as vectors.
    4. Run the loop over tiles in parallel where the work pays for the threads.
    5. Initialise the tile before the reduction, in registers as well.
    6. Pad in parallel, by rows.
    """
    block = schedule.get_sblock(BLOCK)
    # 1
    pads = inline_producers(schedule, block, keep="pad")
    fold = schedule.get_sblock(FOLD)
    last = inline_consumers(schedule, fold)
    # 2
    work = total_work(schedule, block)
    # Of a product of matrices or a convolution of one dimension, the last block has fewer axes.
    *outer, x, _ = schedule.get_loops(last)
    x_outer, _ = schedule.split(x, [None, config.columns])
    parallel = schedule.fuse(*outer, x_outer)
    # 3
    for stage in (fold, block):
        schedule.compute_at(stage, parallel, preserve_unit_loops=True)
        schedule.set_scope(stage, 0, "local")
    *tile, i, j, k = schedule.get_loops(block)[1:]
    schedule.reorder(i, j, k, *tile)
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(tile[-1])
    # 4
    if work >= PARALLEL_WORK:
        schedule.parallel(parallel)
    # 5
    initial = schedule.decompose_reduction(block, i)
    for stage, lanes in ((initial, config.lanes), (fold, 1), (last, 1)):
        vectorize_and_unroll(schedule, schedule.get_loops(stage)[1:], lanes)
    # 6
    for pad in pads:
        schedule_elementwise(schedule, pad, config.lanes)


def match_conv2d_dot(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `conv2d_dot`, by the tile that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no convolution with few output channels")
    schedule_conv2d_dot(schedule, read_config(schedule, BLOCK, CONFIG, DotConfig))
    return None
