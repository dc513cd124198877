"""Roundings above each output, against counts made by hand."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.exporter.rounding import node_steps, quantisations, rounding_steps
from leakyforge.tolerance import LAMBDA, UNIT_ROUNDOFF, tolerance

_TRANSCENDENTAL = 16


def steps(parse, text, **weights):
    model = parse(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in weights.items()
    )
    return rounding_steps(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def test_small_network(parse):
    """Conv 3 x 3 over 2 channels: 18. LeakyRelu, MaxPool, Flatten: 0. Gemm over 4 x 3 x 3: 36."""
    found = steps(
        parse,
        "g (float[N,2,6,6] x) => (float[N,10] y, float[N,4,6,6] features)"
        " { c = Conv <pads = [1,1,1,1]> (x, kernel, bias)"
        " features = LeakyRelu <alpha = 0.1> (c)"
        " p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (features)"
        " f = Flatten (p)"
        " y = Gemm <transB = 1> (f, matrix, offset) }",
        kernel=(4, 2, 3, 3),
        bias=(4,),
        matrix=(10, 36),
        offset=(10,),
    )
    assert found == {"features": 18, "y": 18 + 36}


def test_two_ways_to_an_output_count_once_each(parse):
    """A residual connection: the shared Mul once, the Add of both ways once."""
    text = "g (float[2] x) => (float[2] y) { a = Mul (x, x) b = Neg (a) y = Add (a, b) }"
    assert steps(parse, text) == {"y": 2}


def test_output_that_is_an_input(parse):
    assert steps(parse, "g (float[2] x) => (float[2] x) { y = Sqrt (x) }") == {"x": 0}


@pytest.mark.parametrize(
    ("node", "count"),
    [
        ("y = LeakyRelu (x)", 0),
        ("y = Transpose <perm = [3,2,1,0]> (x)", 0),
        ("y = Add (x, x)", 1),
        ("y = PRelu (x, x)", 1),
        ("y = Sigmoid (x)", _TRANSCENDENTAL),
        ("y = AveragePool <kernel_shape = [2,3]> (x)", 6),
        ("y = GlobalAveragePool (x)", 5 * 7),
        ("y = ReduceMean (x)", 3 * 5 * 7 + _TRANSCENDENTAL),
        ("y = MatMul (x, x)", 7),
        ("y = Conv <group = 3> (x, depthwise)", 4),
        ("y = ConvTranspose (x, transposed)", 3 * 2 * 2),
        ("y = ConvTranspose <group = 3> (x, transposed)", 1 * 2 * 2),
        ('y = Resize <mode = "nearest"> (x, , scales)', 0),
        ('y = Resize <mode = "linear"> (x, , scales)', _TRANSCENDENTAL),
    ],
)
def test_operator(parse, node, count):
    (found,) = parse(f"g (float[2,3,5,7] x) => (float[] y) {{ {node} }}").graph.node
    shapes = {"x": (2, 3, 5, 7), "depthwise": (3, 1, 2, 2), "transposed": (3, 4, 2, 2)}
    assert node_steps(found, shapes) == count


@pytest.mark.parametrize(
    ("node", "count"),
    [
        (helper.make_node("DFT", ["signal"], ["y"]), 6 * 64),
        (helper.make_node("DFT", ["odd"], ["y"]), 6 * 60 + 60**2),
        (helper.make_node("STFT", ["odd", "step", "window"], ["y"]), 6 * 16),
        (helper.make_node("STFT", ["signal", "step", "", "length"], ["y"]), 6 * 64),
        (helper.make_node("DFT", ["unknown"], ["y"]), 6 * 1024),
    ],
)
def test_transforms_round_by_their_length(node, count):
    shapes = {"signal": (2, 64, 1), "odd": (2, 60, 1), "window": (16,), "unknown": (2, "N", 1)}
    assert node_steps(node, shapes) == count


@pytest.mark.parametrize(("transposed", "count"), [(0, 30), (1, 20)])
def test_gemm_reduces_over_the_inner_axis(transposed, count):
    node = helper.make_node("Gemm", ["a", "b"], ["y"], transA=transposed)
    assert node_steps(node, {"a": (20, 30)}) == count


@pytest.mark.parametrize("shape", [None, (2, "K")])
def test_reduction_of_unknown_length_is_guessed_high(shape):
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    assert node_steps(node, {"a": shape}) == 1024


def test_unknown_symbol_outside_of_the_reduction_does_not_matter():
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    assert node_steps(node, {"a": ("N", "M", 48)}) == 48


def test_the_reference_rounds_bfloat16_leaky_relu_three_times():
    def count(dtype):
        value = helper.make_tensor_value_info("x", dtype, [2])
        node = helper.make_node("LeakyRelu", ["x"], ["y"])
        result = helper.make_tensor_value_info("y", dtype, [2])
        return rounding_steps(helper.make_model(helper.make_graph([node], "g", [value], [result])))[
            "y"
        ]

    assert count(TensorProto.BFLOAT16) == 2
    assert count(TensorProto.FLOAT16) == 0


def test_count_becomes_the_tolerance_by_its_square_root():
    limits = tolerance("float32", 54)
    assert limits.range_share == LAMBDA * math.sqrt(54) * UNIT_ROUNDOFF["float32"]
    assert "54 roundings" in limits.origin


def test_roundings_to_8_bits_are_counted_apart(parse):
    model = parse(
        """g (float[2] x, float s, uint8 z) => (float[2] y, float[2] other) {
        a = QuantizeLinear (x, s, z) b = DequantizeLinear (a, s, z) c = LeakyRelu (b)
        d = QuantizeLinear (c, s, z) y = DequantizeLinear (d, s, z) other = Neg (x) }"""
    )
    assert quantisations(model) == {"y": 2, "other": 0}
    assert rounding_steps(model) == {"y": 4, "other": 0}
