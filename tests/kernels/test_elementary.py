"""exp, tanh, sigmoid and erf over the whole range of float32, against float64."""

import math
import zipfile

import numpy as np
import onnx
import pytest
import tvm

from leakyforge.kernels import compile
from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.runtime import Session

# Prime, so that every exponent and all kinds of low bits come.
STEP = 8191


def _sigmoid(x):
    power = np.exp(-np.abs(x))
    return np.where(x < 0, power, 1.0) / (1.0 + power)


# In float64, and the bound in ULP that the docstring derives.
FUNCTIONS = {
    "Exp": (np.exp, 3),
    "Tanh": (np.tanh, 8),
    "Sigmoid": (_sigmoid, 5),
    "Erf": (np.vectorize(math.erf), 4),
}


def every_kind_of_float():
    values = np.arange(0, 2**32, STEP, dtype=np.uint32).view(np.float32)
    near_zero = np.random.default_rng(0).normal(0, 4, 2**16).astype(np.float32)
    near_the_limits = np.concatenate(
        [np.linspace(-105, -85, 9999), np.linspace(85, 90, 9999), np.linspace(-1.01, 1.01, 9999)]
    ).astype(np.float32)
    finite = values[np.isfinite(values)]
    return np.concatenate([finite, near_zero, near_the_limits])


@pytest.fixture(scope="module", params=["cpu:x86-64", "cpu:x86-64-v3", "cpu"])
def session(request, tmp_path_factory):
    """All functions of one input of any length."""
    nodes = [onnx.helper.make_node(name, ["x"], [name]) for name in FUNCTIONS]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "elementary", [value("x", 1, ("N",))], [value(name, 1, ("N",)) for name in FUNCTIONS]
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    path = tmp_path_factory.mktemp("elementary") / "m.lfa"
    return Session(compile(proto, request.param, output=path))


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_within_its_bound(session, name):
    reference, bound = FUNCTIONS[name]
    values = every_kind_of_float()
    (actual,) = session.run([name], {"x": values})
    with np.errstate(over="ignore", under="ignore"):
        desired = reference(values.astype(np.float64))
        rounded = desired.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(actual[~finite], rounded[~finite])
    ulp = np.abs(actual[finite] - desired[finite]) / np.spacing(np.abs(rounded[finite]))
    assert ulp.max() <= bound, (values[finite][ulp.argmax()], ulp.max())


@pytest.mark.parametrize(
    ("name", "desired"),
    [
        ("Exp", [np.nan, np.inf, 0.0, 1.0, 1.0]),
        ("Tanh", [np.nan, 1.0, -1.0, 0.0, -0.0]),
        ("Sigmoid", [np.nan, 1.0, 0.0, 0.5, 0.5]),
        ("Erf", [np.nan, 1.0, -1.0, 0.0, -0.0]),
    ],
)
def test_special_values(session, name, desired):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    # More than a vector, and a rest.
    (actual,) = session.run([name], {"x": np.tile(values, 7)})
    desired = np.tile(np.array(desired, np.float32), 7)
    np.testing.assert_array_equal(actual, desired)
    number = ~np.isnan(desired)
    np.testing.assert_array_equal(np.signbit(actual[number]), np.signbit(desired[number]))


def library(path):
    """The machine code of an artifact of one variant."""
    with zipfile.ZipFile(path) as archive:
        (code,) = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    return code


def test_no_function_of_libm_is_called(build):
    nodes = "a = Exp(x) b = Tanh(a) c = Sigmoid(x) d = Erf(c) y = Add(b, d)"
    code = library(build(f"e (float[64] x) => (float[64] y) {{ {nodes} }}"))
    for symbol in (b"expf", b"tanhf", b"erff"):
        assert symbol not in code


def test_deep_nests_are_left_to_libm(build):
    nodes = "a = Exp(x) b = Tanh(a) c = Sigmoid(b) d = Exp(c) y = Erf(d)"
    path = build(f"e (float[64] x) => (float[64] y) {{ {nodes} }}")
    assert b"erff" in library(path)


def test_float64_is_left_to_tvm(build):
    session = Session(build("e (double[40] x) => (double[40] y) { y = Exp(x) }"))
    values = np.random.default_rng(0).standard_normal(40)
    (actual,) = session.run(None, {"x": values})
    np.testing.assert_allclose(actual, np.exp(values), rtol=4 * 2.0**-52)


def test_rules_of_tvm_are_put_back():
    operator = tvm.ir.Op.get("tirx.exp")
    before = operator.get_attr("llvm.FLowerIntrinsic")
    argument = tvm.tirx.exp(tvm.tirx.Var("x", "float32"))
    desired = None if before is None else str(before(argument))
    with our_elementary_functions():
        assert "T.Let" in str(operator.get_attr("llvm.FLowerIntrinsic")(argument))
    after = operator.get_attr("llvm.FLowerIntrinsic")
    assert (None if after is None else str(after(argument))) == desired
