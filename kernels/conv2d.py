"""Direct convolution, channels last, with its epilogue in registers.

    conv[n, y, x, c] = sum over i, j, k of data[n, y*s + i*d, x*s + j*d, k] * weight[c, i, j, k]

A tile of output pixels times output channels lives in vector registers while the reduction runs:
for each (i, j, k) the weights of the tile's channels are loaded as vectors and each pixel's input
value is broadcast, so one step is a rank-1 update, as in a GEMM microkernel (Goto and van de
Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008). Weights are
packed at compile time as [channel tile][i][j][k][channel], which makes these loads contiguous.

    before   for n, y, x, c:  for i, j, k:  conv +=        for n, y, x, c:  bias, LeakyRelu, ...
    after    parallel rows:  for x tile, channel tile:
                 for i, j, k:  unrolled pixels, vector channels:  conv +=      (registers)
                 unrolled pixels, vector channels:  bias, LeakyRelu, ... -> memory

Where the weights are the larger part and all pixels of a channel tile fit the stack, they are taken
through one row of the kernel after the other: a row's weights, and the next row's that are on the
way, lie in the second-level cache, a whole channel tile's may not.

FLOPs: 2 * pixels * channels * i * j * k. Bytes: input once for each channel tile, weights once for
each pixel tile, output once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import tvm_ffi
from tvm import s_tir, te, tirx

from leakyforge.kernels.lowering import MOST_PASSES, STACK_BYTES, prefetch_panels
from leakyforge.kernels.schedules import (
    PARALLEL_WORK,
    NoMatch,
    block_names,
    inline_consumers,
    inline_producers,
    loop_extent,
    read_config,
    schedule_elementwise,
    total_work,
    vectorize_and_unroll,
    vectorize_last,
)
from leakyforge.kernels.target import CpuTarget

BLOCK = "leakyforge_conv2d"
# Attribute of the block under which its configuration travels from legalization to the schedule.
CONFIG = "leakyforge.conv2d"
# And the products of the definition, for each step of the outermost axis of its loops.
PRODUCTS = "leakyforge.products"
# Vectors of output channels in a tile.
_VECTORS = range(1, 7)
# Bytes that stay in a core's first-level cache beside its input, and in its second level.
_FIRST_LEVEL_BYTES, _SECOND_LEVEL_BYTES = 16 << 10, 512 << 10
# Bytes that a core takes in a cycle from its second-level cache, and from a shared one.
_SECOND_LEVEL_RATE, _SHARED_LEVEL_RATE = 22, 16
# Weights that every tile of pixels may read again. A loop over channels outside pads the input in a
# launch of its own: in the trials of `tune`, rows outside took 0.6 to 0.98 of the time.
_NEAR_WEIGHTS = 128 << 10
# Cycles of a step of the sum beside its multiply-adds.
_STEP_CYCLES = 0.3
# Accumulators of one vector that LLVM keeps in place on x86-64 with 16 registers. With more, it
# writes each sum over its broadcast input and moves it back through memory, at half the speed. In
# the trials of `tune` (Zen 3), tiles of 7 and 8 were the faster ones still.
_ONE_VECTOR_ACCUMULATORS = 8
# Cycles of the epilogue for a vector of outputs, as wide as `multiply_add_bits`.
_EPILOGUE_CYCLES = 3.0
# Bytes that all cores together read in a cycle, from memory (6 on Zen 4, 8 on Zen 5, of two cores)
# and from a shared cache, and up to which size they are taken to lie there.
_MEMORY_BYTES, _CACHE_BYTES, _SHARED_CACHE = 7.0, 24.0, 8 << 20


@dataclass(frozen=True)
class Conv2dConfig:
    """Tile sizes of a convolution.

    Attributes:
        rows: output rows in a tile.
        columns: output columns in a tile.
        vectors: vectors of output channels in a tile.
        lanes: elements in a vector.
        registers: vector registers that the tile may use, less those for weights and input.
        weights_outer: the loop over channel tiles is outermost and parallel (weights are many, and
            larger than the input), instead of the loop over rows.
    """

    rows: int
    columns: int
    vectors: int
    lanes: int
    registers: int
    weights_outer: bool

    def __post_init__(self) -> None:
        """Check the register budget."""
        if min(self.rows, self.columns, self.vectors, self.lanes) < 1:
            raise ValueError(f"tile sizes must be positive: {self}")
        if self.accumulators > self.registers:
            raise ValueError(f"{self.accumulators} accumulators exceed the registers: {self}")

    @property
    def accumulators(self) -> int:
        """Vector registers that hold the tile."""
        return self.rows * self.columns * self.vectors

    @property
    def channels(self) -> int:
        """Output channels in a tile."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Conv2dShape:
    """Sizes of one convolution, channels last; the batch may be symbolic and is not among them.

    The channels are in `groups`. `transposed_products` are the products of the transposed
    convolution whose phases it computes, if any. Where it is `pooled`, a maximum of 2x2 outputs is
    fused behind it: tiles then hold whole windows. A product of matrices has its rows as pixels of
    one row.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    itemsize: int
    transposed_products: int | None = None
    groups: int = 1
    pooled: bool = False
    is_product: bool = False

    @property
    def products(self) -> int:
        """Products in the sums of the definition."""
        if self.transposed_products is not None:
            return self.transposed_products
        terms = math.prod(self.kernel) * self.in_channels // self.groups
        return self.out_height * self.out_width * self.out_channels * terms

    @property
    def out_height(self) -> int:
        """Output rows."""
        span = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - span) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Output columns."""
        span = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - span) // self.strides[1] + 1


