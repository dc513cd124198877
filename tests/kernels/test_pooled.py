"""2x2 maximum pools in the epilogue of the convolution before them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse
from leakyforge.runtime import check

HOST = parse_target("cpu")


def model(
    channels=(8, 16),
    size=(12, 20),
    kernel=3,
    stride=1,
    batch=1,
    between=("LeakyRelu",),
    behind=(),
    reads_before=False,
    **pool,
):
    """A convolution, a pool, operators around it; `reads_before`: its input is an output too."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((channels[1], channels[0], kernel, kernel), dtype=np.float32)
    weights = [
        numpy_helper.from_array(weight / np.float32(np.sqrt(weight[0].size)), "w"),
        numpy_helper.from_array(generator.standard_normal(channels[1], dtype=np.float32), "b"),
    ]
    pads = [(kernel - stride) // 2 + (kernel - stride) % 2] * 4
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["t0"], pads=pads, strides=[stride] * 2)]
    options = {"kernel_shape": [2, 2], "strides": [2, 2], **pool}
    for operator in (*between, "MaxPool", *behind):
        attributes = options if operator == "MaxPool" else {}
        inputs = nodes[-1].output
        nodes.append(helper.make_node(operator, inputs, [f"t{len(nodes)}"], **attributes))
    ends = [nodes[-1].output[0]] + (["t1"] if reads_before else [])
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels[0], *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def kernels(proto, target=HOST):
    """Names of the functions that a model becomes."""
    module = legalize_and_fuse(choose_layout(import_onnx(proto)), target)
    return sorted(str(name.name_hint) for name in module.get_global_vars())


FUSED = [
    {},
    {"channels": (3, 16), "size": (32, 32)},  # direct: too few input channels for Winograd
    {"channels": (3, 24), "size": (14, 22)},
    {"channels": (16, 32), "size": (26, 26)},  # the last of Winograd's tiles reach beyond
    {"channels": (64, 64), "size": (4, 4)},  # without blocks
    {"channels": (8, 8), "kernel": 4, "stride": 2, "size": (16, 24)},
    {"channels": (8, 16), "kernel": 1},
    {"between": ("LeakyRelu", "Relu")},
    {"between": ()},
    {"behind": ("LeakyRelu",)},
    {"batch": 3},
    {"batch": "N"},
]
APART = [
    {"reads_before": True},
    {"size": (13, 20)},
    {"kernel_shape": [3, 3]},
    {"strides": [1, 1]},
    {"pads": [1, 1, 0, 0]},
    {"dilations": [2, 2]},
    {"channels": (8, 3)},
    {"between": ("Softplus",)},
]


@pytest.mark.parametrize("options", [*FUSED, *APART])
def test_equals_onnx_runtime(tmp_path, options):
    path = tmp_path / "model.onnx"
    onnx.save(model(**options), path)
    report = check(compile(path, "cpu"))
    assert report, report


@pytest.mark.parametrize("options", FUSED)
def test_convolution_and_pool_are_one_kernel(options):
    pools = [name for name in kernels(model(**options)) if "max_pool" in name]
    assert [name for name in pools if name.startswith("fused_conv2d")] == pools != []


@pytest.mark.parametrize("options", APART)
def test_other_pools_have_a_kernel_of_their_own(options):
    names = kernels(model(**options))
    assert any("pool" in name for name in names)
    assert not any("conv2d" in name and "pool" in name for name in names)


def test_wider_vectors_take_it_too():
    # AVX-512 has tiles of other sizes; they are compiled here, and run where the CPU has it.
    target = parse_target("cpu:x86-64-v4")
    assert any("max_pool" in name and "conv2d" in name for name in kernels(model(), target))
