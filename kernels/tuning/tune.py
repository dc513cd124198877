"""The search: which layer is measured next, which candidate, and which one wins.

A layer gets its turn by what it may still save: its share of the model's time, divided by the
trials that brought nothing since the last better one. Which candidate is next, its space says: half
come in the order of the cost model, or at random, half are the best ones so far with a change in
one place. Each is timed in turns with the rules' choice. At the end the best of each layer meet the
rules' choice again, for more turns: a winner's mean ratio is below 1 with the confidence
`intervals.CONFIDENCE`, or the rules' choice stays.
"""

import dataclasses
import datetime
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leakyforge.errors import TargetError, TuningError
from leakyforge.intervals import estimate
from leakyforge.kernels.target import CpuTarget, parse_targets
from leakyforge.kernels.tuning.layers import tunable_layers
from leakyforge.kernels.tuning.machine import Tracker
from leakyforge.kernels.tuning.records import (
    MEASURED,
    Key,
    Records,
    Trial,
    Winner,
    default_path,
    key_for,
)
from leakyforge.kernels.tuning.tunable import Space, Tunable
from leakyforge.kernels.tuning.worker import Model, Result, Task
from leakyforge.kernels.tuning.workers import Workers
from leakyforge.runtime.engines import peak_gflops, peak_worker

# Turns of a trial, and of the last comparison, in which so many of the best candidates take part.
_TURNS, _LAST_TURNS, _FINALISTS = 4, 24, 3
# Share of the time that is kept for the last comparisons.
_LAST_SHARE = 0.15
# Trials without a better one after which a layer is given up.
_PATIENCE = 64
# Shares of the machine's peak at which a layer is near its roofline; above, the peak was disturbed.
_NEAR, _DOUBTFUL = 0.95, 1.1
# Ratio above which a candidate is not worth the last comparison.
_PROMISING = 0.99
# Time to measure the machine's peak, twice.
_PEAK_SECONDS = 0.3
# Without a limit a search takes so long.
_DEFAULT_SECONDS = 600.0


@dataclass
class LayerState:
    """A layer during the search.

    Attributes:
        tunable: the layer.
        key: of its records.
        space: its candidates.
        ratios: time of each candidate that was tried as a multiple of that of the rules' choice, by
            its sizes in JSON; infinite where it failed.
        rules_ms: time of the rules' choice, None before the first trial.
        since_better: trials since the last better one.
        trials: made by this search.
        finished: why no more are made, empty while they are.
        winner: what the layer is compiled with from now on; None until the last comparison.
    """

    tunable: Tunable
    key: Key
    space: Space
    ratios: dict[str, float] = field(default_factory=dict)
    rules_ms: float | None = None
    since_better: int = 0
    trials: int = 0
    finished: str = ""
    winner: Winner | None = None

    @property
    def rules(self) -> str:
        """The rules' choice, in JSON."""
        return self.tunable.rules_config

    @property
    def best(self) -> tuple[str, float]:
        """The fastest so far, and its ratio."""
        found = min(self.ratios.items(), key=lambda each: each[1], default=(self.rules, 1.0))
        return found if found[1] < 1.0 else (self.rules, 1.0)

    @property
    def best_ms(self) -> float:
        """Time of the fastest so far; infinite before the first trial."""
        return math.inf if self.rules_ms is None else self.rules_ms * self.best[1]

    @property
    def may_save(self) -> float:
        """By what its turn comes."""
        return self.tunable.count * self.best_ms / (1 + self.since_better)


@dataclass(frozen=True)
class TuneReport:
    """What a search found.

    Attributes:
        model: path of the ONNX file.
        target: processor and features.
        records: path of the database.
        layers: in the order of the model.
        interrupted: whether it was ended by the user.
    """

    model: str
    target: str
    records: str
    layers: tuple[LayerState, ...]
    interrupted: bool

    @property
    def rules_share(self) -> float:
        """Speed of the rules' choices as a share of the winners', the geometric mean over layers.

        1 where there is no winner.
        """
        ratios = [layer.winner.ratio for layer in self.layers if layer.winner is not None]
        return statistics.geometric_mean(ratios) if ratios else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "target": self.target,
            "records": self.records,
            "interrupted": self.interrupted,
            "rules_share": self.rules_share,
            "layers": [
                {
                    "layer": state.tunable.words,
                    "count": state.tunable.count,
                    "trials": len(state.ratios),
                    "rules_ms": state.rules_ms,
                    "best_ms": None if state.rules_ms is None else state.best_ms,
                    "finished": state.finished,
                    "winner": state.winner and dataclasses.asdict(state.winner),
                }
                for state in self.layers
            ],
        }


