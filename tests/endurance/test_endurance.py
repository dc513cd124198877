"""Many threads and runs; compilations that are killed at any moment; a disk that is full."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leakyforge.exporter import export
from leakyforge.runtime import verify

ROOT = Path(__file__).parent.parent.parent
_LEAKYFORGE = [sys.executable, "-m", "leakyforge"]


def test_many_runs_from_many_threads():
    """A part of what `python -m benchmarks.endurance` does."""
    command = [sys.executable, "-m", "benchmarks.endurance", "--threads", "8", "--runs", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("8 threads x 500 runs, .*: 0 wrong results", done.stdout)) == 2


@pytest.fixture
def model(tmp_path):
    return export("digits", tmp_path / "digits.onnx")


def test_a_killed_compilation_leaves_the_artifact_as_it_was(model, tmp_path):
    artifact = tmp_path / "digits.lfa"
    command = [*_LEAKYFORGE, "compile", str(model), "-o", str(artifact), "--no-measure", "-q"]
    start = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True)
    whole = time.monotonic() - start
    before = artifact.read_bytes()
    generator = random.Random(4)
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
        # The artifact is written in the last tenths of a second.
        time.sleep(whole * generator.choice([generator.random(), generator.uniform(0.9, 1.0)]))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert artifact.read_bytes() == before
    assert killed >= 2
    assert verify(artifact)
    # What a killed process has left is hidden, and in nobody's way.
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "digits.onnx",
        "digits.lfa",
    }
    subprocess.run(command, cwd=tmp_path, check=True)
    assert artifact.read_bytes() == before


def test_no_space_for_the_artifact(model, tmp_path):
    """A limit on the size of files stands for a disk that is full: writing fails half way."""
    artifact = tmp_path / "digits.lfa"
    artifact.write_bytes(b"an earlier one")
    command = [*_LEAKYFORGE, "compile", str(model), "-o", str(artifact), "--no-measure"]

    def limit():
        # Without a handler the signal would end the process before the error comes.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (130 << 10, 130 << 10))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*(digits\.lfa|library\.so)", done.stderr), done.stderr
    assert artifact.read_bytes() == b"an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "digits.lfa"}
