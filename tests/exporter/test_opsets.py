"""Raising old models: the same numbers in ONNX Runtime, and every refusal."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from leakyforge.errors import ModelError
from leakyforge.kernels import compile
from leakyforge.kernels.onnx_model import load_onnx
from leakyforge.opsets import NEWEST, OLDEST, at_least, check_opset, opset_of, to_opset
from leakyforge.runtime import check

IMAGE = [1, 3, 8, 8]


def weights(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def model(opset, nodes, constants=None, shape=IMAGE, listed=False):
    """A graph from `x` to `y`; `listed` weights are inputs too, as IR version 3 wants it."""
    constants = constants or {}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if listed:
        inputs += [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
            )
            for name, array in constants.items()
        ]
    graph = helper.make_graph(
        nodes,
        "old",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8
    )
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    proto.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(proto, full_check=True)
    return proto


def node(operator, *inputs, out="y", **attributes):
    return helper.make_node(operator, ["x", *inputs], [out], name=f"the {operator}", **attributes)


BN = {"s": weights(3), "b": weights(3), "m": weights(3), "v": np.abs(weights(3)) + 0.5}
SCALES = {"s": np.float32([1, 1, 2, 2])}
OLD = {
    "Upsample7": (7, [node("Upsample", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])], {}),
    "Upsample7 linear": (8, [node("Upsample", mode="linear", scales=[1.0, 1.0, 2.0, 2.0])], {}),
    "Upsample9": (9, [node("Upsample", "s", mode="nearest")], SCALES),
    "Upsample9 linear": (9, [node("Upsample", "s", mode="linear")], SCALES),
    "Resize10": (10, [node("Resize", "s", mode="nearest")], SCALES),
    "Resize10 linear": (
        10,
        [node("Resize", "s", mode="linear")],
        {"s": np.float32([1, 1, 1.5, 1.5])},
    ),
    "Resize10 smaller": (10, [node("Resize", "s")], {"s": np.float32([1, 1, 0.4, 0.75])}),
    "Pad2": (7, [node("Pad", pads=[0, 0, 1, 2, 0, 0, 1, 0], value=0.5)], {}),
    "Clip6": (7, [node("Clip", min=-0.5, max=0.5)], {}),
    "Dropout7": (7, [node("Dropout", ratio=0.5)], {}),
    "Softmax1": (7, [node("Softmax")], {}),
    "Softmax11": (11, [node("Softmax", axis=2)], {}),
    "LogSoftmax": (9, [node("LogSoftmax", axis=1)], {}),
    "Squeeze1": (8, [node("Squeeze", axes=[0])], {}),
    "Unsqueeze1": (8, [node("Unsqueeze", axes=[0, 5])], {}),
    "ReduceSum1": (8, [node("ReduceSum", axes=[2, 3])], {}),
    "ReduceMean1": (12, [node("ReduceMean", axes=[2, 3], keepdims=0)], {}),
    "Split2": (8, [helper.make_node("Split", ["x"], ["y", "z"], axis=2, split=[3, 5])], {}),
    "Slice1": (9, [node("Slice", axes=[2, 3], starts=[1, 0], ends=[7, -1])], {}),
    "Reshape5": (7, [node("Reshape", "n")], {"n": np.int64([0, 0, -1])}),
    "BatchNormalization7": (7, [node("BatchNormalization", *"sbmv")], BN),
    "AveragePool7": (7, [node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "MaxPool1": (7, [node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])], {}),
    "LeakyRelu6": (8, [node("LeakyRelu", alpha=0.3)], {}),
}


@pytest.mark.parametrize("target", [13, 18])
@pytest.mark.parametrize("name", OLD)
def test_the_same_in_onnxruntime(name, target):
    opset, nodes, constants = OLD[name]
    old = model(opset, nodes, constants)
    before = old.SerializeToString()
    raised = to_opset(old, target)
    assert old.SerializeToString() == before
    assert opset_of(raised) == target
    (desired, *_), (actual, *_) = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"x": weights(*IMAGE)})
        for each in (old, raised)
    )
    np.testing.assert_array_equal(actual, desired)


def _prelu(x, slope):
    return np.where(x < 0, x * slope, x)


# ONNX Runtime begins with opset 7; what these mean is in ONNX's specification of opset 6.
SIX = {
    "AveragePool": (
        [node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
        lambda x: None,
    ),
    "Add": (
        [node("Add", "b", broadcast=1, axis=1)],
        {"b": weights(3)},
        lambda x, b: x + b.reshape(3, 1, 1),
    ),
    "Sub": (
        [node("Sub", "b", broadcast=1, axis=2)],
        {"b": weights(8)},
        lambda x, b: x - b.reshape(8, 1),
    ),
    "Div": (
        [node("Div", "b", broadcast=1, axis=-3)],
        {"b": weights(3, 8)},
        lambda x, b: x / b.reshape(3, 8, 1),
    ),
    "Mul": ([node("Mul", "b", broadcast=1)], {"b": weights(8, 8)}, lambda x, b: x * b),
    "PRelu": ([node("PRelu", "b")], {"b": weights(3)}, lambda x, b: _prelu(x, b.reshape(3, 1, 1))),
    "Pow": ([node("Pow", "b", broadcast=1)], {"b": np.float32([2])}, lambda x, b: x**2),
}


@pytest.mark.parametrize("name", sorted(SIX.keys() - {"AveragePool"}))
def test_broadcasting_of_opset_6(name):
    nodes, constants, definition = SIX[name]
    raised = to_opset(model(6, nodes, constants, listed=True), 13)
    x = weights(*IMAGE)
    session = onnxruntime.InferenceSession(raised.SerializeToString())
    assert [value.name for value in session.get_inputs()] == ["x"]
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], definition(x, *constants.values()), rtol=1e-6
    )


def test_batch_normalization_of_opset_6():
    old = model(6, [node("BatchNormalization", *"sbmv", is_test=1)], BN, listed=True)
    feeds = {"x": weights(*IMAGE)}
    (desired,) = ReferenceEvaluator(old).run(None, feeds)
    (actual,) = onnxruntime.InferenceSession(to_opset(old, 13).SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


def darknet(opset):
    """What exporters of YOLO wrote: Conv, BatchNormalization, LeakyRelu, MaxPool, Upsample."""
    test = {"is_test": 1} if opset < 7 else {}
    nodes = [
        node("Conv", "w", out="c", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", *"sbmv"], ["n"], **test),
        helper.make_node("LeakyRelu", ["n"], ["l"], alpha=0.1),
        helper.make_node("MaxPool", ["l"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    constants = {"w": weights(3, 3, 3, 3), **BN}
    if opset < 7:
        last = helper.make_node("Flatten", ["p"], ["u"])
    elif opset < 9:
        last = helper.make_node("Upsample", ["p"], ["u"], scales=[1.0, 1.0, 2.0, 2.0])
    elif opset < 11:
        operator = "Upsample" if opset == 9 else "Resize"
        last = helper.make_node(operator, ["p", "scales"], ["u"])
        constants["scales"] = SCALES["s"]
    else:
        # As exporters write it: scales that hold nothing, and sizes.
        last = helper.make_node(
            "Resize",
            ["p", "none", "none", "sizes"],
            ["u"],
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        constants |= {"none": np.float32([]), "sizes": np.int64([1, 3, 8, 8])}
    nodes += [last, helper.make_node("Neg", ["u"], ["y"])]
    return model(opset, nodes, constants, listed=opset < 9)


@pytest.mark.parametrize("opset", range(OLDEST, NEWEST + 1))
def test_every_opset_compiles_and_agrees(opset, tmp_path):
    path = tmp_path / "old.onnx"
    onnx.save(darknet(opset), path)
    layers = []
    artifact = compile(path, measure=False, on_layer=layers.append)
    assert check(artifact, samples=2)
    # BatchNormalization is in the convolution, and LeakyRelu in its kernel.
    assert [layer.epilogue for layer in layers if layer.layer.startswith("conv ")] == [
        ("bias", "LeakyRelu")
    ]


@pytest.mark.parametrize("name", sorted(SIX))
def test_opset_6_is_checked_with_onnxruntime(name, tmp_path):
    path = tmp_path / "six.onnx"
    onnx.save(model(6, *SIX[name][:2], listed=True), path)
    report = check(compile(path, measure=False), samples=1)
    assert report
    assert all(row.reference.startswith("onnxruntime") for row in report.outputs)


def test_a_model_at_the_version_is_not_copied():
    old = model(12, [node("LeakyRelu")])
    assert to_opset(old, 12) is old
    assert at_least(old, 11) is old
    assert opset_of(at_least(old, 13)) == 13


def test_weights_are_kept_as_they_are():
    old = model(8, [node("Conv", "w")], {"w": weights(16, 3, 5, 5)}, listed=True)
    raised = to_opset(old, 13)
    assert raised.graph.initializer[0] == old.graph.initializer[0]
    assert [value.name for value in raised.graph.input] == ["x"]


@pytest.mark.parametrize(
    ("opset", "nodes", "constants", "message"),
    [
        (
            6,
            [node("BatchNormalization", *"sbmv", is_test=1, spatial=0)],
            {name: weights(3, 8, 8) for name in "sbmv"},
            r"BatchNormalization \(node 'the BatchNormalization'\) of opset 6 .*: .*spatial",
        ),
        (6, [node("BatchNormalization", *"sbmv")], BN, "training mode"),
        (
            10,
            [node("Resize", "s")],
            {"s": np.float32([1, 1, 2, 0.5])},
            r"Resize \(node 'the Resize'\) enlarges along one axis and shrinks",
        ),
    ],
)
def test_refused(opset, nodes, constants, message):
    with pytest.raises(ModelError, match=message) as caught:
        to_opset(model(opset, nodes, constants), 13)
    assert "\n" not in str(caught.value)


def test_unknown_operator_is_named():
    old = model(11, [node("LeakyRelu")])
    old.graph.node[0].op_type = "LeakyReluOfAnother"
    with pytest.raises(ModelError, match=r"OfAnother \(node 'the LeakyRelu'\) of opset 11"):
        to_opset(old, 13)


@pytest.mark.parametrize(
    ("opset", "advice"), [(NEWEST + 1, "lower it with"), (OLDEST - 1, "raise it with")]
)
def test_versions_that_are_not_read(opset, advice, tmp_path):
    proto = model(18, [node("Relu")])
    proto.opset_import[0].version = opset
    path = tmp_path / "other.onnx"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=rf"other\.onnx is at opset {opset}, .*{advice}"):
        load_onnx(path)


def test_no_or_two_versions():
    proto = model(18, [node("Relu")])
    proto.opset_import.add(domain="ai.onnx", version=17)
    with pytest.raises(ModelError, match="imports 2 versions"):
        check_opset(proto, "it")
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="imports 0 versions"):
        opset_of(proto)
