"""WebGPU artifacts: compiled everywhere, run where there is a device, as Mesa's Vulkan is one."""

import dataclasses
import json
import re
import sys

import numpy as np
import onnx
import pytest
import tvm
from onnx import parser
from tvm import s_tir

from leakyforge.errors import (
    CompileError,
    DeviceError,
    ExecutionError,
    InputError,
    MissingDependencyError,
)
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.kernels.gpu import build_plan, build_wgsl, convolutions, parse_gpu_target
from leakyforge.kernels.gpu.wgsl import MOST_BINDINGS
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import fuse
from leakyforge.render import print_manifest
from leakyforge.runtime import Session, bench, check, read_artifact, read_manifest, verify
from leakyforge.runtime import webgpu as launcher
from leakyforge.runtime.doctor import examine
from leakyforge.runtime.plan import Buffer, Launch, LaunchPlan, read_plan

wgpu = pytest.importorskip("wgpu", reason="wgpu is not installed")
try:
    launcher.find_adapters()
    LACKS = ""
except DeviceError as error:
    LACKS = str(error)
needs_device = pytest.mark.skipif(LACKS != "", reason=LACKS)

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
# Seven digits of it, as TVM writes constants, are another number.
ALPHA = 0.123456789
LEAKY = f"g (float[5,7] x) => (float[5,7] y) {{ y = LeakyRelu <alpha = {ALPHA}> (x) }}"
LONG = f"g (float[70001] x) => (float[70001] y) {{ y = LeakyRelu <alpha = {ALPHA}> (x) }}"


def model(text):
    return parser.parse_model(HEADER + text)


def leaky_relu(x):
    return np.where(x < 0, x * np.float32(ALPHA), x)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    return compile(model(LEAKY), "webgpu", output=tmp_path_factory.mktemp("webgpu") / "leaky.lfa")


def changed(path, **fields):
    """An artifact with another plan."""
    artifact = read_artifact(path)
    library = json.dumps(json.loads(artifact.library) | fields).encode()
    return dataclasses.replace(artifact, library=library)


def within_limits(plan):
    """Whether the kernels keep to what every WebGPU device grants; W3C, "WebGPU", 3.6.2."""
    for launch in plan.launches:
        text = plan.programs[launch.program]
        bindings = re.findall(r"@binding\((\d+)\) var<storage, read_write>", text)
        assert list(map(int, bindings)) == list(range(len(launch.buffers)))
        assert len(bindings) <= 8
        assert "var<uniform>" not in text
        assert f"@workgroup_size{launch.group}\nfn {launch.kernel}(" in text
        assert np.prod(launch.group) <= 256
        assert launch.group[2] <= 64
        shared = re.findall(r"var<workgroup> \w+ : array<f32, (\d+)>", text)
        assert 4 * sum(map(int, shared)) <= 16 << 10
        assert max(launch.grid) <= 65535
        offsets = [plan.buffers[index].offset or 0 for index in launch.buffers]
        assert all(offset % 256 == 0 for offset in offsets)


