"""Where a run diverges: each of its kernels, called again on exact inputs.

1. The kernels are called again in order. What an earlier one wrote is replaced by the value of the
   ONNX graph, in that kernel's layout, so that no error is carried on.
2. Among the values of the graph that follow from these inputs, those nearest to the output tell
   which nodes the kernel stands for. They are evaluated in float64 on the same inputs, and the
   tolerance is that of their roundings.
3. Where none fits, the kernel that reads the output decides: if it is right on a value of the
   graph, the one in doubt is at fault; if it is right on what that one wrote, the two compute one
   value together.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from leakyforge.kernels.onnx_values import OnnxValues
from leakyforge.runtime.capture import KernelCall
from leakyforge.runtime.manifest import Kernel
from leakyforge.runtime.parity import OutputParity, compare
from leakyforge.runtime.tensors import Array, format_shape

# Values of the graph that are tried for an output, and readings of all inputs of a kernel.
_NEAREST = 8
_READINGS = 64
# A wrong output that is still nearer to a value than this share of its range is taken for it.
_ALIKE = 0.5
# So far outside the tolerance, the reference's own roundings decide nothing.
_FAR = 100.0


@dataclass(frozen=True)
class KernelParity:
    """One call of a kernel, on exact inputs.

    Attributes:
        kernel: its record in the artifact.
        shapes: of its first input and of its output.
        sources: names of the ONNX values that it reads.
        value: name of the ONNX value that it computes, of the nearest one where it is wrong; None
            where it computes a part of what the kernel behind it is judged by.
        nodes: the ONNX nodes that it stands for, as `LeakyRelu act1`.
        error: against these nodes in float64; None where it was not judged by itself.
        parts: names of the kernels before it that are judged by this error too.
    """

    kernel: Kernel
    shapes: str
    sources: tuple[str, ...]
    value: str | None
    nodes: tuple[str, ...]
    error: OutputParity | None
    parts: tuple[str, ...] = ()

    @property
    def needed(self) -> float:
        """Least share of the tolerance that would have passed, 0 where it was not judged."""
        return 0.0 if self.error is None else self.error.needed

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance, or was not judged by itself."""
        return self.error is None or self.error.passed


