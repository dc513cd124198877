"""Winograd convolution F(m x m, 3 x 3) in three kernels, channels first.

    V[k, i, j, t] = (B' d B)[i, j] of tile t of channel k                input transform
    M[c, i, j, t] = sum over k of U[i, j, k, c] * V[k, i, j, t]          (m + 2)^2 products
    out           = A' M[c, :, :, t] A, bias, LeakyRelu, residual        output transform

The matrices are those of `cook_toom`; U = G g G' is computed at compile time, in float64. As in
`kernels.winograd`, but each stage goes through global memory, as in cuDNN's non-fused Winograd: the
products are (m + 2)^2 matrix products for the rule `gemm`. A transform, for each channel and tile:

    before   for k, i, j, t:  patch, rows, V                              in memory
    after    for k, t in blockIdx and threadIdx:
                 for column:  patch = column of the tile, rows = B' patch  in registers
                 V[k, :, :, t] = rows B                                   all unrolled

Work items next to each other have tiles next to each other: what they write of V and read of M at a
place lies side by side, and the pixels that they read of one row are those of a few lines.

FLOPs: 2 (m + 2)^2 c k t in the products. Bytes: input, V and output once, M and V once more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, te, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from leakyforge.kernels.conv2d import PRODUCTS, Conv2dShape, whole
from leakyforge.kernels.cook_toom import combine, cook_toom, transform_kernels
from leakyforge.kernels.gpu.elementwise import THREADS, bind_rows, takes_vectors
from leakyforge.kernels.gpu.limits import VECTOR, DeviceLimits
from leakyforge.kernels.schedules import NoMatch, block_names, inline_consumers, loop_extent

KERNEL = 3
# The sum, and the last blocks of the transforms.
BLOCK, INPUT, OUTPUT = "winograd_products", "winograd_input", "winograd_output"
_ITEMSIZE = 4


@dataclass(frozen=True)
class Tiling:
    """A convolution of 3x3 at stride 1 in tiles of outputs.

    Attributes:
        shape: of the convolution.
        batch: of images.
        outputs: m, rows and columns of outputs in a tile.
    """

    shape: Conv2dShape
    batch: int
    outputs: int

    @property
    def size(self) -> int:
        """Rows and columns of a tile's inputs, and of its places."""
        return self.outputs + KERNEL - 1

    @property
    def rows(self) -> int:
        """Tiles down an image."""
        return math.ceil(self.shape.out_height / self.outputs)

    @property
    def columns(self) -> int:
        """Tiles along an image."""
        return math.ceil(self.shape.out_width / self.outputs)

    @property
    def tiles(self) -> int:
        """Tiles of all images, in whole vectors: what is beyond them is zero."""
        return whole(self.batch * self.rows * self.columns, VECTOR)

    @property
    def bytes(self) -> tuple[int, int, int]:
        """Bytes of the transformed weights, of the transformed input and of the products."""
        inner, outer = self.shape.in_channels, self.shape.out_channels
        places = _ITEMSIZE * self.size**2
        return places * inner * outer, places * inner * self.tiles, places * outer * self.tiles


def transform_weights(weight: npt.NDArray[np.generic], tiling: Tiling) -> npt.NDArray[np.float32]:
    """Weights [out][in][row][column] as U [place's row][its column][in][out]."""
    transformed = transform_kernels(weight.transpose(0, 2, 3, 1), tiling.outputs)
    return np.ascontiguousarray(transformed.transpose(0, 1, 3, 2), np.float32)