class TestKernels:
    def test_within_the_limits(self, small_model, tmp_path):
        """On a device with these limits and no more, where there is one."""
        name, options = small_model
        path = compile(
            export(name, tmp_path / "model.onnx", **options), "webgpu", output=tmp_path / "m.lfa"
        )
        plan, (variant,) = read_plan(read_artifact(path)), read_manifest(path).variants
        within_limits(plan)
        assert max(np.prod(launch.group) for launch in plan.launches) > 1
        assert variant.parity.result == ("not run" if LACKS else "pass")
        assert variant.memory == plan.memory

    @pytest.mark.parametrize("outputs", [2, 4])
    def test_winograd_within_the_limits(self, outputs, tmp_path, monkeypatch):
        monkeypatch.setattr(convolutions, "_OUTPUTS", (outputs,))
        monkeypatch.setattr(convolutions, "direct_seconds", lambda *_: 1.0)
        weight = np.random.default_rng(0).standard_normal((40, 24, 3, 3)).astype(np.float32)
        proto = model(
            "g (float[1,24,29,31] x, float[40] b, float[1,40,29,31] r) => (float[1,40,29,31] y)"
            "{ c = Conv <pads = [1,1,1,1]> (x, w, b) l = LeakyRelu(c) y = Add(l, r) }"
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        path = compile(proto, "webgpu", output=tmp_path / "m.lfa")
        plan, (variant,) = read_plan(read_artifact(path)), read_manifest(path).variants
        within_limits(plan)
        rules = [kernel.algorithm for kernel in variant.kernels]
        assert rules == ["winograd", "gemm", "winograd"]
        assert variant.parity.result == ("not run" if LACKS else "pass")

    def test_a_tensor_given_twice_is_one_binding(self, tmp_path):
        text = (
            "g (float[5,7] x) => (float[5,7] y) { l = LeakyRelu(x) s = Softmax(l) y = Add(s, s) }"
        )
        plan = read_plan(read_artifact(compile(model(text), "webgpu", output=tmp_path / "m.lfa")))
        within_limits(plan)
        assert all(len(set(launch.buffers)) == len(launch.buffers) for launch in plan.launches)

    @pytest.mark.parametrize("operator", ["Sum (", "Concat <axis = 0> ("])
    def test_more_tensors_than_bindings(self, operator, tmp_path):
        names = [f"x{index}" for index in range(12)]
        inputs, rows = ", ".join(f"float[5,7] {name}" for name in names), 5
        if "Concat" in operator:
            rows = 60
        text = f"g ({inputs}) => (float[{rows},7] y) {{ y = {operator}{', '.join(names)}) }}"
        path = compile(model(text), "webgpu", output=tmp_path / "m.lfa")
        plan = read_plan(read_artifact(path))
        within_limits(plan)
        (launch,) = plan.launches
        assert len(launch.buffers) <= MOST_BINDINGS
        if not LACKS:
            feeds = {name: np.full((5, 7), index, np.float32) for index, name in enumerate(names)}
            (y,) = Session(path).run(None, feeds)
            if rows == 60:
                np.testing.assert_array_equal(y, np.concatenate(list(feeds.values())))
            else:
                np.testing.assert_array_equal(y, np.full((5, 7), sum(range(12))))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "g (float[5] x, float[5] r) => (bool[5] y) { y = Less (x, r) }",
                "less has a tensor of bool",
            ),
            ("g (int64[5] x) => (int64[5] y) { y = Add (x, x) }", "add has a tensor of int64"),
            (
                "g (double[5] x) => (double[5] y) { y = LeakyRelu (x) }",
                "leaky_relu has a tensor of float64",
            ),
            ("g (float[N,7] x) => (float[N,7] y) { y = LeakyRelu (x) }", "--shape"),
        ],
    )
    def test_what_wgsl_lacks(self, text, message, tmp_path):
        with pytest.raises(CompileError, match=message):
            compile(model(text), "webgpu", output=tmp_path / "m.lfa")
        assert not list(tmp_path.iterdir())

    def test_too_many_weights(self):
        source = "".join(
            f"@group(0) @binding({index}) var<storage, read> w{index} : array<f32>;\n"
            for index in range(9)
        )
        program = f"// Function: k\n//--\n{source}"
        launch = Launch(0, "k", tuple(range(9)), (1, 1, 1), (1, 1, 1))
        weights = tuple(Buffer(4) for _ in range(9))
        plan = LaunchPlan((program,), b"", 0, weights, (), tuple(range(9)), (), (launch,))
        with pytest.raises(CompileError, match="k has 9 tensors"):
            build_wgsl(plan)

    def test_inspect_shows_the_memory(self, leaky, capsys):
        print_manifest(str(leaky), read_manifest(leaky))
        # Input and output, of which the second begins at a multiple of 512 bytes.
        assert re.search(r"device memory +│ 652 bytes", capsys.readouterr().out)

    def test_bench_would_say_nothing(self, leaky):
        with pytest.raises(InputError, match="for WebGPU devices"):
            bench(leaky)


def groups_of_one(text):
    """A plan whose only kernel has a group for each element."""
    target = parse_gpu_target("webgpu")
    fused = fuse(import_onnx(model(text)), target.tvm)
    schedule = s_tir.Schedule(tvm.IRModule({"main": fused["leaky_relu"]}))
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    group, item = schedule.split(schedule.fuse(*schedule.get_loops(block)), [None, 1])
    schedule.bind(group, "blockIdx.x")
    schedule.bind(item, "threadIdx.x")
    functions = {**fused.functions, fused.get_global_var("leaky_relu"): schedule.mod["main"]}
    plan, _, _ = build_plan(tvm.IRModule(functions), target)
    return build_wgsl(plan)


class TestLongGrids:
    """WebGPU has 65535 groups along x: more of them lie along z."""

    def test_layers(self):
        plan = groups_of_one(LONG)
        (launch,) = plan.launches
        assert launch.grid == (35001, 1, 2)
        # The last group of the second layer has no element.
        assert "blockIdx.z * gridDim.x + blockIdx.x >= 70001u) { return; }" in plan.programs[0]

    @needs_device
    def test_every_group_runs(self, tmp_path):
        path = compile(model(LONG), "webgpu", output=tmp_path / "m.lfa")
        artifact = dataclasses.replace(read_artifact(path), library=groups_of_one(LONG).to_json())
        x = np.random.default_rng(0).standard_normal(70001).astype(np.float32)
        np.testing.assert_array_equal(Session(artifact).run(None, {"x": x})[0], leaky_relu(x))


