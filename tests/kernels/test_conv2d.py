"""Convolutions and products: our schedules against ONNX Runtime, at sizes that do not divide."""

import dataclasses

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper

from leakyforge.exporter.simplify import simplify
from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.conv2d import (
    BLOCK,
    Conv2dConfig,
    Conv2dShape,
    conv2d,
    heuristic_config,
    match_conv2d,
    pack_weights,
)
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse, schedule
from leakyforge.kernels.schedules import NoMatch, match_elementwise
from leakyforge.runtime import Session
from leakyforge.runtime.parity import compare
from leakyforge.runtime.reference import load_reference
from leakyforge.tolerance import tolerance

HOST = parse_target("cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution; padding is top, left, bottom, right."""

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple = (3, 3)
    strides: tuple = (1, 1)
    dilations: tuple = (1, 1)
    pads: tuple = (1, 1, 1, 1)
    group: int = 1
    batch: int | str = 1


CASES = {
    "lanes": Case(8, 8, 16, 16),
    "lanes_minus_one": Case(8, 8, 16, 15),
    "lanes_plus_one": Case(8, 8, 17, 17),
    "eight_lanes": Case(9, 16, 8, 24),
    "prime": Case(13, 17, 7, 11),
    "one_channel": Case(5, 5, 1, 1),
    "one_pixel": Case(1, 1, 32, 64, kernel=(1, 1), pads=(0, 0, 0, 0)),
    "one_column": Case(10, 1, 24, 32, kernel=(3, 1), pads=(1, 0, 1, 0)),
    "two_columns": Case(10, 2, 24, 96, kernel=(3, 1), pads=(0, 0, 0, 0)),
    "pointwise": Case(13, 13, 64, 255, kernel=(1, 1), pads=(0, 0, 0, 0)),
    "stride": Case(15, 14, 16, 32, strides=(2, 2)),
    "stride_of_rows": Case(15, 14, 16, 32, strides=(2, 1)),
    "dilation": Case(16, 16, 8, 16, dilations=(2, 3), pads=(2, 3, 2, 3)),
    "asymmetric_pads": Case(7, 9, 8, 16, pads=(0, 2, 1, 0)),
    "wide_kernel": Case(12, 30, 4, 16, kernel=(1, 7), pads=(0, 3, 0, 3)),
    "weights_outer": Case(6, 6, 256, 256),
    "batch": Case(6, 10, 8, 16, batch=3),
    "symbolic_batch": Case(6, 10, 8, 16, batch="N"),
    "winograd": Case(13, 18, 64, 64),
    "winograd_by_rows": Case(30, 22, 32, 32),
    "winograd_wide": Case(14, 14, 256, 256),
    "winograd_eight_lanes": Case(17, 17, 40, 24, pads=(0, 1, 1, 0)),
    "winograd_batch": Case(12, 20, 32, 64, batch=3),
    "winograd_symbolic_batch": Case(12, 20, 32, 64, batch="N"),
    "winograd_stride": Case(32, 32, 64, 128, kernel=(4, 4), strides=(2, 2)),
    "winograd_stride_odd": Case(31, 37, 32, 64, kernel=(4, 4), strides=(2, 2), pads=(0, 1, 1, 2)),
    "winograd_two": Case(30, 30, 64, 64, kernel=(2, 2), pads=(0, 0, 1, 1)),
    "dot": Case(12, 18, 64, 3),
    "dot_prime": Case(7, 13, 32, 5, strides=(2, 1), pads=(1, 0, 0, 1)),
    "dot_one_channel": Case(4, 4, 128, 1, kernel=(4, 4), pads=(0, 0, 0, 0)),
    "dot_dilation": Case(12, 18, 16, 2, dilations=(2, 3)),
    "dot_symbolic_batch": Case(6, 10, 32, 4, batch="N"),
    "grouped": Case(8, 8, 16, 16, group=2),
    "depthwise": Case(8, 8, 16, 16, group=16),
}


def conv_model(case, dtype=np.float32, residual=False):
    """Conv with bias and LeakyRelu, and the input added where that fits."""
    generator = np.random.default_rng(0)
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    size = (case.out_channels, case.in_channels // case.group, *case.kernel)
    weight = (generator.standard_normal(size) / np.sqrt(np.prod(size[1:]))).astype(dtype)
    bias = generator.standard_normal(case.out_channels).astype(dtype)
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", "b"], ["c"], kernel_shape=case.kernel, strides=case.strides,
            dilations=case.dilations, pads=case.pads, group=case.group,
        ),
        helper.make_node("LeakyRelu", ["c"], ["r" if residual else "y"], alpha=0.2),
    ]  # fmt: skip
    if residual:
        nodes.append(helper.make_node("Add", ["r", "x"], ["y"]))
    shape = (case.batch, case.in_channels, case.height, case.width)
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", onnx_type, shape)],
        [helper.make_tensor_value_info("y", onnx_type, (None, None, None, None))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def assert_parity(path, proto, feeds):
    session = Session(path)
    (actual,) = session.run(None, feeds)
    (spec,) = session.get_outputs()
    desired = load_reference(proto).run(feeds)[spec.name]
    limits = tolerance(spec.dtype, spec.rounding_steps)
    row = compare(spec.name, actual, desired, limits, "onnxruntime")
    assert row.passed, row


@pytest.mark.parametrize("name", list(CASES))
def test_conv2d(tmp_path, name):
    case = CASES[name]
    proto = conv_model(case)
    path = compile(proto, output=tmp_path / "conv.lfa")
    for batch in (1, 4) if isinstance(case.batch, str) else (case.batch,):
        shape = (batch, case.in_channels, case.height, case.width)
        values = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        assert_parity(path, proto, {"x": values})


@pytest.mark.parametrize("name", ["prime", "winograd", "winograd_by_rows"])
@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu"])
def test_conv2d_for_every_vector_width(tmp_path, target, name):
    case = CASES[name]
    proto = conv_model(case)
    path = compile(proto, target, output=tmp_path / "conv.lfa")
    shape = (1, case.in_channels, case.height, case.width)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_parity(path, proto, {"x": values})


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_conv2d_of_other_types(tmp_path, dtype):
    proto = conv_model(CASES["prime"], dtype)
    path = compile(proto, output=tmp_path / "conv.lfa")
    values = np.random.default_rng(0).standard_normal((1, 7, 13, 17)).astype(dtype)
    assert_parity(path, proto, {"x": values})


def test_epilogue_reads_another_tensor(tmp_path):
    proto = conv_model(Case(9, 9, 16, 16), residual=True)
    path = compile(proto, output=tmp_path / "conv.lfa")
    values = np.random.default_rng(0).standard_normal((1, 16, 9, 9)).astype(np.float32)
    assert_parity(path, proto, {"x": values})


@pytest.mark.parametrize("name", ["winograd", "stride"])
def test_sum_is_used_twice_in_its_epilogue(tmp_path, name):
    case = CASES[name]
    proto = conv_model(case)
    proto.graph.node[0].output[0] = "z"
    proto.graph.node[1].input[0] = "z"
    proto.graph.node[1].output[0] = "r"
    proto.graph.node.append(helper.make_node("Mul", ["r", "z"], ["y"]))
    path = compile(proto, output=tmp_path / "conv.lfa")
    shape = (1, case.in_channels, case.height, case.width)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_parity(path, proto, {"x": values})


def gemm_model(rows, inner, columns, *, transposed):
    generator = np.random.default_rng(0)
    size = (columns, inner) if transposed else (inner, columns)
    weight = (generator.standard_normal(size) / np.sqrt(inner)).astype(np.float32)
    bias = generator.standard_normal(columns).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=int(transposed)),
            helper.make_node("LeakyRelu", ["g"], ["y"], alpha=0.2),
        ],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, inner))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (rows, columns))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 784, 512), (64, 100, 33), (7, 13, 10), (1, 1, 1), ("N", 9, 17)],
)
def test_gemm(tmp_path, rows, inner, columns, transposed):
    proto = gemm_model(rows, inner, columns, transposed=transposed)
    path = compile(proto, output=tmp_path / "gemm.lfa")
    for count in (1, 5) if rows == "N" else (rows,):
        values = np.random.default_rng(0).standard_normal((count, inner)).astype(np.float32)
        assert_parity(path, proto, {"x": values})


