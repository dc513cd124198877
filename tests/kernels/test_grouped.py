"""Convolutions in groups against ONNX Runtime: vectors of groups, and of a group's channels."""

import dataclasses

import numpy as np
import pytest
from onnx import helper, numpy_helper

from leakyforge.kernels import Decision, LayerReport, compile, parse_target
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.depthwise import (
    DepthwiseConfig,
    depthwise_config,
    pack_depthwise_weights,
)
from leakyforge.kernels.grouped import GroupedConfig, grouped_config, pack_grouped_weights
from leakyforge.kernels.schedules import NoMatch
from leakyforge.runtime import Session
from leakyforge.runtime.parity import compare
from leakyforge.runtime.reference import load_reference
from leakyforge.tolerance import tolerance


@dataclasses.dataclass(frozen=True)
class Case:
    """Input after its batch, output channels, groups; pads are ONNX's; rule on AVX2."""

    size: tuple
    out_channels: int
    groups: int
    rule: str
    kernel: tuple = (3, 3)
    strides: tuple = (1, 1)
    dilations: tuple = (1, 1)
    pads: tuple = (1, 1, 1, 1)


CASES = {
    "lanes": Case((16, 9, 11), 16, 16, "depthwise"),
    "lanes_minus_one": Case((15, 8, 8), 15, 15, "depthwise"),
    "lanes_plus_one": Case((17, 8, 8), 17, 17, "depthwise"),
    "prime": Case((13, 19, 23), 13, 13, "depthwise", pads=(0, 1, 1, 0)),
    "two_groups": Case((2, 7, 5), 2, 2, "depthwise"),
    "stride": Case((32, 15, 14), 32, 32, "depthwise", strides=(2, 2)),
    "stride_of_columns": Case((8, 15, 14), 8, 8, "depthwise", strides=(1, 3)),
    "dilation": Case((16, 16, 17), 16, 16, "depthwise", dilations=(2, 3), pads=(2, 3, 2, 3)),
    "asymmetric_pads": Case((24, 7, 9), 24, 24, "depthwise", pads=(0, 2, 1, 0)),
    "no_pads": Case((32, 10, 10), 32, 32, "depthwise", pads=(0, 0, 0, 0)),
    "pointwise": Case((16, 5, 6), 16, 16, "depthwise", kernel=(1, 1), pads=(0, 0, 0, 0)),
    "large_kernel": Case((8, 12, 12), 8, 8, "depthwise", kernel=(11, 11), pads=(5, 5, 5, 5)),
    "one_column": Case((16, 20, 1), 16, 16, "depthwise", kernel=(3, 1), pads=(1, 0, 1, 0)),
    "multiplier": Case((16, 9, 10), 32, 16, "depthwise"),
    "multiplier_prime": Case((7, 9, 10), 21, 7, "depthwise"),
    "few_channels": Case((64, 8, 8), 64, 16, "depthwise"),
    "few_unequal_channels": Case((12, 8, 9), 20, 4, "grouped"),
    "one_dimension": Case((32, 40), 32, 32, "depthwise", (7,), (1,), (1,), (3, 3)),
    "one_dimension_grouped": Case((32, 41), 48, 2, "grouped", (5,), (2,), (2,), (3, 4)),
    "halves": Case((32, 9, 11), 64, 2, "grouped"),
    "many_rows": Case((32, 37, 6), 32, 2, "grouped"),
    "cut_tiles": Case((26, 9, 10), 46, 2, "grouped", strides=(2, 1)),
    "grouped_pointwise": Case((64, 7, 7), 64, 4, "grouped", kernel=(1, 1), pads=(0, 0, 0, 0)),
    "grouped_dilation": Case((16, 14, 14), 32, 2, "grouped", dilations=(2, 2), pads=(2, 2, 2, 2)),
}


