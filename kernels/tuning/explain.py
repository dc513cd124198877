"""The recorded search of one layer: its candidates, its winner, and a plot of time and trials."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leakyforge.errors import MissingDependencyError, TuningError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.kernels.target import parse_target
from leakyforge.kernels.tuning.layers import tunable_layers
from leakyforge.kernels.tuning.records import Records, Trial, Winner, default_path, key_for
from leakyforge.kernels.tuning.tune import computed_gflops, machine_peak

_SHOWN = 10


@dataclass(frozen=True)
class Search:
    """The recorded search of a layer.

    Attributes:
        layer: the layer in words.
        trials: their number.
        failed: of them without a time.
        best: the fastest, the first one first.
        times: milliseconds of each trial in order; None where it has none.
        winner: what the layer is compiled with; None where the last comparison is missing.
        gflops: operations that the winner's algorithm computes in a nanosecond; 0 without one.
        share: of this machine's peak; None where it was measured elsewhere.
    """

    layer: str
    trials: int
    failed: int
    best: tuple[Trial, ...]
    times: tuple[float | None, ...]
    winner: Winner | None
    gflops: float
    share: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def explain(
    source: str | Path,
    target: str,
    words: str,
    *,
    shapes: dict[str, tuple[int, ...]],
    precision: str,
    records: Path | None,
) -> Search:
    """The search of the layer whose description holds some words.

    Raises:
        TuningError: no layer or several hold them, or it has no trials.
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        CompileError: TVM fails on the graph.
        TargetError: the target is unknown.
    """
    cpu = parse_target(target)
    layers = tunable_layers(str(source), cpu, shapes, strict=precision == "strict")
    named = [layer for layer in layers if words in layer.words]
    # A whole description names one layer, even where it is the beginning of another.
    chosen = [layer for layer in named if layer.words == words] or named
    if len(chosen) != 1:
        names = ", ".join(repr(layer.words) for layer in (chosen or layers))
        raise TuningError(f"{words!r} names {len(chosen)} layers of {source}; take one of {names}")
    (layer,) = chosen
    key = key_for(layer.workload, cpu)
    with Records(records or default_path(), create=False) as database:
        trials, winner = database.trials(key), database.winner(key)
    if not trials:
        raise TuningError(
            f"{layer.words!r} has no trials for this target; run `leakyforge tune {source}`"
        )
    timed = [trial for trial in trials if trial.milliseconds is not None]
    gflops, share = 0.0, None
    if winner is not None:
        gflops = computed_gflops(layer, winner.config, winner.milliseconds)
        share = gflops / machine_peak(cpu) if target == "cpu" else None
    return Search(
        layer=layer.words,
        trials=len(trials),
        failed=len(trials) - len(timed),
        best=tuple(sorted(timed, key=lambda trial: trial.ratio or 0.0)[:_SHOWN]),
        times=tuple(trial.milliseconds for trial in trials),
        winner=winner,
        gflops=gflops,
        share=share,
    )


def plot(search: Search, path: Path) -> None:
    """Draw time against trials, and the best time so far.

    Raises:
        MissingDependencyError: matplotlib is absent.
        TuningError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a plot needs matplotlib; run: pip install 'leakyforge[peers]'"
        ) from error
    if problem := destination_problem(path):
        raise TuningError(problem)
    timed = [(number, time) for number, time in enumerate(search.times, 1) if time is not None]
    best = [min(time for _, time in timed[: index + 1]) for index in range(len(timed))]
    numbers = [number for number, _ in timed]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, [time for _, time in timed], ".", color="0.6", label="a trial")
    axes.step(numbers, best, where="post", label="the best so far")
    if search.winner is not None:
        axes.axhline(search.winner.milliseconds, ls=":", color="C2", label="the winner, compared")
    axes.set(title=search.layer, xlabel="trial", ylabel="milliseconds", yscale="log")
    axes.legend()
    try:
        with atomic_file(path) as stream:
            figure.savefig(stream, format="png", dpi=120)
    except OSError as error:
        raise TuningError(f"{path} cannot be written: {error.strerror}") from error
