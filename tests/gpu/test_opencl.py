"""OpenCL artifacts, compiled by TVM and run without it, on whatever OpenCL device there is."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import parser

from leakyforge.errors import ArtifactFormatError, CompileError, DeviceError, InputError
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.runtime import Session, bench, check, read_artifact, read_manifest, verify
from leakyforge.runtime import opencl as launcher
from leakyforge.runtime.plan import ALIGNMENT, Buffer, Launch, LaunchPlan, parse_plan

pyopencl = pytest.importorskip("pyopencl", reason="pyopencl is not installed")
try:
    launcher.find_devices()
except DeviceError:
    pytest.skip("this machine has no OpenCL device", allow_module_level=True)

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def model(text):
    return parser.parse_model(HEADER + text)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    # Seven digits of it, as TVM writes constants, are another number.
    text = "g (float[5,7] x) => (float[5,7] y) { y = LeakyRelu <alpha = 0.123456789> (x) }"
    return compile(model(text), "opencl", output=tmp_path_factory.mktemp("cl") / "leaky.lfa")


def test_zoo_equals_onnx_runtime(small_model, tmp_path):
    name, options = small_model
    path = export(name, tmp_path / "model.onnx", **options)
    artifact = compile(path, "opencl")
    report = check(artifact, samples=2)
    assert report, report
    plan = parse_plan(read_artifact(artifact).library)
    # More than one work item in a group, or the test says nothing about barriers.
    assert max(np.prod(launch.group) for launch in plan.launches) > 1


def test_equals_onnx_runtime(small_graph, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model(small_graph), path)
    report = check(compile(path, "opencl"), samples=2)
    assert report, report


def test_exact(leaky):
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    (y,) = Session(leaky).run(None, {"x": x})
    np.testing.assert_array_equal(y, np.where(x < 0, x * np.float32(0.123456789), x))


def test_inputs_of_any_layout(leaky):
    x = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32).T
    session = Session(leaky)
    np.testing.assert_array_equal(
        session.run(["y"], {"x": x})[0], session.run(["y"], {"x": np.ascontiguousarray(x)})[0]
    )


def test_stored_outputs_are_replayed(leaky):
    assert verify(leaky)


def test_runs_without_tvm(leaky, run_python):
    script = """