def pointwise_shape(
    height: int, width: int, in_channels: int, out_channels: int, itemsize: int
) -> Conv2dShape:
    """A product at every pixel: a 1x1 convolution of stride 1."""
    return Conv2dShape(
        height, width, in_channels, out_channels, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), itemsize
    )


def heuristic_config(
    shape: Conv2dShape, target: CpuTarget, *, streams_weights: bool | None = None
) -> Conv2dConfig:
    """The tile with the fewest estimated cycles: multiply-adds and loads of whole tiles.

    A core starts two loads of its widest vector in a cycle, and `multiply_add_bits` of sums.

    Args:
        shape: the convolution.
        target: the CPU.
        streams_weights: whether weights come from memory rather than from a cache; by default if
            they are many, and larger than the input. They then want at least two vectors in a
            tile: with one, each load is a cache line from another place, at half the speed.
    """
    streams = _weights_dominate(shape) if streams_weights is None else streams_weights

    def order(config: Conv2dConfig) -> tuple[bool, float, int]:
        cycles = estimated_cycles(shape, config, target)
        return cuts_a_tile(shape, config), cycles, -config.accumulators

    least = 2 if streams else 1
    return min((c for c in direct_configs(shape, target) if c.vectors >= least), key=order)


def direct_configs(shape: Conv2dShape, target: CpuTarget) -> list[Conv2dConfig]:
    """Every tile that fits the registers, weights in the outer loop where they are the larger."""
    weights_outer = _weights_dominate(shape)
    found = []
    # One register for weights per vector, others for the broadcast input.
    for lanes in target.lane_choices(shape.itemsize):
        for vectors in _VECTORS:
            budget = target.vector_registers - vectors - target.load_registers
            found += [
                Conv2dConfig(rows, columns, vectors, lanes, budget, weights_outer)
                for rows, columns in _pixel_tiles(shape, budget // vectors)
            ]
    return found


def cuts_a_tile(shape: Conv2dShape, config: Conv2dConfig) -> bool:
    """Whether the last of several channel tiles is cut: its guard makes all epilogues scalar."""
    return shape.out_channels > config.channels and shape.out_channels % config.channels != 0


def _pixel_tiles(shape: Conv2dShape, limit: int) -> list[tuple[int, int]]:
    """Tiles with at most `limit` pixels; of several rows only where these are whole."""
    if shape.pooled:
        # Whole windows in whole tiles: a cut one would read outputs that no tile computes.
        columns = range(2, max(2, limit // 2) + 1, 2)
        return [(2, each) for each in columns if shape.out_width % each == 0 and 2 * each <= limit]
    tiles = [(1, columns) for columns in range(1, min(limit, shape.out_width) + 1)]
    if shape.out_width < limit:
        most = min(limit // shape.out_width, shape.out_height)
        tiles += [(rows, shape.out_width) for rows in range(2, most + 1)]
    return tiles


def _weights_dominate(shape: Conv2dShape) -> bool:
    weights = shape.out_channels * shape.in_channels * math.prod(shape.kernel)
    inputs = shape.height * shape.width * shape.in_channels
    return weights > inputs and weights * shape.itemsize > _NEAR_WEIGHTS


def estimated_cycles(shape: Conv2dShape, config: Conv2dConfig, target: CpuTarget) -> float:
    """Estimated cycles of a core for one reduction step over the whole output."""
    tiles = (
        math.ceil(shape.out_height / config.rows)
        * math.ceil(shape.out_width / config.columns)
        * math.ceil(shape.out_channels / config.channels)
    )
    bits = 8 * config.lanes * shape.itemsize
    # In cycles for one vector; two start in each, of any width up to the unit's.
    each = max(bits / target.multiply_add_bits, 0.5)
    broadcasts = config.rows * config.columns
    loads = (broadcasts + config.vectors) / 2
    steps = shape.in_channels * math.prod(shape.kernel)
    if config.channels * steps * shape.itemsize > _FIRST_LEVEL_BYTES:
        # Then every tile of pixels reads its weights from a cache further away.
        weights = shape.out_channels * steps * shape.itemsize
        is_near = config.weights_outer or weights <= _SECOND_LEVEL_BYTES
        rate = _SECOND_LEVEL_RATE if is_near else _SHARED_LEVEL_RATE
        loads = max(loads, config.vectors * bits / 8 / rate)
    multiply_adds = config.accumulators * each
    if config.vectors == 1 and config.accumulators > _ONE_VECTOR_ACCUMULATORS:
        multiply_adds *= 2 if target.vector_registers == 16 else 1
    # A multiply-add has a latency of four cycles: fewer accumulators than that leave gaps.
    return tiles * (max(multiply_adds, loads, 4.0) + _STEP_CYCLES)


def direct_cycles(shape: Conv2dShape, config: Conv2dConfig, target: CpuTarget) -> float:
    """Estimated cycles of the whole convolution, with all cores at work."""
    steps = math.prod(shape.kernel) * shape.in_channels
    weights = steps * shape.out_channels * shape.itemsize
    outputs = shape.out_height * shape.out_width * shape.out_channels * shape.itemsize
    epilogue = _EPILOGUE_CYCLES * 8 * outputs / target.multiply_add_bits
    cycles = estimated_cycles(shape, config, target) * steps + epilogue
    return bound_by_weights(cycles, weights, target)


def bound_by_weights(cycles: float, weight_bytes: int, target: CpuTarget) -> float:
    """Cycles of all cores at work, or those in which the weights can be read."""
    return max(cycles / target.num_cores, read_cycles(weight_bytes, weight_bytes))


def read_cycles(read: int, size: int) -> float:
    """Cycles in which all cores together read so many bytes, out of a tensor of a size."""
    return read / (_CACHE_BYTES if size <= _SHARED_CACHE else _MEMORY_BYTES)


def pack_weights(weight: npt.NDArray[np.generic], config: Conv2dConfig) -> npt.NDArray[np.generic]:
    """Weights [out][i][j][in] as [out tile][i][j][in][out in tile], zeros in the last tile."""
    out_channels = weight.shape[0]
    tiles = math.ceil(out_channels / config.channels)
    padded = np.zeros((tiles * config.channels, *weight.shape[1:]), weight.dtype)
    padded[:out_channels] = weight
    split = padded.reshape(tiles, config.channels, *weight.shape[1:])
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1))


def whole(size: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `size`."""
    return math.ceil(size / step) * step


def padded_source(
    data: te.Tensor, shape: Conv2dShape, rows: int, columns: int, copies: bool
) -> te.Tensor:
    """What `rows` x `columns` outputs read: [n, y, x, k] within zeros, or `data` where it suffices.

    `copies` asks for a copy where there is no padding, since reading `data` takes several steps.
    """
    top, left, _, _ = shape.padding
    height = (rows - 1) * shape.strides[0] + (shape.kernel[0] - 1) * shape.dilation[0] + 1
    width = (columns - 1) * shape.strides[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1
    if not (copies or top or left or height > shape.height or width > shape.width):
        return data
    zero = tirx.const(0, data.dtype)
    return te.compute(
        (data.shape[0], height, width, shape.in_channels),
        lambda n, y, x, k: tirx.if_then_else(
            tirx.all(y >= top, y < top + shape.height, x >= left, x < left + shape.width),
            data[n, y - top, x - left, k],
            zero,
        ),
        name="pad",
    )


def conv2d(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    config: Conv2dConfig,
    note: Mapping[str, str],
    copies: bool = False,
) -> te.Tensor:
    """Convolution over [n, y, x, k] with packed weights; returns [n, y, x, c].

    The tile sizes need not divide the output: the sum is taken over whole tiles, of which `crop`
    keeps what is inside. `note` is kept with the sum (`choice.Choice`); `copies` is as in
    `padded_source`.
    """
    batch = data.shape[0]
    (stride_y, stride_x), (step_y, step_x) = shape.strides, shape.dilation
    rows, columns = whole(shape.out_height, config.rows), whole(shape.out_width, config.columns)
    source = padded_source(data, shape, rows, columns, copies)
    i = te.reduce_axis((0, shape.kernel[0]), "i")
    j = te.reduce_axis((0, shape.kernel[1]), "j")
    k = te.reduce_axis((0, shape.in_channels), "k")
    channels = whole(shape.out_channels, config.channels)
    total = te.compute(
        (batch, rows, columns, channels),
        lambda n, y, x, c: te.sum(
            source[n, y * stride_y + i * step_y, x * stride_x + j * step_x, k]
            * packed[c // config.channels, i, j, k, c % config.channels],
            axis=[i, j, k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    return te.compute(
        (batch, shape.out_height, shape.out_width, shape.out_channels),
        lambda n, y, x, c: total[n, y, x, c],
        name="crop",
    )


def schedule_conv2d(schedule: s_tir.Schedule, config: Conv2dConfig) -> None:
    """Schedule a function that holds one `conv2d` and elementwise blocks around it.

    1. Inline what comes before the sum except its padding, and the epilogue into its last block.
    2. Tile the sum; unroll a tile's pixels, vectorise its channels.
    3. Compute the last block on each tile, while the sum is in registers; or on all pixels of a
       channel tile, where these take a row of the kernel at a time.
    4. Run the loops over tiles in parallel where the work pays for the threads: all of them, so
       that threads get equal shares, but not those over channels inside the pixels.
    5. Initialise the tile before the reduction, in registers as well.
    6. Pad in parallel, by rows.
    """
    block = schedule.get_sblock(BLOCK)
    # 1
    pads = inline_producers(schedule, block, keep="pad")
    last = inline_consumers(schedule, block)
    # 2
    n, y, x, c, i, j, k = schedule.get_loops(block)
    work = total_work(schedule, block)
    y_outer, y_inner = schedule.split(y, [None, config.rows])
    x_outer, x_inner = schedule.split(x, [None, config.columns])
    c_outer, c_inner = schedule.split(c, [None, config.channels])
    vector, lane = schedule.split(c_inner, [None, config.lanes])
    tile = [y_inner, x_inner, vector, lane]
    pixels = [n, y_outer, x_outer]
    passes = [loop_extent(schedule, loop) for loop in pixels]
    by_rows = config.weights_outer and _fits_stack(schedule, config, passes, i)
    if by_rows:
        shares, place, sums = [c_outer], c_outer, [j, k]
        schedule.reorder(c_outer, i, *pixels, *sums, *tile)
        schedule.fuse(*pixels)
    elif config.weights_outer:
        shares, place, sums = [c_outer, *pixels], x_outer, [i, j, k]
        schedule.reorder(*shares, *sums, *tile)
    else:
        shares, place, sums = pixels, c_outer, [i, j, k]
        schedule.reorder(*shares, c_outer, *sums, *tile)
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    # 3
    schedule.reverse_compute_at(last, place)
    schedule.set_scope(block, 0, "local")
    # 4
    parallel = schedule.fuse(*shares)
    depth = 1 if config.weights_outer else 2
    if work >= PARALLEL_WORK:
        schedule.parallel(parallel)
    if config.weights_outer:
        prefetch_panels(schedule, sums, passes)
    # 5
    initial = schedule.decompose_reduction(block, i)
    if by_rows:
        # All pixels' zeros and outputs are too many to unroll.
        vectorize_last(schedule, initial, config.lanes)
        vectorize_last(schedule, last, config.lanes)
    else:
        vectorize_and_unroll(schedule, schedule.get_loops(initial)[depth:], config.lanes)
        vectorize_and_unroll(schedule, schedule.get_loops(last)[depth:], config.lanes)
    # 6
    for pad in pads:
        schedule_elementwise(schedule, pad, config.lanes)


def _fits_stack(
    schedule: s_tir.Schedule,
    config: Conv2dConfig,
    passes: Sequence[int | None],
    rows: s_tir.schedule.LoopRV,
) -> bool:
    """Whether the sums of a channel tile's pixels may wait on the stack for the kernel's next row.

    Args:
        schedule: of the convolution.
        config: its tiles.
        passes: sizes of the loops over tiles of pixels.
        rows: the loop over the kernel's rows.
    """
    count = math.prod(size or 0 for size in passes)
    (written,) = schedule.get(schedule.get_sblock(BLOCK)).writes
    itemsize = int(tvm_ffi.dtype(str(written.source.dtype)).bits) // 8
    size = count * config.accumulators * config.lanes * itemsize
    return 1 < count <= MOST_PASSES and size <= STACK_BYTES and loop_extent(schedule, rows) != 1


def match_conv2d(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `conv2d` or a `matmul`, by the tile that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no convolution or product with constant weights")
    schedule_conv2d(schedule, read_config(schedule, BLOCK, CONFIG, Conv2dConfig))
    return None
