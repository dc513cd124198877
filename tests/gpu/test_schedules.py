"""Each of our GPU schedules on an OpenCL device, against its definition in numpy.

Some of them in WGSL too, where there is a WebGPU device.

ONNX Runtime is the third witness: `compile` itself compares with it before it writes an artifact.
"""

import itertools
import re

import numpy as np
import pytest
import tvm
from onnx import numpy_helper, parser
from tvm import relax, te, topi

from leakyforge.errors import DeviceError, MissingDependencyError
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.cook_toom import cook_toom
from leakyforge.kernels.gpu import build_plan, convolutions, gemm, parse_gpu_target, schedule_gpu
from leakyforge.kernels.gpu.gemm import GemmConfig, choose_config
from leakyforge.kernels.gpu.limits import DeviceLimits
from leakyforge.kernels.gpu.winograd import Tiling, transform_input, transform_output
from leakyforge.runtime import Session, check, read_artifact, webgpu
from leakyforge.runtime import opencl as launcher
from leakyforge.runtime.plan import parse_plan
from leakyforge.tolerance import tolerance

pyopencl = pytest.importorskip("pyopencl", reason="pyopencl is not installed")
try:
    launcher.find_devices()
except DeviceError:
    pytest.skip("this machine has no OpenCL device", allow_module_level=True)

try:
    webgpu.find_adapters()
    LACKS = ""
except (DeviceError, MissingDependencyError) as error:
    LACKS = str(error)
TARGETS = ["opencl", pytest.param("webgpu", marks=pytest.mark.skipif(LACKS != "", reason=LACKS))]
# What a language calls the memory of a group, and its barrier.
WORDS = {
    "opencl": ("__local float", "barrier("),
    "webgpu": ("var<workgroup>", "workgroupBarrier()"),
}

HEADER = '<ir_version: 8, opset_import: ["": 18]>'
ALPHA = np.float32(0.1)
# Every part of a tile is more than one: threads and elements along both axes, two vectors of lanes.
TILES = GemmConfig(row_threads=4, lane_threads=8, rows=2, lanes=8, depth=8)


class Compiled:
    """A model whose inputs `w...` are constants, its plan, and the rule of each kernel."""

    def __init__(self, text, folder, target="opencl"):
        proto = parser.parse_model(HEADER + text)
        random = np.random.default_rng(0)
        self.values, self.feeds = {}, {}
        for value in list(proto.graph.input):
            shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
            array = random.standard_normal(shape).astype(np.float32)
            self.values[value.name] = array
            if value.name.startswith("w"):
                proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
                proto.graph.input.remove(value)
            else:
                self.feeds[value.name] = array
        decisions = []
        path = compile(proto, target, output=folder / "m.lfa", on_decision=decisions.append)
        artifact = read_artifact(path)
        (self.variant,) = artifact.manifest.variants
        self.plan = parse_plan(artifact.library)
        self.source = "".join(self.plan.programs)
        self.rules = [decision.rule for decision in decisions]
        self.refused = [decision.refused for decision in decisions]
        self.path, self.target = path, target

    @property
    def uses_groups(self):
        """Whether work items of a group share memory and wait for one another."""
        return all(word in self.source for word in WORDS[self.target])

    def check(self, desired, terms):
        """Compare with float64's result; `terms` are added up for each element."""
        (actual,) = Session(self.path).run(None, self.feeds)
        assert actual.shape == desired.shape
        allowed = tolerance("float32", terms)
        bound = allowed.range_share * np.abs(desired).max() + allowed.rtol * np.abs(desired)
        assert (np.abs(actual - desired) <= bound).all()
        assert self.variant.parity.result == "pass"
        assert max(np.prod(launch.group) for launch in self.plan.launches) > 1


def leaky(x):
    return np.where(x < 0, np.float64(ALPHA) * x, x)