@dataclass(frozen=True)
class _Reading:
    """What an output of a kernel may be.

    Attributes:
        array: in the kernel's layout.
        sources: names of the ONNX values that it follows from: its own, or those of its kernel.
        products: convolutions and products between these and the array.
        value: name of the ONNX value, None for what the kernel wrote.
        error: of the kernel against that value.
        kernels: names of those that wrote it where it is no value.
    """

    array: Array
    sources: frozenset[str]
    products: int
    value: str | None = None
    error: OutputParity | None = None
    kernels: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the kernel computes this value."""
        return self.error is not None and self.error.passed


@dataclass
class _Output:
    """An output of a kernel that was called again.

    Attributes:
        captured: what it was in the run; by it later kernels know it.
        row: index of the kernel's row.
        readings: what it may be, in the order in which they are tried.
        default: the one to take where none makes the next kernel right.
        is_open: whether nothing has told yet what it is.
    """

    captured: Array
    row: int
    readings: list[_Reading]
    default: _Reading
    is_open: bool


@dataclass(frozen=True)
class _Attempt:
    """A kernel called on one reading of its inputs.

    Attributes:
        chosen: the reading of each input that an earlier kernel wrote, by position.
        sources: names of the ONNX values that the inputs follow from.
        parts: names of the kernels before it whose results are no values of the graph.
        readings: for each output, by position, the values that it may be, nearest first, and what
            was written.
    """

    chosen: dict[int, _Reading]
    sources: frozenset[str]
    parts: tuple[str, ...]
    readings: dict[int, list[_Reading]]

    @property
    def passed(self) -> bool:
        """Whether every output is a value of the graph."""
        return all(readings[0].passed for readings in self.readings.values())

    @property
    def distance(self) -> float:
        """Largest difference of an output from the nearest value, as a share of its range."""
        errors = [readings[0].error for readings in self.readings.values()]
        return max(inf if each is None else each.max_abs / (each.range or 1.0) for each in errors)


def judge_kernels(
    calls: Sequence[KernelCall], graph: OnnxValues, feeds: Mapping[str, Array]
) -> list[KernelParity]:
    """Judge each call of a run by itself.

    Args:
        calls: of the run, in order.
        graph: the model as it was compiled, and its values for the same inputs.
        feeds: these inputs, by name.

    Returns:
        One row for each call, in order.
    """
    judge = _Judge(graph, feeds)
    for call in calls:
        judge.take(call)
    judge.finish()
    return judge.rows


class _Judge:
    """Follows a run from kernel to kernel."""

    def __init__(self, graph: OnnxValues, feeds: Mapping[str, Array]) -> None:
        self.rows: list[KernelParity] = []
        self._graph = graph
        self._feeds = feeds
        self._written: dict[int, _Output] = {}
        self._outputs: list[_Output] = []

    def take(self, call: KernelCall) -> None:
        """Judge the next call, and by it those in doubt that wrote its inputs."""
        origins = self._origins(call)
        attempt = self._likeliest(call, origins)
        for at, output in origins.items():
            if attempt.passed or (output.is_open and attempt.chosen[at].value is not None):
                self._settle(output, attempt.chosen[at])
            output.is_open = False
        self._add(call, attempt)

    def finish(self) -> None:
        """Outputs that no kernel reads are the nearest value of the graph."""
        for output in self._outputs:
            if output.is_open:
                self._settle(output, output.readings[0])

    def _likeliest(self, call: KernelCall, origins: Mapping[int, _Output]) -> _Attempt:
        """The first reading of the inputs on which a kernel is right, else the most plausible."""
        fed = self._fed(call, origins)
        first = self._attempt(call, fed, {at: output.default for at, output in origins.items()})
        if first.passed:
            return first
        alike = []
        for chosen in _combinations(origins):
            attempt = self._attempt(call, fed, chosen)
            if attempt.passed:
                return attempt
            if all(
                reading.value is not None if origins[at].is_open else reading is origins[at].default
                for at, reading in chosen.items()
            ):
                alike.append(attempt)
        # Two kernels in a row may be wrong, of which this one is then near a value at least.
        nearest = min(alike, key=lambda attempt: attempt.distance, default=first)
        return nearest if nearest.distance < _ALIKE else first

    def _origins(self, call: KernelCall) -> dict[int, _Output]:
        """Inputs that earlier kernels wrote and that nothing has changed since, by position."""
        origins = {}
        for at, array in call.inputs.items():
            output = self._written.get(call.addresses[at])
            if output is not None and output.captured.tobytes() == array.tobytes():
                origins[at] = output
        return origins

    def _fed(self, call: KernelCall, origins: Collection[int]) -> frozenset[str]:
        """Inputs of the model among those of a kernel."""
        return frozenset(
            name
            for name, array in self._feeds.items()
            for at, given in call.inputs.items()
            if at not in origins
            and given.dtype == array.dtype
            and given.tobytes() == array.tobytes()
        )

    def _attempt(
        self, call: KernelCall, fed: frozenset[str], chosen: dict[int, _Reading]
    ) -> _Attempt:
        """Call a kernel on one reading of its inputs."""
        sources = fed.union(*(reading.sources for reading in chosen.values()))
        products = int(call.kernel.flops > 0) + max(
            (reading.products for reading in chosen.values()), default=0
        )
        inputs = {
            at: reading.array.reshape(call.inputs[at].shape) for at, reading in chosen.items()
        }
        results = call.replay(inputs)
        parts = tuple(
            dict.fromkeys(name for reading in chosen.values() for name in reading.kernels)
        )
        kernels = (*parts, call.kernel.name)
        readings = {
            at: [
                *self._nearest(result, call.kernel.output, sources, products),
                _Reading(result, sources, products, kernels=kernels),
            ]
            for at, result in results.items()
        }
        return _Attempt(chosen, sources, parts, readings)

    def _nearest(
        self, result: Array, layer: str | None, sources: frozenset[str], products: int
    ) -> list[_Reading]:
        """Values of the graph that an output may be; those that fit first, then the nearest."""
        names = [*sources, *self._graph.reachable(sources, products)]
        behind = [name for name in names if self._is_behind(layer, name, sources)]
        found = []
        for order, name in enumerate(behind or names):
            distances = [
                (_distance(result, each), each)
                for each in _arrangements(self._graph.values[name], result.shape)
            ]
            if distances:
                distance, array = min(distances, key=lambda pair: pair[0])
                # Of equal values, the later one: an activation that changed nothing was fused too.
                found.append((distance, -order, name, array))
        found.sort(key=lambda entry: entry[:2])
        readings = []
        for _, _, name, array in found[:_NEAREST]:
            error = self._error(result, array, name, sources)
            readings.append(_Reading(array, frozenset({name}), 0, name, error))
        return sorted(readings, key=lambda reading: not reading.passed)

    def _is_behind(self, layer: str | None, name: str, sources: frozenset[str]) -> bool:
        """Whether a value is the result of a layer, or follows from it."""
        nodes = self._graph.nodes_between(sources, name)
        return any(layer in node.output for node in nodes)

    def _error(
        self, result: Array, array: Array, name: str, sources: frozenset[str]
    ) -> OutputParity:
        """An output against a value, which is computed anew in float64 where that may decide."""
        limits = self._graph.limits(sources, name, str(result.dtype))
        error = compare(name, result, array.astype(result.dtype), limits, "onnxruntime")
        if name in sources or error.needed > _FAR:
            return error
        exact, engine = self._graph.exact(sources, name)
        desired = min(_arrangements(exact, result.shape), key=lambda each: _distance(array, each))
        return compare(name, result, desired.astype(result.dtype), limits, engine)

    def _add(self, call: KernelCall, attempt: _Attempt) -> None:
        """The row of a call, and its outputs for those that follow."""
        first = next(iter(call.inputs.values()), None)
        shapes = [format_shape(first.shape)] if first is not None else []
        shapes += [format_shape(array.shape) for array in call.outputs.values()]
        row = KernelParity(
            call.kernel,
            " -> ".join(shapes),
            tuple(sorted(attempt.sources)),
            None,
            (),
            None,
            attempt.parts,
        )
        self.rows.append(row)
        for at, readings in attempt.readings.items():
            passed = readings[0].passed
            output = _Output(
                call.outputs[at],
                len(self.rows) - 1,
                readings,
                readings[0] if passed else readings[-1],
                is_open=not passed,
            )
            self._written[call.addresses[at]] = output
            self._outputs.append(output)
            if passed:
                self._enter(output.row, readings[0])

    def _settle(self, output: _Output, reading: _Reading) -> None:
        """Say what an output is."""
        if reading is not output.readings[0] or output.is_open:
            self._enter(output.row, reading)
        output.readings, output.default, output.is_open = [reading], reading, False

    def _enter(self, row: int, reading: _Reading) -> None:
        """Enter an output into its kernel's row, which shows the worst of them."""
        before = self.rows[row]
        if reading.value is None or reading.error is None or before.needed > reading.error.needed:
            return
        nodes = self._graph.nodes_between(before.sources, reading.value)
        self.rows[row] = replace(
            before,
            value=reading.value,
            nodes=tuple(f"{node.op_type} {node.name or node.output[0]}" for node in nodes),
            error=reading.error,
        )