def tune(
    source: str | Path,
    target: str = "cpu",
    *,
    trials: int | None = None,
    seconds: float | None = None,
    layers: Sequence[str] = (),
    shapes: dict[str, tuple[int, ...]] | None = None,
    precision: str = "default",
    records: Path | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
    servers: int = 1,
    on_progress: Callable[[list[LayerState], float], None] = lambda _layers, _share: None,
) -> TuneReport:
    """Search for faster kernels of a model's layers, and record what was found.

    Every trial is kept as soon as it was made; a second search goes on where the first one ended.

    Args:
        source: ONNX file.
        target: `cpu`; with a tracker, `cpu:NAME` with LLVM's name of the servers' processor, or a
            TVM target in JSON.
        trials: ends the search after so many, those of earlier searches not counted.
        seconds: ends the search; 600 where neither is given.
        layers: words of which a layer's description holds one; all layers by default.
        shapes: of inputs whose dimensions are symbolic.
        precision: as in `compile`.
        records: the database; the user's by default.
        seed: of the order of the candidates.
        tracker: of RPC servers to measure on.
        servers: of them to use at a time.
        on_progress: called after each trial with the layers and the share of the budget used.

    Raises:
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        ShapeError: a shape does not fit.
        CompileError: TVM fails on the graph.
        TargetError: the target is unknown, or not one that is measured on this machine.
        TuningError: no layer can be tuned, no server is left, or the records cannot be written.
        MissingDependencyError: the packages of the extra `tune` are absent.
    """
    found = parse_targets(target)
    if len(found) > 1 or (target != "cpu" and tracker is None):
        raise TargetError(
            f"target {target!r} is not measured on this machine; tune with --target cpu, or on "
            "another machine with --tracker HOST:PORT and its --target cpu:NAME"
        )
    strict = precision == "strict"
    states = _states(str(source), found[0], shapes or {}, layers, strict, seed)
    model = Model(str(source), target, tuple((shapes or {}).items()), strict)
    budget = _Budget(trials, seconds)
    path = records or default_path()
    with Records(path) as database:
        for state in states:
            _resume(state, database)
        workers = Workers(model, tracker, count=servers)
        # That of a server is not known.
        peak = machine_peak(found[0]) if tracker is None else None
        search = _Search(states, database, workers, seed, tracker, peak)
        interrupted = False
        try:
            search.explore(budget, on_progress)
            search.decide()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            workers.close()
        on_progress(states, 1.0)
    return TuneReport(str(source), states[0].key.target, str(path), tuple(states), interrupted)


def computed_gflops(tunable: Tunable, config: str, milliseconds: float) -> float:
    """Speed of a candidate, by the operations that its algorithm computes; 0 without products."""
    return tunable.computed_flops(config) / (milliseconds * 1e6)


def machine_peak(target: CpuTarget) -> float:
    """GFLOP/s of this machine."""
    with (
        tempfile.TemporaryDirectory(prefix="leakyforge-") as folder,
        peak_worker(target.num_cores, Path(folder)) as worker,
    ):
        return peak_gflops(worker.turn(_PEAK_SECONDS, _PEAK_SECONDS))


def _states(
    source: str,
    target: CpuTarget,
    shapes: dict[str, tuple[int, ...]],
    words: Sequence[str],
    strict: bool,
    seed: int,
) -> list[LayerState]:
    """The layers to tune."""
    states = []
    known = tunable_layers(source, target, shapes, strict=strict)
    for tunable in known:
        if words and not any(word in tunable.words for word in words):
            continue
        if (space := tunable.space(target, seed)) is not None:
            states.append(LayerState(tunable, key_for(tunable.workload, target), space))
    if not states:
        names = ", ".join(repr(tunable.words) for tunable in known) or "none"
        raise TuningError(
            f"{source} has no layer to tune{' among those named' if words else ''}; its "
            f"layers are: {names}"
        )
    return states


def _resume(state: LayerState, database: Records) -> None:
    """Take up what earlier searches measured.

    What was compared with another choice of the rules, as after they were improved, counts where
    the present choice was compared with that one too.
    """
    earlier = database.trials(state.key)
    present = {trial.rules: trial.ratio for trial in earlier if trial.config == state.rules}
    present[state.rules] = 1.0
    times = []
    for trial in earlier:
        if trial.ratio is None:
            state.ratios[trial.config] = math.inf
        elif base := present.get(trial.rules):
            ratio = state.ratios[trial.config] = trial.ratio / base
            if trial.milliseconds is not None:
                times.append(trial.milliseconds / ratio)
    if times:
        state.rules_ms = statistics.median(times)


class _Budget:
    """How much of a search is done; the last comparisons are not part of it."""

    def __init__(self, trials: int | None, seconds: float | None) -> None:
        if trials is None and seconds is None:
            seconds = _DEFAULT_SECONDS
        self._trials = trials
        self._seconds = None if seconds is None else seconds * (1 - _LAST_SHARE)
        self._start = time.monotonic()

    def share(self, trials: int) -> float:
        """Share that so many trials and the time since the start are of it; 1 at its end."""
        shares = [0.0]
        if self._trials is not None:
            shares.append(trials / self._trials if self._trials else 1.0)
        if self._seconds is not None:
            elapsed = time.monotonic() - self._start
            shares.append(elapsed / self._seconds if self._seconds else 1.0)
        return min(1.0, max(shares))


