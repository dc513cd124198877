"""Grouped convolution: each group is a direct convolution over its own channels.

    conv[n, y, x, g*C + c] = sum over i, j, k of data[n, y*s + i*d, x*s + j*d, g*K + k]
                                                 * weight[g*C + c, i, j, k]

As `conv2d`, with a tile of pixels times output channels in registers, weights as vectors and input
values broadcast; a tile lies within one group, and k runs over that group's inputs. Groups whose
outputs fill less than a vector are better taken as lanes: `depthwise`.

    before   for n, y, x, g*C + c:  for i, j, k:  conv +=
             for n, y, x, g*C + c:  bias, LeakyRelu, ...
    after    parallel n, g, block of rows:
                 the padded rows of the group's input that the block reads              (cache)
                 for y, x tile, channel tile:
                     for i, j, k:  unrolled pixels, vector channels:  conv +=       (registers)
                     unrolled pixels, vector channels:  bias, LeakyRelu, ... -> memory

Without padding too, a kernel of several taps reads a copy: pixels of one group lie apart by all
channels, often a power of two, and would fall on the same few lines of the cache.

FLOPs: 2 * pixels * G * C * i * j * K. Bytes: input once and the rows that two blocks share twice,
weights once for each pixel tile, output once; where the tiles cut the last channels of a group the
epilogue is a pass of its own, and the sum is written and read once more.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te

from leakyforge.kernels.conv2d import (
    Conv2dConfig,
    Conv2dShape,
    heuristic_config,
    pack_weights,
    padded_source,
    whole,
)
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

BLOCK = "leakyforge_grouped"
CONFIG = "leakyforge.grouped"
_MOST_ROWS = 16


@dataclass(frozen=True)
class GroupedConfig(Conv2dConfig):
    """Tile sizes of a convolution in groups.

    Attributes:
        block: tiles of rows for which a group's input is copied together.
    """

    block: int

    @property
    def block_rows(self) -> int:
        """Output rows of a block."""
        return self.block * self.rows


def grouped_config(shape: Conv2dShape, groups: int, target: CpuTarget) -> GroupedConfig:
    """The tile of a group's own convolution, and equal blocks of rows."""
    one = dataclasses.replace(
        shape,
        in_channels=shape.in_channels // groups,
        out_channels=shape.out_channels // groups,
    )
    config = heuristic_config(one, target, streams_weights=False)
    tiles = math.ceil(shape.out_height / config.rows)
    blocks = math.ceil(tiles / max(1, _MOST_ROWS // config.rows))
    return GroupedConfig(**asdict(config), block=math.ceil(tiles / blocks))


def pack_grouped_weights(
    weight: npt.NDArray[np.generic], groups: int, config: GroupedConfig
) -> npt.NDArray[np.generic]:
    """Weights [g*C + c][i][j][k] as [g][channel tile][i][j][k][channel], zeros in last tiles."""
    return np.stack([pack_weights(part, config) for part in np.split(weight, groups)])


def grouped(
    data: te.Tensor,
    packed: te.Tensor,
    shape: Conv2dShape,
    groups: int,
    config: GroupedConfig,
    note: Mapping[str, str],
    copies: bool = False,
) -> te.Tensor:
    """Grouped convolution over [n, y, x, g*K + k] with packed weights; [n, y, x, g*C + c].

    `note` and `copies` are as in `conv2d`.
    """
    batch = data.shape[0]
    inputs, outputs = shape.in_channels // groups, shape.out_channels // groups
    (stride_y, stride_x), (step_y, step_x) = shape.strides, shape.dilation
    rows = whole(shape.out_height, config.block_rows)
    columns = whole(shape.out_width, config.columns)
    source = padded_source(data, shape, rows, columns, copies or math.prod(shape.kernel) > 1)
    i = te.reduce_axis((0, shape.kernel[0]), "i")
    j = te.reduce_axis((0, shape.kernel[1]), "j")
    k = te.reduce_axis((0, inputs), "k")
    total = te.compute(
        (batch, rows, columns, groups, whole(outputs, config.channels)),
        lambda n, y, x, g, c: te.sum(
            source[n, y * stride_y + i * step_y, x * stride_x + j * step_x, g * inputs + k]
            * packed[g, c // config.channels, i, j, k, c % config.channels],
            axis=[i, j, k],
        ),
        name=BLOCK,
        attrs={CONFIG: asdict(config), **note},
    )
    return te.compute(
        (batch, shape.out_height, shape.out_width, shape.out_channels),
        lambda n, y, x, c: total[n, y, x, c // outputs, c % outputs],
        name="crop",
    )


def schedule_grouped(schedule: s_tir.Schedule, config: GroupedConfig) -> None:
    """Schedule a function that holds one `grouped` and elementwise blocks around it.

    1. Inline what comes before the sum except its padding, and the epilogue into its last block.
    2. Tile the sum; unroll a tile's pixels, vectorise its channels.
    3. Compute the last block on each tile, while the sum is in registers, where the tiles are
       whole; else on its own, since a tile's channels are then no range of the output's.
    4. Copy the input of each block of rows.
    5. Run the loops over images, groups and blocks in parallel where the work pays for the threads.
    6. Initialise the tile before the reduction, in registers as well.
    """
    block = schedule.get_sblock(BLOCK)
    # 1
    pads = inline_producers(schedule, block, keep="pad")
    last = inline_consumers(schedule, block)
    # 2
    n, y, x, g, c, i, j, k = schedule.get_loops(block)
    work = total_work(schedule, block)
    is_whole = loop_extent(schedule, schedule.get_loops(last)[-1]) == math.prod(
        loop_extent(schedule, loop) or 1 for loop in (g, c)
    )
    y_block, y_outer, y_inner = schedule.split(y, [None, config.block, config.rows])
    x_outer, x_inner = schedule.split(x, [None, config.columns])
    c_outer, c_inner = schedule.split(c, [None, config.channels])
    vector, lane = schedule.split(c_inner, [None, config.lanes])
    tile = [y_inner, x_inner, vector, lane]
    schedule.reorder(n, g, y_block, y_outer, x_outer, c_outer, i, j, k, *tile)
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    # 3
    if is_whole:
        schedule.reverse_compute_at(last, c_outer)
        schedule.set_scope(block, 0, "local")
    # 4
    for pad in pads:
        schedule.compute_at(pad, y_block, preserve_unit_loops=True)
        vectorize_last(schedule, pad, config.lanes)
    # 5
    parallel = schedule.fuse(n, g, y_block)
    depth = len(schedule.get_loops(block)) - len((i, j, k, *tile))
    if work >= PARALLEL_WORK:
        schedule.parallel(parallel)
    # 6
    initial = schedule.decompose_reduction(block, i)
    vectorize_and_unroll(schedule, schedule.get_loops(initial)[depth:], config.lanes)
    if is_whole:
        vectorize_and_unroll(schedule, schedule.get_loops(last)[depth:], config.lanes)
    else:
        schedule_elementwise(schedule, last, config.lanes)


def match_grouped(schedule: s_tir.Schedule, _target: CpuTarget) -> NoMatch | None:
    """Schedule a function that holds a `grouped`, by the tile that it carries."""
    if BLOCK not in block_names(schedule):
        return NoMatch("no grouped convolution whose vectors run along its channels")
    schedule_grouped(schedule, read_config(schedule, BLOCK, CONFIG, GroupedConfig))
    return None
