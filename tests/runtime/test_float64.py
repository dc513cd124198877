"""Evaluation in float64: ONNX Runtime's float32 results, and digits that it does not have."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from leakyforge.errors import ModelError
from leakyforge.runtime.float64 import evaluate_float64
from leakyforge.runtime.reference import load_reference

CASES = {
    "conv": ("Conv", (2, 3, 8, 7), (5, 3, 3, 3), {}),
    "conv 1-D": ("Conv", (1, 4, 20), (6, 4, 5), {"dilations": [2], "pads": [4, 3]}),
    "conv 3-D": ("Conv", (1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"strides": [1, 2, 3]}),
    "grouped": ("Conv", (1, 6, 7, 7), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
    "depthwise": ("Conv", (1, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 0, 1, 2]}),
    "same": ("Conv", (1, 2, 7, 8), (3, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ("Conv", (1, 2, 7, 8), (3, 2, 4, 4), {"auto_pad": "SAME_LOWER"}),
    "transposed": ("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 4), {"strides": [2, 3]}),
    "transposed, cut": (
        "ConvTranspose",
        (1, 4, 5, 5),
        (4, 2, 4, 4),
        {"strides": [2, 2], "pads": [1, 2, 0, 1], "output_padding": [1, 0], "group": 2},
    ),
    "transposed, dilated": ("ConvTranspose", (1, 3, 9), (3, 2, 3), {"dilations": [3]}),
    "pool": ("MaxPool", (1, 2, 7, 8), None, {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "pool, padded": (
        "MaxPool",
        (1, 2, 7, 7),
        None,
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "pool, last position outside": (
        "MaxPool",
        (1, 1, 5),
        None,
        {"kernel_shape": [1], "strides": [2], "pads": [0, 1], "ceil_mode": 1},
    ),
    "pool, same": (
        "MaxPool",
        (1, 2, 13, 13),
        None,
        {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
}


def one_operator(kind, data, weight, attributes, dtype):
    generator = np.random.default_rng(5)
    names = ["x"] if weight is None else ["x", "w", "b"]
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], **attributes)],
        kind,
        [helper.make_tensor_value_info("x", onnx_type, data)],
        [helper.make_tensor_value_info("y", onnx_type, None)],
    )
    if weight is not None:
        groups = attributes.get("group", 1)
        outputs = weight[0] if kind == "Conv" else weight[1] * groups
        for name, shape in (("w", weight), ("b", (outputs,))):
            array = generator.standard_normal(shape).astype(dtype)
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, {"x": generator.standard_normal(data).astype(dtype)}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_onnxruntime_but_for_its_roundings(case):
    model, feeds = one_operator(*CASES[case], np.float32)
    desired = load_reference(model, optimised=False).run(feeds)["y"]
    (results,) = evaluate_float64(model, [feeds])
    assert results["y"].dtype == np.float64
    assert results["y"].shape == desired.shape
    # At most 60 products: see leakyforge/tolerance.py.
    bound = 6 * np.sqrt(60) * 2.0**-24 * np.abs(desired).max()
    assert np.abs(results["y"] - desired).max() <= bound


def test_digits_beyond_float32(parse):
    """1 + 2^-30 - 1 is 0 in float32; constants, casts and outputs are float64 too."""
    model = parse(
        "digits (float[1] x) => (float[1] y, float[1] z) {"
        " one = Constant <value = float[1] {1.0}> ()"
        " sum = Add (x, one)"
        " cast = Cast <to = 1> (sum)"
        " y = Sub (cast, one)"
        " z = LeakyRelu <alpha = 0.1> (x) }"
    )
    (results,) = evaluate_float64(model, [{"x": np.array([2.0**-30], np.float32)}])
    assert results["y"] == 2.0**-30
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    (results,) = evaluate_float64(model, [{"x": np.array([-1.0], np.float32)}])
    # An attribute is a float32.
    assert results["z"] == -float(np.float32(0.1))


def test_every_feed_has_its_outputs(parse):
    model = parse("two (float[N] x, int64[1] n) => (float[N] y, int64[1] m) {"
                  " y = Neg (x)\n m = Neg (n) }")  # fmt: skip
    feeds = [{"x": np.ones(k, np.float16), "n": np.array([k])} for k in (1, 3)]
    first, second = evaluate_float64(model, feeds)
    assert first["y"].shape == (1,)
    assert second["y"].tolist() == [-1.0] * 3
    assert second["m"].dtype == np.int64


def test_an_operator_that_it_lacks(parse):
    model = parse("odd (float[1] x) => (float[1] y) { y = com.unknown.Odd (x) }")
    with pytest.raises(ModelError, match="'odd' cannot be evaluated in float64"):
        evaluate_float64(model, [{"x": np.ones(1, np.float32)}])
