"""DFT and STFT against numpy's transforms, beyond the cases of ONNX's suite."""

import numpy as np
import onnx
import pytest

from leakyforge.errors import ModelError
from leakyforge.kernels import compile
from leakyforge.runtime import Session
from leakyforge.tolerance import tolerance

VALUE = onnx.helper.make_tensor_value_info
FLOAT = onnx.TensorProto.FLOAT


def result_of(tmp_path, node, feeds, constants=()):
    weights = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants]
    inputs = [VALUE(name, FLOAT, array.shape) for name, array in feeds.items()]
    # Frames of a signal have an axis more than it, transforms as many as their input.
    rank = feeds["x"].ndim + (node.op_type == "STFT")
    output = VALUE("y", FLOAT, [f"axis{axis}" for axis in range(rank)])
    graph = onnx.helper.make_graph([node], "m", inputs, [output], weights)
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    (result,) = Session(compile(proto, output=tmp_path / "m.lfa")).run(None, feeds)
    return result


def complex_of(parts):
    return parts[..., 0] + 1j * parts[..., 1]


def assert_near(actual, desired, points):
    limits = tolerance("float32", points)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


@pytest.mark.parametrize("inverse", [0, 1])
# Shorter than the data, longer, and as long: an even and an odd one.
@pytest.mark.parametrize(("points", "size"), [(5, 8), (12, 7), (8, 8), (7, 7), (1, 3)])
def test_dft(tmp_path, points, size, inverse):
    data = np.random.default_rng(0).standard_normal((2, size, 3, 2)).astype(np.float32)
    node = onnx.helper.make_node("DFT", ["x", "n", "axis"], ["y"], inverse=inverse)
    actual = result_of(
        tmp_path, node, {"x": data}, [("n", np.int64(points)), ("axis", np.int64(1))]
    )
    transform = np.fft.ifft if inverse else np.fft.fft
    desired = transform(complex_of(data.astype(np.float64)), points, axis=1)
    assert_near(complex_of(actual), desired, 2 * points)


@pytest.mark.parametrize("points", [6, 7])
def test_one_sided_and_back(tmp_path, points):
    data = np.random.default_rng(0).standard_normal((4, points, 1)).astype(np.float32)
    node = onnx.helper.make_node("DFT", ["x"], ["y"], onesided=1)
    half = result_of(tmp_path, node, {"x": data})
    assert half.shape == (4, points // 2 + 1, 2)
    assert_near(complex_of(half), np.fft.rfft(data[..., 0].astype(np.float64)), points)
    back = onnx.helper.make_node("DFT", ["x", "n"], ["y"], onesided=1, inverse=1)
    actual = result_of(tmp_path, back, {"x": half}, [("n", np.int64(points))])
    assert_near(actual, data, 4 * points)


@pytest.mark.parametrize("windowed", [False, True])
def test_stft(tmp_path, windowed):
    signal = np.random.default_rng(0).standard_normal((2, 50, 1)).astype(np.float32)
    window = np.hanning(16).astype(np.float32)
    node = onnx.helper.make_node("STFT", ["x", "step", "w" if windowed else "", "n"], ["y"])
    feeds = {"x": signal} | ({"w": window} if windowed else {})
    actual = result_of(tmp_path, node, feeds, [("step", np.int64(5)), ("n", np.int64(16))])
    frames = np.stack([signal[:, start : start + 16, 0] for start in range(0, 35, 5)], 1)
    factor = window.astype(np.float64) if windowed else 1.0
    assert_near(complex_of(actual), np.fft.rfft(frames * factor), 16)


def test_a_transform_of_the_parts_is_refused(tmp_path):
    data = np.zeros((2, 8, 3), np.float32)
    node = onnx.helper.make_node("DFT", ["x"], ["y"])
    with pytest.raises(ModelError, match="holds 1 or 2 parts"):
        result_of(tmp_path, node, {"x": data})
