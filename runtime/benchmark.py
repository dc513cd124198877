"""Latency beside other engines: one process, interleaved runs, medians, threads stated."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from leakyforge.errors import InputError
from leakyforge.runtime import cpu
from leakyforge.runtime.artifact import Artifact, read_artifact
from leakyforge.runtime.engine_worker import turn
from leakyforge.runtime.manifest import DEVICE_KINDS
from leakyforge.runtime.parity import find_onnx
from leakyforge.runtime.reference import onnxruntime_session, random_feeds
from leakyforge.runtime.session import Session
from leakyforge.runtime.startup import Startup, measure_startup
from leakyforge.runtime.tensors import format_shape

OURS = "leakyforge"
_PAUSE_SECONDS = 0.05
WARM_SECONDS = 0.01
TURN_SECONDS = 0.03
_LEAST_SAMPLES = 10


@dataclass(frozen=True)
class Latency:
    """Time of one inference in one engine, in milliseconds.

    Attributes:
        engine: name and version.
        median_ms: median over all counted calls.
        p10_ms: tenth percentile.
        p90_ms: ninetieth percentile.
        speedup: the engine's median divided by leakyforge's: above 1, leakyforge is faster.
    """

    engine: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float


@dataclass(frozen=True)
class BenchReport:
    """Figures of one run on one machine; only their ratios mean anything elsewhere."""

    model: str
    variant: str
    cpu: str
    threads: int
    calls: int
    inputs: dict[str, str]
    latencies: tuple[Latency, ...]
    startups: tuple[Startup, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def bench(
    artifact: str | Path,
    onnx: str | Path | None = None,
    *,
    threads: int | None = None,
    seconds: float = 5.0,
    startup: bool = True,
    variant: str | None = None,
    verify_key: str | Path | None = None,
) -> BenchReport:
    """Time an artifact beside ONNX Runtime.

    The engines take turns of 30 ms, so that a disturbance of the machine meets all of them.

    Args:
        artifact: the artifact's path.
        onnx: the ONNX file that it was compiled from, found as in `check`.
        threads: of every engine; by default the physical cores that this process may use.
        seconds: how long to measure all engines together; at least ten calls of each.
        startup: also measure start time and memory of a session, in processes of their own.
        variant: the variant to time; by default the best for this CPU.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact cannot be loaded here, or is not signed by `verify_key`.
        ModelError: the ONNX file is absent or another one.
        InputError: `seconds` is not positive, or `threads` are more than the CPUs.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}, but a benchmark needs a positive time")
    loaded = read_artifact(artifact, variant, verify_key=verify_key)
    refuse_device(loaded)
    session = Session(loaded, threads=threads)
    proto = find_onnx(loaded.manifest, loaded.path, onnx)
    feeds = random_feeds(loaded.manifest.inputs, 0, smallest(loaded.manifest.inputs))
    reference = onnxruntime_session(proto, threads=session.threads)
    engines = {
        f"{OURS} {metadata.version('leakyforge')}": lambda: session.run(None, feeds),
        f"onnxruntime {metadata.version('onnxruntime')}": lambda: reference.run(None, dict(feeds)),
    }
    samples = interleave(engines, seconds)
    ours = statistics.median(next(iter(samples.values())))
    return BenchReport(
        model=loaded.manifest.model,
        variant=session.variant,
        cpu=cpu.model_name(),
        threads=session.threads,
        calls=len(next(iter(samples.values()))),
        inputs={name: format_shape(array.shape) for name, array in feeds.items()},
        latencies=tuple(_latency(name, times, ours) for name, times in samples.items()),
        startups=measure_startup(session, loaded.path, proto, feeds, verify_key) if startup else (),
    )


def refuse_device(artifact: Artifact) -> None:
    """Refuse what does not run on the CPU: its times beside a CPU's say nothing.

    Raises:
        InputError: the artifact is for a device.
    """
    kind = DEVICE_KINDS.get(artifact.manifest.machine)
    if kind is not None:
        raise InputError(
            f"{artifact.path} is for {kind} devices, and bench compares engines on the CPU; "
            "compile the model with --target cpu"
        )


def smallest(specs: Any) -> dict[str, int]:
    """Batch 1 for symbolic dimensions: latency is what is measured."""
    return {dim: 1 for spec in specs for dim in spec.shape if isinstance(dim, str)}


def interleave(engines: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, the engines in turn, until the time is up.

    Before a turn there is a pause, since the worker threads of the engine before it go on
    spinning for up to 40 ms; then the engine runs without being counted, at least once, since its
    own threads sleep and the caches hold another engine's weights.
    """
    samples: dict[str, list[float]] = {name: [] for name in engines}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(next(iter(samples.values()))) < _LEAST_SAMPLES:
        for name, call in engines.items():
            time.sleep(_PAUSE_SECONDS)
            turn(call, WARM_SECONDS)
            samples[name] += turn(call, TURN_SECONDS)
    return samples


def _latency(engine: str, times: list[float], ours: float) -> Latency:
    """Summary of one engine's times."""
    # Of few calls, the other method gives times that are below the least, and even below 0.
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    median = statistics.median(times)
    return Latency(engine, median * 1e3, deciles[0] * 1e3, deciles[-1] * 1e3, median / ours)
