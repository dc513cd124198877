"""Product with a constant matrix by Strassen's algorithm: seven products of half size, not eight.

    A = [A0 A1; A2 A3], B = [B0 B1; B2 B3]:   P_g = (L_g A) (R_g B),   C_q = sum over g of S_qg P_g

Halves are interleaved, rows one by one and columns by register tiles, so that a tile of the result
takes a tile of each product. Zeros fill the last tile of columns.

(Strassen, "Gaussian elimination is not optimal", Numer. Math. 13, 1969.) The sums R_g B of the
constant's quarters are computed at compile time, in float64; one level of recursion. The error is
two to three times that of the definition's sum (Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd ed., section 23.2.2).

    before   for m, n:  for k:  C +=
    after    parallel rows:      V_g = L_g A                        one pass over A
             parallel n tiles, m blocks:
                                 for g:  P_g = V_g U_g, register-tiled as in `conv2d`
                                 for m:  C = S P, bias, LeakyRelu, ...

FLOPs: 7/4 m n k. Bytes: A read once and 7/4 of it written and read, 7/4 of B's, C written once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te

from leakyforge.kernels.conv2d import (
    PRODUCTS,
    Conv2dConfig,
    Conv2dShape,
    bound_by_weights,
    estimated_cycles,
)
from leakyforge.kernels.cook_toom import combine
from leakyforge.kernels.schedules import (
    PARALLEL_WORK,
    NoMatch,
    block_names,
    inline_consumers,
    inline_producers,
    read_config,
    total_work,
    vectorize_and_unroll,
)
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.winograd import widest_lanes

BLOCK = "leakyforge_strassen"
CONFIG = "leakyforge.strassen"

# Of quarters 0 to 3, by rows: for each of the seven products its left and its right sum.
_LEFT = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0],
                  [-1, 0, 1, 0], [0, 1, 0, -1]], np.float64)  # fmt: skip
_RIGHT = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1],
                   [1, 1, 0, 0], [0, 0, 1, 1]], np.float64)  # fmt: skip
# For each quarter of the result the products that it is the sum of.
_RESULT = np.array([[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0],
                    [1, -1, 1, 0, 0, 1, 0]], np.float64)  # fmt: skip
# Vectors of columns in a register tile.
_VECTORS = (1, 2, 3, 4)
# Cycles for one vector, as wide as `multiply_add_bits`, of one of the seven sums.
_SUM_CYCLES = 4.0
# Cycles from a multiply-add to one that adds to its sum. A register tile that takes no longer than
# that waits whenever one of its loads is late: a tenth of the time (Zen 3).
_LATENCY, _WAITING = 4.0, 1.1


@dataclass(frozen=True)
class StrassenConfig:
    """Sizes of a product by Strassen's algorithm.

    Attributes:
        rows: rows in a register tile, a divisor of half the rows.
        vectors: vectors of columns in a register tile, which divide half the columns.
        lanes: columns in a vector.
        input_lanes: elements of the sum in a vector, for the sums of the left matrix.
        registers: vector registers that a register tile may use.
        blocks: of rows, which share the register tiles of a column tile.
    """

    rows: int
    vectors: int
    lanes: int
    input_lanes: int
    registers: int
    blocks: int

    def __post_init__(self) -> None:
        """Check the register budget."""
        if self.rows * self.vectors > self.registers:
            raise ValueError(f"{self.rows * self.vectors} accumulators exceed the registers")

    @property
    def channels(self) -> int:
        """Columns in a register tile."""
        return self.vectors * self.lanes

    @property
    def loads(self) -> float:
        """Loads for each multiply-add."""
        return (self.rows + self.vectors) / (self.rows * self.vectors)


def strassen_configs(shape: Conv2dShape, target: CpuTarget) -> list[StrassenConfig] | NoMatch:
    """Sizes for a product, given as a 1x1 convolution over one row of pixels, or why none fit."""
    narrowest = target.lane_choices(shape.itemsize)[-1]
    if (
        shape.width % 2
        or shape.in_channels % (2 * narrowest)
        or shape.out_channels % (2 * narrowest)
    ):
        return NoMatch(f"halves must be whole, and multiples of {narrowest} but for the rows")
    half = _half(shape)
    lanes = widest_lanes(half.out_channels, target, shape.itemsize)
    input_lanes = widest_lanes(half.in_channels, target, shape.itemsize)
    configs = []
    for vectors in _VECTORS:
        registers = target.vector_registers - vectors - target.load_registers
        for rows in _divisors(half.width, registers // vectors):
            for blocks in _divisors(half.width // rows, target.num_cores):
                config = StrassenConfig(rows, vectors, lanes, input_lanes, registers, blocks)
                configs.append(config)
    return configs


def strassen_config(shape: Conv2dShape, target: CpuTarget) -> StrassenConfig | NoMatch:
    """The sizes of the least estimate, or why none fit."""
    configs = strassen_configs(shape, target)
    if isinstance(configs, NoMatch):
        return configs

    def order(config: StrassenConfig) -> tuple[float, int, float]:
        return strassen_cycles(shape, target, config), config.blocks, config.loads

    return min(configs, key=order)


def _half(shape: Conv2dShape) -> Conv2dShape:
    """Each of the seven products."""
    return replace(
        shape,
        width=shape.width // 2,
        in_channels=shape.in_channels // 2,
        out_channels=shape.out_channels // 2,
    )


def _divisors(number: int, most: int) -> list[int]:
    return [each for each in range(1, min(number, most) + 1) if number % each == 0]


def strassen_cycles(shape: Conv2dShape, target: CpuTarget, config: StrassenConfig) -> float:
    """Estimated cycles of all products and sums, with all cores at work."""
    half = _half(shape)
    tile = Conv2dConfig(
        1, config.rows, config.vectors, config.lanes, config.registers, weights_outer=False
    )
    products = estimated_cycles(half, tile, target) * half.in_channels
    vector_cycles = max(8 * config.lanes * half.itemsize / target.multiply_add_bits, 0.5)
    if tile.accumulators * vector_cycles <= _LATENCY:
        products *= _WAITING
    elements = half.width * (half.in_channels + half.out_channels)
    sums = _SUM_CYCLES * elements * 8 * half.itemsize / target.multiply_add_bits
    weights = 7 * half.in_channels * half.out_channels * half.itemsize
    # The core with the most tiles is the last to end.
    tiles = math.ceil(half.out_channels / config.channels) * config.blocks
    share = math.ceil(tiles / target.num_cores) * target.num_cores / tiles
    return bound_by_weights(7 * share * (products + sums), weights, target)


def strassen_weights(
    weight: npt.NDArray[np.generic], config: StrassenConfig
) -> npt.NDArray[np.generic]:
    """Weights [columns][1][1][inner] as [product][column tile][inner / 2][in tile]: R B, packed."""
    inner, columns = weight.shape[3] // 2, weight.shape[0]
    tiles = math.ceil(columns / (2 * config.channels))
    padded = np.zeros((2 * inner, 2 * tiles * config.channels))
    padded[:, :columns] = weight[:, 0, 0].T
    split = padded.reshape(2, inner, tiles, 2, config.channels)
    quarters = split.transpose(0, 3, 2, 1, 4).reshape(4, tiles, inner, config.channels)
    packed: npt.NDArray[np.generic] = np.einsum("gq,qtkc->gtkc", _RIGHT, quarters)
    return packed.astype(weight.dtype)


def strassen(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    config: StrassenConfig,
    note: Mapping[str, str],
) -> te.Tensor:
    """Product of [1, 1, m, k] with packed sums of a constant; returns [1, 1, m, columns]."""
    rows, inner = shape.width // 2, shape.in_channels // 2
    tiles, channels, dtype = int(packed.shape[1]), config.channels, data.dtype

    def quarter(m: ir.Expr, k: ir.Expr) -> Callable[[int], ir.Expr]:
        return lambda q: data[0, 0, 2 * m + q // 2, q % 2 * inner + k]

    sums = te.compute(
        (rows, 7, inner), lambda m, g, k: combine(_LEFT, g, quarter(m, k), dtype), name="input"
    )
    k = te.reduce_axis((0, inner), "k")
    # Of two rows of the result, which a step of the outermost axis computes.
    products = 4 * inner * shape.out_channels
    product = te.compute(
        (rows, 7, tiles, channels),
        lambda m, g, t, c: te.sum(sums[m, g, k] * packed[g, t, k, c], axis=[k]),
        name=BLOCK,
        attrs={**note, CONFIG: asdict(config), PRODUCTS: str(products)},
    )
    quarters = te.compute(
        (2, 2, rows, tiles, channels),
        lambda i, j, m, t, c: combine(_RESULT, 2 * i + j, lambda g: product[m, g, t, c], dtype),
        name="output",
    )

    def placed(_n: ir.Expr, _y: ir.Expr, m: ir.Expr, n: ir.Expr) -> ir.Expr:
        return quarters[m % 2, n // channels % 2, m // 2, n // (2 * channels), n % channels]

    return te.compute((1, 1, 2 * rows, shape.out_channels), placed, name="placed")


def schedule_strassen(schedule: s_tir.Schedule, config: StrassenConfig) -> None:
    """Schedule a function that holds one `strassen` and elementwise blocks around it.

    1. Inline the views before the sums, and the epilogue into its last block.
    2. Split the output by halves; a tile of columns of both halves, and a block of rows, in
       parallel, its four quarters unrolled and added up in registers.
    3. Compute the seven products of those columns and rows there, in register tiles.
    4. Sum the left matrix's quarters row by row in parallel, before all products.
    """
    block, sums = schedule.get_sblock(BLOCK), schedule.get_sblock("input")
    # 1
    inline_producers(schedule, sums, keep="")
    last = inline_consumers(schedule, block)
    # 2
    parallel = total_work(schedule, block) >= PARALLEL_WORK
    *units, m, n = schedule.get_loops(last)
    m_block, m_inner, m_half = schedule.split(m, [config.blocks, None, 2])
    tile, n_half, vector, lane = schedule.split(n, [None, 2, config.vectors, config.lanes])
    schedule.reorder(tile, m_block, m_inner, vector, m_half, n_half, lane)
    tile = schedule.fuse(*units, tile, m_block)
    if parallel:
        schedule.parallel(tile)
    for loop in (m_half, n_half):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    # 3
    schedule.compute_at(block, tile, preserve_unit_loops=True)
    m, g, t, c, k = schedule.get_loops(block)[1:]
    m_outer, m_inner = schedule.split(m, [None, config.rows])
    vector, lane = schedule.split(c, [None, config.lanes])
    schedule.reorder(g, t, m_outer, k, m_inner, vector, lane)
    write = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(write, m_outer, preserve_unit_loops=True)
    for loop in (m_inner, vector):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    initial = schedule.decompose_reduction(block, k)
    for stage in (initial, write):
        vectorize_and_unroll(schedule, schedule.get_loops(stage)[4:], config.lanes)
    # 4
    m, g, k = schedule.get_loops(sums)
    k_outer, lane = schedule.split(k, [None, config.input_lanes])
    schedule.reorder(m, k_outer, g, lane)
    schedule.unroll(g)
    schedule.vectorize(lane)
    if parallel:
        schedule.parallel(m)


def match_strassen(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `strassen`, by the sizes that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no product by Strassen's algorithm")
    schedule_strassen(schedule, read_config(schedule, BLOCK, CONFIG, StrassenConfig))
    return None
