"""YOLOv3-tiny: its layers, shapes, weights and activations."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from leakyforge.errors import ExportError
from leakyforge.models import build


def session(model):
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def image(size, batch=1):
    return np.random.default_rng(0).random((batch, 3, size, size), np.float32)


@pytest.mark.parametrize("size", [416, 320])
def test_shapes_of_the_heads(size):
    outputs = session(build("yolov3-tiny", size=size)).run(None, {"input": image(size)})
    large, small = outputs
    assert large.shape == (1, 255, size // 32, size // 32)
    assert small.shape == (1, 255, size // 16, size // 16)
    assert large.dtype == small.dtype == np.float32


def test_layers_are_those_of_darknet():
    model = build("yolov3-tiny")
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts == {
        "Conv": 13,
        "BatchNormalization": 11,
        "LeakyRelu": 11,
        "MaxPool": 6,
        "Resize": 1,
        "Concat": 1,
    }
    # The number of convolution weights in cfg/yolov3-tiny.cfg, without batch normalization.
    sizes = [np.prod(w.dims) for w in model.graph.initializer if len(w.dims) == 4]
    assert sum(sizes) == 8_845_488


def test_max_pool_of_stride_one_pads_bottom_and_right():
    model = build("yolov3-tiny")
    pool = next(node for node in model.graph.node if node.name == "layer11_pool")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in pool.attribute}
    assert attributes == {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 0, 1, 1]}


def test_activations_are_of_order_one_and_vary_over_the_image():
    model = build("yolov3-tiny", size=320)
    names = [node.name for node in model.graph.node if node.op_type == "LeakyRelu"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for output in session(model).run(None, {"input": image(320)}):
        assert 0.3 < np.sqrt(np.mean(output**2)) < 5
        assert output.std(axis=(2, 3)).mean() > 0.05


def test_batch_normalization_is_not_the_identity():
    weights = {
        w.name: onnx.numpy_helper.to_array(w) for w in build("yolov3-tiny").graph.initializer
    }
    norms = {name for name in weights if "_norm." in name}
    assert len(norms) == 4 * 11
    for name in norms:
        assert weights[name].std() > 0.05, name


def test_same_seed_same_bytes_and_other_seed_other_weights():
    first = build("yolov3-tiny", size=32, seed=3).SerializeToString(deterministic=True)
    assert build("yolov3-tiny", size=32, seed=3).SerializeToString(deterministic=True) == first
    assert build("yolov3-tiny", size=32, seed=4).SerializeToString(deterministic=True) != first


def test_alpha_classes_and_symbolic_batch():
    model = build("yolov3-tiny", size=64, alpha=0.25, classes=2, batch="N")
    slopes = {
        onnx.helper.get_node_attr_value(node, "alpha")
        for node in model.graph.node
        if node.op_type == "LeakyRelu"
    }
    assert slopes == {0.25}
    large, small = session(model).run(None, {"input": image(64, batch=3)})
    assert large.shape == (3, 21, 2, 2)
    assert small.shape == (3, 21, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 400}, r"size=400 is not a multiple of 32; use 384 or 416"),
        ({"size": 0}, "size=0"),
        ({"size": 416.0}, "size=416.0"),
        ({"classes": 0}, "classes=0"),
        ({"seed": -1}, "seed=-1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": "0.1"}, "alpha='0.1'"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ExportError, match=message):
        build("yolov3-tiny", **options)