def transform_input(data: te.Tensor, tiling: Tiling) -> te.Tensor:
    """V of an input [n, k, y, x]."""
    shape, size, dtype = tiling.shape, tiling.size, data.dtype
    matrix = cook_toom(tiling.outputs, KERNEL).input
    top, left, _, _ = shape.padding
    every = tiling.rows * tiling.columns
    last = tiling.batch * every - 1

    def place(a: ir.Expr, b: ir.Expr, t: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
        tile = t % every
        row = tile // tiling.columns * tiling.outputs + a - top
        return row, tile % tiling.columns * tiling.outputs + b - left

    def nearest(k: ir.Expr, a: ir.Expr, b: ir.Expr, t: ir.Expr) -> ir.Expr:
        tile = tirx.min(t, last)
        row, column = place(a, b, tile)
        row = tirx.max(tirx.min(row, shape.height - 1), 0)
        column = tirx.max(tirx.min(column, shape.width - 1), 0)
        return data[tile // every, k, row, column]

    def element(k: ir.Expr, a: ir.Expr, b: ir.Expr, t: ir.Expr) -> ir.Expr:
        row, column = place(a, b, t)
        inside = tirx.all(
            t <= last, row >= 0, row < shape.height, column >= 0, column < shape.width
        )
        return tirx.Select(inside, pixels[k, a, b, t], tirx.const(0, dtype))

    sizes = (shape.in_channels, size, size, tiling.tiles)
    # Read without a condition: behind a branch for each, nothing of their indices is shared.
    pixels = te.compute(sizes, nearest, name="pixels")
    patch = te.compute(sizes, element, name="patch")
    rows = te.compute(
        sizes,
        lambda k, i, b, t: combine(matrix, i, lambda a: patch[k, a, b, t], dtype),
        name="rows",
    )
    return te.compute(
        sizes,
        lambda k, i, j, t: combine(matrix, j, lambda b: rows[k, i, b, t], dtype),
        name=INPUT,
    )


def multiply(
    weight: te.Tensor, data: te.Tensor, tiling: Tiling, note: Mapping[str, str]
) -> te.Tensor:
    """M of U and V; `note` goes with the block."""
    shape, size = tiling.shape, tiling.size
    k = te.reduce_axis((0, shape.in_channels), "k")
    products = tiling.batch * shape.products // shape.out_channels
    return te.compute(
        (shape.out_channels, size, size, tiling.tiles),
        lambda c, i, j, t: te.sum(weight[i, j, k, c] * data[k, i, j, t], axis=[k]),
        name=BLOCK,
        attrs={PRODUCTS: str(products), **note},
    )


def transform_output(products: te.Tensor, tiling: Tiling) -> te.Tensor:
    """The convolution [n, c, y, x] of M."""
    shape, m, dtype = tiling.shape, tiling.outputs, products.dtype
    matrix = cook_toom(m, KERNEL).output
    rows = te.compute(
        (shape.out_channels, m, tiling.size, tiling.tiles),
        lambda c, i, b, t: combine(matrix, i, lambda a: products[c, a, b, t], dtype),
        name="rows",
    )
    tiles = te.compute(
        (shape.out_channels, m, m, tiling.tiles),
        lambda c, i, j, t: combine(matrix, j, lambda b: rows[c, i, b, t], dtype),
        name=OUTPUT,
    )

    def pixel(n: ir.Expr, c: ir.Expr, y: ir.Expr, x: ir.Expr) -> ir.Expr:
        return tiles[c, y % m, x % m, (n * tiling.rows + y // m) * tiling.columns + x // m]

    return te.compute(
        (tiling.batch, shape.out_channels, shape.out_height, shape.out_width), pixel, name="crop"
    )


def match_winograd(schedule: s_tir.Schedule, limits: DeviceLimits) -> NoMatch | None:
    """Schedule a function that holds one of the transforms."""
    names, threads = block_names(schedule), min(THREADS, limits.threads)
    if INPUT in names:
        _schedule_input(schedule, threads)
    elif OUTPUT in names:
        _schedule_output(schedule, threads)
    else:
        return NoMatch("it is no transform of Winograd's")
    return None


def _schedule_input(schedule: s_tir.Schedule, threads: int) -> None:
    """Transform one tile in each work item.

    1. Channels and tiles to work-groups and work items.
    2. The stages before it in registers, one column of the tile after the other.
    3. Unroll what a work item computes.
    """
    block, rows, patch, pixels = map(schedule.get_sblock, (INPUT, "rows", "patch", "pixels"))
    # 1
    k, i, j, t = schedule.get_loops(block)
    schedule.reorder(k, t, i, j)
    item = _bind_items(schedule, [k, t], threads)
    # 2
    column = _columns_outside(schedule, rows, item)
    for stage in (patch, pixels):
        schedule.compute_at(stage, column, preserve_unit_loops=True)
        schedule.set_scope(stage, 0, "local")
    # 3
    _unroll(schedule, pixels, patch, rows, block)


def _schedule_output(schedule: s_tir.Schedule, threads: int) -> None:
    """Compute one tile of outputs in each work item.

    1. Inline the epilogue into its last block, and tile its loops.
    2. Channels and tiles to work-groups and work items.
    3. Both stages in registers, the first for one column of the tile after the other.
    4. Write rows of a tile as vectors where all of them are whole; unroll the rest.
    """
    rows, tiles, crop = (schedule.get_sblock(name) for name in ("rows", OUTPUT, "crop"))
    # 1
    m = loop_extent(schedule, schedule.get_loops(tiles)[1])
    last = inline_consumers(schedule, crop) if schedule.get_consumers(crop) else crop
    if last is not crop:
        schedule.compute_inline(crop)
    n, c, y, x = schedule.get_loops(last)
    whole_rows = (loop_extent(schedule, x) or 1) % (m or 1) == 0
    y_tile, y_inner = schedule.split(y, [None, m])
    x_tile, x_inner = schedule.split(x, [None, m])
    schedule.reorder(c, n, y_tile, x_tile, y_inner, x_inner)
    # 2
    item = _bind_items(schedule, [c, n, y_tile, x_tile], threads)
    # 3
    schedule.compute_at(tiles, item, preserve_unit_loops=True)
    schedule.set_scope(tiles, 0, "local")
    _columns_outside(schedule, rows, item)
    # 4
    if whole_rows and takes_vectors(schedule, last):
        schedule.vectorize(x_inner)
    _unroll(schedule, rows, tiles, last)


def _bind_items(schedule: s_tir.Schedule, loops: list[LoopRV], threads: int) -> LoopRV:
    """Give each work item one iteration; returns the loop over it.

    In groups that divide them all, where there are such: else a guard stands before every
    statement, and compilers compute indices anew behind many of them.
    """
    items = schedule.fuse(*loops)
    count = loop_extent(schedule, items) or 1
    dividing = (size for size in (threads, threads // 2, threads // 4) if count % size == 0)
    return bind_rows(schedule, [items], next(dividing, threads), 1)


def _columns_outside(schedule: s_tir.Schedule, rows: SBlockRV, item: LoopRV) -> LoopRV:
    """Compute the first stage in each work item, its columns in the outer loop, which is given."""
    schedule.compute_at(rows, item, preserve_unit_loops=True)
    schedule.set_scope(rows, 0, "local")
    _, row, column, _ = schedule.get_loops(rows)[-4:]
    schedule.reorder(column, row)
    return column


def _unroll(schedule: s_tir.Schedule, *blocks: SBlockRV) -> None:
    """Unroll all loops of blocks but those over work items and vectors."""
    for block in blocks:
        for loop in schedule.get_loops(block):
            if schedule.get(loop).kind == tirx.ForKind.SERIAL:
                schedule.unroll(loop)
