"""Timing the algorithms of a convolution on this machine, as they would run inside of a model.

Between two runs of a layer, a model reads its other weights and writes its other tensors: what a
layer finds in the caches is its input, which the layer before has just written, and of its weights
only what those others left there. So before each run as many bytes are copied as the model's other
layers touch, then the input is written, both by the threads that run the layer. The algorithms take
turns, so that a disturbance of the machine meets all of them; the first run of a turn, before which
another algorithm's weights were read, is not counted. The least time of each algorithm is taken
once another turn confirms it. Where the machine is too busy for that, the algorithms are compared
within turns; where these do not agree, nothing is measured.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, te, tirx

from leakyforge.kernels.algorithms import Algorithm
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.pooled import max_pool
from leakyforge.kernels.schedules import schedule_elementwise
from leakyforge.kernels.sources import Read
from leakyforge.kernels.target import CpuTarget
from leakyforge.runtime.tvm_runtime import set_threads

# Runs in a turn, the first of which is not counted.
_TURN = 3
# Turns, at least, and seconds for each algorithm after which no more are taken.
_LEAST_TURNS, _MOST_SECONDS = 4, 0.3
# Share by which the two least times of an algorithm may differ.
NOISE = 0.03
# Share of the turns in which the fastest must not be slower than the first.
_AGREE = 0.75
# More than last-level caches hold: copying more changes nothing.
MOST_BETWEEN = 64 << 20

Run = Callable[[], None]
# Sizes and dtype of a tensor.
Spec = tuple[tuple[int, ...], str]
_Key = tuple[object, ...]

_measured: dict[_Key, list[float] | None] = {}


@dataclass(frozen=True)
class Layer:
    """A convolution and what it reads.

    Attributes:
        shape: the convolution.
        inputs: sizes of the tensors that it reads, batches included.
        read: its input of rank 4, as a definition over them.
        copies: whether `read` takes several steps, see `conv2d`.
    """

    shape: Conv2dShape
    inputs: tuple[tuple[int, ...], ...]
    read: Read
    copies: bool

    @property
    def dtype(self) -> str:
        """Of its inputs, its weights and its output."""
        return f"float{8 * self.shape.itemsize}"

    @property
    def specs(self) -> list[Spec]:
        """Of its inputs."""
        return [(shape, self.dtype) for shape in self.inputs]


@dataclass(frozen=True)
class Stopwatch:
    """Times algorithms on this machine, inside of a model.

    Attributes:
        target: this machine.
        between: bytes that the model touches between two runs of one of its layers.
    """

    target: CpuTarget
    between: int

    def seconds(self, layer: Layer, candidates: Sequence[Algorithm]) -> list[float] | None:
        """Seconds of each algorithm, infinite where its schedule fails; None if nothing is certain.

        Measured once for each layer, target, number of threads and bytes between runs.
        """
        between = min(self.between, MOST_BETWEEN)
        # The sizes of the inputs say how they are read too.
        key = (layer.shape, layer.inputs, tuple(each.config for each in candidates),
               str(self.target.tvm), self.target.num_cores, between)  # fmt: skip
        if key not in _measured:
            _measured[key] = _time(layer, candidates, self.target, between)
        return _measured[key]


def _time(
    layer: Layer, candidates: Sequence[Algorithm], target: CpuTarget, between: int
) -> list[float] | None:
    """The least seconds of each algorithm."""
    set_threads(target.num_cores)
    inputs, writes = written_inputs(layer.specs, target)
    before = [*other_layers(between, target), *writes]
    runs: dict[int, Run] = {}
    for index, each in enumerate(candidates):
        try:
            runs[index] = _build(layer, each, target, inputs)
        except s_tir.ScheduleError:
            # The pipeline would leave such a kernel's loops as they were.
            continue
    turns: dict[int, list[float]] = {index: [] for index in runs}
    deadline = time.perf_counter() + _MOST_SECONDS * len(runs)
    while not all(_is_confirmed(times) for times in turns.values()):
        if time.perf_counter() > deadline:
            return _paired(turns, len(candidates))
        for index, run in runs.items():
            turns[index].append(turn(run, before))
    return [min(turns[index]) if index in runs else math.inf for index in range(len(candidates))]


def turn(run: Run, before: Sequence[Run]) -> float:
    """The least seconds of the runs of one turn that count."""
    times = []
    for _ in range(_TURN):
        for copy in before:
            copy()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _is_confirmed(times: Sequence[float]) -> bool:
    """Whether another turn took about the least time."""
    if len(times) < _LEAST_TURNS:
        return False
    least, second, *_ = sorted(times)
    return second <= (1 + NOISE) * least


def _paired(turns: Mapping[int, Sequence[float]], count: int) -> list[float] | None:
    """Median seconds by comparison within turns, None where the turns do not agree on the fastest.

    A disturbance that lasts longer than a turn slows all algorithms of that turn.
    """
    if min(len(times) for times in turns.values()) < _LEAST_TURNS:
        return None
    first = next(iter(turns))
    ratios = {
        index: [time / beside for time, beside in zip(times, turns[first], strict=True)]
        for index, times in turns.items()
    }
    medians = {index: statistics.median(each) for index, each in ratios.items()}
    fastest = min(medians, key=lambda index: medians[index])
    wins = sum(ratio <= 1 for ratio in ratios[fastest])
    if wins < _AGREE * len(ratios[fastest]):
        return None
    seconds = statistics.median(turns[first])
    return [seconds * medians.get(index, math.inf) for index in range(count)]


def define_kernel(layer: Layer, algorithm: Algorithm) -> tirx.PrimFunc:
    """One layer alone, before it is scheduled: a function of inputs, packed weights, an output."""
    data = [te.placeholder(shape, layer.dtype) for shape in layer.inputs]
    packed = te.placeholder(algorithm.packed_shape(layer.shape), layer.dtype)
    define = algorithm.define(layer.shape, {}, copies=layer.copies)
    output = define(layer.read(*data), packed)
    if layer.shape.pooled:
        output = max_pool(output)
    return te.create_prim_func([*data, packed, output])


def build_kernel(layer: Layer, algorithm: Algorithm, target: CpuTarget) -> tvm.runtime.Module:
    """The kernel of one layer alone, `main`.

    Raises:
        s_tir.ScheduleError: the schedule does not take these sizes.
    """
    schedule = s_tir.Schedule(define_kernel(layer, algorithm))
    algorithm.schedule(schedule)
    return tvm.compile(schedule.mod, target=target.tvm, tir_pipeline=PIPELINE)


def output_shape(layer: Layer) -> tuple[int, ...]:
    """Sizes of what a layer's kernel writes."""
    shape, step = layer.shape, 2 if layer.shape.pooled else 1
    rows, columns = shape.out_height // step, shape.out_width // step
    return (layer.inputs[0][0], rows, columns, shape.out_channels)


