import numpy as np
import onnx
import pytest

from leakyforge.errors import InputError, ModelError, TargetError
from leakyforge.kernels import backend
from leakyforge.kernels.constant_inputs import bind_inputs, constant_inputs

LEAKY = "leaky (float[N,3] x) => (float[N,3] y) { y = LeakyRelu <alpha = 0.5> (x) }"
X = np.array([[-2.0, 0.0, 4.0]], np.float32)


def test_run_model(parse):
    (y,) = backend.run_model(parse(LEAKY), [X])
    np.testing.assert_array_equal(y, [[-1.0, 0.0, 4.0]])


def test_one_prepared_model_takes_every_shape(parse):
    prepared = backend.prepare(parse(LEAKY), "CPU")
    for rows in (1, 3, 1):
        (y,) = prepared.run([np.repeat(X, rows, axis=0)])
        np.testing.assert_array_equal(y, [[-1.0, 0.0, 4.0]] * rows)


def test_inputs_that_decide_shapes_are_compiled_in(parse):
    model = parse(
        "r (float[2,3] x, int64[1] rows) => (float[A,B] y) "
        "{ one = Constant <value = int64[1] {-1}> () shape = Concat <axis = 0> (rows, one) "
        "y = Reshape (x, shape) }"
    )
    assert constant_inputs(model) == ["rows"]
    prepared = backend.prepare(model)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for rows in (3, 1, 6):
        (y,) = prepared.run([x, np.array([rows])])
        np.testing.assert_array_equal(y, x.reshape(rows, -1))


def test_a_shape_that_is_read_needs_no_constant(parse):
    model = parse(
        "s (float[2,3] x, float[3,2] z) => (float[A,B] y) { shape = Shape (z) "
        "y = Reshape (x, shape) }"
    )
    assert constant_inputs(model) == []


def test_bound_inputs_are_inputs_no_more(parse):
    bound = bind_inputs(parse(LEAKY.replace("N", "1")), {"x": X})
    assert not bound.graph.input
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(bound.graph.initializer[0]), X)


def test_devices():
    assert backend.supports_device("CPU")
    assert not backend.supports_device("CUDA")


def test_unknown_device(parse):
    with pytest.raises(TargetError, match="'CUDA' is not supported; use CPU"):
        backend.prepare(parse(LEAKY), "CUDA")


def test_wrong_number_of_inputs(parse):
    with pytest.raises(InputError, match="2 inputs; the model takes: x"):
        backend.run_model(parse(LEAKY), [X, X])


def test_a_sequence_is_refused():
    sequence = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    length = onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, ())
    node = onnx.helper.make_node("SequenceLength", ["s"], ["n"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [sequence], [length]))
    with pytest.raises(ModelError, match="'s' is of ONNX type sequence, and only tensors"):
        backend.prepare(model)
