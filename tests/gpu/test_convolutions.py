"""Which convolutions take Winograd's algorithm on a GPU, and what is said of it."""

import dataclasses

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper, parser

from leakyforge.errors import DeviceError
from leakyforge.kernels import compile
from leakyforge.kernels.choice import Trial
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.gpu import GpuTarget, parse_gpu_target
from leakyforge.kernels.gpu.convolutions import choose
from leakyforge.kernels.gpu.estimates import direct_seconds, reference_gpu, winograd_seconds
from leakyforge.kernels.gpu.limits import DeviceLimits, device_limits
from leakyforge.kernels.gpu.winograd import Tiling, transform_weights
from leakyforge.runtime import read_manifest
from leakyforge.runtime.roofline import GPUS

LARGE = Conv2dShape(
    height=56, width=56, in_channels=256, out_channels=256, kernel=(3, 3), strides=(1, 1),
    dilation=(1, 1), padding=(1, 1, 1, 1), itemsize=4,
)  # fmt: skip
SMALL = dataclasses.replace(LARGE, in_channels=16, out_channels=16)
OPENCL, WEBGPU = parse_gpu_target("opencl"), parse_gpu_target("webgpu")


def cuda(architecture):
    """As `parse_gpu_target`, which asks nvcc."""
    limits = {"max_num_threads": 1024, "max_shared_memory_per_block": 48 << 10}
    return GpuTarget(
        architecture, "cuda", tvm.target.Target({"kind": "cuda", "arch": architecture, **limits})
    )


def chosen(shape, target, batch=1, **options):
    options = {"strict": False, "is_half": False, "unmeasured": "no GPU", **options}
    return choose(shape, batch, target, **options)


class TestChoice:
    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
    def test_a_large_layer_takes_winograd(self, architecture):
        tiling, choice = chosen(LARGE, cuda(architecture))
        assert tiling == Tiling(LARGE, 1, 4)
        assert choice.layer == "conv 3x3 /1, 256 -> 256, 56x56"
        assert choice.algorithm == "Winograd F(4, 3), 196 tiles"
        assert [trial.algorithm for trial in choice.trials] == ["F(4, 3)", "F(2, 3)", "direct"]
        name = GPUS["a100" if architecture == "sm_80" else "h100"].name
        assert choice.reasons().endswith(f"; not measured: no GPU; estimated for {name}")

    @pytest.mark.parametrize("target", [OPENCL, WEBGPU, cuda("sm_80"), cuda("sm_90")])
    def test_a_small_layer_does_not(self, target):
        tiling, choice = chosen(SMALL, target)
        assert tiling is None
        assert (choice.algorithm, choice.trials[0]) == ("direct", Trial("direct", 1.0))
        assert "F(4, 3) estimated " in choice.reasons()

    def test_it_has_to_save_a_tenth(self):
        layers = [
            dataclasses.replace(LARGE, in_channels=channels, out_channels=channels)
            for channels in range(16, 128, 4)
        ]
        choices = [chosen(layer, cuda("sm_80"))[1] for layer in layers]
        near = [each for each in choices if each.trials[each.taken].estimate > 1]
        assert near
        for choice in near:
            assert choice.algorithm == "direct"
            assert 1 < choice.trials[choice.taken].estimate < 1.1
            assert choice.reasons().endswith("Winograd has to be estimated to save a tenth")
        # Beyond it there is no more direct one.
        names = [choice.algorithm == "direct" for choice in choices]
        assert names == sorted(names, reverse=True)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"strict": True}, "precision is strict: no Winograd"),
            ({"is_half": True}, "its input is float16: no Winograd"),
            ({"kernel": (5, 5)}, "Winograd takes 3x3 kernels of stride 1, without dilation"),
            ({"strides": (1, 2)}, "Winograd takes 3x3 kernels of stride 1, without dilation"),
            ({"dilation": (2, 2)}, "Winograd takes 3x3 kernels of stride 1, without dilation"),
            ({"out_channels": 1}, "Winograd takes more than one channel"),
        ],
    )
    def test_no_candidate(self, change, reason):
        sizes = {key: change[key] for key in change if key not in ("strict", "is_half")}
        options = {key: change[key] for key in change if key not in sizes}
        shape = dataclasses.replace(LARGE, **sizes)
        tiling, choice = chosen(shape, cuda("sm_80"), **options)
        assert tiling is None
        assert choice.refused == (reason,)

    def test_buffers_that_every_device_has(self):
        """V and M of F(4, 3) take 36 * 2 * 256 * 4 bytes for each of 196 tiles of an image."""
        for batch, largest in ((8, 110), (16, 220)):
            names = [trial.algorithm for trial in chosen(LARGE, WEBGPU, batch)[1].trials]
            assert ("F(4, 3)" in names) == (largest <= 128)
            everywhere = chosen(LARGE, cuda("sm_80"), batch)[1]
            assert "F(4, 3)" in [trial.algorithm for trial in everywhere.trials]
        reasons = chosen(LARGE, WEBGPU, 16)[1].reasons()
        assert "F(4, 3) takes a buffer of 220 MiB, more than some devices have" in reasons


