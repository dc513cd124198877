"""Winograd convolution F(m x m, r x r): fewer multiplications for kernels of 3x3, and of 2x2.

    Y = A' [ sum over k of (G g G') * (B' d B) ] A'    for each tile d of (m + r - 1) x (m + r - 1)

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1.) A
tile of m x m outputs takes (m + r - 1)^2 multiplications for each pair of channels instead of
m^2 r^2: for F(4, 3) a quarter. G g G' is computed at compile time, in float64.

A convolution of stride 2 is one of stride 1 over the four phases of its input as channels, with a
kernel of half the size: 4x4 becomes 2x2. Transposed convolutions come here as 2x2 ones too.

The matrices, and the error that comes with them, are those of `cook_toom`.
F(6, 3) can be built but is never chosen: it was not faster than F(4, 3) on the layers of RRDBNet
(256x256x64: 3.8 against 3.5 ms) and its error was four to six times as large.

    stage    input          for tiles, channel vectors:  V = B' d B             (registers)
             product        for (m + r - 1)^2 places:  M = V U, register-tiled as in `conv2d`
             output         for tiles, channel vectors:  Y = A' M A, bias, LeakyRelu, ...

Where the transformed weights fit a core's cache, a thread takes a block of tiles through all
stages, padding included, and V and M never leave that cache; elsewhere the stages run one after
the other, and the product reads the weights once. A tile's places lie one after the other in V and
M: with tiles inside of places the strides between places are powers of two, and evict one another.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te, tirx

from leakyforge.kernels.choice import read_choice
from leakyforge.kernels.conv2d import BLOCK as DIRECT
from leakyforge.kernels.conv2d import (
    Conv2dConfig,
    Conv2dShape,
    bound_by_weights,
    estimated_cycles,
    heuristic_config,
    pointwise_shape,
    read_cycles,
    whole,
)
from leakyforge.kernels.cook_toom import combine, cook_toom, transform_kernels
from leakyforge.kernels.lowering import prefetch_panels
from leakyforge.kernels.schedules import (
    NoMatch,
    block_names,
    inline_consumers,
    inline_producers,
    loop_extent,
    read_config,
    schedule_elementwise,
    vectorize_and_unroll,
    vectorize_last,
)
from leakyforge.kernels.target import CpuTarget

BLOCK = "leakyforge_winograd"
CONFIG = "leakyforge.winograd"
# Bytes of transformed weights up to which reading them for every block was not slower than stages
# one after the other, measured on Zen 5 and for AVX2 there.
_CACHED_WEIGHTS = 2 << 20
# Tiles in a block, at least. V and M then fit a second-level cache of 512 KiB, and weights from
# further away are used eight times; those that lie there too are used by fewer tiles,
# whose V and M are nearer (Zen 3: a tenth faster at 32 to 64 channels).
_BLOCK_TILES, _FEW_TILES, _NEAR_WEIGHTS = 8, 4, 384 << 10
# Cycles to transform one place of one vector of channels, for each row of the matrices; measured
# for F(4, 3), with six of them, on Zen 4 and 5.
_TRANSFORM_CYCLES = 1.33
# m to choose from, by r.
_OUTPUTS = {2: (2, 3, 4), 3: (2, 4)}


@dataclass(frozen=True)
class WinogradConfig:
    """Sizes of a Winograd convolution.

    Attributes:
        outputs: m, rows and columns of outputs in a tile.
        kernel: r, rows and columns of the kernel, at stride 1.
        rows: rows of tiles in a register tile of the product.
        columns: columns of tiles in a register tile of the product.
        vectors: vectors of output channels in a register tile of the product.
        lanes: output channels in a vector.
        input_lanes: input channels in a vector.
        registers: vector registers that a register tile may use.
        block: columns of tiles that a thread takes through all stages at a time, a multiple of
            `columns`; 0 where the stages run one after the other.
    """

    outputs: int
    kernel: int
    rows: int
    columns: int
    vectors: int
    lanes: int
    input_lanes: int
    registers: int
    block: int

    def __post_init__(self) -> None:
        """Check the register budget."""
        accumulators = self.rows * self.columns * self.vectors
        if accumulators > self.registers:
            raise ValueError(f"{accumulators} accumulators exceed the registers: {self}")

    @property
    def size(self) -> int:
        """Rows and columns of an input tile."""
        return self.outputs + self.kernel - 1

    @property
    def channels(self) -> int:
        """Output channels in a register tile."""
        return self.vectors * self.lanes


def winograd_configs(
    shape: Conv2dShape, target: CpuTarget, granule: int | None = None
) -> list[WinogradConfig] | NoMatch:
    """Sizes for a convolution, by m and with and without blocks, or why it takes other algorithms.

    Args:
        shape: the convolution.
        target: the CPU.
        granule: input channels that lie together in memory; all of them by default.
    """
    granule = shape.in_channels if granule is None else granule
    stride = shape.strides[0]
    kernel = math.ceil(shape.kernel[0] / stride)
    if (
        shape.kernel not in ((2, 2), (3, 3), (4, 4))
        or shape.strides not in ((1, 1), (2, 2))
        or shape.dilation != (1, 1)
        or kernel * stride != shape.kernel[0]
        or kernel not in _OUTPUTS
    ):
        return NoMatch(
            "Winograd takes 2x2 and 3x3 kernels of stride 1 and 4x4 ones of stride 2, "
            "without dilation"
        )
    narrowest = target.lane_choices(shape.itemsize)[-1]
    if granule % narrowest or shape.out_channels % narrowest:
        return NoMatch(f"Winograd takes channels in multiples of {narrowest}")
    return [
        config
        for outputs in _OUTPUTS[kernel]
        if outputs % 2 == 0 or not shape.pooled
        for config in _configs(shape, target, outputs, kernel, granule)
    ]


def _configs(
    shape: Conv2dShape, target: CpuTarget, outputs: int, kernel: int, granule: int
) -> tuple[WinogradConfig, WinogradConfig]:
    """Sizes for a convolution in tiles of `outputs`, in blocks and without."""
    tiles = tile_shape(shape, outputs)
    product = heuristic_config(tiles, target, streams_weights=True)
    lanes = widest_lanes(shape.out_channels, target, shape.itemsize)
    # Whole vectors and register tiles only: what crops them would be scalar code.
    fitting = (v for v in range(product.vectors, 0, -1) if shape.out_channels % (v * lanes) == 0)
    weights = _weight_bytes(shape, outputs + kernel - 1)
    least = _FEW_TILES if weights <= _NEAR_WEIGHTS else _BLOCK_TILES
    config = WinogradConfig(
        outputs,
        kernel,
        product.rows,
        product.columns,
        next(fitting),
        lanes,
        widest_lanes(granule, target, shape.itemsize),
        product.registers,
        # No wider than the output: what is beyond it would be computed too.
        block=whole(min(math.ceil(least / product.rows), tiles.width), product.columns),
    )
    return config, replace(config, block=0)


def _channels(shape: Conv2dShape) -> int:
    """Input channels of all phases."""
    return math.prod(shape.strides) * shape.in_channels


def _weight_bytes(shape: Conv2dShape, size: int) -> int:
    """Bytes of the transformed weights, in places of `size` x `size`."""
    return size**2 * _channels(shape) * shape.out_channels * shape.itemsize


def winograd_cycles(shape: Conv2dShape, target: CpuTarget, config: WinogradConfig) -> float:
    """Estimated cycles of all stages."""
    tiles = tile_shape(shape, config.outputs)
    product = Conv2dConfig(
        config.rows, config.columns, config.vectors, config.lanes, config.registers, True
    )
    steps = _channels(shape)
    vectors = steps / config.input_lanes + shape.out_channels / config.lanes
    # The last block may reach beyond the output.
    tiles = replace(tiles, width=whole(tiles.width, config.block or config.columns))
    each = estimated_cycles(tiles, product, target) * steps
    each += _TRANSFORM_CYCLES * config.size * tiles.height * tiles.width * vectors
    cycles, weights = config.size**2 * each, _weight_bytes(shape, config.size)
    if not config.block:
        # V and M are written, for which their lines are fetched first, and read again.
        channels = steps + shape.out_channels
        between = config.size**2 * tiles.height * tiles.width * channels * shape.itemsize
        return bound_by_weights(cycles, weights, target) + read_cycles(3 * between, between)
    blocks = math.ceil(tiles.height / config.rows) * math.ceil(tiles.width / config.block)
    reads = 1 if weights <= _CACHED_WEIGHTS else blocks
    # The core with the most blocks is the last to end.
    share = math.ceil(blocks / target.num_cores) / blocks
    return max(cycles * share, read_cycles(reads * weights, weights))


def widest_lanes(channels: int, target: CpuTarget, itemsize: int) -> int:
    """Lanes of the widest vector that divides the channels."""
    return next(lanes for lanes in target.lane_choices(itemsize) if channels % lanes == 0)


def tile_shape(shape: Conv2dShape, outputs: int) -> Conv2dShape:
    """The product at one place of the tiles, as a 1x1 convolution over the grid of tiles."""
    return pointwise_shape(
        math.ceil(shape.out_height / outputs),
        math.ceil(shape.out_width / outputs),
        shape.in_channels,
        shape.out_channels,
        shape.itemsize,
    )


def transform_weights(
    weight: npt.NDArray[np.generic], config: WinogradConfig
) -> npt.NDArray[np.generic]:
    """Weights [out][row][column][in] as [place][out tile][in][out in tile]: G g G', packed.

    For a stride of 2, `in` is of four phases, each of all input channels.
    """
    out_channels, r = weight.shape[0], config.kernel
    stride = weight.shape[1] // r
    phases = weight.reshape(out_channels, r, stride, r, stride, -1)
    weight = phases.transpose(0, 1, 3, 2, 4, 5).reshape(out_channels, r, r, -1)
    transformed = transform_kernels(weight, config.outputs)
    places, out_channels, in_channels = config.size**2, weight.shape[0], weight.shape[3]
    tiles = math.ceil(out_channels / config.channels)
    padded = np.zeros((places, tiles * config.channels, in_channels), weight.dtype)
    padded[:, :out_channels] = transformed.reshape(places, out_channels, in_channels)
    split = padded.reshape(places, tiles, config.channels, in_channels)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2))


def winograd(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    config: WinogradConfig,
    note: Mapping[str, str],
) -> te.Tensor:
    """Convolution over [n, y, x, k] with transformed weights; returns [n, y, x, c]."""
    batch, dtype = data.shape[0], data.dtype
    m, size, stride = config.outputs, config.size, shape.strides[0]
    matrices = cook_toom(m, config.kernel)
    in_channels = shape.in_channels * stride**2
    top, left, _, _ = shape.padding
    rows = whole(math.ceil(shape.out_height / m), config.rows)
    step = config.block or config.columns
    columns = whole(math.ceil(shape.out_width / m), step)
    channels = packed.shape[1] * config.channels

    def padded(n: ir.Expr, y: ir.Expr, x: ir.Expr, k: ir.Expr) -> ir.Expr:
        phase = k // shape.in_channels
        row, column = y * stride + phase // stride, x * stride + phase % stride
        inside = tirx.all(
            row >= top, row < top + shape.height, column >= left, column < left + shape.width
        )
        value = data[n, row - top, column - left, k % shape.in_channels]
        return tirx.if_then_else(inside, value, tirx.const(0, dtype))

    overlap = config.kernel - 1
    source = te.compute(
        (batch, rows * m + overlap, columns * m + overlap, in_channels), padded, name="pad"
    )
    # In both transforms: first the rows of every tile, then its columns.
    half = te.compute(
        (batch, rows, columns, size, size, in_channels),
        lambda n, y, x, i, j, k: combine(
            matrices.input, i, lambda a: source[n, y * m + a, x * m + j, k], dtype
        ),
        name="input_rows",
    )
    transformed = te.compute(
        half.shape,
        lambda n, y, x, i, j, k: combine(
            matrices.input, j, lambda b: half[n, y, x, i, b, k], dtype
        ),
        name="input",
    )
    k = te.reduce_axis((0, in_channels), "k")
    product = te.compute(
        (batch, rows, columns, size * size, channels),
        lambda n, y, x, g, c: te.sum(
            transformed[n, y, x, g // size, g % size, k]
            * packed[g, c // config.channels, k, c % config.channels],
            axis=[k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    half_output = te.compute(
        (m, size, batch, rows, columns, shape.out_channels),
        lambda i, j, n, y, x, c: combine(
            matrices.output, i, lambda a: product[n, y, x, a * size + j, c], dtype
        ),
        name="output_rows",
    )
    tiles = te.compute(
        (m, m, batch, rows, columns, shape.out_channels),
        lambda i, j, n, y, x, c: combine(
            matrices.output, j, lambda b: half_output[i, b, n, y, x, c], dtype
        ),
        name="output",
    )
    return te.compute(
        (batch, shape.out_height, shape.out_width, shape.out_channels),
        lambda n, y, x, c: tiles[y % m, x % m, n, y // m, x // m, c],
        name="crop",
    )


def schedule_winograd(schedule: s_tir.Schedule, config: WinogradConfig) -> None:
    """Schedule a function that holds one `winograd` and elementwise blocks around it.

    1. Inline what comes before the padding, and the epilogue into its last block.
    2. Tile the output; compute its transform for one tile and one vector at a time, in registers.
    3. Tile the product as a convolution is tiled, its sum in registers.
    4. Compute the input's transform for one tile and one vector at a time, in registers.
    5. By rows: compute product and input transform at each row of the output, rows in parallel.
       Else: each stage in parallel, the product over places.
    """
    block, transformed = schedule.get_sblock(BLOCK), schedule.get_sblock("input")
    half, half_output = schedule.get_sblock("input_rows"), schedule.get_sblock("output_rows")
    output = schedule.get_sblock("output")
    # 1
    pads = inline_producers(schedule, half, keep="pad")
    _, rows, _, _ = schedule.get_loops(schedule.get_sblock("crop"))
    height = loop_extent(schedule, rows) or 1
    last = inline_consumers(schedule, output)
    # 2
    n, y, x, c = schedule.get_loops(last)
    # Outputs of a tile in a row, which a pool behind it halves.
    outputs = config.outputs * (loop_extent(schedule, y) or 1) // height
    y_block, y_tile, y_inner = schedule.split(y, [None, config.rows, outputs])
    # Without blocks, one that is as wide as the output.
    columns = config.block or math.ceil((loop_extent(schedule, x) or 1) / outputs)
    x_block, x_tile, x_inner = schedule.split(x, [None, columns, outputs])
    c_outer, lane = schedule.split(c, [None, config.lanes])
    schedule.reorder(n, y_block, x_block, y_tile, x_tile, c_outer, y_inner, x_inner, lane)
    for stage in (output, half_output):
        schedule.compute_at(stage, c_outer, preserve_unit_loops=True)
        schedule.set_scope(stage, 0, "local")
    depth = 6
    for stage in (half_output, output, last):
        vectorize_and_unroll(schedule, schedule.get_loops(stage)[depth:], config.lanes)
    outer = schedule.fuse(n, y_block, x_block)
    schedule.parallel(outer)
    # 3
    if config.block:
        schedule.compute_at(block, outer, preserve_unit_loops=True)
        schedule.compute_at(transformed, outer, preserve_unit_loops=True)
    _schedule_product(schedule, block, config, outer=int(config.block > 0))
    # 4
    _schedule_input(schedule, transformed, half, config, outer=int(config.block > 0))
    # 5
    for pad in pads:
        if config.block:
            schedule.compute_at(pad, outer, preserve_unit_loops=True)
            vectorize_last(schedule, pad, config.input_lanes)
        else:
            schedule_elementwise(schedule, pad, config.input_lanes)


def _schedule_product(
    schedule: s_tir.Schedule,
    block: s_tir.schedule.SBlockRV,
    config: WinogradConfig,
    outer: int,
) -> None:
    """Tile the product like a convolution; `outer` loops around it stay as they are.

    The places are the outermost loop, and run in parallel where no loop around them does.
    """
    n, y, x, g, c, k = schedule.get_loops(block)[outer:]
    y_outer, y_inner = schedule.split(y, [None, config.rows])
    x_outer, x_inner = schedule.split(x, [None, config.columns])
    c_outer, vector, lane = schedule.split(c, [None, config.vectors, config.lanes])
    tile = [y_inner, x_inner, vector, lane]
    schedule.reorder(g, n, c_outer, y_outer, x_outer, k, *tile)
    write = schedule.cache_write(block, 0, "local")
    passes = [loop_extent(schedule, loop) for loop in (y_outer, x_outer)]
    panels = schedule.fuse(c_outer, y_outer, x_outer)
    schedule.reverse_compute_at(write, panels, preserve_unit_loops=True)
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    if outer == 0:
        schedule.parallel(g)
        prefetch_panels(schedule, [k], passes)
    depth = outer + 3
    initial = schedule.decompose_reduction(block, k)
    vectorize_and_unroll(schedule, schedule.get_loops(initial)[depth:], config.lanes)
    vectorize_and_unroll(schedule, schedule.get_loops(write)[depth:], config.lanes)


def _schedule_input(
    schedule: s_tir.Schedule,
    transformed: s_tir.schedule.SBlockRV,
    half: s_tir.schedule.SBlockRV,
    config: WinogradConfig,
    outer: int,
) -> None:
    """Transform one tile and one vector of channels at a time; `outer` loops are around it."""
    n, y, x, i, j, k = schedule.get_loops(transformed)[outer:]
    k_outer, lane = schedule.split(k, [None, config.input_lanes])
    schedule.reorder(n, y, x, k_outer, i, j, lane)
    schedule.compute_at(half, k_outer, preserve_unit_loops=True)
    schedule.set_scope(half, 0, "local")
    for stage in (half, transformed):
        loops = schedule.get_loops(stage)[outer + 4 :]
        vectorize_and_unroll(schedule, loops, config.input_lanes)
    if outer == 0:
        schedule.parallel(schedule.fuse(n, y))


def _declined(schedule: s_tir.Schedule) -> str:
    """Why a function holds no Winograd convolution."""
    if DIRECT not in block_names(schedule):
        return "no convolution with constant weights"
    return read_choice(schedule, DIRECT).reasons()


def match_winograd(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `winograd`, by the sizes that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch(_declined(schedule))
    schedule_winograd(schedule, read_config(schedule, BLOCK, CONFIG, WinogradConfig))
    return None