def convolve(x, weight, *, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), groups=1):
    """Convolution by its definition, NCHW and OIHW, in float64."""
    top, left, bottom, right = pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = (
        (padded.shape[2 + axis] - (weight.shape[2 + axis] - 1) * dilations[axis] - 1)
        // strides[axis]
        + 1
        for axis in (0, 1)
    )
    out = np.zeros((len(x), len(weight), rows, columns))
    each_in, each_out = weight.shape[1], len(weight) // groups
    for group, r, s in itertools.product(range(groups), *map(range, weight.shape[2:])):
        down = slice(r * dilations[0], r * dilations[0] + (rows - 1) * strides[0] + 1, strides[0])
        along = slice(
            s * dilations[1], s * dilations[1] + (columns - 1) * strides[1] + 1, strides[1]
        )
        inputs = padded[:, group * each_in : (group + 1) * each_in, down, along]
        outputs = slice(group * each_out, (group + 1) * each_out)
        out[:, outputs] += np.einsum("nchw,oc->nohw", inputs, weight[outputs, :, r, s])
    return out


def transpose_convolve(x, weight, *, strides, pads, size):
    """Transposed convolution by its definition, NCHW and IOHW, in float64."""
    top, left = pads[:2]
    rows, columns = (
        (x.shape[2 + axis] - 1) * strides[axis] + weight.shape[2 + axis] for axis in (0, 1)
    )
    full = np.zeros((len(x), weight.shape[1], max(rows, top + size[0]), left + size[1] + columns))
    for y, column in itertools.product(range(x.shape[2]), range(x.shape[3])):
        terms = np.einsum("nk,kcrs->ncrs", x[:, :, y, column].astype(np.float64), weight)
        first, start = y * strides[0], column * strides[1]
        full[:, :, first : first + terms.shape[2], start : start + terms.shape[3]] += terms
    return full[:, :, top : top + size[0], left : left + size[1]]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles that the small sizes of tests neither fill nor divide."""
    monkeypatch.setattr(gemm, "choose_config", lambda *_: TILES)


class TestGemm:
    CONV = """g (float[{n},{k},{h},{w}] x, float[{c},{k},{r},{s}] wt, float[{c}] wb,
                 float[{n},{c},{oh},{ow}] residual) => (float[{n},{c},{oh},{ow}] y) {{
        conv = Conv <strides = [{sy},{sx}], dilations = [{dy},{dx}], pads = [{pads}]> (x, wt, wb)
        leaky = LeakyRelu <alpha = 0.1> (conv)
        y = Add (leaky, residual) }}"""

    @pytest.mark.parametrize(
        ("sizes", "strides", "dilations", "pads", "out"),
        [
            # Padding on each side differs; pixels are 221, channels 11, the depth 45.
            ((1, 5, 13, 17, 11, 3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (13, 17)),
            ((2, 3, 12, 11, 9, 3, 2), (2, 3), (1, 1), (0, 1, 2, 0), (6, 4)),
            ((1, 3, 11, 9, 17, 3, 3), (1, 2), (2, 1), (0, 1, 1, 1), (8, 5)),
            # Vectors of pixels, of weights and of the output: 20 pixels, a depth of 12.
            ((1, 12, 4, 5, 10, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (4, 5)),
        ],
    )
    @pytest.mark.parametrize("target", TARGETS)
    def test_convolution(self, tmp_path, small_tiles, target, sizes, strides, dilations, pads, out):
        n, k, h, w, c, r, s = sizes
        compiled = Compiled(
            self.CONV.format(
                n=n, k=k, h=h, w=w, c=c, r=r, s=s, oh=out[0], ow=out[1], sy=strides[0],
                sx=strides[1], dy=dilations[0], dx=dilations[1], pads=",".join(map(str, pads)),
            ),
            tmp_path,
            target,
        )  # fmt: skip
        values = compiled.values
        convolution = convolve(
            values["x"], values["wt"], strides=strides, dilations=dilations, pads=pads
        )
        biased = convolution + values["wb"].reshape(-1, 1, 1)
        compiled.check(leaky(biased) + values["residual"], k * r * s + 3)
        assert compiled.rules == ["gemm"]
        assert len(compiled.plan.launches) == 1
        assert compiled.uses_groups
        assert [kernel.algorithm for kernel in compiled.variant.kernels] == ["gemm"]

    @pytest.mark.parametrize("target", TARGETS)
    def test_next_step_is_loaded_during_the_sums(self, tmp_path, small_tiles, target):
        # A depth of 36 and 20 pixels: weights are loaded in vectors, pixels one by one.
        text = self.CONV.format(
            n=1, k=4, h=4, w=5, c=10, r=3, s=3, oh=4, ow=5, sy=1, sx=1, dy=1, dx=1, pads="1,1,1,1"
        )
        source = Compiled(text, tmp_path, target).source
        # The loop over steps, up to the one that adds up.
        step = re.search(
            r"\n *for \([^\n]* ax3_0 .*?(?=\n *for \([^\n]* ax3_1 )", source, re.DOTALL
        )
        events = []
        for line in step[0].splitlines():
            if WORDS[target][1] in line:
                events.append("barrier")
            elif re.match(r" *\w+_shared(_ptr)?\[|.*vstore.*_shared_ptr", line):
                events.append("store")
            elif re.search(r"\b(x|param_0)_ptr\b", line) or re.match(r" *\w+_shared_local", line):
                events.append("load")
        assert [event for event, _ in itertools.groupby(events)] == [
            "barrier", "store", "barrier", "load"
        ]  # fmt: skip
        # Elsewhere than in registers an index could be computed.
        held = re.findall(r"_shared_local(?:_ptr)?\[([^]]*)\]", source)
        assert held
        assert all(re.fullmatch(r"\d+i?", index) for index in held)
        if target == "opencl":
            assert "vload4(0, param_0_ptr" in step[0]

    def test_one_step_holds_nothing(self, tmp_path, small_tiles):
        compiled = Compiled(
            "g (float[19,8] x, float[8,21] y) => (float[19,21] z) { z = MatMul (x, y) }", tmp_path
        )
        x, y = compiled.values.values()
        compiled.check(x.astype(np.float64) @ y, 8)
        assert compiled.uses_groups
        assert "_shared_local" not in compiled.source

    @pytest.mark.parametrize("depth", [9, 16])
    def test_few_steps(self, tmp_path, small_tiles, depth):
        compiled = Compiled(
            f"g (float[19,{depth}] x, float[{depth},21] y) => (float[19,21] z)"
            " { z = MatMul (x, y) }",
            tmp_path,
        )
        x, y = compiled.values.values()
        compiled.check(x.astype(np.float64) @ y, depth)
        assert "_shared_local" in compiled.source

    def test_work_items_that_load_nothing(self, tmp_path, monkeypatch):
        # 16 vectors of the left tile for 64 work items.
        tiles = GemmConfig(row_threads=8, lane_threads=8, rows=1, lanes=1, depth=8)
        monkeypatch.setattr(gemm, "choose_config", lambda *_: tiles)
        compiled = Compiled(
            "g (float[11,20] x, float[20,13] y) => (float[11,13] z) { z = MatMul (x, y) }", tmp_path
        )
        x, y = compiled.values.values()
        compiled.check(x.astype(np.float64) @ y, 20)
        assert compiled.plan.launches[0].group == (8, 8, 1)
        assert "vload4(0, x_ptr" in compiled.source

    def test_one_tensor_is_both_operands(self, tmp_path, small_tiles):
        compiled = Compiled(
            "g (float[20,20] x) => (float[20,20] y) { y = MatMul (x, x) }", tmp_path
        )
        x = compiled.values["x"].astype(np.float64)
        compiled.check(x @ x, 20)
        assert compiled.rules == ["gemm"]

    def test_vectors_where_memory_is_contiguous(self, tmp_path, small_tiles):
        text = self.CONV.format(
            n=1, k=12, h=4, w=5, c=10, r=1, s=1, oh=4, ow=5, sy=1, sx=1, dy=1, dx=1, pads="0,0,0,0"
        )
        source = Compiled(text, tmp_path).source
        assert "vload4(0, x_ptr" in source
        assert "vstore4" in source

    def test_convolution_of_one_dimension(self, tmp_path, small_tiles):
        compiled = Compiled(
            "g (float[2,6,23] x, float[7,6,5] wt, float[7] wb) => (float[2,7,17] y) {"
            " c = Conv <dilations = [2], pads = [1,1]> (x, wt, wb)"
            " y = LeakyRelu <alpha = 0.1> (c) }",
            tmp_path,
        )
        values = compiled.values
        x, weight = values["x"][:, :, np.newaxis], values["wt"][:, :, np.newaxis]
        line = convolve(x, weight, dilations=(1, 2), pads=(0, 1, 0, 1))[:, :, 0]
        compiled.check(leaky(line + values["wb"].reshape(-1, 1)), 6 * 5 + 2)
        assert compiled.rules == ["gemm"]

    @pytest.mark.parametrize("sizes", [(19, 37, 21), (9, 20, 36), (2, 24, 24)])
    def test_product(self, tmp_path, small_tiles, sizes):
        rows, depth, columns = sizes
        compiled = Compiled(
            f"g (float[{rows},{depth}] x, float[{depth},{columns}] wt, float[{columns}] wb)"
            f" => (float[{rows},{columns}] y) {{ p = MatMul (x, wt) b = Add (p, wb)"
            " y = LeakyRelu <alpha = 0.1> (b) }",
            tmp_path,
        )
        values = compiled.values
        product = values["x"].astype(np.float64) @ values["wt"]
        compiled.check(leaky(product + values["wb"]), depth + 2)
        assert compiled.rules == ["gemm"]
        assert "barrier(" in compiled.source

    def test_products_of_a_batch(self, tmp_path, small_tiles):
        compiled = Compiled(
            "g (float[3,10,9] x, float[3,9,13] y) => (float[3,10,13] z) { z = MatMul (x, y) }",
            tmp_path,
        )
        x, y = compiled.values.values()
        compiled.check(x.astype(np.float64) @ y, 9)
        assert compiled.rules == ["gemm"]
        # Two tiles of 8 rows for each.
        assert compiled.plan.launches[0].grid[1] == 3 * 2

    @pytest.mark.parametrize("name", ["conv1d_transpose", "conv2d_transpose"])
    def test_transposed_convolution_has_no_zeros(self, tmp_path, small_tiles, name):
        if name == "conv1d_transpose":
            compiled = Compiled(
                "g (float[2,5,9] x, float[5,3,4] wt, float[3] wb) => (float[2,3,18] y) {"
                " c = ConvTranspose <strides = [2], pads = [1,1]> (x, wt, wb)"
                " y = LeakyRelu <alpha = 0.1> (c) }",
                tmp_path,
            )
            x, weight = (compiled.values[each][:, :, np.newaxis] for each in ("x", "wt"))
            options = {"strides": (1, 2), "pads": (0, 1), "size": (1, 18)}
            shape = (2, 3, 18)
        else:
            compiled = Compiled(
                "g (float[1,4,5,7] x, float[4,3,4,3] wt, float[3] wb) => (float[1,3,15,9] y) {"
                " c = ConvTranspose <strides = [3,1], pads = [1,0,1,0], output_padding = [1,0]>"
                " (x, wt, wb) y = LeakyRelu <alpha = 0.1> (c) }",
                tmp_path,
            )
            x, weight = (compiled.values[each] for each in ("x", "wt"))
            options = {"strides": (3, 1), "pads": (1, 0), "size": (15, 9)}
            shape = (1, 3, 15, 9)
        bias = compiled.values["wb"].reshape(-1, 1, 1)
        desired = leaky(transpose_convolve(x, weight, **options) + bias)
        compiled.check(desired.reshape(shape), weight[:, 0].size + 2)
        assert sorted(compiled.rules) == ["elementwise", "gemm"]
        # Of TVM's definition, which multiplies zeros too.
        every = 2 * desired.size * weight[:, 0].size
        assert sum(kernel.flops for kernel in compiled.variant.kernels) < 0.65 * every


@pytest.fixture
def winograd(monkeypatch):
    """A call after which convolutions take F(m, 3), whatever they are estimated to take."""

    def take(outputs):
        monkeypatch.setattr(convolutions, "_OUTPUTS", (outputs,))
        monkeypatch.setattr(convolutions, "direct_seconds", lambda *_: 1.0)

    return take


class TestWinograd:
    @pytest.mark.parametrize(
        ("sizes", "pads"),
        [
            # Batch 2, odd sizes, each side padded in its own way.
            ((2, 5, 13, 10, 7), (1, 0, 1, 2)),
            # Few channels, and rows of whole vectors for both m.
            ((1, 2, 6, 12, 3), (1, 1, 1, 1)),
            # Less than a tile of outputs.
            ((3, 4, 5, 3, 2), (0, 0, 0, 0)),
        ],
    )
    @pytest.mark.parametrize("outputs", [2, 4])
    @pytest.mark.parametrize("target", TARGETS)
    def test_convolution(self, tmp_path, winograd, target, outputs, sizes, pads):
        winograd(outputs)
        n, k, h, w, c = sizes
        out = h + pads[0] + pads[2] - 2, w + pads[1] + pads[3] - 2
        compiled = Compiled(
            TestGemm.CONV.format(
                n=n, k=k, h=h, w=w, c=c, r=3, s=3, oh=out[0], ow=out[1], sy=1, sx=1, dy=1, dx=1,
                pads=",".join(map(str, pads)),
            ),
            tmp_path,
            target,
        )  # fmt: skip
        values = compiled.values
        biased = convolve(values["x"], values["wt"], pads=pads) + values["wb"].reshape(-1, 1, 1)
        compiled.check(leaky(biased) + values["residual"], 9 * k + 3)
        assert compiled.rules == ["winograd", "gemm", "winograd"]
        _, product, _ = compiled.variant.kernels
        assert product.flops == 2 * n * c * k * 9 * out[0] * out[1]
        # All 3 kernels have neighbours along their last axis.
        assert [launch.group[0] > 1 for launch in compiled.plan.launches] == [True] * 3
        if target == "opencl":
            last = compiled.plan.launches[-1].kernel
            # Behind its declaration.
            body = compiled.source.split(f"void {last}(")[2].split("__kernel")[0]
            assert (f"vstore{outputs}" in body) == (out[1] % outputs == 0)

    @pytest.mark.parametrize("outputs", [2, 4])
    def test_transforms(self, winograd, outputs):
        """Scheduled on the device, as they are defined on the CPU, and in numpy."""
        shape = Conv2dShape(
            height=7, width=9, in_channels=3, out_channels=3, kernel=(3, 3), strides=(1, 1),
            dilation=(1, 1), padding=(1, 0, 0, 2), itemsize=4,
        )  # fmt: skip
        tiling, random = Tiling(shape, 2, outputs), np.random.default_rng(0)
        m, size, matrices = outputs, tiling.size, cook_toom(outputs, 3)
        tiles = 2 * tiling.rows * tiling.columns
        x = random.standard_normal((2, 3, 7, 9)).astype(np.float32)
        padded = np.zeros((2, 3, tiling.rows * m + 2, tiling.columns * m + 2))
        padded[:, :, 1:8, :9] = x
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
        transformed = matrices.input @ windows[:, :, ::m, ::m] @ matrices.input.T
        desired = np.zeros((3, size, size, tiling.tiles))
        desired[..., :tiles] = transformed.transpose(1, 4, 5, 0, 2, 3).reshape(3, size, size, -1)
        self.equal(lambda data: transform_input(data, tiling), x, desired)
        places = random.standard_normal((3, size, size, tiling.tiles)).astype(np.float32)
        outer = np.einsum("ia,cabt,jb->ctij", matrices.output, places, matrices.output)
        grid = outer[:, :tiles].reshape(3, 2, tiling.rows, tiling.columns, m, m)
        image = grid.transpose(1, 0, 2, 4, 3, 5).reshape(2, 3, tiling.rows * m, tiling.columns * m)
        desired = image[:, :, : shape.out_height, : shape.out_width]
        self.equal(lambda data: transform_output(data, tiling), places, desired)

    def equal(self, definition, array, desired):
        data = relax.Var("x", relax.TensorType(array.shape, "float32"))
        builder = relax.BlockBuilder()
        with builder.function("main", [data]):
            result = builder.call_te(definition, data, primfunc_name_hint="transform")
            builder.emit_func_output(builder.emit(result))
        target = parse_gpu_target("opencl")
        scheduled, (decision,) = schedule_gpu(builder.get(), target)
        assert decision.rule == "winograd"
        plan, _, _ = build_plan(scheduled, target)
        context = pyopencl.Context([launcher.choose_device()])
        queue, (launch,) = pyopencl.CommandQueue(context), plan.launches
        buffers = [
            pyopencl.Buffer(context, pyopencl.mem_flags.READ_WRITE, each.size)
            for each in plan.buffers
        ]
        pyopencl.enqueue_copy(queue, buffers[plan.inputs[0]], array)
        kernel = pyopencl.Kernel(pyopencl.Program(context, plan.programs[0]).build(), launch.kernel)
        kernel.set_args(*(buffers[index] for index in launch.buffers))
        sizes = [count * size for count, size in zip(launch.grid, launch.group, strict=True)]
        pyopencl.enqueue_nd_range_kernel(queue, kernel, sizes, launch.group)
        ours = np.full(desired.shape, np.nan, np.float32)
        pyopencl.enqueue_copy(queue, ours, buffers[plan.outputs[0]])
        queue.finish()
        source = te.placeholder(array.shape, "float32", name="x")
        function = te.create_prim_func([source, definition(source)])
        unscheduled = tvm.runtime.tensor(np.full_like(ours, np.nan))
        tvm.compile(function, target="llvm")(tvm.runtime.tensor(array), unscheduled)
        # Two sums of up to six terms, of weights up to 10 (the input's) or 8 (the output's).
        bound = 12 * 100 * np.finfo(np.float32).eps * np.abs(array).max()
        np.testing.assert_allclose(ours, desired, rtol=0, atol=bound)
        np.testing.assert_allclose(ours, unscheduled.numpy(), rtol=0, atol=bound)

    def test_a_whole_model(self, tmp_path, winograd):
        """F(4, 3) in every layer keeps to a tenth of what a whole model is allowed."""
        winograd(4)
        path = export("small-cnn", tmp_path / "model.onnx", size=24, features=4)
        artifact, rules = tmp_path / "m.lfa", []
        compile(path, "opencl", output=artifact, on_decision=lambda each: rules.append(each.rule))
        assert rules.count("winograd") > 4
        for output in check(artifact, samples=2).outputs:
            assert output.max_abs < 1e-5 * output.range


class TestGemv:
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize(("depth", "outputs"), [(36, 44), (37, 33)])
    def test_outputs_contiguous(self, tmp_path, target, depth, outputs):
        compiled = Compiled(
            f"g (float[1,{depth}] x, float[{depth},{outputs}] wt, float[{outputs}] wb,"
            f" float[1,{outputs}] residual) => (float[1,{outputs}] y) {{ p = MatMul (x, wt)"
            " b = Add (p, wb) l = LeakyRelu <alpha = 0.1> (b) y = Add (l, residual) }",
            tmp_path,
            target,
        )
        values = compiled.values
        product = values["x"].astype(np.float64) @ values["wt"] + values["wb"]
        compiled.check(leaky(product) + values["residual"], depth + 3)
        self.adds_up_in_a_group(compiled)
        if target == "opencl":
            assert ("vload4(0, param_0_ptr" in compiled.source) == (outputs % 4 == 0)

    @pytest.mark.parametrize("size", [2, 3])
    def test_depth_contiguous(self, tmp_path, size):
        compiled = Compiled(
            f"g (float[1,5,{size},{size}] x, float[11,5,{size},{size}] wt, float[11] wb)"
            " => (float[1,11,1,1] y) { c = Conv (x, wt, wb) y = LeakyRelu <alpha = 0.1> (c) }",
            tmp_path,
        )
        values = compiled.values
        biased = convolve(values["x"], values["wt"]) + values["wb"].reshape(-1, 1, 1)
        compiled.check(leaky(biased), 5 * size * size + 2)
        self.adds_up_in_a_group(compiled)
        assert ("vload4(0, param_0_ptr" in compiled.source) == (size % 2 == 0)

    def test_padded_image_of_one_pixel(self, tmp_path):
        # The depth of 288 and 32 outputs are whole tiles: nothing is padded but the image.
        compiled = Compiled(
            "g (float[1,32,1,1] x, float[32,32,3,3] wt) => (float[1,32,1,1] y)"
            " { y = Conv <pads = [1,1,1,1]> (x, wt) }",
            tmp_path,
        )
        x, weight = compiled.values.values()
        compiled.check(convolve(x, weight, pads=(1, 1, 1, 1)), 288)
        self.adds_up_in_a_group(compiled)

    def adds_up_in_a_group(self, compiled):
        assert compiled.rules == ["gemv"]
        (launch,) = compiled.plan.launches
        assert np.prod(launch.group) == 256
        assert compiled.uses_groups


class TestWindows:
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("groups", [6, 2])
    def test_grouped_convolution(self, tmp_path, target, groups):
        each = 6 // groups
        compiled = Compiled(
            f"g (float[2,6,9,7] x, float[6,{each},3,3] wt, float[6] wb, float[2,6,9,7] residual)"
            f" => (float[2,6,9,7] y) {{ c = Conv <group = {groups}, pads = [1,1,1,1]> (x, wt, wb)"
            " l = LeakyRelu <alpha = 0.1> (c) y = Add (l, residual) }",
            tmp_path,
            target,
        )
        values = compiled.values
        convolution = convolve(values["x"], values["wt"], pads=(1, 1, 1, 1), groups=groups)
        biased = convolution + values["wb"].reshape(-1, 1, 1)
        compiled.check(leaky(biased) + values["residual"], 9 * each + 3)
        assert compiled.rules == ["windows"]
        assert len(compiled.plan.launches) == 1
        assert compiled.refused[0]["gemm"] == "an operand is a vector"

    def test_pooling_in_one_kernel(self, tmp_path):
        compiled = Compiled(
            "g (float[1,3,7,13] x) => (float[1,3,4,6] y) {"
            " y = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,0,1,0]> (x) }",
            tmp_path,
        )
        padded = np.pad(compiled.values["x"], ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=-9)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
        compiled.check(windows.max((4, 5)), 0)
        assert compiled.rules == ["windows"]
        assert len(compiled.plan.launches) == 1

    def test_long_sums_are_left_to_dlight(self, tmp_path):
        compiled = Compiled(
            "g (float[2,30] x) => (float[2,1] y) <int64[1] axes = {1}>"
            " { y = ReduceSum <keepdims = 1> (x, axes) }",
            tmp_path,
        )
        compiled.check(compiled.values["x"].sum(1, dtype=np.float64, keepdims=True), 30)
        assert compiled.rules == ["dlight-reduction"]
        assert "longer (30) than they are many (2)" in compiled.refused[0]["windows"]


class TestElementwise:
    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("shape", [(3, 7, 12), (5, 7)])
    def test_axes_are_forgotten(self, tmp_path, target, shape):
        sizes = ",".join(map(str, shape))
        compiled = Compiled(
            f"g (float[{sizes}] x, float[{sizes}] r) => (float[{sizes}] y) {{"
            " l = LeakyRelu <alpha = 0.1> (x) y = Add (l, r) }",
            tmp_path,
            target,
        )
        x, residual = compiled.values.values()
        compiled.check(leaky(x.astype(np.float64)) + residual, 2)
        assert compiled.rules == ["elementwise"]
        if target == "opencl":
            assert ("vstore4" in compiled.source) == (np.prod(shape) % 4 == 0)
        # Neither a quotient nor a remainder is computed.
        assert not any(sign in compiled.source for sign in (" / ", " % "))

    def test_concatenation_of_resized(self, tmp_path):
        compiled = Compiled(
            "g (float[1,3,5,6] x, float[1,2,10,12] r) => (float[1,5,10,12] y)"
            " <float[4] s = {1.0, 1.0, 2.0, 2.0}> {"
            ' z = Resize <mode = "nearest", nearest_mode = "floor",'
            ' coordinate_transformation_mode = "asymmetric"> (x, , s)'
            " l = LeakyRelu <alpha = 0.1> (z) y = Concat <axis = 1> (l, r) }",
            tmp_path,
        )
        x, residual = compiled.values.values()
        resized = leaky(x.repeat(2, 2).repeat(2, 3).astype(np.float64))
        compiled.check(np.concatenate([resized, residual], 1), 1)
        assert set(compiled.rules) == {"elementwise"}
        assert "vstore4" in compiled.source

    @pytest.mark.parametrize(
        "operators",
        ["y = ThresholdedRelu <alpha = 0.5> (x)", "c = Less (x, r) y = Where (c, x, r)"],
    )
    def test_comparisons_that_are_values_are_no_vectors(self, tmp_path, operators):
        compiled = Compiled(
            f"g (float[4,8] x, float[4,8] r) => (float[4,8] y) {{ {operators} }}", tmp_path
        )
        x, other = compiled.values.values()
        desired = np.where(x < other, x, other) if "Where" in operators else x * (x > 0.5)
        compiled.check(desired, 0)
        assert "vstore4" not in compiled.source

    def test_empty_tensors_are_left_to_dlight(self):
        data = relax.Var("x", relax.TensorType([0, 4], "float32"))
        builder = relax.BlockBuilder()
        with builder.function("main", [data]):
            builder.emit_func_output(builder.emit_te(topi.nn.relu, data))
        _, (decision,) = schedule_gpu(builder.get(), parse_gpu_target("opencl"))
        assert decision.rule == "dlight-fallback"


class TestConfig:
    @pytest.mark.parametrize("limits", [DeviceLimits(256, 16 << 10), DeviceLimits(1024, 48 << 10)])
    @pytest.mark.parametrize(
        "sizes", [(64, 10816, 288), (1024, 169, 4608), (4096, 4096, 4096), (3, 5, 7)]
    )
    def test_keeps_to_the_limits(self, limits, sizes):
        config = choose_config(*sizes, 1, 4, limits)
        assert config.threads <= limits.threads
        assert config.shared_bytes(4) <= limits.shared_bytes
        # With what a work item holds for the next step, ptxas keeps the sums in registers.
        assert config.held <= 10

    def test_large_products_have_large_tiles(self):
        large = choose_config(4096, 4096, 4096, 1, 4, DeviceLimits(256, 48 << 10))
        small = choose_config(64, 221, 576, 1, 4, DeviceLimits(256, 48 << 10))
        assert large.rows * large.lanes == 64
        assert np.prod(small.tile) < np.prod(large.tile)