def _combinations(origins: Mapping[int, _Output]) -> Iterator[dict[int, _Reading]]:
    """Readings of all inputs together."""
    choices = itertools.product(*(output.readings for output in origins.values()))
    for chosen in itertools.islice(choices, _READINGS):
        yield dict(zip(origins, chosen, strict=True))


def _arrangements(array: Array, shape: tuple[int, ...]) -> Iterable[Array]:
    """An ONNX value in every layout of a shape: sizes of 1 aside, axes in any order."""
    if array.size != np.prod(shape, dtype=np.int64):
        return
    core = array.squeeze()
    wanted = tuple(size for size in shape if size != 1)
    for axes in itertools.permutations(range(core.ndim)):
        if tuple(core.shape[axis] for axis in axes) == wanted:
            yield core.transpose(axes).reshape(shape)
    if core.shape != wanted:
        yield core.reshape(shape)
        if array.ndim > 2:
            yield np.moveaxis(array, 1, -1).reshape(shape)


def _distance(first: Array, second: Array) -> float:
    """Largest difference of two arrays, as a share of the second one's range."""
    ours, theirs = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(ours - theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    difference = np.nan_to_num(np.where(same, 0.0, difference), nan=np.inf)
    extent = np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs))
    return float(np.max(difference, initial=0.0) / (extent or 1.0))
