"""What several tests need: small ONNX graphs, artifacts compiled once, and fresh processes."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.runtime import read_artifact, read_manifest
from leakyforge.runtime.artifact import write_artifact

# The records of whoever runs the tests must not decide how they compile.
os.environ["LEAKYFORGE_RECORDS"] = str(Path(tempfile.gettempdir()) / "leakyforge-no-records")

_HEADER = '<ir_version: 10, opset_import: ["": 18]>\n'

# Two outputs whose order in the file is not the alphabetical one.
_CONV = """conv (float[{batch},2,7,5] image) => (float[{batch},3,7,5] wide, float[{batch},3] mean)
{{
    features = Conv <pads = [1,1,1,1]> (image, kernel, bias)
    wide = LeakyRelu <alpha = 0.2> (features)
    mean = ReduceMean <keepdims = 0> (wide, axes)
}}"""


def _parse(text):
    return onnx.parser.parse_model(_HEADER + text)


def _conv(batch):
    generator = np.random.default_rng(7)
    model = _parse(_CONV.format(batch=batch))
    weights = {
        "kernel": generator.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "bias": generator.standard_normal(3).astype(np.float32),
        "axes": np.array([2, 3]),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


@pytest.fixture(scope="session")
def parse():
    """ONNX's text syntax to a model: `name (float[2] x) => (float[2] y) { y = Relu(x) }`."""
    return _parse


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A graph in ONNX's text syntax, or a model, to the path of an artifact; each compiled once.

    The ONNX file lies beside the artifact under the same name.
    """
    artifacts = {}

    def build(model):
        key = model if isinstance(model, str) else model.SerializeToString()
        if key not in artifacts:
            onnx_file = tmp_path_factory.mktemp("built") / "model.onnx"
            onnx.save(_parse(model) if isinstance(model, str) else model, onnx_file)
            artifacts[key] = compile(onnx_file)
        return artifacts[key]

    return build


@pytest.fixture(scope="session")
def leaky(build):
    """The smallest artifact: one LeakyRelu of shape 2x3."""
    return build("leaky (float[2,3] x) => (float[2,3] y) { y = LeakyRelu <alpha = 0.2> (x) }")


@pytest.fixture(scope="session")
def conv(build):
    """Convolution, bias and LeakyRelu; outputs `wide` and `mean`."""
    return build(_conv(1))


@pytest.fixture(scope="session")
def symbolic_conv(build):
    """The same with a symbolic batch."""
    return build(_conv("N"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The trained classifier."""
    return compile(export("digits", tmp_path_factory.mktemp("digits") / "digits.onnx"))


@pytest.fixture(scope="session")
def fat(build, tmp_path_factory):
    """The convolution in the variants of `cpu:fat`."""
    path = tmp_path_factory.mktemp("fat") / "fat.lfa"
    return compile(build(_conv(1)).with_suffix(".onnx"), "cpu:fat", output=path)


@pytest.fixture(scope="session")
def rewrite():
    """Write a copy of an artifact, all hashes right.

    `fields` are of its manifest, `variant` of its first variant, `parts` are members by name.
    """

    def rewrite(source, path, reference_outputs=None, parts=None, variant=None, **fields):
        artifact = read_artifact(source)
        manifest = dataclasses.replace(read_manifest(source), **fields)
        with zipfile.ZipFile(source) as archive:
            members = {
                name: archive.read(name) for each in manifest.variants for name in each.members
            }
        first, *others = manifest.variants
        first = dataclasses.replace(first, **(variant or {}))
        write_artifact(
            path,
            dataclasses.replace(manifest, variants=(first, *others)),
            {**members, **(parts or {})},
            artifact.reference_inputs,
            artifact.reference_outputs if reference_outputs is None else reference_outputs,
        )
        return path

    return rewrite


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Run a script in a fresh process that stands in an empty folder; gives what it printed."""

    def run_python(script, *arguments):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=tmp_path_factory.mktemp("process"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_python
