"""Softmax, normalisations, means and pooling against ONNX Runtime, and the rules that take them."""

import numpy as np
import onnx
import pytest
import tvm

from leakyforge.exporter.simplify import simplify
from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse, schedule
from leakyforge.kernels.reduction import match_reduction
from leakyforge.kernels.schedules import NoMatch, match_pool
from leakyforge.runtime import Session
from leakyforge.runtime.parity import compare
from leakyforge.runtime.reference import load_reference
from leakyforge.tolerance import tolerance

HOST = parse_target("cpu")

_AXES = "a = Constant <value_ints = [{}]> ()"
# Shape of x, shape of y, nodes.
CASES = {
    "softmax": ([5, 64], [5, 64], "y = Softmax <axis = -1> (x)"),
    "softmax_not_a_multiple": ([3, 7, 196], [3, 7, 196], "y = Softmax <axis = -1> (x)"),
    "softmax_prime": ([6, 197], [6, 197], "y = Softmax <axis = -1> (x)"),
    "softmax_one": ([6, 1], [6, 1], "y = Softmax <axis = -1> (x)"),
    "softmax_one_row": ([1, 1000], [1, 1000], "y = Softmax <axis = -1> (x)"),
    "softmax_channels": ([2, 21, 8, 16], [2, 21, 8, 16], "y = Softmax <axis = 1> (x)"),
    "softmax_channels_prime": ([2, 5, 3, 7], [2, 5, 3, 7], "y = Softmax <axis = 1> (x)"),
    "softmax_first": ([9, 32], [9, 32], "y = Softmax <axis = 0> (x)"),
    "softmax_parallel": ([300, 256], [300, 256], "y = Softmax <axis = -1> (x)"),
    "log_softmax": ([5, 100], [5, 100], "y = LogSoftmax <axis = -1> (x)"),
    "log_softmax_channels": ([2, 21, 4, 4], [2, 21, 4, 4], "y = LogSoftmax <axis = 1> (x)"),
    "mean": ([7, 96], [7, 1], f"{_AXES.format(1)} y = ReduceMean (x, a)"),
    "mean_of_images": ([2, 5, 14, 14], [2, 5, 1, 1], "y = GlobalAveragePool (x)"),
    "mean_of_all": ([3, 40], [], "p = Mul (x, x) y = ReduceMean <keepdims = 0> (p)"),
    "max": ([7, 33], [7], f"{_AXES.format(1)} y = ReduceMax <keepdims = 0> (x, a)"),
    "max_of_images": ([2, 5, 7, 9], [2, 5, 1, 1], "y = GlobalMaxPool (x)"),
    "sum_of_columns": ([50, 32], [32], f"{_AXES.format(0)} y = ReduceSum <keepdims = 0> (x, a)"),
    "sum_of_odd_columns": ([9, 13], [13], f"{_AXES.format(0)} y = ReduceSum <keepdims = 0> (x, a)"),
    "sum_in_the_middle": (
        [3, 11, 8], [3, 1, 8], f"{_AXES.format(1)} y = ReduceSum (x, a)"
    ),
    "norm": ([7, 48], [7, 1], f"{_AXES.format(1)} y = ReduceL2 (x, a)"),
    "centred": ([7, 48], [7, 48], f"{_AXES.format(1)} m = ReduceMean (x, a) y = Sub (x, m)"),
    "layer_norm": (
        [2, 9, 40], [2, 9, 40], "y = LayerNormalization <axis = -1> (x, scale, offset)"
    ),
    "instance_norm": ([2, 40, 6, 7], [2, 40, 6, 7], "y = InstanceNormalization (x, scale, offset)"),
}  # fmt: skip


def model(size, result, nodes):
    shape, out = (",".join(map(str, sizes)) for sizes in (size, result))
    kind = f"float[{out}]" if result else "float"
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g (float[{shape}] x) => ({kind} y) {{ {nodes} }}'
    )
    generator = np.random.default_rng(0)
    for name in ("scale", "offset"):
        if name in nodes:
            array = generator.standard_normal(40).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def assert_parity(path, proto, values):
    session = Session(path)
    (spec,) = session.get_outputs()
    (actual,) = session.run(None, {"x": values})
    desired = load_reference(proto).run({"x": values})["y"]
    row = compare("y", actual, desired, tolerance(spec.dtype, spec.rounding_steps), "onnxruntime")
    assert row.passed, row


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu"])
@pytest.mark.parametrize("name", list(CASES))
def test_equal_to_onnxruntime_by_the_rule(tmp_path, name, target):
    proto = model(*CASES[name])
    decisions = []
    path = compile(proto, target, output=tmp_path / "m.lfa", on_decision=decisions.append)
    values = np.random.default_rng(1).standard_normal(CASES[name][0]).astype(np.float32)
    assert_parity(path, proto, values)
    rules = {decision.rule for decision in decisions}
    assert "reduction" in rules
    assert rules <= {"reduction", "elementwise"}