def _build(
    layer: Layer, algorithm: Algorithm, target: CpuTarget, inputs: Sequence[tvm.runtime.Tensor]
) -> Run:
    """One kernel, bound to inputs, random weights and an output."""
    kernel = build_kernel(layer, algorithm, target)["main"]
    dtype = str(inputs[0].dtype)
    weights = random_tensor(algorithm.packed_shape(layer.shape), dtype)
    result = random_tensor(output_shape(layer), dtype)
    return lambda: kernel(*inputs, weights, result)


def written_inputs(specs: Sequence[Spec], target: CpuTarget) -> tuple[list[Any], list[Run]]:
    """Inputs of a layer, and what writes them, as the layer before it does."""
    inputs = [random_tensor(*spec) for spec in specs]
    return inputs, [_copy_onto(tensor, target) for tensor in inputs]


def other_layers(between: int, target: CpuTarget) -> list[Run]:
    """What touches as many bytes as the model's other layers, between two runs of one of them."""
    elements = between // 8
    return [_copy_onto(random_tensor((elements,), "float32"), target)] if elements else []


def _copy_onto(tensor: tvm.runtime.Tensor, target: CpuTarget) -> Run:
    """A copy of equal values onto a tensor, from memory of its own, by all threads."""
    source = te.placeholder(tensor.shape, str(tensor.dtype))
    copied = te.compute(source.shape, lambda *index: source(*index), name="copy")
    schedule = s_tir.Schedule(te.create_prim_func([source, copied]))
    lanes = target.lane_choices(4)[0]
    schedule_elementwise(schedule, schedule.get_sblock("copy"), lanes)
    kernel = tvm.compile(schedule.mod, target=target.tvm, tir_pipeline=PIPELINE)["main"]
    other = tvm.runtime.tensor(tensor.numpy())
    return lambda: kernel(other, tensor)


def random_tensor(shape: Sequence[int], dtype: str) -> tvm.runtime.Tensor:
    """Numbers in [-0.5, 0.5): no zeros or denormals in quantity, which could take other time."""
    # numpy draws no float16.
    drawn = np.float64 if dtype == "float64" else np.float32
    values = np.random.default_rng(0).random(shape, drawn) - drawn(0.5)
    return tvm.runtime.tensor(np.asarray(values, dtype))
