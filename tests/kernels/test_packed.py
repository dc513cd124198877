"""Types of fewer than 8 bits: as inputs, outputs and weights."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.errors import ModelError
from leakyforge.kernels import backend
from leakyforge.kernels.compile import compile as compile_model
from leakyforge.runtime.session import Session

INTEGERS = {
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.INT2: ml_dtypes.int2,
    TensorProto.UINT2: ml_dtypes.uint2,
}


def model(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


def cast(source, to, count, **attributes):
    node = helper.make_node("Cast", ["x"], ["y"], to=to, **attributes)
    return model([node], [("x", source, [count])], [("y", to, [count])])


def run(proto, *arrays):
    (result,) = backend.prepare(proto).run(list(arrays))
    return result


@pytest.mark.parametrize("kind", INTEGERS, ids=TensorProto.DataType.Name)
def test_integers_keep_their_lowest_bits(kind):
    dtype, info = INTEGERS[kind], ml_dtypes.iinfo(INTEGERS[kind])
    numbers = np.arange(-40, 40).astype(np.int32)
    wrapped = (numbers - int(info.min)) % 2**info.bits + int(info.min)
    actual = run(cast(TensorProto.INT32, kind, 80), numbers)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual.astype(np.int32), wrapped)
    every = np.arange(int(info.min), int(info.max) + 1).astype(np.float32)
    values = run(cast(TensorProto.FLOAT, kind, every.size), every)
    np.testing.assert_array_equal(values.astype(np.float32), every)
    back = run(cast(kind, TensorProto.FLOAT, every.size), every.astype(dtype))
    np.testing.assert_array_equal(back, every)


def test_float4_is_the_nearest_value():
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    middles = (grid[1:] + grid[:-1]) / 2
    below, above = np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(9))
    # The one whose last bit is 0: of values in their order, the even one.
    ties = np.where(np.arange(7) % 2 == 0, grid[:-1], grid[1:])
    x = np.concatenate([grid, below, above, middles, [7, 1e9, np.inf]]).astype(np.float32)
    desired = np.concatenate([grid, grid[:-1], grid[1:], ties, [6, 6, 6]])
    proto = cast(TensorProto.FLOAT, TensorProto.FLOAT4E2M1, x.size)
    for sign in (1, -1):
        actual = run(proto, (sign * x).astype(np.float32)).astype(np.float32)
        np.testing.assert_array_equal(actual, sign * desired)
        np.testing.assert_array_equal(np.signbit(actual), np.full(x.size, sign < 0))


@pytest.mark.parametrize(
    ("mode", "exponents"),
    [("up", [0, 1, 1, 1, 1]), ("down", [0, 0, 0, 0, 1]), ("nearest", [0, 0, 1, 1, 1])],
)
def test_powers_of_two(mode, exponents):
    x = np.array([1, 1.25, 1.5, 1.75, 2], np.float32)
    proto = cast(TensorProto.FLOAT, TensorProto.FLOAT8E8M0, 5, round_mode=mode)
    np.testing.assert_array_equal(run(proto, x).astype(np.float32), 2.0 ** np.array(exponents))


@pytest.mark.parametrize("saturate", [0, 1])
def test_beyond_the_powers_of_two(saturate):
    x = np.array([np.inf, np.nan, 2.0**-127], np.float32)
    proto = cast(TensorProto.FLOAT, TensorProto.FLOAT8E8M0, 3, saturate=saturate)
    actual = run(proto, x).astype(np.float32)
    np.testing.assert_array_equal(actual, [2.0**127 if saturate else np.nan, np.nan, 2.0**-127])


def test_cast_like_and_quantize_take_the_type_of_an_input():
    like = np.zeros(1, ml_dtypes.int4)
    nodes = [
        helper.make_node("CastLike", ["x", "like"], ["c"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "like"], ["q"]),
        helper.make_node("Cast", ["c"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["q"], ["b"], to=TensorProto.FLOAT),
    ]
    proto = model(
        nodes,
        [("x", TensorProto.FLOAT, [4])],
        [("a", TensorProto.FLOAT, [4]), ("b", TensorProto.FLOAT, [4])],
        [("like", like), ("scale", np.array([0.5], np.float32))],
    )
    casts, quantised = backend.prepare(proto).run([np.array([9, -9, 3, 0.25], np.float32)])
    np.testing.assert_array_equal(casts, [-7, 7, 3, 0])
    np.testing.assert_array_equal(quantised, [7, -8, 6, 0])


def test_weights_of_4_bits_in_blocks(tmp_path):
    generator = np.random.default_rng(0)
    weights = generator.integers(-8, 8, (32, 8)).astype(ml_dtypes.int4)
    scales = generator.random((2, 8)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "d"], ["m"]),
        helper.make_node("LeakyRelu", ["m"], ["y"], alpha=0.1),
    ]
    proto = model(
        nodes, [("x", TensorProto.FLOAT, [4, 32])], [("y", TensorProto.FLOAT, [4, 8])],
        [("w", weights), ("s", scales)],
    )  # fmt: skip
    # It compares with ONNX Runtime itself.
    path = compile_model(proto, "cpu", output=tmp_path / "m.lfa")
    x = generator.standard_normal((4, 32)).astype(np.float32)
    product = x.astype(np.float64) @ (weights.astype(np.float64) * np.repeat(scales, 16, axis=0))
    desired = np.where(product < 0, 0.1 * product, product)
    # Sums of 32 products of up to 8 in float32.
    np.testing.assert_allclose(Session(path).run(None, {"x": x})[0], desired, atol=32 * 8 * 2**-22)


def test_bits_of_packed_types_are_refused():
    node = helper.make_node("BitCast", ["x"], ["y"], to=TensorProto.UINT4)
    proto = model([node], [("x", TensorProto.INT4, [4])], [("y", TensorProto.UINT4, [4])])
    proto.opset_import[0].version = 26
    with pytest.raises(ModelError, match=r"BitCast .*from int4 to uint4 is not supported"):
        run(proto, np.zeros(4, ml_dtypes.int4))


def test_onnx_runtime_has_no_arrays_of_them(tmp_path):
    with pytest.raises(ModelError, match="'y' is of type INT4, of which ONNX Runtime"):
        compile_model(cast(TensorProto.FLOAT, TensorProto.INT4, 3), output=tmp_path / "m.lfa")
    assert not list(tmp_path.iterdir())
