"""What a worker process of the search does: builds candidates, checks them, takes their times.

A candidate that crashes or hangs costs its process, not the search (`workers.py`). Candidates run
in turns with the rules' choice, so that a disturbance of the machine meets both.
"""

from dataclasses import dataclass

from leakyforge.kernels.target import CpuTarget, parse_target
from leakyforge.kernels.tuning.layers import tunable_layers
from leakyforge.kernels.tuning.machine import (
    Kernel,
    Local,
    Machine,
    Remote,
    Tracker,
)
from leakyforge.kernels.tuning.records import FAILED, MEASURED, WRONG
from leakyforge.kernels.tuning.reference import difference
from leakyforge.kernels.tuning.tunable import Tunable
from leakyforge.runtime.reference import one_line


@dataclass(frozen=True)
class Model:
    """What a worker reads its layers from.

    Attributes:
        source: path of the ONNX file.
        target: as the command line has it.
        shapes: of inputs whose dimensions are symbolic.
        strict: keep to the sums of the definition.
    """

    source: str
    target: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    strict: bool


@dataclass(frozen=True)
class Task:
    """Candidates of a layer to be measured in turns.

    Attributes:
        workload: the layer's hash.
        configs: sizes of each, in JSON; the first are what the others are compared with.
        turns: how often each is measured.
    """

    workload: str
    configs: tuple[str, ...]
    turns: int


@dataclass(frozen=True)
class Result:
    """How a candidate did.

    Attributes:
        status: one of `records.STATUSES`.
        error: why it was not measured, else empty.
        seconds: of each turn.
    """

    status: str
    error: str = ""
    seconds: tuple[float, ...] = ()


class _Bench:
    """One layer: its inputs on the machine, its reference, and the kernels that were built."""

    def __init__(self, tunable: Tunable, target: CpuTarget, machine: Machine) -> None:
        self.tunable, self.target = tunable, target
        self.place = machine.place(tunable.inputs, tunable.between)
        self.desired = tunable.desired(self.place.inputs)
        self.built: dict[str, Kernel | Result] = {}

    def kernel(self, config: str) -> Kernel | Result:
        """A candidate's kernel, built and checked once; how it failed, where it is not right."""
        if config not in self.built:
            self.built[config] = self._build(config)
        return self.built[config]

    def _build(self, config: str) -> Kernel | Result:
        try:
            module, weights = self.tunable.build(config, self.target)
        except (RuntimeError, ValueError) as error:
            # TVM's own errors are of the first kind.
            return Result(FAILED, one_line(error))
        kernel = self.place.load(module, weights, self.tunable.output)
        wrong = difference(kernel.output(), self.desired, self.tunable.roundings())
        return Result(WRONG, wrong) if wrong else kernel

    def forget(self, kept: str) -> None:
        """Free the kernels but for one: each holds the layer's weights."""
        self.built = {config: built for config, built in self.built.items() if config == kept}


class Worker:
    """Measures candidates of one model's layers.

    Args:
        model: where the layers come from.
    """

    def __init__(self, model: Model) -> None:
        self.target = parse_target(model.target)
        layers = tunable_layers(model.source, self.target, dict(model.shapes), strict=model.strict)
        self.layers = {layer.workload: layer for layer in layers}
        self.machine: Machine | None = None
        self.benches: dict[str, _Bench] = {}

    def measure(self, tracker: Tracker | None, task: Task) -> list[Result]:
        """A result for each candidate of a task.

        Raises:
            NoServerError: the tracker has no free server.
            ServerLostError: the server does not answer any more.
        """
        try:
            return self._measure(self._bench(tracker, task.workload), task)
        finally:
            if tracker is not None:
                # Others may wait for the server, and it may be lost.
                self.machine = None
                self.benches.clear()

    def _bench(self, tracker: Tracker | None, workload: str) -> _Bench:
        """The layer, on a machine; on this one it is kept for the next task."""
        if self.machine is None:
            self.machine = Local(self.target) if tracker is None else Remote(tracker, self.target)
        if workload not in self.benches:
            self.benches[workload] = _Bench(self.layers[workload], self.target, self.machine)
        return self.benches[workload]

    @staticmethod
    def _measure(bench: _Bench, task: Task) -> list[Result]:
        built = [bench.kernel(config) for config in task.configs]
        seconds: list[list[float]] = [[] for _ in built]
        for _ in range(task.turns):
            for kernel, times in zip(built, seconds, strict=True):
                if not isinstance(kernel, Result):
                    times.append(kernel.seconds())
        bench.forget(task.configs[0])
        return [
            each if isinstance(each, Result) else Result(MEASURED, seconds=tuple(times))
            for each, times in zip(built, seconds, strict=True)
        ]


_worker: Worker | None = None


def start(model: Model) -> None:
    """Load the model in this process, which then serves `measure`."""
    global _worker
    _worker = Worker(model)


def measure(tracker: Tracker | None, task: Task) -> list[Result]:
    """`Worker.measure` of this process."""
    assert _worker is not None
    return _worker.measure(tracker, task)