def test_symbolic_rows(tmp_path):
    proto = model(["N", 48], ["N", 48], "y = Softmax <axis = -1> (x)")
    path = compile(proto, output=tmp_path / "m.lfa")
    for rows in (1, 5):
        values = np.random.default_rng(rows).standard_normal((rows, 48)).astype(np.float32)
        assert_parity(path, proto, values)


def test_softmax_of_infinities_and_large_values(tmp_path):
    proto = model([3, 32], [3, 32], "y = Softmax <axis = -1> (x)")
    values = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    values[0, 3] = 3e38
    values[1, ::2] = -np.inf
    assert_parity(compile(proto, output=tmp_path / "m.lfa"), proto, values)


POOLS = {
    "average": "p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (x)",
    "average_strided": "p = AveragePool <kernel_shape = [2,3], strides = [2,1]> (x)",
    "maximum": "p = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [0,1,1,0]> (x)",
}


@pytest.mark.parametrize("channels", [32, 20, 5])
@pytest.mark.parametrize("name", list(POOLS))
def test_pool_with_operators_behind_it(tmp_path, name, channels):
    # A convolution on each side, so that the channels are last.
    proto = model(
        [1, channels, 8, 9],
        ["a", "b", "c", "d"],
        f"{POOLS[name].replace('(x)', '(u)')} q = LeakyRelu <alpha = 0.1> (p)"
        " r = Mul (q, half) y = Conv (r, w)",
    )
    weight = np.random.default_rng(0).standard_normal((channels, channels, 1, 1)).astype(np.float32)
    half = np.full((1, channels, 1, 1), 0.5, np.float32)
    for array, label in ((weight, "w"), (half, "half")):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, label))
    proto.graph.node.insert(0, onnx.helper.make_node("Conv", ["x", "w"], ["u"]))
    decisions = []
    path = compile(proto, output=tmp_path / "m.lfa", on_decision=decisions.append)
    values = np.random.default_rng(1).standard_normal((1, channels, 8, 9)).astype(np.float32)
    assert_parity(path, proto, values)
    (rule,) = [decision.rule for decision in decisions if "pool" in decision.function]
    assert rule == "pool"


def functions(proto):
    module = legalize_and_fuse(choose_layout(import_onnx(simplify(proto))), HOST)
    return [
        tvm.s_tir.Schedule(tvm.IRModule({"main": function}))
        for function in module.functions.values()
        if isinstance(function, tvm.tirx.PrimFunc)
    ]


@pytest.mark.parametrize(
    ("size", "nodes", "reason"),
    [
        ([4, 16], "y = Neg (x)", "it does not reduce"),
        ([1, 2, 8, 8], "y = MaxPool <kernel_shape = [2,2]> (x)", "it slides a window"),
        ([4, 16], "y = ArgMax <axis = 1> (x)", "a reduction keeps several values"),
        ([8, 8], "y = MatMul (x, x)", "it reduces the innermost axis and others apart"),
    ],
)
def test_declines_with_a_reason(size, nodes, reason):
    (attempt,) = functions(model(size, ["a"] * len(size), nodes))
    assert match_reduction(attempt, HOST) == NoMatch(reason)


def test_pool_declines_with_a_reason():
    (attempt,) = functions(model([4, 16], ["a", "b"], "y = ArgMax <axis = 1> (x)"))
    assert match_pool(attempt, HOST) == NoMatch("its reduction keeps several values")
    (attempt,) = functions(model([4, 16], ["a", "b"], "y = Softmax <axis = 1> (x)"))
    assert match_pool(attempt, HOST) == NoMatch("it has 2 reductions")


def test_a_pool_is_taken_in_registers():
    proto = model(
        [1, 64, 9, 9],
        ["a", "b", "c", "d"],
        "u = Conv (x, w) p = MaxPool <kernel_shape = [2,2], pads = [0,0,1,1]> (u) y = Conv (p, w)",
    )
    weight = onnx.numpy_helper.from_array(np.ones((64, 64, 1, 1), np.float32), "w")
    proto.graph.initializer.append(weight)
    (pool,) = (each for each in functions(proto) if match_pool(each, HOST) is None)
    (tile,) = pool.get(pool.get_sblock("root")).alloc_buffers
    assert tile.scope() == "local"
    (reduction,) = (block for block in pool.get_child_blocks(pool.get_sblock("root"))
                    if pool.get(block).name_hint.endswith("_update"))  # fmt: skip
    kinds = [pool.get(loop).kind for loop in pool.get_loops(reduction)]
    serial, unrolled, vectorized = (
        tvm.tirx.ForKind.SERIAL, tvm.tirx.ForKind.UNROLLED, tvm.tirx.ForKind.VECTORIZED,
    )  # fmt: skip
    assert kinds[:2] == [serial, serial]
    assert kinds[2:4] == [unrolled] * 2
    assert kinds[-1] == vectorized


def test_a_row_is_taken_through_all_stages_in_one_loop():
    module = legalize_and_fuse(import_onnx(simplify(model(*CASES["softmax"]))), HOST)
    scheduled, _ = schedule(module, HOST)
    (function,) = [f for f in scheduled.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    body = function.body.block.body
    assert isinstance(body, tvm.tirx.For)
    assert int(body.extent) == 5