@needs_device
class TestLauncher:
    def test_equals_onnx_runtime(self, small_graph, tmp_path):
        path = tmp_path / "model.onnx"
        onnx.save(model(small_graph), path)
        report = check(compile(path, "webgpu"), samples=2)
        assert report, report

    def test_exact(self, leaky):
        x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
        session = Session(leaky)
        for each in (x, -x):
            np.testing.assert_array_equal(session.run(None, {"x": each})[0], leaky_relu(each))

    @pytest.mark.parametrize(("element", "dtype"), [("float", np.float32), ("int32", np.int32)])
    def test_a_maximum_begins_at_the_least_number(self, element, dtype, tmp_path):
        # WGSL has no infinity, and no literal of the least int32.
        text = (
            f"g ({element}[3,37] x) => ({element}[3] y) "
            "{ y = ReduceMax <axes = [1], keepdims = 0> (x) }"
        )
        path = compile(model(text), "webgpu", output=tmp_path / "m.lfa")
        x = (np.random.default_rng(0).standard_normal((3, 37)) * 9 - 100).astype(dtype)
        np.testing.assert_array_equal(Session(path).run(None, {"x": x})[0], x.max(axis=1))

    def test_float16(self, tmp_path):
        # 35 numbers are no whole words.
        text = LEAKY.replace("float[", "float16[")
        path = compile(model(text), "webgpu", output=tmp_path / "m.lfa")
        x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float16)
        desired = leaky_relu(x.astype(np.float32)).astype(np.float16)
        np.testing.assert_array_equal(Session(path).run(None, {"x": x})[0], desired)

    def test_inputs_of_any_layout(self, leaky):
        x = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32).T
        np.testing.assert_array_equal(Session(leaky).run(["y"], {"x": x})[0], leaky_relu(x))

    def test_stored_outputs_are_replayed(self, leaky):
        assert verify(leaky)

    def test_runs_without_tvm(self, leaky, run_python):
        script = """
import sys, numpy as np
from leakyforge.runtime import Session
Session(sys.argv[1]).run(None, {"x": np.ones((5, 7), np.float32)})
print(sorted(name for name in sys.modules if name in ("tvm", "tvm_ffi")))
"""
        assert run_python(script, leaky) == "[]\n"

    def test_device_by_a_part_of_its_name(self, leaky):
        name = launcher.device_name(launcher.choose_adapter())
        session = Session(leaky, device=name[:3].upper())
        assert session.run(None, {"x": np.ones((5, 7), np.float32)})[0].sum() == 35

    def test_the_record_and_the_doctor_name_the_device(self, leaky):
        name = launcher.device_name(launcher.choose_adapter())
        assert read_manifest(leaky).variants[0].parity.cpu == name
        found = {finding.name: finding for finding in examine()}
        assert name in found["webgpu"].found


class TestErrors:
    def test_no_device(self, leaky, monkeypatch):
        monkeypatch.setattr(wgpu.gpu, "enumerate_adapters_sync", list)
        with pytest.raises(DeviceError, match=r"there is no WebGPU device; install .* Mesa's"):
            Session(leaky)

    def test_without_a_device_it_is_not_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(wgpu.gpu, "enumerate_adapters_sync", list)
        path = compile(model(LEAKY), "webgpu", output=tmp_path / "m.lfa")
        (variant,) = read_manifest(path).variants
        assert (variant.parity.result, variant.parity.lacks) == ("not run", ("WebGPU device",))

    def test_no_package(self, leaky, monkeypatch):
        monkeypatch.setitem(sys.modules, "wgpu", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'leakyforge\[webgpu\]'"):
            Session(leaky)

    @needs_device
    def test_no_such_device(self, leaky):
        with pytest.raises(DeviceError, match="no WebGPU device is called 'warp'; there is '"):
            Session(leaky, device="warp")

    @needs_device
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arena": 1 << 60}, "a device with max-buffer-size of 1152921504606846976, .* has"),
            ({"programs": ["fn f( {"]}, "cannot be prepared on WebGPU device"),
            (
                {"programs": ["@compute @workgroup_size(512) fn leaky_relu_kernel() {}"]},
                "cannot be prepared on WebGPU device",
            ),
        ],
    )
    def test_what_the_device_refuses(self, leaky, change, message):
        with pytest.raises(DeviceError, match=message):
            Session(changed(leaky, **change))

    @needs_device
    def test_float16_on_a_device_without(self, leaky, monkeypatch):
        adapter = launcher.choose_adapter()
        monkeypatch.setattr(launcher, "choose_adapter", lambda _: adapter)
        monkeypatch.setattr(type(adapter), "features", frozenset())
        with pytest.raises(DeviceError, match=r"float16, and .* lacks shader-f16"):
            Session(changed(leaky, programs=["enable f16;"]))

    @needs_device
    def test_out_of_memory(self, leaky, monkeypatch):
        def fail(*_arguments, **_options):
            raise wgpu.GPUOutOfMemoryError("")

        monkeypatch.setattr(launcher.WebGpuEngine, "_buffer", fail)
        with pytest.raises(DeviceError, match=r"cannot be prepared on .*: out of device memory"):
            Session(leaky)

    @needs_device
    def test_a_device_that_is_lost(self, leaky):
        session = Session(leaky)
        session._engine._device.destroy()
        with pytest.raises(ExecutionError, match="failed on WebGPU device"):
            session.run(None, {"x": np.ones((5, 7), np.float32)})
