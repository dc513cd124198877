"""Choosing the algorithm of a convolution: by measurement, or by the cost model.

The cost model (docs/cost-model.md) orders the algorithms. Where code is compiled for this very
machine and the layer is large enough for a wrong choice to matter, those whose estimate is near the
best one are timed. The cost model's choice stays where it is within the noise of the fastest, so
that two compilations agree.
"""

import dataclasses
import math

from leakyforge.kernels.algorithms import Algorithm, algorithms
from leakyforge.kernels.choice import Choice, Trial
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.measure import NOISE, Layer, Stopwatch
from leakyforge.kernels.target import CpuTarget

# FLOPs below which a layer takes about a tenth of a millisecond, whatever the algorithm.
_WORTH_MEASURING = 1 << 25
# Algorithms with up to this multiple of the least estimate are timed.
_HOPELESS = 2.0


def choose(
    words: str,
    layer: Layer,
    granule: int,
    *,
    target: CpuTarget,
    strict: bool,
    stopwatch: Stopwatch | str,
) -> tuple[Algorithm, Choice]:
    """The algorithm for a convolution, and why.

    Args:
        words: the layer in words.
        layer: the convolution and what it reads.
        granule: input channels that lie together in memory.
        target: the CPU.
        strict: keep to the sums of the definition.
        stopwatch: measures, or says why nothing is measured.
    """
    found, refused = algorithms(layer.shape, target, granule, strict=strict)
    least = found[0].cycles
    trials = [Trial(each.name, each.cycles / least) for each in found]
    hopeful = [each for each in found if each.cycles <= _HOPELESS * least]
    not_measured = _not_measured(layer.shape, hopeful, stopwatch)
    taken = 0
    if isinstance(stopwatch, Stopwatch) and not not_measured:
        times = stopwatch.seconds(layer, hopeful)
        if times is None:
            not_measured = "the machine was too busy"
        else:
            for index, seconds in enumerate(times):
                trials[index] = dataclasses.replace(trials[index], milliseconds=seconds * 1e3)
            fastest = min(range(len(times)), key=lambda index: times[index])
            taken = fastest if times[fastest] < (1 - NOISE) * times[0] else 0
    algorithm = found[taken]
    choice = Choice(words, str(algorithm), taken, tuple(trials), not_measured, refused)
    return algorithm, choice


def _not_measured(shape: Conv2dShape, hopeful: list[Algorithm], stopwatch: Stopwatch | str) -> str:
    """Why a layer is not measured; empty where it is."""
    if isinstance(stopwatch, str):
        return stopwatch
    if len(hopeful) == 1:
        return "no other estimate is near"
    if flops(shape) < _WORTH_MEASURING:
        return "the layer is small"
    return ""


def flops(shape: Conv2dShape) -> int:
    """Operations of the definition, for a batch of one."""
    taps = math.prod(shape.kernel) * shape.in_channels
    return 2 * shape.out_height * shape.out_width * shape.out_channels * taps
