"""float16 products: the graph that is compiled, its error, and that others are left alone."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from leakyforge.exporter.float16 import to_float16
from leakyforge.kernels import compile
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.models import build
from leakyforge.runtime import Session
from leakyforge.runtime.reference import load_reference


def operators(proto):
    return [node.op_type for node in proto.graph.node]


@pytest.fixture
def long_sum(parse):
    """A sum of 4096 products in float16."""
    model = parse("g (float16[8,4096] x) => (float16[8,16] y) { t = MatMul (x, w) y = Neg (t) }")
    weight = np.random.default_rng(0).random((4096, 16)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def test_graph(long_sum):
    before = long_sum.SerializeToString()
    widened = add_up_in_float32(long_sum)
    assert long_sum.SerializeToString() == before
    assert operators(widened) == ["Cast", "MatMul", "Cast", "Neg"]
    onnx.checker.check_model(widened, full_check=True)
    assert widened.graph.input == long_sum.graph.input
    assert widened.graph.output == long_sum.graph.output


def test_an_input_of_several_products_is_cast_once(parse):
    model = parse(
        "g (float16[2,2] x) => (float16[2,2] y) { a = MatMul (x, x) b = Gemm (x, a, x)"
        " y = Add (a, b) }"
    )
    widened = add_up_in_float32(model)
    assert operators(widened) == ["Cast", "MatMul", "Cast", "Cast", "Gemm", "Cast", "Add"]
    onnx.checker.check_model(widened, full_check=True)


def test_float32_is_left_alone():
    model = build("digits")
    assert add_up_in_float32(model) is model


def test_sum_is_rounded_once(long_sum, tmp_path):
    artifact = compile(long_sum, output=tmp_path / "m.lfa", measure=False)
    x = np.random.default_rng(1).random((8, 4096)).astype(np.float16)
    weight = numpy_helper.to_array(long_sum.graph.initializer[0])
    (actual,) = Session(artifact).run(None, {"x": x})
    exact = -(x.astype(np.float64) @ weight.astype(np.float64))
    # The spacing of float16 from 512 to 2048 is at most 1: one rounding, and float32's error.
    assert np.abs(actual - exact).max() < 0.51


def test_weights_stay_equal_and_layers_keep_their_names(tmp_path):
    half = to_float16(build("digits"))
    layers = []
    artifact = compile(half, output=tmp_path / "m.lfa", measure=False, on_layer=layers.append)
    assert not [layer.output for layer in layers if "float32" in (layer.output or "")]
    feeds = {"image": np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float16)}
    (actual,) = Session(artifact).run(None, feeds)
    assert actual.dtype == np.float16
    desired = load_reference(half).run(feeds)["logits"]
    np.testing.assert_allclose(actual, desired, rtol=0, atol=2e-3 * np.abs(desired).max())
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
