"""To float16 and to int8: types, error against float32, parity when compiled, refusals."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from leakyforge.errors import ExportError, InputError
from leakyforge.exporter.check import checked_model
from leakyforge.exporter.float16 import to_float16
from leakyforge.exporter.quantize import calibration_feeds, quantization_error, quantize_qdq
from leakyforge.kernels import compile
from leakyforge.models import build
from leakyforge.runtime import check

ZOO = {"digits": {}, "mlp": {"hidden": 64}, "dcgan-discriminator": {"features": 4}}


@pytest.fixture(params=ZOO)
def model(request):
    return build(request.param, **ZOO[request.param])


def compiled(proto, tmp_path):
    path = tmp_path / "converted.onnx"
    onnx.save(checked_model(proto), path)
    return check(compile(path, measure=False))


def types(values):
    return {value.type.tensor_type.elem_type for value in values}


class TestFloat16:
    def test_everything_is_float16_and_agrees(self, model, tmp_path):
        before = model.SerializeToString()
        half = to_float16(model)
        assert model.SerializeToString() == before
        assert types([*half.graph.input, *half.graph.output]) == {TensorProto.FLOAT16}
        assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}
        assert half.metadata_props == model.metadata_props
        assert len(half.graph.node) == len(model.graph.node)
        assert compiled(half, tmp_path)

    def test_resize_keeps_its_scales(self):
        half = checked_model(to_float16(build("yolov3-tiny", size=32)))
        kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        (node,) = (node for node in half.graph.node if node.op_type == "Resize")
        assert kinds[node.input[2]] == TensorProto.FLOAT
        assert "Cast" not in {node.op_type for node in half.graph.node}

    def test_weight_beyond_the_range(self, model):
        weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weight.flat[0] = 1e5
        name = model.graph.initializer[0].name
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, name))
        with pytest.raises(ExportError, match=rf"weight '{name}' reaches 100000, .*65504"):
            to_float16(model)


class TestQuantize:
    def test_close_to_float32_and_compiled_equal_to_onnxruntime(self, model, tmp_path):
        before = model.SerializeToString()
        quantised = quantize_qdq(model, calibration_feeds(model))
        assert model.SerializeToString() == before
        assert types([*quantised.graph.input, *quantised.graph.output]) == {TensorProto.FLOAT}
        assert {item.domain for item in quantised.opset_import} == {""}
        operators = [node.op_type for node in quantised.graph.node]
        assert "BatchNormalization" not in operators
        assert operators.count("QuantizeLinear") > 2
        assert TensorProto.INT8 in {tensor.data_type for tensor in quantised.graph.initializer}
        (error,) = quantization_error(model, quantised, calibration_feeds(model, 8, seed=1))
        assert 0 < error.max_share < 0.2
        assert error.snr_db > 25
        report = compiled(quantised, tmp_path)
        assert report
        assert all("to 8 bits" in row.origin for row in report.outputs)

    def test_calibrated_by_given_inputs(self):
        model = build("digits")
        narrow = [{"image": np.full((1, 1, 8, 8), 0.1, np.float32)}]
        quantised = quantize_qdq(model, narrow)
        scale = {
            tensor.name: float(numpy_helper.to_array(tensor))
            for tensor in quantised.graph.initializer
            if tensor.name == "image_scale"
        }
        assert scale == {"image_scale": pytest.approx(0.1 / 255)}

    def test_says_nothing(self, capfd, caplog):
        model = build("digits")
        quantize_qdq(model, calibration_feeds(model, 2))
        assert capfd.readouterr() == ("", "")
        assert not caplog.records

    @pytest.mark.parametrize(
        ("feeds", "message"),
        [
            ([], "at least one input"),
            ([{"nonesuch": np.zeros(2, np.float32)}], "cannot be quantised"),
            ([{"image": np.zeros((2, 2), np.float32)}], "cannot be quantised"),
        ],
    )
    def test_refused(self, feeds, message):
        with pytest.raises(ExportError, match=message) as caught:
            quantize_qdq(build("digits"), feeds)
        assert "\n" not in str(caught.value)

    def test_error_of_inputs_that_do_not_fit(self):
        model = build("digits")
        with pytest.raises(InputError, match="does not run"):
            quantization_error(model, model, [{"image": np.zeros((2, 2), np.float32)}])


class TestCalibrationFeeds:
    def test_seeded_and_in_the_declared_range(self, parse):
        model = parse("g (float[N,3] x, float[2] z) => (float[N,3] y) { y = LeakyRelu (x) }")
        model.metadata_props.add(key="leakyforge.input_range.x", value="4,5")
        feeds = calibration_feeds(model, 50)
        assert len(feeds) == 50
        assert feeds[0]["x"].shape == (1, 3)
        drawn = np.stack([feed["x"] for feed in feeds])
        assert drawn.dtype == np.float32
        assert 4 <= drawn.min() < 4.2 < 4.8 < drawn.max() <= 5
        assert np.stack([feed["z"] for feed in feeds]).min() < -1
        again = calibration_feeds(model, 50)
        assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(feeds, again, strict=True))
        assert not np.array_equal(calibration_feeds(model, 1, seed=1)[0]["x"], feeds[0]["x"])

    def test_refused(self, parse):
        model = parse("g (int64[2] x) => (int64[2] y) { y = Neg (x) }")
        with pytest.raises(ExportError, match="'x' is int64"):
            calibration_feeds(model)
        model = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }")
        model.metadata_props.add(key="leakyforge.input_range.x", value="from 0 to 1")
        with pytest.raises(ExportError, match="is not LOW,HIGH"):
            calibration_feeds(model)
