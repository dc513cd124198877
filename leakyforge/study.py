"""The study of activations: trains, exports, compiles, checks and times one network with each.

`study_report` says what came of it.
"""

import datetime
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from leakyforge.errors import InputError, ParityError

if TYPE_CHECKING:
    from leakyforge.models.activations import Activation
    from leakyforge.models.digits_data import DigitsSplit
    from leakyforge.runtime import Session

_Part = TypeVar("_Part")

DEPTHS = (2, 10)
SEEDS = 5
EPOCHS = 20
# With more, the kernels of so small a network spend their time on waking threads.
THREADS = 1
_LATENCY_SECONDS = 12.0
_LATENCY = "latency"


@dataclass(frozen=True)
class Run:
    """One trained network, whose compiled artifact classifies the test images as it does.

    Attributes:
        seed: of its first weights and of the order of its images.
        accuracy: share of the test images that are classified rightly, 0 to 1.
        parity: share of the tolerance that the artifact needs against ONNX Runtime, at most 1.
        dead: share of hidden units whose derivative is exactly 0 on every training image.
        never_positive: share of hidden units at or below 0 on every training image.
        saturated: share of small derivatives (`models.train_study.SATURATED`) on training images.
        first_gradients: norms of the gradient by each layer's weights before training.
        last_gradients: the same after it.
    """

    seed: int
    accuracy: float
    parity: float
    dead: float
    never_positive: float
    saturated: float
    first_gradients: tuple[float, ...]
    last_gradients: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """One activation in networks of one depth.

    Attributes:
        activation: its name.
        kind: `sigmoid`, `tanh` or `rectifier`.
        slope: of a rectifier below zero; PReLU's first one, RReLU's mean.
        operator: of ONNX, that computes it.
        depth: hidden layers.
        rate: the first learning rate, chosen on held-out training images.
        runs: one for each seed.
        median_ms: time in which the artifact of the first seed classifies the test images.
        p10_ms: tenth percentile.
        p90_ms: ninetieth percentile.
    """

    activation: str
    kind: str
    slope: float
    operator: str
    depth: int
    rate: float
    runs: tuple[Run, ...]
    median_ms: float
    p10_ms: float
    p90_ms: float

    @property
    def accuracies(self) -> list[float]:
        """Of every seed."""
        return [run.accuracy for run in self.runs]

    def mean(self, name: str) -> float:
        """Mean of an attribute of the runs."""
        return statistics.fmean(getattr(run, name) for run in self.runs)


