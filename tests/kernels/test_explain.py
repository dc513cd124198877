"""The rows of `compile --explain`."""

import pytest

from leakyforge.exporter import export
from leakyforge.kernels import compile, words
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.conv_transpose import TransposedShape


def reports_of(model, tmp_path, target="cpu:x86-64-v3"):
    reports = []
    compile(model, target, output=tmp_path / "model.lfa", on_layer=reports.append)
    return reports


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yolo")
    return reports_of(export("yolov3-tiny", folder / "yolo.onnx", size=64), folder)


def test_layers_come_in_order_under_their_onnx_names(yolo):
    names = [report.output for report in yolo if report.output is not None]
    assert names == [
        "layer0_norm", "layer2_norm", "layer4_norm", "layer6_norm", "layer8_norm", "layer10_norm",
        "layer12_norm", "layer13_norm", "layer14_norm", "head_large", "layer18_norm",
        "layer21_norm", "head_small",
    ]  # fmt: skip


def test_a_convolution_says_what_it_is(yolo):
    report = next(report for report in yolo if report.output == "layer10_norm")
    assert report.layer == "conv 3x3 /1, 256 -> 512, 2x2"
    assert report.epilogue == ("bias", "LeakyRelu")
    assert report.rule in ("winograd", "conv2d")
    assert report.target == "x86-64-v3"
    assert "not measured: the target is cpu:x86-64-v3, not cpu, this machine" in report.reasons


def test_layers_of_one_kernel_have_names_of_their_own(yolo):
    first, second = (
        next(report for report in yolo if report.output == name)
        for name in ("layer10_norm", "layer14_norm")
    )
    assert first.kernel == second.kernel
    assert first.layer == second.layer


def test_other_operators_have_no_reasons_of_convolutions(yolo):
    transposition = yolo[-1]
    assert transposition.layer == "transpose, 1x4x4x255 -> 1x255x4x4"
    assert transposition.choice is None
    assert transposition.reasons == ""
    pool = next(report for report in yolo if report.rule == "pool")
    # Of the one that a route reads too; the first four are in their convolutions.
    assert pool.layer == "max_pool2d, 1x4x4x256 -> 1x2x2x256"
    assert pool.reasons == ""


def test_a_pool_is_fused_behind_its_convolution(yolo):
    pooled = [report.output for report in yolo if "max_pool2d" in report.epilogue]
    assert pooled == ["layer0_norm", "layer2_norm", "layer4_norm", "layer6_norm"]


def test_an_addition_is_no_bias(tmp_path):
    model = export("rrdbnet", tmp_path / "m.onnx", blocks=1, height=8, width=8)
    epilogues = {report.epilogue for report in reports_of(model, tmp_path)}
    assert ("bias", "multiply", "add") in epilogues


def test_products_and_transposed_convolutions(tmp_path):
    mlp = reports_of(export("mlp", tmp_path / "m.onnx", batch=7), tmp_path)
    assert mlp[0].layer == "product 784 -> 512, 7 rows"
    generator = reports_of(export("dcgan-generator", tmp_path / "g.onnx"), tmp_path)
    layers = [report.layer for report in generator if report.output is not None]
    assert any(layer.startswith("transposed conv 4x4 /2, ") for layer in layers)
    assert all(report.output for report in generator if report.choice is not None)


def test_a_kernel_without_a_rule_says_why(parse, tmp_path):
    model = parse("m (float[4,6] x) => (int64[4,1] y) { y = ArgMax <axis = 1> (x) }")
    reports = reports_of(model, tmp_path)
    left = [report for report in reports if report.rule is None]
    assert len(left) == 1
    assert left[0].layer.startswith("argmax, 4x6")
    for rule in ("elementwise: it reduces", "reduction: ", "pool: "):
        assert rule in left[0].reasons


def test_names_are_left_out_where_they_cannot_be_told(parse, tmp_path):
    """A product of two tensors is no layer with weights for the front end's matmul alone."""
    model = parse(
        'm (float[2,3] x) => (float[2,2] y) { t = Einsum <equation = "ij->ji"> (x)'
        " y = MatMul (x, t) }"
    )
    assert {report.output for report in reports_of(model, tmp_path)} == {None}


def test_words():
    shape = Conv2dShape(10, 12, 8, 16, (3, 5), (2, 1), (1, 2), (1, 4, 1, 4), 4)
    assert words.convolution(shape, is_1d=False) == "conv 3x5 /2x1 dilated 1x2, 8 -> 16, 5x12"
    row = Conv2dShape(1, 12, 8, 16, (1, 5), (1, 2), (1, 1), (0, 2, 0, 2), 4)
    assert words.convolution(row, is_1d=True) == "conv 5 /2, 8 -> 16, 6"
    transposed = TransposedShape(1, 8, 4, 2, (1, 4), (1, 2), (0, 1), 1, 16, 4)
    assert words.transposed(transposed, is_1d=True) == "transposed conv 4 /2, 4 -> 2, 16"