import sys, numpy as np
from leakyforge.runtime import Session
Session(sys.argv[1]).run(None, {"x": np.ones((5, 7), np.float32)})
print(sorted(name for name in sys.modules if name in ("tvm", "tvm_ffi")))
"""
    assert run_python(script, leaky) == "[]\n"


class TestRecord:
    def test_names_the_device(self, leaky):
        (variant,) = read_manifest(leaky).variants
        assert variant.parity.result == "pass"
        assert variant.parity.cpu == launcher.choose_device().name

    def test_without_a_device_it_is_not_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pyopencl, "get_platforms", list)
        proto = model("g (float[2] x) => (float[2] y) { y = LeakyRelu (x) }")
        path = compile(proto, "opencl", output=tmp_path / "m.lfa")
        (variant,) = read_manifest(path).variants
        assert (variant.parity.result, variant.parity.lacks) == ("not run", ("OpenCL device",))


class TestErrors:
    def test_symbolic_shape(self, tmp_path):
        proto = model("g (float[N,7] x) => (float[N,7] y) { y = LeakyRelu (x) }")
        with pytest.raises(CompileError, match="--shape"):
            compile(proto, "opencl", output=tmp_path / "m.lfa")
        assert not (tmp_path / "m.lfa").exists()

    def test_no_such_device(self, leaky):
        with pytest.raises(DeviceError, match="no OpenCL device is called 'warp drive'; there is"):
            Session(leaky, device="warp drive")

    def test_device_by_a_part_of_its_name(self, leaky):
        name = launcher.choose_device().name
        session = Session(leaky, device=name[:3].upper())
        assert session.run(None, {"x": np.ones((5, 7), np.float32)})[0].sum() == 35

    def test_device_for_a_cpu_artifact(self, tmp_path):
        proto = model("g (float[2] x) => (float[2] y) { y = LeakyRelu (x) }")
        artifact = compile(proto, "cpu", output=tmp_path / "m.lfa")
        with pytest.raises(InputError, match="is code for a CPU"):
            Session(artifact, device="gpu")

    def test_no_driver(self, leaky, monkeypatch):
        monkeypatch.setattr(pyopencl, "get_platforms", list)
        with pytest.raises(DeviceError, match="there is no OpenCL device; install a driver"):
            Session(leaky)

    def test_bench_would_say_nothing(self, leaky):
        with pytest.raises(InputError, match="for OpenCL devices"):
            bench(leaky)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arena": 1 << 60}, "MiB in buffers of up to"),
            ({"programs": ["__kernel void f( {"]}, "cannot be prepared on OpenCL device"),
        ],
    )
    def test_what_the_device_refuses(self, leaky, change, message):
        artifact = read_artifact(leaky)
        fields = json.loads(artifact.library) | change
        with pytest.raises(DeviceError, match=message):
            Session(dataclasses.replace(artifact, library=json.dumps(fields).encode()))

    @pytest.mark.parametrize(
        "library", [b"", b"[]", b"{}", b'{"programs": [], "launches": [{}]}', b"\xff"]
    )
    def test_no_plan(self, leaky, library):
        artifact = dataclasses.replace(read_artifact(leaky), library=library)
        with pytest.raises(ArtifactFormatError, match="holds no launch plan"):
            Session(artifact)

    def test_sizes_without_an_end(self, leaky):
        artifact = read_artifact(leaky)
        fields = json.loads(artifact.library) | {"arena": float("inf")}
        library = json.dumps(fields).encode()
        with pytest.raises(ArtifactFormatError, match="no launch plan: cannot convert float inf"):
            Session(dataclasses.replace(artifact, library=library))


class TestPlan:
    LAUNCH = Launch(0, "k", (0, 1, 2), (2, 1, 1), (4, 1, 1))
    BUFFERS = (Buffer(4, 0), Buffer(8, 512), Buffer(16))
    PLAN = LaunchPlan(("k",), b"\0\xff", 520, BUFFERS, (0,), (2,), (1,), (LAUNCH,))

    def test_json(self):
        assert parse_plan(self.PLAN.to_json()) == self.PLAN

    @pytest.mark.parametrize(
        "change",
        [{"outputs": (3,)}, {"inputs": (-1,)}, {"buffers": (Buffer(0, 0), *BUFFERS[1:])},
         {"buffers": (Buffer(4, 517), *BUFFERS[1:])}, {"buffers": (Buffer(4, -1), *BUFFERS[1:])},
         {"launches": (Launch(0, "k", (0, 7), (1, 1, 1), (1, 1, 1)),)},
         {"launches": (Launch(1, "k", (0, 1), (1, 1, 1), (1, 1, 1)),)},
         {"launches": (Launch(0, "k", (0, 1), (0, 1, 1), (1, 1, 1)),)}],
    )  # fmt: skip
    def test_numbers_that_cannot_be_meant(self, change):
        with pytest.raises(ValueError, match=r"buffer|positive|program"):
            dataclasses.replace(self.PLAN, **change)

    def test_activations_share_memory(self, tmp_path):
        chain = " ".join(
            f"x{i + 1} = LeakyRelu(p{i}) p{i + 1} = Softmax(x{i + 1})" for i in range(6)
        )
        proto = model(f"g (float[40,60] p0) => (float[40,60] p6) {{ {chain} }}")
        artifact = compile(proto, "opencl", output=tmp_path / "m.lfa")
        plan = parse_plan(read_artifact(artifact).library)
        assert len(plan.launches) > 6
        # Each launch reads one tensor and writes another.
        size = 4 * 40 * 60 + -4 * 40 * 60 % ALIGNMENT
        assert plan.arena <= 2 * size
        assert plan.memory == plan.arena
        assert all(buffer.offset % ALIGNMENT == 0 for buffer in plan.buffers)
        assert read_manifest(artifact).variants[0].memory == plan.memory
