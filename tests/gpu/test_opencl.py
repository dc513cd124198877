"""OpenCL artifacts, compiled by TVM and run without it, on whatever OpenCL device there is."""

import dataclasses
import json

import numpy as np
import pytest
from onnx import parser

from leakyforge.errors import ArtifactFormatError, CompileError, DeviceError, InputError
from leakyforge.kernels import compile
from leakyforge.models import ZOO, build
from leakyforge.runtime import Session, bench, check, read_artifact, read_manifest, verify
from leakyforge.runtime import opencl as launcher
from leakyforge.runtime.plan import Launch, LaunchPlan, parse_plan

pyopencl = pytest.importorskip("pyopencl", reason="pyopencl is not installed")
try:
    launcher.find_devices()
except DeviceError:
    pytest.skip("this machine has no OpenCL device", allow_module_level=True)

SMALL = {
    "dcgan-discriminator": {"features": 8},
    "dcgan-generator": {"features": 8},
    "digits": {"batch": 3},
    "hifigan": {"version": 3, "frames": 2},
    "melgan": {"frames": 4, "features": 4},
    "mlp": {"hidden": 24, "batch": 2},
    "patchgan": {"size": 24, "features": 8},
    "pix2pix-unet": {"size": 16, "depth": 3, "features": 8},
    "resnet18": {"size": 32, "features": 4, "classes": 3},
    "rrdbnet": {"blocks": 1, "features": 16, "growth": 8, "height": 6, "width": 10},
    "small-cnn": {"size": 24, "features": 4},
    "speech-embedding": {"frames": 76, "features": 4},
    "yolov2-tiny": {"size": 32, "features": 4, "classes": 2},
    "yolov3": {"size": 32, "features": 4, "classes": 2},
    "yolov3-tiny": {"size": 64},
}
HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def model(text):
    return parser.parse_model(HEADER + text)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    proto = model("g (float[5,7] x) => (float[5,7] y) { y = LeakyRelu <alpha = 0.2> (x) }")
    return compile(proto, "opencl", output=tmp_path_factory.mktemp("cl") / "leaky.lfa")


def test_every_model_of_the_zoo_has_a_small_size():
    # Shapes of a voice depend on values, which no launch plan can hold.
    assert SMALL.keys() == ZOO.keys() - {"vits"}


@pytest.mark.parametrize("name", SMALL)
def test_zoo_equals_onnx_runtime(name, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(build(name, **SMALL[name]), path)
    artifact = compile(path, "opencl")
    report = check(artifact, samples=2)
    assert report, report
    plan = parse_plan(read_artifact(artifact).library)
    # More than one work item in a group, or the test says nothing about barriers.
    assert max(np.prod(launch.group) for launch in plan.launches) > 1


@pytest.mark.parametrize(
    "text",
    [
        # Sizes that no tile divides.
        "g (float[1,3,13,17] x, float[5,3,3,3] w) => (float[1,5,13,17] y)"
        "{ c = Conv <pads = [1,1,1,1]> (x, w) y = LeakyRelu <alpha = 0.1> (c) }",
        "g (float[3,37] x, float[37,11] w) => (float[3,11] y)"
        "{ c = MatMul (x, w) y = LeakyRelu <alpha = 0.1> (c) }",
        "g (float[2,5,9] x, float[5,3,4] w) => (float[2,3,20] y)"
        "{ y = ConvTranspose <strides = [2]> (x, w) }",
        "g (float[1,2,7,9] x) => (float[1,2,3,4] y)"
        "{ y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) }",
        "g (float[3,7] x) => (float[3,7] y) { y = Softmax (x) }",
        # An output that is an input, and one that is another's other shape.
        "g (float[4,6] x) => (float[4,6] y, float[24] z) <int64[1] s = {24}>"
        "{ y = Identity(x) l = LeakyRelu(x) z = Reshape(l, s) }",
        "g (float[3] x) => (float[3] y, float[2] z) <float[2] w = {1.0, 2.0}>"
        "{ y = LeakyRelu(x) z = Identity(w) }",
    ],
)
def test_equals_onnx_runtime(text, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(model(text), path)
    report = check(compile(path, "opencl"), samples=2)
    assert report, report


def test_exact(leaky):
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    (y,) = Session(leaky).run(None, {"x": x})
    np.testing.assert_array_equal(y, np.where(x < 0, x * np.float32(0.2), x))


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
            ({"buffers": [1 << 60, 140]}, "MiB in buffers of up to"),
            ({"source": "__kernel void f( {"}, "cannot be prepared on OpenCL device"),
        ],
    )
    def test_what_the_device_refuses(self, leaky, change, message):
        artifact = read_artifact(leaky)
        fields = json.loads(artifact.library) | change
        with pytest.raises(DeviceError, match=message):
            Session(dataclasses.replace(artifact, library=json.dumps(fields).encode()))

    @pytest.mark.parametrize(
        "library", [b"", b"[]", b"{}", b'{"source": "", "launches": [{}]}', b"\xff"]
    )
    def test_no_plan(self, leaky, library):
        artifact = dataclasses.replace(read_artifact(leaky), library=library)
        with pytest.raises(ArtifactFormatError, match="holds no launch plan"):
            Session(artifact)


class TestPlan:
    LAUNCH = Launch("k", (0, 1), (2, 1, 1), (4, 1, 1))
    PLAN = LaunchPlan("", b"\0\xff", (4, 8), (0,), (), (1,), (LAUNCH,))

    def test_json(self):
        assert parse_plan(self.PLAN.to_json()) == self.PLAN

    @pytest.mark.parametrize(
        "change",
        [{"outputs": (2,)}, {"inputs": (-1,)}, {"buffers": (0, 4)},
         {"launches": (Launch("k", (0, 7), (1, 1, 1), (1, 1, 1)),)},
         {"launches": (Launch("k", (0, 1), (0, 1, 1), (1, 1, 1)),)}],
    )  # fmt: skip
    def test_numbers_that_cannot_be_meant(self, change):
        with pytest.raises(ValueError, match=r"buffer|positive"):
            dataclasses.replace(self.PLAN, **change)

    def test_activations_share_buffers(self, tmp_path):
        chain = " ".join(
            f"x{i + 1} = LeakyRelu(p{i}) p{i + 1} = Softmax(x{i + 1})" for i in range(6)
        )
        proto = model(f"g (float[4,6] p0) => (float[4,6] p6) {{ {chain} }}")
        artifact = compile(proto, "opencl", output=tmp_path / "m.lfa")
        plan = parse_plan(read_artifact(artifact).library)
        kept = set(plan.inputs) | set(plan.outputs)
        assert len(plan.buffers) - len(kept) < len(plan.launches) / 2
