"""The search space: sizes with which our schedules can compute a layer, with their estimates.

The rules take one register tile for each algorithm, by the cost model (`algorithms.py`). Here is
every tile that fits the registers:

    direct      rows x columns x vectors, weights or pixels in the outer loop
    F(m, r)     the product's tile, and how many tiles a block holds
    dot         columns of a tile
    1-D         all sizes that `winograd1d` chooses from
    Strassen    rows x vectors of a tile, and blocks of rows

A size that would be cut at the layer's edge is left out where its schedule is then scalar code.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from leakyforge.kernels.algorithms import Algorithm, algorithms
from leakyforge.kernels.conv2d import (
    Conv2dConfig,
    Conv2dShape,
    cuts_a_tile,
    direct_configs,
    direct_cycles,
    whole,
)
from leakyforge.kernels.conv2d_dot import DotConfig, dot_cycles
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.strassen import StrassenConfig, strassen_configs, strassen_cycles
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.winograd import WinogradConfig, tile_shape, winograd_cycles
from leakyforge.kernels.winograd1d import Winograd1dConfig, winograd1d_configs, winograd1d_cycles

# Tiles in a block.
_BLOCK_TILES = (0, 2, 4, 8, 16, 32)
# The best so far, whose neighbours are tried.
_BEST = 3


class SizesSpace:
    """Half of its candidates in the order of the cost model, half neighbours of the best so far.

    Args:
        configs: the candidates, in JSON, the least estimate first.
        source: of random numbers.
    """

    def __init__(self, configs: Sequence[str], source: random.Random) -> None:
        self._left, self._random = list(configs), source

    def next(self, ratios: Mapping[str, float]) -> str | None:
        """See `Space`."""
        self._left = [each for each in self._left if each not in ratios]
        if not self._left:
            return None
        config = self._candidate(ratios)
        self._left.remove(config)
        return config

    def _candidate(self, ratios: Mapping[str, float]) -> str:
        """The next of the cost model's order, or a neighbour of one of the best."""
        if self._random.random() < 0.5:
            best = sorted(ratios, key=lambda each: ratios[each])[:_BEST]
            near = [
                each for each in self._left if any(_are_neighbours(each, other) for other in best)
            ]
            if near:
                return self._random.choice(near)
        return self._left[0]


def _are_neighbours(one: str, other: str) -> bool:
    """Whether sizes of the same kernel differ in one place, of those that are free."""
    left, right = json.loads(one), json.loads(other)
    if left["type"] != right["type"]:
        return False
    # The registers follow from the vectors.
    return [left[name] != right[name] for name in left if name != "registers"].count(True) == 1


def candidates(
    shape: Conv2dShape, target: CpuTarget, granule: int, *, strict: bool
) -> list[Algorithm]:
    """What can compute a layer, the least estimate first; the rules' algorithms are among them.

    Args:
        shape: the convolution.
        target: the CPU.
        granule: input channels that lie together in memory.
        strict: keep to the sums of the definition.
    """
    rules, _ = algorithms(shape, target, granule, strict=strict)
    found = {each.config: each for each in rules}
    for rule in rules:
        for each in _around(rule, shape, target, granule):
            found.setdefault(each.config, each)
    return sorted(found.values(), key=lambda each: each.cycles)


def _around(
    rule: Algorithm, shape: Conv2dShape, target: CpuTarget, granule: int
) -> Iterator[Algorithm]:
    """The algorithm with other sizes; depthwise and grouped convolutions have no others."""
    if isinstance(rule.config, Conv2dConfig):
        for config, outer in itertools.product(direct_configs(shape, target), (False, True)):
            each = replace(config, weights_outer=outer)
            if not cuts_a_tile(shape, each):
                yield Algorithm(each, direct_cycles(shape, each, target))
    elif isinstance(rule.config, WinogradConfig):
        for winograd in _winograds(rule.config, shape, target):
            yield Algorithm(winograd, winograd_cycles(shape, target, winograd))
    elif isinstance(rule.config, Winograd1dConfig):
        for line in winograd1d_configs(shape, target, granule):
            yield Algorithm(line, winograd1d_cycles(shape, target, line))
    elif isinstance(rule.config, StrassenConfig):
        sizes = strassen_configs(shape, target)
        for seven in [] if isinstance(sizes, NoMatch) else sizes:
            yield Algorithm(seven, strassen_cycles(shape, target, seven))
    elif isinstance(rule.config, DotConfig):
        for dot in _dots(rule.config, shape):
            yield Algorithm(dot, dot_cycles(shape, dot, target))


def _winograds(
    config: WinogradConfig, shape: Conv2dShape, target: CpuTarget
) -> Iterator[WinogradConfig]:
    """Other tiles of the product, and other blocks."""
    tiles = tile_shape(shape, config.outputs)
    for product in direct_configs(tiles, target):
        if product.lanes != config.lanes or shape.out_channels % product.channels:
            continue
        for least in _BLOCK_TILES:
            # No wider than the output: what is beyond it would be computed too.
            width = min(math.ceil(least / product.rows), tiles.width)
            yield replace(
                config,
                rows=product.rows,
                columns=product.columns,
                vectors=product.vectors,
                registers=product.registers,
                block=whole(width, product.columns) if least else 0,
            )


def _dots(config: DotConfig, shape: Conv2dShape) -> Iterator[DotConfig]:
    """Fewer columns in a tile, whole tiles only."""
    for columns in range(1, config.columns):
        if shape.out_width % columns == 0:
            yield replace(config, columns=columns)