@dataclass(frozen=True)
class Study:
    """All arms and what they have in common; `rates` are those to choose from."""

    cpu: str
    date: str
    epochs: int
    train_images: int
    test_images: int
    width: int
    rates: tuple[float, ...]
    saturated_below: float
    threads: int
    arms: tuple[Arm, ...]

    @property
    def depths(self) -> list[int]:
        """In order."""
        return sorted({arm.depth for arm in self.arms})

    def at(self, depth: int) -> list[Arm]:
        """The arms of one depth."""
        return [arm for arm in self.arms if arm.depth == depth]

    def reference(self, depth: int) -> Arm:
        """ReLU's arm of one depth, which the others are compared with."""
        return next(arm for arm in self.at(depth) if is_relu(arm))

    def to_dict(self) -> dict[str, Any]:
        """The study as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Study":
        """The study of such values."""

        def made(kind: type[_Part], values: dict[str, Any]) -> _Part:
            # JSON has lists where these have tuples.
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

        arms = [
            made(Arm, {**arm, "runs": [made(Run, run) for run in arm["runs"]]})
            for arm in fields["arms"]
        ]
        return made(cls, {**fields, "arms": arms})


def is_relu(arm: "Arm | Activation") -> bool:
    """Whether it is the reference of all comparisons."""
    return arm.kind == "rectifier" and arm.slope == 0


def stages(depths: Sequence[int] = DEPTHS) -> list[str]:
    """Names of what `run_study` does, in order."""
    from leakyforge.models.activations import ACTIVATIONS

    return [_stage(activation, depth) for depth in depths for activation in ACTIVATIONS] + [
        _LATENCY
    ]


def _stage(activation: "Activation", depth: int) -> str:
    return f"{activation.name}, {depth} layers"


def run_study(
    *,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    activations: "Sequence[Activation] | None" = None,
    depths: Sequence[int] = DEPTHS,
    latency_seconds: float = _LATENCY_SECONDS,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> Study:
    """Train networks of every depth with every activation and put all of them through the tools.

    Equal arguments give equal accuracies and gradients on one machine, but for the latencies.

    Args:
        seeds: networks of each arm; their seeds count from 0.
        epochs: passes over the training images.
        activations: those to compare, ReLU among them; by default all of `models.activations`.
        depths: numbers of hidden layers.
        latency_seconds: time to measure latencies in, for each depth.
        on_stage: called with a name out of `stages` when that stage begins.

    Raises:
        InputError: fewer than one seed or epoch, or ReLU is not among the activations.
        MissingDependencyError: scikit-learn, which has the images, is not installed.
        ParityError: an artifact differs from ONNX Runtime, or classifies the test images otherwise
            than the network that was trained.
    """
    from leakyforge.models.activations import ACTIVATIONS
    from leakyforge.models.digits_data import digits_split
    from leakyforge.models.study_network import WIDTH
    from leakyforge.models.train_study import RATES, SATURATED
    from leakyforge.runtime import cpu

    compared = ACTIVATIONS if activations is None else activations
    if seeds < 1 or epochs < 1:
        raise InputError(f"seeds={seeds}, epochs={epochs}, but a study needs one of each at least")
    if not any(is_relu(activation) for activation in compared):
        raise InputError("ReLU is not among the activations, which are compared with it")
    split = digits_split()
    arms = []
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        for depth in depths:
            trained = []
            for activation in compared:
                on_stage(_stage(activation, depth))
                trained.append(_train(activation, depth, seeds, epochs, split, Path(folder)))
            on_stage(_LATENCY)
            arms += _timed(trained, depth, split, latency_seconds)
    return Study(
        cpu=cpu.model_name(),
        date=datetime.date.today().isoformat(),
        epochs=epochs,
        train_images=len(split.train_images),
        test_images=len(split.test_images),
        width=WIDTH,
        rates=RATES,
        saturated_below=SATURATED,
        threads=THREADS,
        arms=tuple(arms),
    )


class _Trained(NamedTuple):
    """An arm that has not been timed, with the session of its first seed."""

    activation: "Activation"
    operator: str
    rate: float
    runs: tuple[Run, ...]
    session: "Session"


def _train(
    activation: "Activation",
    depth: int,
    seeds: int,
    epochs: int,
    split: "DigitsSplit",
    folder: Path,
) -> _Trained:
    """Choose a rate, then train, observe and compile a network for each seed."""
    from leakyforge.models.study_network import StudyNetwork
    from leakyforge.models.train_study import choose_rate, flat, observe, train

    images, labels = flat(split.train_images), split.train_labels
    rate = choose_rate(activation, depth, split, epochs=epochs)
    runs, sessions = [], []
    for seed in range(seeds):
        network = StudyNetwork(activation, depth, seed)
        before = observe(network, images, labels)
        train(network, images, labels, epochs=epochs, rate=rate, seed=seed)
        after = observe(network, images, labels)
        accuracy = network.accuracy(flat(split.test_images), split.test_labels)
        session, parity = _compiled(network, accuracy, split, folder)
        sessions.append(session)
        runs.append(
            Run(
                seed=seed,
                accuracy=accuracy,
                parity=parity,
                dead=after.dead,
                never_positive=after.never_positive,
                saturated=after.saturated,
                first_gradients=before.gradient_norms,
                last_gradients=after.gradient_norms,
            )
        )
    operator = network.to_onnx(1).graph.node[1].op_type
    return _Trained(activation, operator, rate, tuple(runs), sessions[0])


def _compiled(
    network: Any, accuracy: float, split: "DigitsSplit", folder: Path
) -> "tuple[Session, float]":
    """Export, compile and check a network; the session, and the share of the tolerance it needs.

    Raises:
        ParityError: it differs from ONNX Runtime, or its accuracy is another one.
    """
    from leakyforge.exporter import export
    from leakyforge.kernels import compile
    from leakyforge.models.train_study import flat
    from leakyforge.runtime import Session, check

    name = f"{network.activation.name}, {network.depth} layers"
    model = export(network.to_onnx(len(split.test_images)), folder / "study.onnx")
    artifact = compile(model, measure=False)
    report = check(artifact, model)
    if not report:
        raise ParityError(f"the artifact of {name} differs from ONNX Runtime")
    session = Session(artifact, threads=THREADS)
    (logits,) = session.run(None, {"image": flat(split.test_images)})
    compiled = float((logits.argmax(axis=1) == split.test_labels).mean())
    if compiled != accuracy:
        raise ParityError(f"{name}: accuracy {accuracy:.4f} when trained, {compiled:.4f} compiled")
    return session, max(row.needed for row in report.outputs)


def _timed(
    trained: Sequence[_Trained], depth: int, split: "DigitsSplit", seconds: float
) -> list[Arm]:
    """Time the sessions, which take turns, and make the arms."""
    from leakyforge.models.train_study import flat
    from leakyforge.runtime.benchmark import interleave

    feeds = {"image": flat(split.test_images)}
    calls = {
        each.activation.name: (lambda session=each.session: session.run(None, feeds))
        for each in trained
    }
    times = interleave(calls, seconds)
    arms = []
    for each in trained:
        milliseconds = [1e3 * time for time in times[each.activation.name]]
        deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
        arms.append(
            Arm(
                activation=each.activation.name,
                kind=each.activation.kind,
                slope=each.activation.slope,
                operator=each.operator,
                depth=depth,
                rate=each.rate,
                runs=each.runs,
                median_ms=statistics.median(milliseconds),
                p10_ms=deciles[0],
                p90_ms=deciles[-1],
            )
        )
    return arms
