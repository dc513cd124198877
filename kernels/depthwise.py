"""Depthwise convolution, and grouped ones with few channels in a group: vectors of groups.

    conv[n, y, x, g*C + c] = sum over i, j, k of data[n, y*s + i*d, x*s + j*d, g*K + k]
                                                 * weight[g*C + c, i, j, k]

Every group has its own K inputs and C outputs, so that no input is broadcast: the lanes of a vector
are groups, of which input, weights and (where K = C = 1) output are contiguous. A tile of output
columns times groups lives in registers; the kernel's taps are unrolled around it, so that a value
that several columns read is loaded once, and weights once for a tile. Weights are packed at compile
time as [group tile][i][j][k][c][group].

    before   for n, y, x, g*C + c:  for i, j, k:  conv +=
             for n, y, x, g*C + c:  bias, LeakyRelu, ...
    after    parallel rows tile, group tile:
                 the padded rows of the input that the tile reads, as [y][x][k][group]   (cache)
                 for y, x tile:
                     unrolled i, j, k, c, columns, vector groups:  conv +=           (registers)
                     unrolled columns, vector channels:  bias, LeakyRelu, ... -> memory

FLOPs: 2 * pixels * G * C * i * j * K. Bytes: input once and the rows that two tiles share twice,
weights once for each tile of rows, output once: about one byte for each two FLOPs of a 3x3 kernel,
so that large images run at the speed of memory.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te, tirx

from leakyforge.kernels.conv2d import Conv2dShape, whole
from leakyforge.kernels.schedules import (
    PARALLEL_WORK,
    NoMatch,
    block_names,
    inline_consumers,
    inline_producers,
    read_config,
    total_work,
    vectorize_and_unroll,
    vectorize_last,
)
from leakyforge.kernels.target import CpuTarget

BLOCK = "leakyforge_depthwise"
CONFIG = "leakyforge.depthwise"
# Multiply-adds of an unrolled tile: about 8 KiB of instructions, of 32 KiB that a core caches.
_MOST_UNROLLED = 1024
# Rows of the input that are padded together: what a second-level cache holds beside the rest.
_PADDED_BYTES = 1 << 17
_MOST_ROWS = 16


@dataclass(frozen=True)
class DepthwiseConfig:
    """Tile sizes of a convolution whose vectors are groups.

    Attributes:
        rows: output rows for which the input is padded together.
        columns: output columns in a tile.
        vectors: vectors of groups in a tile.
        outputs: output channels of a group, all of them in every tile.
        lanes: groups in a vector.
        registers: vector registers that the tile may use, less those for weights and input.
    """

    rows: int
    columns: int
    vectors: int
    outputs: int
    lanes: int
    registers: int

    def __post_init__(self) -> None:
        """Check the register budget."""
        if self.accumulators > self.registers:
            raise ValueError(f"{self.accumulators} accumulators exceed the registers: {self}")

    @property
    def accumulators(self) -> int:
        """Vector registers that hold the tile."""
        return self.columns * self.vectors * self.outputs

    @property
    def groups(self) -> int:
        """Groups in a tile."""
        return self.vectors * self.lanes


def depthwise_config(
    shape: Conv2dShape, groups: int, target: CpuTarget
) -> DepthwiseConfig | NoMatch:
    """Tile sizes, or why the vectors run along the channels of a group instead."""
    outputs = shape.out_channels // groups
    # Half of the registers: weights and inputs that several columns read stay in the others.
    budget = target.vector_registers // 2
    if outputs > budget:
        return NoMatch(f"a group's {outputs} output channels exceed {budget} registers")
    along_groups = _vector_cycles(groups, shape, target) * outputs
    along_channels = _vector_cycles(outputs, shape, target) * groups
    if along_channels <= along_groups:
        return NoMatch("a group's output channels fill the vectors as well as the groups do")
    best: tuple[tuple[bool, float, int], DepthwiseConfig] | None = None
    rows = _padded_rows(shape)
    for lanes in target.lane_choices(shape.itemsize):
        for vectors in (1, 2, 4):
            limit = budget // (vectors * outputs)
            for columns in range(1, min(limit, shape.out_width) + 1):
                config = DepthwiseConfig(rows, columns, vectors, outputs, lanes, budget)
                # Its epilogue's guard would be one on single lanes.
                cut = groups > config.groups and groups % config.groups != 0
                key = (cut, _estimated_cycles(shape, groups, config, target), -columns)
                if best is None or key < best[0]:
                    best = key, config
    assert best is not None
    return best[1]


def _vector_cycles(count: int, shape: Conv2dShape, target: CpuTarget) -> float:
    """Cycles of one multiply-add of `count` values, in the vectors that suit it best."""
    return min(
        math.ceil(count / lanes) * _cycles(lanes, shape, target)
        for lanes in target.lane_choices(shape.itemsize)
    )


def _cycles(lanes: int, shape: Conv2dShape, target: CpuTarget) -> float:
    """Cycles of one multiply-add of a vector; two start in a cycle, of any width that fits."""
    return max(8 * lanes * shape.itemsize / target.multiply_add_bits, 0.5)


def _estimated_cycles(
    shape: Conv2dShape, groups: int, config: DepthwiseConfig, target: CpuTarget
) -> float:
    """Estimated cycles of a core for one tap over a row of the output."""
    tiles = math.ceil(shape.out_width / config.columns) * math.ceil(groups / config.groups)
    # A multiply-add has a latency of four cycles: fewer accumulators than that leave gaps.
    return tiles * max(config.accumulators * _cycles(config.lanes, shape, target), 4.0)


def _padded_rows(shape: Conv2dShape) -> int:
    """Output rows in a tile: what they read of one cache line of channels fits the cache."""
    line = shape.width * max(64, shape.itemsize)
    fitting = _PADDED_BYTES // (line * shape.strides[0])
    # Equal shares of the rows.
    tiles = math.ceil(shape.out_height / max(1, min(fitting, _MOST_ROWS)))
    return math.ceil(shape.out_height / tiles)


def pack_depthwise_weights(
    weight: npt.NDArray[np.generic], groups: int, config: DepthwiseConfig
) -> npt.NDArray[np.generic]:
    """Weights [g*C + c][i][j][k] as [group tile][i][j][k][c][group], zeros in the last tile."""
    _, *taps = weight.shape
    tiles = math.ceil(groups / config.groups)
    padded = np.zeros((tiles * config.groups, config.outputs, *taps), weight.dtype)
    padded[:groups] = weight.reshape(groups, config.outputs, *taps)
    split = padded.reshape(tiles, config.groups, config.outputs, *taps)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 5, 2, 1))


def depthwise(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    groups: int,
    config: DepthwiseConfig,
    note: Mapping[str, str],
    copies: bool = False,
) -> te.Tensor:
    """Grouped convolution over [n, y, x, g*K + k] with packed weights; [n, y, x, g*C + c].

    The tile sizes need not divide the output, as in `conv2d`; `copies` is as in `padded_source`.
    """
    batch, outputs = data.shape[0], config.outputs
    (stride_y, stride_x), (step_y, step_x) = shape.strides, shape.dilation
    rows, columns = whole(shape.out_height, config.rows), whole(shape.out_width, config.columns)
    source = _by_groups(data, shape, groups, config, copies)
    i = te.reduce_axis((0, shape.kernel[0]), "i")
    j = te.reduce_axis((0, shape.kernel[1]), "j")
    k = te.reduce_axis((0, shape.in_channels // groups), "k")
    total = te.compute(
        (batch, rows, columns, outputs, whole(groups, config.groups)),
        lambda n, y, x, c, g: te.sum(
            source[n, y * stride_y + i * step_y, x * stride_x + j * step_x, k, g]
            * packed[g // config.groups, i, j, k, c, g % config.groups],
            axis=[i, j, k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    return te.compute(
        (batch, shape.out_height, shape.out_width, shape.out_channels),
        lambda n, y, x, c: total[n, y, x, c % outputs, c // outputs],
        name="crop",
    )


def _by_groups(
    data: te.Tensor, shape: Conv2dShape, groups: int, config: DepthwiseConfig, copies: bool
) -> te.Tensor:
    """The input as [n, y, x, k, g] within zeros; a view of `data` where that suffices."""
    inputs = shape.in_channels // groups
    top, left, _, _ = shape.padding
    rows, columns = whole(shape.out_height, config.rows), whole(shape.out_width, config.columns)
    height = (rows - 1) * shape.strides[0] + (shape.kernel[0] - 1) * shape.dilation[0] + 1
    width = (columns - 1) * shape.strides[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1
    whole_groups = whole(groups, config.groups)
    cut = top or left or height > shape.height or width > shape.width or whole_groups > groups
    if not (copies or cut or inputs > 1):
        return te.compute(
            (data.shape[0], *data.shape[1:3], 1, groups),
            lambda n, y, x, k, g: data[n, y, x, g],
            name="view",
        )
    zero = tirx.const(0, data.dtype)

    def element(n: ir.Expr, y: ir.Expr, x: ir.Expr, k: ir.Expr, g: ir.Expr) -> ir.Expr:
        inside = [y >= top, y < top + shape.height, x >= left, x < left + shape.width]
        # Spelt out only where it may fail: a condition on the lanes would undo the vectors.
        if whole_groups > groups:
            inside.append(g < groups)
        value = data[n, y - top, x - left, g * inputs + k]
        return tirx.if_then_else(tirx.all(*inside), value, zero)

    return te.compute((data.shape[0], height, width, inputs, whole_groups), element, name="pad")


def schedule_depthwise(schedule: s_tir.Schedule, config: DepthwiseConfig) -> None:
    """Schedule a function that holds one `depthwise` and elementwise blocks around it.

    1. Inline what comes before the sum except its padding, and the epilogue into its last block.
    2. Tile the sum; unroll the taps where they are few, a tile's columns and outputs; vectorise its
       groups.
    3. Compute the last block on each tile, while the sum is in registers.
    4. Pad for each tile of rows and groups.
    5. Run the loops over these in parallel where the work pays for the threads.
    6. Initialise the tile before the reduction, in registers as well.
    """
    block = schedule.get_sblock(BLOCK)
    # 1
    pads = inline_producers(schedule, block, keep="pad")
    last = inline_consumers(schedule, block)
    # 2
    n, y, x, c, g, *taps = schedule.get_loops(block)
    work = total_work(schedule, block)
    y_outer, y_inner = schedule.split(y, [None, config.rows])
    x_outer, x_inner = schedule.split(x, [None, config.columns])
    g_outer, g_inner = schedule.split(g, [None, config.groups])
    vector, lane = schedule.split(g_inner, [None, config.lanes])
    tile = [c, x_inner, vector, lane]
    schedule.reorder(n, y_outer, g_outer, y_inner, x_outer, *taps, *tile)
    unrolled = config.accumulators
    for tap in reversed(taps):
        unrolled *= int(schedule.get(tap).extent)
        if unrolled <= _MOST_UNROLLED:
            schedule.unroll(tap)
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    # 3
    schedule.reverse_compute_at(last, x_outer)
    schedule.set_scope(block, 0, "local")
    # 4
    for pad in pads:
        schedule.compute_at(pad, g_outer, preserve_unit_loops=True)
        vectorize_last(schedule, pad, config.lanes)
    # 5
    parallel = schedule.fuse(n, y_outer, g_outer)
    depth = len(schedule.get_loops(block)) - len((*taps, *tile))
    if work >= PARALLEL_WORK:
        schedule.parallel(parallel)
    # 6
    initial = schedule.decompose_reduction(block, taps[0])
    vectorize_and_unroll(schedule, schedule.get_loops(initial)[depth:], config.lanes)
    vectorize_and_unroll(schedule, schedule.get_loops(last)[depth:], config.lanes)


def match_depthwise(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `depthwise`, by the tile that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no convolution with its groups as lanes")
    schedule_depthwise(schedule, read_config(schedule, BLOCK, CONFIG, DepthwiseConfig))
    return None