class TestEstimates:
    @pytest.mark.parametrize(
        ("target", "gpu"),
        [
            (cuda("sm_80"), "a100"),
            (cuda("sm_86"), "a10"),
            (cuda("sm_89"), "l40s"),
            (cuda("sm_90"), "h100"),
            # Not in the table, or any device: the one with the most operations for a byte.
            (cuda("sm_100"), "l40s"),
            (OPENCL, "l40s"),
            (WEBGPU, "l40s"),
        ],
    )
    def test_whose_data_sheet(self, target, gpu):
        assert reference_gpu(target) is GPUS[gpu]

    def test_transforms_cost_their_bytes(self):
        """On a GPU that computes in no time, by hand; the rest is the start of three kernels."""
        gpu = dataclasses.replace(GPUS["a100"], flops_per_second=1e30, bytes_per_second=1e9)
        image, places = 4 * 256 * 56 * 56, 4 * 36 * 256 * 196
        weights = 4 * 36 * 256 * 256
        limits = device_limits(OPENCL.tvm)
        seconds = winograd_seconds(Tiling(LARGE, 1, 4), limits, gpu)
        assert seconds - 9e-6 == pytest.approx((2 * image + 4 * places + weights) / 1e9)
        assert direct_seconds(LARGE, 1, limits, gpu) - 3e-6 == pytest.approx(
            (2 * image + weights / 4) / 1e9
        )

    def test_products_are_those_of_whole_tiles(self):
        """On a GPU that moves bytes in no time; loads and idle work items only add to them."""
        gpu = dataclasses.replace(GPUS["a100"], flops_per_second=1e12, bytes_per_second=1e30)
        limits = DeviceLimits(256, 48 << 10)
        flops = 2 * 36 * 256 * 256 * 196
        ratio = (winograd_seconds(Tiling(LARGE, 1, 4), limits, gpu) - 9e-6) * 1e12 / flops
        assert 1 < ratio < 2
        # Four tiles of outputs are a vector of lanes, of which a tile of the product has two.
        few, more = (dataclasses.replace(LARGE, height=8, width=width) for width in (8, 16))
        assert winograd_seconds(Tiling(few, 1, 4), limits, gpu) == winograd_seconds(
            Tiling(more, 1, 4), limits, gpu
        )


@pytest.mark.parametrize("outputs", [2, 4])
def test_weights_are_rounded_once(outputs):
    weight = np.random.default_rng(0).standard_normal((7, 5, 3, 3)).astype(np.float32)
    tiling = Tiling(dataclasses.replace(LARGE, in_channels=5, out_channels=7), 1, outputs)
    packed = transform_weights(weight, tiling)
    assert (packed.shape, packed.dtype) == ((outputs + 2, outputs + 2, 5, 7), np.float32)
    # The last point is at infinity: its place has the last tap alone.
    np.testing.assert_array_equal(packed[-1, -1], weight[:, :, 2, 2].T)


class TestCompile:
    @pytest.mark.parametrize("precision", ["default", "strict"])
    def test_layers_by_their_onnx_names(self, tmp_path, precision):
        """Two of one array of weights, which the direct sum keeps once."""
        weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
        proto = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[1,32,40,40] x) => (float[1,32,36,36] second)
            { first = Conv (x, w) l = LeakyRelu(first) second = Conv (l, w) }"""
        )
        proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        layers, path = [], tmp_path / "m.lfa"
        compile(proto, "opencl", output=path, precision=precision, on_layer=layers.append)
        assert [each.output for each in layers if each.choice] == ["first", "second"]
        (variant,) = read_manifest(path).variants
        assert len(variant.weights) == (1 if precision == "strict" else 2)

    def reports(self, tmp_path, kind=TensorProto.FLOAT, **options):
        """Of a layer that is estimated to take Winograd's algorithm."""
        weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3))
        weight = weight.astype(helper.tensor_dtype_to_np_dtype(kind))
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
                helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.1),
            ],
            "g",
            [helper.make_tensor_value_info("x", kind, (1, 32, 40, 40))],
            [helper.make_tensor_value_info("y", kind, (1, 32, 40, 40))],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        layers = []
        compile(model, "opencl", output=tmp_path / "m.lfa", on_layer=layers.append, **options)
        return layers

    @pytest.fixture(autouse=True)
    def estimates(self, monkeypatch):
        monkeypatch.setattr(
            "leakyforge.kernels.gpu.convolutions.reference_gpu",
            lambda _: dataclasses.replace(GPUS["a100"], flops_per_second=1e12),
        )

        def no_device():
            raise DeviceError("not needed")

        monkeypatch.setattr("leakyforge.runtime.record.choose_device", no_device)

    def test_three_kernels_and_why(self, tmp_path):
        transformed, product, output = self.reports(tmp_path)
        assert [each.rule for each in (transformed, product, output)] == [
            "winograd", "gemm", "winograd",
        ]  # fmt: skip
        assert product.choice.algorithm == "Winograd F(4, 3), 100 tiles"
        assert product.reasons.startswith("F(2, 3) estimated 1.")
        assert "; direct estimated " in product.reasons
        assert output.layer.startswith("winograd_output_leaky_relu, ")

    def test_strict_stays_direct(self, tmp_path):
        (layer,) = self.reports(tmp_path, precision="strict")
        assert (layer.rule, layer.choice.algorithm) == ("gemm", "direct")
        assert layer.epilogue == ("LeakyRelu",)
        assert layer.reasons == "precision is strict: no Winograd"

    def test_float16_stays_direct(self, tmp_path):
        layers = self.reports(tmp_path, kind=TensorProto.FLOAT16)
        (layer,) = (each for each in layers if each.choice is not None)
        assert layer.choice.algorithm == "direct"
        assert layer.reasons == "its input is float16: no Winograd"