@pytest.mark.parametrize("channels", [16, 3, 20])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (0, 0, 1, 1)])
def test_pool_behind_a_convolution(tmp_path, operator, pads, channels):
    proto = conv_model(Case(10, 12, 4, channels))
    node = helper.make_node(operator, ["y"], ["p"], kernel_shape=(2, 2), strides=(2, 2), pads=pads)
    proto.graph.node.append(node)
    proto.graph.output[0].name = "p"
    path = compile(proto, output=tmp_path / "pool.lfa")
    values = np.random.default_rng(0).standard_normal((1, 4, 10, 12)).astype(np.float32)
    assert_parity(path, proto, {"x": values})


def fused(proto):
    """Scheduled functions of a model, and the decisions about them."""
    module = legalize_and_fuse(choose_layout(import_onnx(simplify(proto))), HOST)
    return schedule(module, HOST)


@pytest.mark.parametrize(("name", "rule"), [("winograd", "winograd"), ("stride", "conv2d")])
def test_convolution_bias_and_leaky_relu_become_one_function(name, rule):
    _, decisions = fused(conv_model(CASES[name]))
    assert [decision.rule for decision in decisions if "conv2d" in decision.function] == [rule]
    (function,) = [decision.function for decision in decisions if "conv2d" in decision.function]
    assert "add" in function
    assert "leaky_relu" in function


