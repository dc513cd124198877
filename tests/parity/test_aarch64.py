"""Artifacts for aarch64 run there, under qemu's emulation of a Cortex-A72, and agree.

qemu stops at an instruction that a Cortex-A72 lacks. `tests/parity/prepare_aarch64` makes the
folder that holds qemu and Python for aarch64; `tests/run` calls it.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

import leakyforge
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.runtime import cpu

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ROOT = Path(os.environ.get("LEAKYFORGE_AARCH64") or CACHE / "leakyforge/aarch64")

pytestmark = [
    pytest.mark.skipif(cpu.machine() != "x86_64", reason="this machine needs no emulation"),
    pytest.mark.skipif(
        not (ROOT / "pins").is_file(),
        reason=f"no qemu-aarch64 in {ROOT}; make it with tests/parity/prepare_aarch64",
    ),
]

# Text, shapes of the weights by name, and precision.
GRAPHS = {
    "winograd": (
        "g (float[1,32,13,14] x) => (float[1,32,13,14] y)"
        " { s = Conv <pads = [1,1,1,1]> (x, w, b) y = LeakyRelu <alpha = 0.1> (s) }",
        {"w": (32, 32, 3, 3), "b": (32,)},
        "default",
    ),
    "direct": (
        "g (float[2,7,13,17] x) => (float[2,11,7,9] y)"
        " { s = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w, b)"
        " y = LeakyRelu <alpha = 0.1> (s) }",
        {"w": (11, 7, 3, 3), "b": (11,)},
        "strict",
    ),
    "transposed": (
        "g (float[1,16,6,5] x) => (float[1,8,12,10] y)"
        " { s = ConvTranspose <pads = [1,1,1,1], strides = [2,2]> (x, w, b)"
        " y = LeakyRelu <alpha = 1.5> (s) }",
        {"w": (16, 8, 4, 4), "b": (8,)},
        "default",
    ),
    "few_channels": (
        "g (float[1,64,9,8] x) => (float[1,3,9,8] y)"
        " { s = Conv <pads = [1,1,1,1]> (x, w, b) y = LeakyRelu <alpha = -0.5> (s) }",
        {"w": (3, 64, 3, 3), "b": (3,)},
        "default",
    ),
    "matmul": (
        "g (float[33,96] x) => (float[33,50] y)"
        " { p = MatMul (x, w) s = Add (p, b) y = LeakyRelu <alpha = 0.1> (s) }",
        {"w": (96, 50), "b": (50,)},
        "default",
    ),
    "leaky_relu": (
        "g (float[3,37] x, float16[3,37] h) => (float[3,37] y, float16[3,37] z)"
        " { y = LeakyRelu <alpha = 0.3> (x) z = LeakyRelu <alpha = 0.3> (h) }",
        {},
        "default",
    ),
}


# One process for all: the emulated one takes seconds to start.
VERIFY = """
import json, sys
from leakyforge.runtime import verify
print(json.dumps({path: verify(path).to_dict() for path in sys.argv[1:]}))
"""


def on_aarch64(*arguments):
    """Status, output and errors of Python in the emulated machine."""
    packages = [ROOT / "site", Path(leakyforge.__file__).parents[1]]
    done = subprocess.run(
        [
            *(ROOT / "qemu-aarch64", "-cpu", "cortex-a72", "-L", ROOT / "root"),
            *("-E", f"PYTHONPATH={':'.join(map(str, packages))}"),
            *("-E", "PYTHONDONTWRITEBYTECODE=1"),
            *(ROOT / "root/usr/bin/python3", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def graph(parse, tmp_path_factory):
    """Compile one of `GRAPHS` for a target."""

    def graph(name, target):
        text, shapes, precision = GRAPHS[name]
        model = parse(text)
        generator = np.random.default_rng(0)
        for weight, shape in shapes.items():
            values = generator.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, weight))
        output = tmp_path_factory.mktemp("aarch64") / f"{name}.lfa"
        return compile(model, target, output=output, precision=precision)

    return graph


@pytest.fixture(scope="module")
def reports(graph):
    """What `verify` says of each graph in the emulated machine."""
    paths = {name: str(graph(name, "cpu:cortex-a72")) for name in GRAPHS}
    status, out, error = on_aarch64("-c", VERIFY, *paths.values())
    assert status == 0, error
    found = json.loads(out)
    return {name: found[path] for name, path in paths.items()}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_kernels_agree_with_onnxruntime(reports, name):
    assert reports[name]["passed"] is True
    assert reports[name]["outputs"]


def test_leaky_relu_is_exact(reports):
    assert [row["max_abs"] for row in reports["leaky_relu"]["outputs"]] == [0.0, 0.0]


def test_digits_agree_with_onnxruntime(tmp_path):
    artifact = compile(export("digits", tmp_path / "digits.onnx"), "cpu:cortex-a72")
    status, out, error = on_aarch64("-m", "leakyforge", "verify", artifact, "--json")
    assert (status, error) == (0, "")
    report = json.loads(out)
    assert report["passed"] is True
    assert [row["output"] for row in report["outputs"]] == ["logits"]


def test_features_that_the_processor_lacks_are_named(graph):
    artifact = graph("matmul", "cpu:neoverse-n1")
    status, _, error = on_aarch64("-m", "leakyforge", "verify", artifact)
    assert status == 2
    assert "ARM CPU 0x41 0xd08 lacks: dotprod, fullfp16, lse, rcpc, rdm;" in error
    assert "cpu:fat" not in error


def test_artifact_for_another_instruction_set_is_refused(graph):
    artifact = graph("matmul", "cpu:x86-64")
    status, _, error = on_aarch64("-m", "leakyforge", "verify", artifact)
    assert status == 2
    assert "is for x86_64, this machine is aarch64" in error
