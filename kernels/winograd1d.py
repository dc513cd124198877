"""Winograd convolution along one axis: kernels of one row or one column, dilated ones too.

    Y = A' [ sum over k of (G g) * (B' d) ]        for each tile d of m + r - 1 positions

The one-dimensional F(m, r) of `winograd`: m outputs take m + r - 1 multiplications for each pair
of channels instead of m r. A long kernel is cut into parts of r = m taps. The input of part s is
the tile s places further on, whose transform is there already, so parts are one more axis of the
sum in the transformed domain:

    M[t] = sum over s, k of (G g_s) * V[t + s],    V[t] = B' d[t],    Y[t] = A' M[t]

An 11-tap kernel takes 21 multiplications for 4 outputs instead of 44. A dilation of D splits the
axis into D interleaved phases, each a convolution without dilation.

    for blocks of tiles of one phase, in parallel:
        pad             the positions of one phase, one after the other    (second-level cache)
        input           for tiles, channel vectors:  V = B' d              (registers)
        product         for m + r - 1 places:  M = V U, register-tiled     (registers)
        output          for tiles, channel vectors:  Y = A' M, bias, LeakyRelu, ...

FLOPs of the product: 2 (m + r - 1) / m * parts * channels for each output. Errors are those of one
transform instead of two: two to three times a direct sum's.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te, tirx

from leakyforge.kernels.conv2d import (
    Conv2dConfig,
    Conv2dShape,
    bound_by_weights,
    estimated_cycles,
    pointwise_shape,
    whole,
)
from leakyforge.kernels.cook_toom import combine, cook_toom
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
from leakyforge.kernels.winograd import widest_lanes

BLOCK = "leakyforge_winograd1d"
CONFIG = "leakyforge.winograd1d"
# (m, r) by the number of taps; longer kernels are cut into parts of four.
_WHOLE = {2: (4, 2), 3: (4, 3), 4: (4, 4), 5: (4, 5)}
_PART = 4
# Lines and tiles of a register tile, four in all at least, and how many of them lie in a block, to
# choose from. Blocks with more than 96 KiB of V and M were slower, and gained nothing from more
# than 64 tiles.
_LINES, _TILES, _BLOCKS, _LEAST_TILES = range(1, 9), range(1, 17), (1, 2, 4, 8), 4
_MOST_TILES, _BLOCK_BYTES = 64, 96 << 10
# Cycles to transform one place of one vector, for a vector as wide as `multiply_add_bits`, and to
# begin a block; measured on Zen 4.
_TRANSFORM_CYCLES, _BLOCK_CYCLES = 5.0, 200.0


@dataclass(frozen=True)
class Winograd1dConfig:
    """Sizes of a convolution along one axis.

    Attributes:
        outputs: m, outputs in a tile.
        kernel: r, taps of a part.
        parts: parts of the kernel.
        axis: 0 for a kernel of one column, 1 for one of one row.
        dilation: phases of the axis.
        lines: lines along the axis in a register tile of the product, a divisor of their number.
        tiles: tiles of each line in a register tile.
        vectors: vectors of output channels in a register tile.
        lanes: output channels in a vector.
        input_lanes: input channels in a vector.
        registers: vector registers that a register tile may use.
        block: tiles of each line that a thread takes through all stages at a time, a multiple of
            `tiles`.
    """

    outputs: int
    kernel: int
    parts: int
    axis: int
    dilation: int
    lines: int
    tiles: int
    vectors: int
    lanes: int
    input_lanes: int
    registers: int
    block: int

    def __post_init__(self) -> None:
        """Check the register budget."""
        accumulators = self.lines * self.tiles * self.vectors
        if accumulators > self.registers:
            raise ValueError(f"{accumulators} accumulators exceed the registers: {self}")
        if self.parts > 1 and self.outputs != self.kernel:
            raise ValueError(f"parts share their tiles only where m = r: {self}")

    @property
    def size(self) -> int:
        """Positions of an input tile."""
        return self.outputs + self.kernel - 1

    @property
    def channels(self) -> int:
        """Output channels in a register tile."""
        return self.vectors * self.lanes


def winograd1d_config(
    shape: Conv2dShape, target: CpuTarget, granule: int
) -> Winograd1dConfig | NoMatch:
    """The sizes with the least estimate, or why the convolution takes other algorithms.

    Args:
        shape: the convolution.
        target: the CPU.
        granule: input channels that lie together in memory.
    """
    if shape.strides != (1, 1):
        return NoMatch("Winograd takes kernels of one row or column with stride 1")
    axis = 0 if shape.kernel[1] == 1 else 1
    if shape.padding[1 - axis] or shape.padding[3 - axis]:
        return NoMatch("Winograd takes no padding across the axis of a kernel of one row or column")
    narrowest = target.lane_choices(shape.itemsize)[-1]
    if granule % narrowest or shape.out_channels % narrowest:
        return NoMatch(f"Winograd takes channels in multiples of {narrowest}")
    configs = winograd1d_configs(shape, target, granule)
    return min(configs, key=lambda config: winograd1d_cycles(shape, target, config))


def winograd1d_configs(
    shape: Conv2dShape, target: CpuTarget, granule: int
) -> list[Winograd1dConfig]:
    """Sizes to choose from for a convolution that `winograd1d_config` takes."""
    axis = 0 if shape.kernel[1] == 1 else 1
    taps = max(shape.kernel)
    outputs, kernel = _WHOLE.get(taps, (_PART, _PART))
    lanes = widest_lanes(shape.out_channels, target, shape.itemsize)
    input_lanes = widest_lanes(granule, target, shape.itemsize)
    each = (outputs + kernel - 1) * (shape.in_channels + shape.out_channels) * shape.itemsize
    most = max(min(_MOST_TILES, _BLOCK_BYTES // each), _LEAST_TILES)
    across = shape.out_width if axis == 0 else shape.out_height
    # Whole vectors and register tiles only: what crops them would be scalar code.
    vectors_fitting = [v for v in (1, 2, 4) if shape.out_channels % (v * lanes) == 0]
    lines_fitting = [count for count in _LINES if across % count == 0]
    configs = []
    for vectors, lines, tiles, blocks in itertools.product(
        vectors_fitting, lines_fitting, _TILES, reversed(_BLOCKS)
    ):
        registers = target.vector_registers - vectors - target.load_registers
        if _LEAST_TILES <= lines * tiles <= registers // vectors and lines * tiles * blocks <= most:
            configs.append(
                Winograd1dConfig(
                    outputs, kernel, math.ceil(taps / kernel), axis, shape.dilation[axis], lines,
                    tiles, vectors, lanes, input_lanes, registers, tiles * blocks,
                )
            )  # fmt: skip
    return configs


def _tiles_shape(shape: Conv2dShape, axis: int, outputs: int) -> Conv2dShape:
    """The product at one place of the tiles, as a 1x1 convolution with the tiles as columns."""
    across, along = shape.out_height, shape.out_width
    if axis == 0:
        across, along = along, across
    dilation = shape.dilation[axis]
    tiles = math.ceil(math.ceil(along / dilation) / outputs)
    return pointwise_shape(
        across * dilation, tiles, shape.in_channels, shape.out_channels, shape.itemsize
    )


def winograd1d_cycles(shape: Conv2dShape, target: CpuTarget, config: Winograd1dConfig) -> float:
    """Estimated cycles of all stages, with all cores at work."""
    tiles = _tiles_shape(shape, config.axis, config.outputs)
    blocks = tiles.height // config.lines * math.ceil(tiles.width / config.block)
    product = Conv2dConfig(
        config.lines, config.tiles, config.vectors, config.lanes, config.registers,
        weights_outer=False,
    )  # fmt: skip
    block = replace(tiles, height=config.lines, width=config.block)
    steps = shape.in_channels * config.parts
    itemsize = shape.itemsize
    inputs = config.lines * (config.block + config.parts - 1) * shape.in_channels * itemsize
    outputs = config.lines * config.block * shape.out_channels * itemsize
    transforms = _TRANSFORM_CYCLES * 8 * (inputs + outputs) / target.multiply_add_bits
    each = config.size * (estimated_cycles(block, product, target) * steps + transforms)
    weights = config.size * config.parts * shape.in_channels * shape.out_channels * itemsize
    # The core with the most blocks is the last to end.
    share = math.ceil(blocks / target.num_cores) * target.num_cores
    return bound_by_weights(share * (each + _BLOCK_CYCLES), weights, target)


def transform_weights1d(
    weight: npt.NDArray[np.generic], config: Winograd1dConfig
) -> npt.NDArray[np.generic]:
    """Weights [out][i][j][in] as [place][out tile][part][in][out in tile]: G g, packed."""
    matrix = cook_toom(config.outputs, config.kernel).kernel
    out_channels, in_channels = weight.shape[0], weight.shape[3]
    taps = weight.reshape(out_channels, -1, in_channels)
    padded = np.zeros((out_channels, config.parts * config.kernel, in_channels))
    padded[:, : taps.shape[1]] = taps
    parts = padded.reshape(out_channels, config.parts, config.kernel, in_channels)
    transformed = np.einsum("gr,osrk->gosk", matrix, parts).astype(weight.dtype)
    split = transformed.reshape(config.size, -1, config.channels, config.parts, in_channels)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2))


def winograd1d(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    config: Winograd1dConfig,
    note: Mapping[str, str],
) -> te.Tensor:
    """Convolution over [n, y, x, k] with transformed weights; returns [n, y, x, c]."""
    batch, dtype, axis = data.shape[0], data.dtype, config.axis
    m, size, phases = config.outputs, config.size, config.dilation
    matrices = cook_toom(m, config.kernel)
    length, lines = shape.height, shape.out_width
    if axis == 1:
        length, lines = shape.width, shape.out_height
    before = shape.padding[axis]
    tiles = whole(_tiles_shape(shape, axis, m).width, config.block)
    input_tiles = tiles + config.parts - 1

    def padded(n: ir.Expr, line: ir.Expr, phase: ir.Expr, q: ir.Expr, k: ir.Expr) -> ir.Expr:
        position = q * phases + phase
        index = (line, position - before) if axis == 1 else (position - before, line)
        inside = tirx.all(position >= before, position < before + length)
        return tirx.if_then_else(inside, data[(n, *index, k)], tirx.const(0, dtype))

    positions = (input_tiles - 1) * m + size
    source = te.compute((batch, lines, phases, positions, shape.in_channels), padded, name="pad")
    transformed = te.compute(
        (batch, lines, phases, input_tiles, size, shape.in_channels),
        lambda n, line, phase, t, g, k: combine(
            matrices.input, g, lambda a: source[n, line, phase, t * m + a, k], dtype
        ),
        name="input",
    )
    s = te.reduce_axis((0, config.parts), "s")
    k = te.reduce_axis((0, shape.in_channels), "k")
    product = te.compute(
        (batch, lines, phases, tiles, size, shape.out_channels),
        lambda n, line, phase, t, g, c: te.sum(
            transformed[n, line, phase, t + s, g, k]
            * packed[g, c // config.channels, s, k, c % config.channels],
            axis=[s, k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    output = te.compute(
        (m, batch, lines, phases, tiles, shape.out_channels),
        lambda i, n, line, phase, t, c: combine(
            matrices.output, i, lambda g: product[n, line, phase, t, g, c], dtype
        ),
        name="output",
    )

    def cropped(n: ir.Expr, y: ir.Expr, x: ir.Expr, c: ir.Expr) -> ir.Expr:
        line, position = (y, x) if axis == 1 else (x, y)
        q = position // phases
        return output[q % m, n, line, position % phases, q // m, c]

    return te.compute(
        (batch, shape.out_height, shape.out_width, shape.out_channels), cropped, name="crop"
    )


def schedule_winograd1d(schedule: s_tir.Schedule, config: Winograd1dConfig) -> None:
    """Schedule a function that holds one `winograd1d` and elementwise blocks around it.

    1. Inline what comes before the padding, and the epilogue into its last block.
    2. Split the axis into blocks, tiles, a tile's outputs and phases; blocks of one phase run in
       parallel. Compute the output's transform for one tile and one vector, in registers.
    3. Compute padding, input transform and product for each block.
    4. Tile the product as a convolution is tiled, its sum in registers.
    5. Transform the input by tiles and vectors, a tile's places unrolled.
    """
    block, transformed = schedule.get_sblock(BLOCK), schedule.get_sblock("input")
    output = schedule.get_sblock("output")
    # 1
    (pad,) = inline_producers(schedule, transformed, keep="pad")
    last = inline_consumers(schedule, output)
    # 2
    work = total_work(schedule, block)
    *lines, c = schedule.get_loops(last)
    along = lines.pop(-1 if config.axis == 1 else -2)
    # A convolution of one dimension has batches only, and lines of 1.
    lines[-1], line = schedule.split(lines[-1], [None, config.lines])
    shares, tile, i, phase = schedule.split(
        along, [None, config.block, config.outputs, config.dilation]
    )
    c_outer, lane = schedule.split(c, [None, config.lanes])
    schedule.reorder(*lines, shares, phase, line, tile, c_outer, i, lane)
    # At one output, not at a tile: TVM finds the phases of several to be all of them.
    schedule.compute_at(output, i, preserve_unit_loops=True)
    schedule.set_scope(output, 0, "local")
    schedule.unroll(i)
    depth = len(lines) + 6
    for stage in (output, last):
        vectorize_and_unroll(schedule, schedule.get_loops(stage)[depth:], config.lanes)
    # 3
    for stage in (block, transformed, pad):
        schedule.compute_at(stage, phase, preserve_unit_loops=True)
    # Not before: what is computed at a fused loop takes all phases.
    outer = schedule.fuse(*lines, shares, phase)
    if work >= PARALLEL_WORK:
        schedule.parallel(outer)
    # 4
    *_, line, _, t, g, c, s, k = schedule.get_loops(block)
    t_outer, t_inner = schedule.split(t, [None, config.tiles])
    c_outer, vector, lane = schedule.split(c, [None, config.vectors, config.lanes])
    schedule.reorder(g, c_outer, t_outer, s, k, line, t_inner, vector, lane)
    write = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(write, t_outer, preserve_unit_loops=True)
    for loop in (line, t_inner, vector):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    depth = len(schedule.get_loops(block)) - len((s, k, line, t_inner, vector, lane))
    initial = schedule.decompose_reduction(block, s)
    for stage in (initial, write):
        vectorize_and_unroll(schedule, schedule.get_loops(stage)[depth:], config.lanes)
    # 5
    *_, g, k = schedule.get_loops(transformed)
    k_outer, lane = schedule.split(k, [None, config.input_lanes])
    schedule.reorder(k_outer, g, lane)
    schedule.unroll(g)
    schedule.vectorize(lane)
    vectorize_last(schedule, pad, config.input_lanes)


def match_winograd1d(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `winograd1d`, by the sizes that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no Winograd convolution along one axis")
    schedule_winograd1d(schedule, read_config(schedule, BLOCK, CONFIG, Winograd1dConfig))
    return None
