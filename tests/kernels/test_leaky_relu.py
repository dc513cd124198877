"""LeakyRelu follows ONNX to the last bit: against ONNX Runtime, and numpy where that cannot."""

import warnings

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from leakyforge.kernels import compile
from leakyforge.runtime import Session

ALPHAS = [None, 0.0, 0.01, 0.05, 0.2, 1.0, 1.5, -0.3]
DTYPES = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16), np.uint16),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), np.uint16),
    "float32": (TensorProto.FLOAT, np.dtype(np.float32), np.uint32),
    "float64": (TensorProto.DOUBLE, np.dtype(np.float64), np.uint64),
}
SHAPES = [(), (7,), (3, 5), (2, 3, 4), (1, 2, 3, 4), (2, 1, 3, 2, 2), (1, 2, 1, 3, 1, 2)]
EMPTY = [(0,), (2, 0, 3)]


def special_values(dtype):
    """Values where implementations differ, and random ones of every exponent."""
    info = ml_dtypes.finfo(dtype)
    corners = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan]
    corners += [info.max, info.min, info.tiny, -info.tiny]
    corners += [info.smallest_subnormal, -info.smallest_subnormal, -3 * info.smallest_subnormal]
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 256, 4096 * dtype.itemsize, dtype=np.uint8).view(dtype)
    normal = generator.standard_normal(4096).astype(dtype)
    return np.concatenate([np.array(corners, dtype), bits, normal])


def model(onnx_type, shapes, alphas, opset):
    """One graph with a LeakyRelu for each pair of shape and alpha."""
    inputs, outputs, nodes = [], [], []
    for i, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{i}", onnx_type, shape))
        for j, alpha in enumerate(alphas):
            attributes = {} if alpha is None else {"alpha": alpha}
            nodes.append(helper.make_node("LeakyRelu", [f"x{i}"], [f"y{i}_{j}"], **attributes))
            outputs.append(helper.make_tensor_value_info(f"y{i}_{j}", onnx_type, shape))
    graph = helper.make_graph(nodes, "leaky", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def numpy_leaky_relu(x, alpha):
    """The definition, computed in float32 for the 16-bit types and rounded once."""
    slope = np.float32(0.01 if alpha is None else alpha)
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.where(wide >= 0, wide, wide * slope.astype(wide.dtype)).astype(x.dtype)


def assert_same_bits(actual, desired, unsigned):
    """Equal bit patterns; NaN is NaN whatever its payload."""
    assert actual.shape == desired.shape
    assert actual.dtype == desired.dtype
    with np.errstate(invalid="ignore"):
        both_nan = np.isnan(actual.astype(np.float64)) & np.isnan(desired.astype(np.float64))
    wrong = (actual.view(unsigned) != desired.view(unsigned)) & ~both_nan
    assert not wrong.any(), f"{actual[wrong][:5]} instead of {desired[wrong][:5]}"


def run_both(tmp_path, dtype, opset):
    """Our outputs and ONNX Runtime's for every alpha over the special values."""
    onnx_type, numpy_type, _ = DTYPES[dtype]
    values = special_values(numpy_type)
    proto = model(onnx_type, [values.shape], ALPHAS, opset)
    session = Session(compile(proto, output=tmp_path / "leaky.lfa"))
    actual = session.run(None, {"x0": values})
    desired = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x0": values})
    return values, actual, desired


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [("float32", 6), ("float32", 16), ("float32", 22), ("float16", 6), ("float16", 22)],
)
def test_equal_to_onnxruntime_for_every_alpha(tmp_path, dtype, opset):
    _, actual, desired = run_both(tmp_path, dtype, opset)
    for ours, theirs in zip(actual, desired, strict=True):
        assert_same_bits(ours, theirs, DTYPES[dtype][2])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_equal_to_onnxruntime_where_it_expands_the_operator(tmp_path, dtype):
    """For these types ONNX Runtime runs opset 16's function body: its Where turns -0 into +0.

    Its own kernel for opsets 6 and 22 gives -0 for the same input, and so does the definition.
    """
    values, actual, desired = run_both(tmp_path, dtype, 16)
    for ours, theirs, alpha in zip(actual, desired, ALPHAS, strict=True):
        product_is_minus_zero = (values < 0) & (ours == 0) & np.signbit(ours)
        assert np.all(theirs[product_is_minus_zero] == 0)
        theirs = np.where(product_is_minus_zero, ours, theirs)
        assert_same_bits(ours, theirs, DTYPES[dtype][2])
        assert_same_bits(ours, numpy_leaky_relu(values, alpha), DTYPES[dtype][2])


# ONNX Runtime has no bfloat16 LeakyRelu, and float64 only for opset 16.
@pytest.mark.parametrize(
    ("dtype", "opset"),
    [("bfloat16", 16), ("bfloat16", 22), ("float64", 6), ("float64", 22), ("float32", 6),
     ("float32", 22), ("float16", 6), ("float16", 22)],
)  # fmt: skip
def test_equal_to_numpy_in_every_opset(tmp_path, dtype, opset):
    onnx_type, numpy_type, unsigned = DTYPES[dtype]
    values = special_values(numpy_type)
    proto = model(onnx_type, [values.shape], ALPHAS, opset)
    session = Session(compile(proto, output=tmp_path / "leaky.lfa"))
    for actual, alpha in zip(session.run(None, {"x0": values}), ALPHAS, strict=True):
        assert_same_bits(actual, numpy_leaky_relu(values, alpha), unsigned)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_rank_and_empty_tensors(tmp_path, dtype):
    onnx_type, numpy_type, unsigned = DTYPES[dtype]
    shapes = [*SHAPES, *EMPTY]
    proto = model(onnx_type, shapes, [0.2], 16)
    session = Session(compile(proto, output=tmp_path / "leaky.lfa"))
    generator = np.random.default_rng(1)
    feeds = {
        f"x{i}": np.asarray(generator.standard_normal(shape)).astype(numpy_type)
        for i, shape in enumerate(shapes)
    }
    for actual, values in zip(session.run(None, feeds), feeds.values(), strict=True):
        assert_same_bits(actual, numpy_leaky_relu(values, 0.2), unsigned)


def node_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return [case for case in cases if case.name.startswith("test_leakyrelu")]


@pytest.mark.parametrize("case", node_cases(), ids=lambda case: case.name)
def test_onnx_node_case(tmp_path, case):
    session = Session(compile(case.model, output=tmp_path / "case.lfa"))
    names = [spec.name for spec in session.get_inputs()]
    for inputs, outputs in case.data_sets:
        actual = session.run(None, dict(zip(names, inputs, strict=True)))
        for ours, desired in zip(actual, outputs, strict=True):
            np.testing.assert_allclose(ours, desired, rtol=case.rtol, atol=case.atol)


def test_node_cases_include_the_expanded_ones():
    names = {case.name for case in node_cases()}
    assert {"test_leakyrelu", "test_leakyrelu_default_expanded"} <= names
    assert len(names) >= 6


def test_dynamic_shape(tmp_path):
    proto = model(TensorProto.FLOAT, [("N", 3)], [0.2], 16)
    session = Session(compile(proto, output=tmp_path / "leaky.lfa"))
    for batch in (1, 5, 0):
        values = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
        (actual,) = session.run(None, {"x0": values})
        assert_same_bits(actual, numpy_leaky_relu(values, 0.2), np.uint32)


def test_alpha_survives_the_import():
    """A wrong default would pass tests that always write alpha."""
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    assert not node.attribute
    assert onnx.defs.get_schema("LeakyRelu").attributes["alpha"].default_value.f == np.float32(0.01)
