"""Choosing the algorithm of a convolution: by a tuning record, measurement, or the cost model.

What a search found for a layer (`tuning`) is taken. Otherwise the cost model (docs/cost-model.md)
orders the algorithms. Where code is compiled for this very machine and the layer is large enough
for a wrong choice to matter, those whose estimate is near the best one are timed. The cost model's
choice stays where it is within the noise of the fastest, so that two compilations agree.
"""

import dataclasses
import math
from collections.abc import Callable

from leakyforge.kernels.algorithms import Algorithm, algorithms
from leakyforge.kernels.choice import Choice, Trial
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.measure import NOISE, Layer, Stopwatch
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning.records import Winner
from leakyforge.kernels.tuning.space import candidates
from leakyforge.kernels.tuning.workload import config_to_json, workload_key

# The winner of a workload, by its key.
Lookup = Callable[[str], Winner | None]

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
    lookup: Lookup = lambda _workload: None,
) -> tuple[Algorithm, Choice]:
    """The algorithm for a convolution, and why.

    Args:
        words: the layer in words.
        layer: the convolution and what it reads.
        granule: input channels that lie together in memory.
        target: the CPU.
        strict: keep to the sums of the definition.
        stopwatch: measures, or says why nothing is measured.
        lookup: finds tuning records.
    """
    found, refused = algorithms(layer.shape, target, granule, strict=strict)
    least = found[0].cycles
    trials = [Trial(each.name, each.cycles / least) for each in found]
    winner = lookup(workload_key(layer, granule, strict=strict))
    # Records may come from anywhere: only sizes that a search could have tried are taken.
    if winner is not None and (algorithm := _recorded(winner, layer, granule, target, strict)):
        return algorithm, _tuned(words, winner, algorithm, refused)
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


def _recorded(
    winner: Winner, layer: Layer, granule: int, target: CpuTarget, strict: bool
) -> Algorithm | None:
    """The algorithm of a record, None where our schedules do not take its sizes here."""
    space = candidates(layer.shape, target, granule, strict=strict)
    return next((each for each in space if config_to_json(each.config) == winner.config), None)


def _tuned(words: str, winner: Winner, algorithm: Algorithm, refused: tuple[str, ...]) -> Choice:
    """The note of a layer whose algorithm a search found."""
    trials = (Trial(algorithm.name, 1.0),)
    return Choice(words, str(algorithm), 0, trials, "", refused, winner.words)


def _not_measured(shape: Conv2dShape, hopeful: list[Algorithm], stopwatch: Stopwatch | str) -> str:
    """Why a layer is not measured; empty where it is."""
    if isinstance(stopwatch, str):
        return stopwatch
    if shape.is_product:
        # They differ by a tenth, less than what disturbs a measurement of so short a time.
        return "products are estimated only"
    if len(hopeful) == 1:
        return "no other estimate is near"
    if flops(shape) < _WORTH_MEASURING:
        return "the layer is small"
    return ""


def flops(shape: Conv2dShape) -> int:
    """Operations of the definition, for a batch of one."""
    taps = math.prod(shape.kernel) * shape.in_channels
    return 2 * shape.out_height * shape.out_width * shape.out_channels * taps
