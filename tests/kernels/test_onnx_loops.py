"""Loops of a known number of steps, against ONNX's reference evaluator."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from leakyforge.errors import UnsupportedOperatorError
from leakyforge.kernels import compile
from leakyforge.kernels.onnx_limits import MOST_NODES
from leakyforge.kernels.onnx_loops import unroll_loops
from leakyforge.runtime import Session

# A state, a slice from either end and along either axis, a weight of the body, and a value from
# outside of it; what is collected is put together backwards along the last axis.
SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
scan (float[2, 3] start, float[4, 2, 3] x, float[2, 4, 3] z) => (float[2, 3] end, float[2, 3, 4] y)
<float alpha = {0.5}>
{
    outside = LeakyRelu<alpha = 0.3>(start)
    end, y = Scan<num_scan_inputs = 2, scan_input_axes = [0, 1],
                  scan_input_directions = [DIRECTION, 0], scan_output_axes = [2],
                  scan_output_directions = [DIRECTION],
                  body = step (float[2, 3] s, float[2, 3] a, float[2, 3] b)
                  => (float[2, 3] next, float[2, 3] out) <float weight = {0.25}> {
        scaled = Mul(s, weight)
        moved = Add(scaled, a)
        next = Sub(moved, b)
        both = Mul(next, outside)
        out = Mul(both, alpha)
    }>(start, x, z)
}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
loop (float[3] x) => (float[3] end, float[5, 3] y)
<int64 trips = {5}, bool on = {1}>
{
    end, y = Loop<body = step (int64 i, bool go, float[3] s)
                         => (bool again, float[3] next, float[3] out) {
        again = Identity(go)
        number = Cast<to = 1>(i)
        next = LeakyRelu<alpha = 0.1>(s)
        out = Add(next, number)
    }>(trips, on, x)
}
"""


def model(text):
    text = "".join(line.strip() + "\n" for line in text.splitlines())
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto)
    return proto


def feeds_of(proto):
    generator = np.random.default_rng(0)
    return {
        value.name: generator.standard_normal(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in proto.graph.input
    }


def scan_in_numpy(start, x, z, backwards):
    outside = np.where(start < 0, np.float32(0.3) * start, start)
    state, collected = start, []
    for step in range(4):
        state = state * np.float32(0.25) + x[3 - step if backwards else step] - z[:, step]
        collected.append(state * outside * np.float32(0.5))
    return state, np.stack(collected[::-1] if backwards else collected, axis=2)


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan(tmp_path, backwards):
    proto = model(SCAN.replace("DIRECTION", str(backwards)))
    feeds = feeds_of(proto)
    session = Session(compile(proto, output=tmp_path / "m.lfa"))
    results = session.run(None, feeds)
    # Multiply-adds may round once where numpy rounds twice: a few units in the last place.
    for actual, desired in zip(results, scan_in_numpy(**feeds, backwards=backwards), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=0, atol=2**-20)


def test_loop(tmp_path):
    proto = model(LOOP)
    feeds = feeds_of(proto)
    session = Session(compile(proto, output=tmp_path / "m.lfa"))
    desired = ReferenceEvaluator(proto).run(None, feeds)
    for actual, expected in zip(session.run(None, feeds), desired, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2**-22, atol=0)


def test_the_loop_is_its_steps():
    unrolled = unroll_loops(model(LOOP))
    onnx.checker.check_model(unrolled, full_check=True)
    operators = [node.op_type for node in unrolled.graph.node]
    assert operators.count("LeakyRelu") == 5
    assert "Loop" not in operators


def test_a_model_without_loops_is_itself():
    proto = model("""<ir_version: 8, opset_import: ["" : 17]>
    plain (float[3] x) => (float[3] y) { y = LeakyRelu(x) }""")
    assert unroll_loops(proto) is proto


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loop (float[3] x)", "loop (float[3] x, int64 trips)"),
        ("again = Identity(go)", "two = Constant<value_int = 2>() again = Less(i, two)"),
    ],
)
def test_a_loop_that_depends_on_data_is_refused_by_name(tmp_path, old, new):
    text = LOOP.replace(old, new)
    if "int64 trips)" in new:
        text = text.replace("int64 trips = {5}, ", "")
    with pytest.raises(UnsupportedOperatorError, match="Loop"):
        compile(model(text), output=tmp_path / "m.lfa")
    assert not (tmp_path / "m.lfa").exists()


def test_too_many_steps_are_refused(tmp_path):
    proto = model(LOOP.replace("{5}", f"{{{MOST_NODES}}}").replace("[5, 3]", f"[{MOST_NODES}, 3]"))
    with pytest.raises(UnsupportedOperatorError, match="Loop"):
        compile(proto, output=tmp_path / "m.lfa")