def grouped_model(case, batch=1, dtype=np.float32, residual=False):
    """A convolution with bias and LeakyRelu; its input is added where that fits."""
    generator = np.random.default_rng(0)
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    size = (case.out_channels, case.size[0] // case.groups, *case.kernel)
    weight = (generator.standard_normal(size) / np.sqrt(np.prod(size[1:]))).astype(dtype)
    bias = generator.standard_normal(case.out_channels).astype(dtype)
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", "b"], ["c"], kernel_shape=case.kernel, strides=case.strides,
            dilations=case.dilations, pads=case.pads, group=case.groups,
        ),
        helper.make_node("LeakyRelu", ["c"], ["r" if residual else "y"], alpha=0.2),
    ]  # fmt: skip
    if residual:
        nodes.append(helper.make_node("Add", ["r", "x"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "grouped",
        [helper.make_tensor_value_info("x", onnx_type, (batch, *case.size))],
        [helper.make_tensor_value_info("y", onnx_type, (None,) * (1 + len(case.size)))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def assert_parity(path, proto, values):
    (spec,) = Session(path).get_outputs()
    (actual,) = Session(path).run(None, {"x": values})
    desired = load_reference(proto).run({"x": values})["y"]
    row = compare("y", actual, desired, tolerance(spec.dtype, spec.rounding_steps), "onnxruntime")
    assert row.passed, row


def draw(case, batch=1, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((batch, *case.size)).astype(dtype)


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu"])
@pytest.mark.parametrize("name", list(CASES))
def test_equal_to_onnxruntime(tmp_path, name, target):
    proto = grouped_model(CASES[name])
    path = compile(proto, target, output=tmp_path / "m.lfa")
    assert_parity(path, proto, draw(CASES[name]))


@pytest.mark.parametrize("name", ["lanes_plus_one", "multiplier", "halves", "one_dimension"])
def test_symbolic_batch(tmp_path, name):
    proto = grouped_model(CASES[name], batch="N")
    path = compile(proto, output=tmp_path / "m.lfa")
    for batch in (1, 3):
        assert_parity(path, proto, draw(CASES[name], batch))


@pytest.mark.parametrize("name", ["prime", "multiplier", "halves", "cut_tiles"])
def test_float64_and_the_narrowest_vectors(tmp_path, name):
    proto = grouped_model(CASES[name], dtype=np.float64)
    path = compile(proto, "cpu:x86-64", output=tmp_path / "m.lfa")
    assert_parity(path, proto, draw(CASES[name], dtype=np.float64))


@pytest.mark.parametrize("name", ["lanes", "lanes_minus_one", "many_rows"])
def test_epilogue_reads_another_tensor(tmp_path, name):
    proto = grouped_model(CASES[name], residual=True)
    path = compile(proto, output=tmp_path / "m.lfa")
    assert_parity(path, proto, draw(CASES[name]))


def test_reads_a_concatenation(tmp_path):
    proto = grouped_model(CASES["lanes"])
    proto.graph.node.insert(0, helper.make_node("Split", ["x"], ["p", "q"], axis=1, num_outputs=2))
    proto.graph.node.insert(1, helper.make_node("Concat", ["q", "p"], ["j"], axis=1))
    proto.graph.node[2].input[0] = "j"
    path = compile(proto, output=tmp_path / "m.lfa")
    assert_parity(path, proto, draw(CASES["lanes"]))


@pytest.mark.parametrize("name", list(CASES))
def test_one_function_scheduled_by_its_rule(tmp_path, name):
    decisions: list[Decision] = []
    proto = grouped_model(CASES[name])
    compile(proto, "cpu:x86-64-v3", output=tmp_path / "m.lfa", on_decision=decisions.append)
    (rule,) = [decision.rule for decision in decisions if "conv" in decision.function]
    assert rule == CASES[name].rule


def test_a_convolution_along_channels_says_why(tmp_path):
    layers: list[LayerReport] = []
    proto = grouped_model(CASES["halves"])
    compile(proto, "cpu:x86-64-v3", output=tmp_path / "m.lfa", on_layer=layers.append)
    (layer,) = [layer for layer in layers if layer.choice is not None]
    assert layer.reasons == "depthwise: a group's 32 output channels exceed 8 registers"
    assert "in 2 groups" in layer.layer


def shape_of(case):
    channels, *size = case.size
    return Conv2dShape(
        *size, channels, case.out_channels, case.kernel, case.strides, case.dilations, case.pads, 4
    )


def test_declines_where_channels_fill_the_vectors():
    case = Case((64, 8, 8), 64, 8, "grouped")
    declined = depthwise_config(shape_of(case), 8, parse_target("cpu:x86-64-v3"))
    reason = "a group's output channels fill the vectors as well as the groups do"
    assert declined == NoMatch(reason)


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].size) == 3])
def test_tiles_fit_the_registers(target, name):
    case, parsed = CASES[name], parse_target(target)
    config = depthwise_config(shape_of(case), case.groups, parsed)
    if isinstance(config, NoMatch):
        config = grouped_config(shape_of(case), case.groups, parsed)
        assert config.block_rows <= 16 or config.block == 1
    assert config.accumulators < parsed.vector_registers
    assert config.lanes * 32 <= parsed.vector_bits


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="18 accumulators exceed the registers"):
        DepthwiseConfig(1, columns=3, vectors=2, outputs=3, lanes=8, registers=16)


def test_packed_weights_of_groups_as_lanes():
    weight = np.random.default_rng(0).standard_normal((10, 3, 2, 4)).astype(np.float32)
    config = DepthwiseConfig(1, columns=1, vectors=1, outputs=2, lanes=4, registers=8)
    packed = pack_depthwise_weights(weight, 5, config)
    assert packed.shape == (2, 3, 2, 4, 2, 4)
    assert packed[1, 2, 1, 3, 1, 0] == weight[4 * 2 + 1, 2, 1, 3]
    assert not packed[1, ..., 1:].any()


def test_packed_weights_of_channels_as_lanes():
    weight = np.random.default_rng(0).standard_normal((12, 3, 2, 4)).astype(np.float32)
    config = GroupedConfig(1, 1, 1, 4, registers=8, weights_outer=False, block=1)
    packed = pack_grouped_weights(weight, 2, config)
    assert packed.shape == (2, 2, 3, 2, 4, 4)
    assert packed[1, 1, 2, 1, 3, 0] == weight[6 + 4, 2, 1, 3]
