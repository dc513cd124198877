"""Start time and memory of a session, each measured in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import LeakyforgeError
from leakyforge.onnx_graph import save_onnx
from leakyforge.runtime.arrays import save_npz
from leakyforge.runtime.session import Session
from leakyforge.runtime.tensors import Array

_ENGINES = ("leakyforge", "onnxruntime")
_PROBE = Path(__file__).with_name("startup_probe.py")


@dataclass(frozen=True)
class Startup:
    """Cost of the first inference in a fresh process that has numpy loaded.

    Attributes:
        engine: whose session.
        import_ms: importing the engine's package.
        session_ms: making the session.
        first_run_ms: the first inference.
        memory_mb: resident memory that these three steps added, in MB (10^6 bytes).
    """

    engine: str
    import_ms: float
    session_ms: float
    first_run_ms: float
    memory_mb: float


def measure_startup(
    session: Session,
    artifact: Path,
    proto: Any,
    feeds: Mapping[str, Array],
    verify_key: str | Path | None,
) -> tuple[Startup, ...]:
    """Measure a session like ours and ONNX Runtime's, with files in a warm cache; medians of three.

    Raises:
        LeakyforgeError: a measuring process fails.
    """
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        onnx = Path(folder) / "model.onnx"
        save_onnx(proto, onnx)
        inputs = Path(folder) / "feeds.npz"
        save_npz(inputs, feeds)
        files = {"leakyforge": artifact.resolve(), "onnxruntime": onnx}
        key = "" if verify_key is None else str(Path(verify_key).resolve())
        results = []
        for engine in _ENGINES:
            command = [sys.executable, "-c", _PROBE.read_text(), engine, str(files[engine])]
            command += [str(inputs), str(session.threads), session.variant, key]
            runs = [_measure(command, folder) for _ in range(3)]
            median = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            results.append(Startup(engine, **median))
    return tuple(results)


def _measure(command: list[str], folder: str) -> dict[str, Any]:
    """One run of the probe, away from any source tree that the caller may stand in."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        raise LeakyforgeError(
            f"measuring start-up failed: {reason[-1] if reason else 'no message'}"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
