"""Every hostile file ends in a named error, in bounded time and memory, and in no crash."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name):
    sys.path.insert(0, str(HERE))
    try:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(HERE))


@pytest.mark.parametrize("kind", ["onnx", "artifact"])
def test_every_file_of_the_corpus(kind):
    pytest.importorskip("pebble")
    files = load(f"{kind}_files")
    command = [sys.executable, HERE / "worker.py", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert outcomes.keys() == files.CASES.keys()
    wrong = {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome["error"] != "LeakyforgeError"
        and not (outcome["error"] is None and name in files.LEGAL)
    }
    assert not wrong
    assert not [name for name, outcome in outcomes.items() if "\n" in outcome["message"]]


@pytest.mark.parametrize(
    "path", sorted((HERE / "corpus" / "onnx").iterdir()), ids=lambda path: path.name
)
def test_what_fuzzing_found_is_refused(path):
    """Or imported; no other error comes out."""
    from leakyforge.errors import LeakyforgeError
    from leakyforge.kernels.importer import import_onnx
    from leakyforge.kernels.onnx_model import fold, load_onnx

    with contextlib.suppress(LeakyforgeError):
        import_onnx(fold(load_onnx(path).proto))