def test_a_rule_that_does_not_match_says_why():
    proto = conv_model(CASES["prime"], np.float16)
    module = legalize_and_fuse(choose_layout(import_onnx(simplify(proto))), HOST)
    (function,) = [
        function for variable, function in module.functions.items()
        if "conv2d" in str(variable.name_hint)
    ]  # fmt: skip
    attempt = tvm.s_tir.Schedule(tvm.IRModule({"main": function}))
    assert match_conv2d(attempt, HOST) == NoMatch("no convolution or product with constant weights")
    assert match_elementwise(attempt, HOST) == NoMatch("it reduces")


def shape_of(case):
    return Conv2dShape(
        case.height, case.width, case.in_channels, case.out_channels, case.kernel, case.strides,
        case.dilations, case.pads, 4,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
@pytest.mark.parametrize("name", list(CASES))
def test_heuristic_stays_within_registers(target, name):
    parsed = parse_target(target)
    config = heuristic_config(shape_of(CASES[name]), parsed)
    assert config.accumulators + config.vectors + 1 <= parsed.vector_registers
    assert config.lanes * 32 <= parsed.vector_bits


@pytest.mark.parametrize(
    ("height", "channels", "expected"),
    [(4, 96, False), (4, 128, True), (64, 128, False)],
    ids=["few weights", "more than the input", "less than the input"],
)
def test_channel_tiles_are_the_outer_loop_where_weights_are_many(height, channels, expected):
    case = Case(height, height, channels, channels, kernel=(3, 1), pads=(0, 0, 0, 0))
    config = heuristic_config(shape_of(case), parse_target("cpu:x86-64-v3"))
    assert config.weights_outer is expected


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="exceed the registers"):
        Conv2dConfig(1, 13, 3, 8, registers=14, weights_outer=False)
    with pytest.raises(ValueError, match="must be positive"):
        Conv2dConfig(1, 0, 1, 8, registers=14, weights_outer=False)


def test_packed_weights():
    config = Conv2dConfig(1, 1, 1, 4, registers=14, weights_outer=False)
    weight = np.arange(6 * 1 * 2 * 3, dtype=np.float32).reshape(6, 1, 2, 3)
    packed = pack_weights(weight, config)
    assert packed.shape == (2, 1, 2, 3, 4)
    assert packed[1, 0, 1, 2, 1] == weight[5, 0, 1, 2]
    assert not packed[1, ..., 2:].any()


def test_definition_has_no_padding_where_none_is_needed():
    case = Case(8, 8, 16, 16, kernel=(1, 1), pads=(0, 0, 0, 0))
    config = Conv2dConfig(1, 8, 1, 16, registers=30, weights_outer=False)
    data = tvm.te.placeholder((1, 8, 8, 16), "float32")
    packed = tvm.te.placeholder((1, 1, 1, 16, 16), "float32")
    function = tvm.te.create_prim_func(
        [data, packed, conv2d(data, packed, shape_of(case), config, {})]
    )
    text = function.script()
    assert BLOCK in text
    assert "pad" not in text
