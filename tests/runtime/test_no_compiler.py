"""An artifact runs where importing any of the compiler, onnx, onnxruntime and torch fails."""

import importlib.util
import json

import pytest

# Their execution fails; finding them does not: TVM's library is found by its package's folder.
BLOCK = """
import importlib.machinery, json, sys
FORBIDDEN = {forbidden!r}

class Loader:
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise AssertionError(f"{{module.__name__}} was imported")

class Finder:
    searching = False

    def find_spec(self, name, path=None, target=None):
        if name not in FORBIDDEN or Finder.searching:
            return None
        Finder.searching = True
        try:
            found = importlib.util.find_spec(name)
        finally:
            Finder.searching = False
        if found is None:
            return None
        blocked = importlib.machinery.ModuleSpec(name, Loader(), origin=found.origin)
        blocked.submodule_search_locations = found.submodule_search_locations
        return blocked

import importlib.util
sys.meta_path.insert(0, Finder())
"""
FORBIDDEN = (
    "leakyforge.kernels", "leakyforge.exporter", "leakyforge.models", "onnx", "onnxruntime",
    "onnxscript", "onnx_ir", "torch", "tvm",
)  # fmt: skip
REPORT = """
maps = open("/proc/self/maps").read()
print(json.dumps({
    "loaded": [name for name in FORBIDDEN if name in sys.modules],
    "compiler": "libtvm_compiler" in maps,
    "runtime": "libtvm_runtime.so" in maps,
    "result": result,
}))
"""


def blocked(run_python, script, *arguments, forbidden=FORBIDDEN):
    text = BLOCK.format(forbidden=forbidden) + script + REPORT
    report = json.loads(run_python(text, *arguments))
    assert report["loaded"] == []
    assert not report["compiler"]
    return report


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_block_works(run_python, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    script = f"""
result = ""
assert importlib.util.find_spec({name!r}) is not None
try:
    import {name}
except AssertionError as error:
    result = str(error)
"""
    assert blocked(run_python, script)["result"] == f"{name} was imported"


def test_session_runs(run_python, digits):
    script = """
from leakyforge import Session
from leakyforge.runtime import read_artifact
session = Session(sys.argv[1])
artifact = read_artifact(sys.argv[1])
(logits,) = session.run(None, artifact.reference_inputs)
result = float(abs(logits - artifact.reference_outputs["logits"]).max())
"""
    report = blocked(run_python, script, digits)
    assert report["runtime"]
    assert report["result"] < 1e-4


def test_verify_passes(run_python, digits):
    script = """
from leakyforge import verify
result = verify(sys.argv[1]).to_dict()
"""
    assert blocked(run_python, script, digits)["result"]["passed"] is True


@pytest.mark.parametrize(
    "arguments",
    [["verify", "--quiet", "FILE"], ["inspect", "--quiet", "FILE"], ["doctor", "--quiet"]],
)
def test_commands(run_python, digits, arguments):
    script = """
from leakyforge.cli import main
result = main(sys.argv[1:])
"""
    arguments = [str(digits) if word == "FILE" else word for word in arguments]
    assert blocked(run_python, script, *arguments)["result"] is None


def test_bfloat16(run_python, build):
    artifact = build("f (bfloat16[2] x) => (bfloat16[2] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    script = """
from leakyforge import verify
result = bool(verify(sys.argv[1]))
"""
    assert blocked(run_python, script, artifact)["result"] is True


@pytest.mark.parametrize(
    "graph",
    [
        "f (float[2,3] x) => (int64[2,n] y) { y = NonZero (x) }",
        "f (float[n,3] x) => (int64[2] y) { y = Shape (x) }",
        "f (float[2,5] x) => (float[2,2] v, int64[2,2] i) <int64[1] k = {2}> "
        "{ v, i = TopK (x, k) }",
        "f (float[1,9,4] b, float[1,2,9] s) => (int64[n,3] y) <int64 k = {3}> "
        "{ y = NonMaxSuppression (b, s, k) }",
    ],
    ids=["NonZero", "Shape", "TopK", "NonMaxSuppression"],
)
def test_what_the_compiler_has_in_python_or_in_another_library(run_python, build, graph):
    script = """
from leakyforge import verify
result = bool(verify(sys.argv[1]))
"""
    assert blocked(run_python, script, build(graph))["result"] is True


def test_check_says_what_is_missing(run_python, digits):
    script = """
sys.modules["onnxruntime"] = None
from leakyforge import check
from leakyforge.errors import MissingDependencyError
try:
    result = check(sys.argv[1]).to_dict()
except MissingDependencyError as error:
    result = str(error)
del sys.modules["onnxruntime"]
"""
    forbidden = ("onnxruntime", "torch", "tvm", "leakyforge.kernels", "leakyforge.exporter")
    result = blocked(run_python, script, digits, forbidden=forbidden)["result"]
    assert "pip install onnxruntime" in result


def test_torch_is_there_afterwards(run_python, leaky):
    """It is hidden only while tvm_ffi is imported."""
    script = """
import sys
from leakyforge import Session
Session(sys.argv[1])
print("torch" in sys.modules)
import torch
from leakyforge.runtime import read_artifact
print(Session(sys.argv[1]).run(None, read_artifact(sys.argv[1]).reference_inputs)[0].shape)
"""
    pytest.importorskip("torch")
    assert run_python(script, leaky).splitlines() == ["False", "(2, 3)"]


def test_compiler_after_session(run_python, leaky, tmp_path):
    """The runtime library that a session loaded is the one that the compiler then uses."""
    script = """
import sys
from leakyforge import Session, compile, verify
session = Session(sys.argv[1])
print(bool(verify(compile(sys.argv[2], output=sys.argv[3]))))
from leakyforge.runtime import read_artifact
print(session.run(None, read_artifact(sys.argv[1]).reference_inputs)[0].shape)
"""
    arguments = leaky, leaky.with_suffix(".onnx"), tmp_path / "again.lfa"
    assert run_python(script, *arguments).splitlines() == ["True", "(2, 3)"]
