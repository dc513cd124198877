"""The algorithms that compute a convolution, with one face: estimate, definition, schedule.

    direct      `conv2d`: the definition's sum, a tile of output pixels and channels in registers
    dot         `conv2d_dot`: the same sum for few output channels, vectors along the input's
    depthwise   `depthwise`: in groups, with one group in each lane
    grouped     `grouped`: in groups, the direct sum of each
    F(m, r)     `winograd`: tiles of m x m outputs, fewer multiplications, more weights
                `winograd1d`: tiles of m outputs along one axis
    Strassen    `strassen`: products of matrices, seven of half the size instead of eight

What an algorithm is estimated to take is in docs/cost-model.md.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te

from leakyforge.kernels.conv2d import (
    PRODUCTS,
    Conv2dConfig,
    Conv2dShape,
    conv2d,
    direct_cycles,
    heuristic_config,
    pack_weights,
    schedule_conv2d,
)
from leakyforge.kernels.conv2d_dot import (
    DotConfig,
    conv2d_dot,
    dot_config,
    dot_cycles,
    pack_dot_weights,
    schedule_conv2d_dot,
)
from leakyforge.kernels.conv_transpose import TransposedShape, add_cycles
from leakyforge.kernels.depthwise import (
    DepthwiseConfig,
    depthwise,
    depthwise_config,
    pack_depthwise_weights,
    schedule_depthwise,
)
from leakyforge.kernels.grouped import (
    GroupedConfig,
    grouped,
    grouped_config,
    pack_grouped_weights,
    schedule_grouped,
)
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.strassen import (
    StrassenConfig,
    schedule_strassen,
    strassen,
    strassen_config,
    strassen_cycles,
    strassen_weights,
)
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.winograd import (
    WinogradConfig,
    schedule_winograd,
    transform_weights,
    winograd,
    winograd_configs,
    winograd_cycles,
)
from leakyforge.kernels.winograd1d import (
    Winograd1dConfig,
    schedule_winograd1d,
    transform_weights1d,
    winograd1d,
    winograd1d_config,
    winograd1d_cycles,
)

Config = (
    Conv2dConfig
    | DotConfig
    | DepthwiseConfig
    | GroupedConfig
    | WinogradConfig
    | Winograd1dConfig
    | StrassenConfig
)
Definition = Callable[..., te.Tensor]


@dataclass(frozen=True)
class Algorithm:
    """A way to compute a convolution, or a product of matrices.

    Attributes:
        config: its sizes; their type names the algorithm.
        cycles: estimated, with all cores at work.
    """

    config: Config
    cycles: float

    def define(self, shape: Conv2dShape, note: Mapping[str, str], *, copies: bool) -> Definition:
        """The convolution over data of rank 4 and packed weights; `copies` as in `conv2d`."""
        note = {**note, PRODUCTS: str(shape.products)}
        if isinstance(self.config, WinogradConfig):
            return functools.partial(winograd, shape=shape, config=self.config, note=note)
        if isinstance(self.config, Winograd1dConfig):
            return functools.partial(winograd1d, shape=shape, config=self.config, note=note)
        if isinstance(self.config, StrassenConfig):
            return functools.partial(strassen, shape=shape, config=self.config, note=note)
        if isinstance(self.config, DepthwiseConfig):
            return functools.partial(
                depthwise, shape=shape, groups=shape.groups, config=self.config, note=note,
                copies=copies,
            )  # fmt: skip
        if isinstance(self.config, GroupedConfig):
            return functools.partial(
                grouped, shape=shape, groups=shape.groups, config=self.config, note=note,
                copies=copies,
            )  # fmt: skip
        if isinstance(self.config, DotConfig):
            return functools.partial(
                conv2d_dot, shape=shape, config=self.config, note=note, copies=copies
            )
        return functools.partial(conv2d, shape=shape, config=self.config, note=note, copies=copies)

    def pack(self, weight: npt.NDArray[np.generic], shape: Conv2dShape) -> npt.NDArray[np.generic]:
        """Weights [out][row][column][in] as the definition takes them."""
        if isinstance(self.config, WinogradConfig):
            return transform_weights(weight, self.config)
        if isinstance(self.config, Winograd1dConfig):
            return transform_weights1d(weight, self.config)
        if isinstance(self.config, StrassenConfig):
            return strassen_weights(weight, self.config)
        if isinstance(self.config, DotConfig):
            return pack_dot_weights(weight, self.config)
        if isinstance(self.config, DepthwiseConfig):
            return pack_depthwise_weights(weight, shape.groups, self.config)
        if isinstance(self.config, GroupedConfig):
            return pack_grouped_weights(weight, shape.groups, self.config)
        return pack_weights(weight, self.config)

    def packed_shape(self, shape: Conv2dShape) -> tuple[int, ...]:
        """Sizes of the packed weights, of a convolution that is not in groups."""
        config = self.config
        assert not isinstance(config, (DepthwiseConfig, GroupedConfig))
        if isinstance(config, DotConfig):
            vectors = shape.in_channels // config.lanes
            return (*shape.kernel, vectors, shape.out_channels, config.lanes)
        if isinstance(config, StrassenConfig):
            tiles = math.ceil(shape.out_channels / (2 * config.channels))
            return (7, tiles, shape.in_channels // 2, config.channels)
        tiles = math.ceil(shape.out_channels / config.channels)
        if isinstance(config, WinogradConfig):
            in_channels = math.prod(shape.strides) * shape.in_channels
            return (config.size**2, tiles, in_channels, config.channels)
        if isinstance(config, Winograd1dConfig):
            return (config.size, tiles, config.parts, shape.in_channels, config.channels)
        return (tiles, *shape.kernel, shape.in_channels, config.channels)

    def schedule(self, schedule: s_tir.Schedule) -> None:
        """Schedule a function that holds the definition."""
        if isinstance(self.config, WinogradConfig):
            schedule_winograd(schedule, self.config)
        elif isinstance(self.config, Winograd1dConfig):
            schedule_winograd1d(schedule, self.config)
        elif isinstance(self.config, StrassenConfig):
            schedule_strassen(schedule, self.config)
        elif isinstance(self.config, DotConfig):
            schedule_conv2d_dot(schedule, self.config)
        elif isinstance(self.config, DepthwiseConfig):
            schedule_depthwise(schedule, self.config)
        elif isinstance(self.config, GroupedConfig):
            schedule_grouped(schedule, self.config)
        else:
            schedule_conv2d(schedule, self.config)

    @property
    def name(self) -> str:
        """In words, such as `F(4, 3) in blocks`; different for all algorithms of one layer."""
        if isinstance(self.config, WinogradConfig):
            blocks = " in blocks" if self.config.block else ""
            return f"F({self.config.outputs}, {self.config.kernel}){blocks}"
        if isinstance(self.config, Winograd1dConfig):
            parts = f"{self.config.parts} x " if self.config.parts > 1 else ""
            return f"{parts}F({self.config.outputs}, {self.config.kernel}) along one axis"
        names = {
            DotConfig: "dot",
            DepthwiseConfig: "depthwise",
            GroupedConfig: "grouped",
            StrassenConfig: "Strassen",
        }
        return names.get(type(self.config), "direct")

    def __str__(self) -> str:
        """In words, with the register tile."""
        config = self.config
        if isinstance(config, DotConfig):
            tile = f"1x{config.columns} x {config.channels} channels, {config.lanes} lanes"
            return f"dot, tile {tile}"
        vectors = f"{config.vectors} vector{'s' if config.vectors > 1 else ''}"
        lanes = f"{vectors} of {config.lanes} lanes"
        if isinstance(config, StrassenConfig):
            blocks = f", rows in {config.blocks} blocks" if config.blocks > 1 else ""
            return f"Strassen, tile {config.rows} x {lanes}{blocks}"
        if isinstance(config, Winograd1dConfig):
            return f"Winograd {self.name}, tile {config.lines}x{config.tiles} x {lanes}"
        name = f"Winograd {self.name}" if isinstance(config, WinogradConfig) else self.name
        return f"{name}, tile {config.rows}x{config.columns} x {lanes}"


def algorithms(
    shape: Conv2dShape, target: CpuTarget, granule: int, *, strict: bool
) -> tuple[list[Algorithm], tuple[str, ...]]:
    """What can compute a convolution, the least estimate first, and why the rest cannot.

    Args:
        shape: the convolution.
        target: the CPU.
        granule: input channels that lie together in memory.
        strict: keep to the sums of the definition.
    """
    if shape.groups > 1:
        return _in_groups(shape, target)
    direct = heuristic_config(shape, target)
    found = [Algorithm(direct, direct_cycles(shape, direct, target))]
    refused = []
    dot = NoMatch("a pool is fused behind it") if shape.pooled else dot_config(shape, target)
    if isinstance(dot, DotConfig):
        found.append(Algorithm(dot, dot_cycles(shape, dot, target)))
    elif shape.out_channels < direct.lanes:
        # With more channels nobody expects it.
        refused.append(f"dot: {dot.reason}")
    if shape.is_product:
        fewer = _strassen(shape, target, strict=strict)
    else:
        fewer = _winograds(shape, target, granule, strict=strict)
    if isinstance(fewer, NoMatch):
        refused.append(fewer.reason)
    else:
        found += fewer
    return sorted(found, key=lambda algorithm: algorithm.cycles), tuple(refused)


def _in_groups(shape: Conv2dShape, target: CpuTarget) -> tuple[list[Algorithm], tuple[str, ...]]:
    """The algorithm of a convolution in groups; nothing else competes, so it has no estimate."""
    lanes = depthwise_config(shape, shape.groups, target)
    if isinstance(lanes, DepthwiseConfig):
        return [Algorithm(lanes, 1.0)], ()
    config = grouped_config(shape, shape.groups, target)
    return [Algorithm(config, 1.0)], (f"depthwise: {lanes.reason}",)


def _winograds(
    shape: Conv2dShape, target: CpuTarget, granule: int, *, strict: bool
) -> list[Algorithm] | NoMatch:
    """Winograd's algorithms for a convolution, or why there are none."""
    if strict:
        return NoMatch("precision is strict: no Winograd")
    if min(shape.kernel) == 1 < max(shape.kernel):
        config = winograd1d_config(shape, target, granule)
        if isinstance(config, NoMatch):
            return config
        return [Algorithm(config, winograd1d_cycles(shape, target, config))]
    tiles = winograd_configs(shape, target, granule)
    if isinstance(tiles, NoMatch):
        return tiles
    return [Algorithm(each, winograd_cycles(shape, target, each)) for each in tiles]


def _strassen(shape: Conv2dShape, target: CpuTarget, *, strict: bool) -> list[Algorithm] | NoMatch:
    """Strassen's algorithm for a product, or why it does not take it."""
    config = NoMatch("precision is strict") if strict else strassen_config(shape, target)
    if isinstance(config, NoMatch):
        return NoMatch(f"Strassen: {config.reason}")
    return [Algorithm(config, strassen_cycles(shape, target, config))]


def prefers_products(shape: TransposedShape, target: CpuTarget, *, strict: bool) -> bool:
    """Whether a transposed convolution is estimated to be faster as products than as phases."""
    (phases, *_), _ = algorithms(shape.phases(), target, shape.in_channels, strict=strict)
    (products, *_), _ = algorithms(shape.products(), target, shape.in_channels, strict=strict)
    return products.cycles + add_cycles(shape, target) < phases.cycles