@dataclass
class _Search:
    """A search over the layers of a model."""

    states: list[LayerState]
    database: Records
    workers: Workers
    seed: int
    tracker: Tracker | None
    peak_gflops: float | None

    def __post_init__(self) -> None:
        self._by_workload = {state.key.workload: state for state in self.states}

    def explore(
        self, budget: _Budget, on_progress: Callable[[list[LayerState], float], None]
    ) -> None:
        """Make trials until the budget is used or no layer has anything left."""
        while True:
            made = sum(state.trials for state in self.states)
            on_progress(self.states, budget.share(made))
            while (
                self.workers.pending < self.workers.count
                and budget.share(made + self.workers.pending) < 1
                and (task := self._next()) is not None
            ):
                self.workers.submit(task)
            if not self.workers.pending:
                return
            for task, results in self.workers.finished():
                self._keep(task, results)

    def _next(self) -> Task | None:
        """The next trial; None where no layer has one."""
        for state in sorted(self.states, key=lambda each: -each.may_save):
            if state.finished:
                continue
            if (config := state.space.next(state.ratios)) is not None:
                return Task(state.key.workload, (state.rules, config), _TURNS)
            state.finished = "every candidate was tried"
        return None

    def _keep(self, task: Task, results: list[Result]) -> None:
        """Record a trial."""
        state, result = self._by_workload[task.workload], results[1]
        ratio = milliseconds = None
        if result.status == MEASURED and results[0].status == MEASURED:
            pairs = zip(result.seconds, results[0].seconds, strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            milliseconds = statistics.median(result.seconds) * 1e3
            if state.rules_ms is None:
                state.rules_ms = statistics.median(results[0].seconds) * 1e3
        self.database.add(
            Trial(
                state.key, state.tunable.words, task.configs[1], result.status, ratio,
                milliseconds, result.error, self.seed, self._place, _now(), state.rules,
            )
        )  # fmt: skip
        is_better = ratio is not None and ratio < state.best[1]
        state.ratios[task.configs[1]] = math.inf if ratio is None else ratio
        state.trials += 1
        state.since_better = 0 if is_better else state.since_better + 1
        if state.since_better >= _PATIENCE:
            state.finished = f"{_PATIENCE} trials brought nothing"
        elif is_better or state.trials == 1:
            self._stop_near_roofline(state)

    def _stop_near_roofline(self, state: LayerState) -> None:
        """Leave a layer alone whose best candidate runs at the machine's peak."""
        if self.peak_gflops is None:
            return
        share = computed_gflops(state.tunable, state.best[0], state.best_ms) / self.peak_gflops
        if _NEAR <= share <= _DOUBTFUL:
            state.finished = f"at {share:.2f} of the machine's peak"

    @property
    def _place(self) -> str:
        """Where trials are measured."""
        return "local" if self.tracker is None else self.tracker.key

    def decide(self) -> None:
        """Compare the best of each layer with the rules' choice, and record the winners."""
        waiting = [state for state in self.states if state.trials or not self._has_winner(state)]
        tasks = iter([self._last_task(state) for state in waiting])
        for task in itertools.islice(tasks, self.workers.count):
            self.workers.submit(task)
        while self.workers.pending:
            for task, results in self.workers.finished():
                self._decide_layer(self._by_workload[task.workload], task, results)
                for following in itertools.islice(tasks, 1):
                    self.workers.submit(following)

    def _has_winner(self, state: LayerState) -> bool:
        """Whether an earlier search decided, against the present rules; then that is the winner."""
        found = self.database.winner(state.key)
        state.winner = found if found is not None and found.rules == state.rules else None
        return state.winner is not None

    def _last_task(self, state: LayerState) -> Task:
        promising = [each for each in state.ratios if state.ratios[each] < _PROMISING]
        finalists = sorted(promising, key=lambda each: state.ratios[each])[:_FINALISTS]
        # It may have won against other rules, and not have been compared with the present ones.
        former = self.database.winner(state.key)
        if former is not None and former.config not in (state.rules, *finalists):
            finalists.append(former.config)
        return Task(state.key.workload, (state.rules, *finalists), _LAST_TURNS)

    def _decide_layer(self, state: LayerState, task: Task, results: list[Result]) -> None:
        """Record the winner of a layer; the rules' choice where nothing is surely faster."""
        base = results[0]
        if base.status != MEASURED:
            state.finished = f"the rules' choice {base.status}: {base.error}"
            return
        chosen = Winner(
            state.key, state.tunable.words, state.rules, 1.0, 1.0, 1.0,
            statistics.median(base.seconds) * 1e3, _now(), state.rules,
        )  # fmt: skip
        for config, result in zip(task.configs[1:], results[1:], strict=True):
            if result.status != MEASURED:
                continue
            pairs = zip(result.seconds, base.seconds, strict=True)
            found = estimate([math.log(ours / theirs) for ours, theirs in pairs])
            ratio, low, high = (math.exp(each) for each in (found.mean, found.low, found.high))
            if high < 1 and ratio < chosen.ratio:
                chosen = dataclasses.replace(
                    chosen, config=config, ratio=ratio, low=low, high=high,
                    milliseconds=statistics.median(result.seconds) * 1e3,
                )  # fmt: skip
        self.database.add(chosen)
        state.winner = chosen


def _now() -> str:
    """The time, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
