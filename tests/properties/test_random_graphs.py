"""Random graphs around LeakyRelu: whatever is compiled agrees with ONNX Runtime.

Graphs are chains, branches and residuals of elementwise operators with broadcast constants, and
convolutions in float32; sizes are 0, 1, primes and powers of two; alpha is any number.
`compile` compares with ONNX Runtime under the derived tolerance, `check` does so on other inputs.
The seeds of failures that were found are kept as `example`s.
"""

import math

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leakyforge.kernels import compile
from leakyforge.runtime import check

DTYPES = {
    np.float16: TensorProto.FLOAT16,
    np.float32: TensorProto.FLOAT,
    np.float64: TensorProto.DOUBLE,
}
SIZES = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 13, 16, 17])
# An attribute is a float32.
ALPHAS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.01, 0.1, 2.5, -0.2, 1e30, -1e-30]),
    st.floats(-4, 4, width=32),
)
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    # The same graphs in every run of CI; `--hypothesis-seed` and more examples find others.
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Graph:
    """A graph as it grows: its nodes, its constants, and the shape of each value."""

    def __init__(self, dtype, shape):
        self.dtype, self.nodes, self.constants = dtype, [], []
        self.shapes = {"x": tuple(shape)}

    def add(self, operator, inputs, shape, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.shapes[name] = tuple(shape)
        return name

    def constant(self, shape, scale=1.0):
        name = f"c{len(self.constants)}"
        drawn = np.random.default_rng(len(self.constants)).uniform(-scale, scale, shape)
        self.constants.append(numpy_helper.from_array(drawn.astype(self.dtype), name))
        return name

    def model(self, outputs):
        kind = DTYPES[self.dtype]

        def values(names):
            return [helper.make_tensor_value_info(each, kind, self.shapes[each]) for each in names]

        graph = helper.make_graph(
            self.nodes, "random", values(["x"]), values(outputs), self.constants
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@st.composite
def elementwise(draw):
    """Chains, branches and residuals of one shape, with broadcast constants."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(st.lists(SIZES, min_size=0, max_size=4))
    graph = Graph(dtype, shape)
    values = ["x"]
    for _ in range(draw(st.integers(1, 6))):
        last = draw(st.sampled_from(values))
        step = draw(
            st.sampled_from(["LeakyRelu", "LeakyRelu", "Relu", "Neg", "residual", "constant"])
        )
        if step == "LeakyRelu":
            name = graph.add(step, [last], shape, alpha=draw(ALPHAS))
        elif step == "residual":
            operator = draw(st.sampled_from(["Add", "Sub", "Max", "Min"]))
            name = graph.add(operator, [last, draw(st.sampled_from(values))], shape)
        elif step == "constant":
            ones = [1 if draw(st.booleans()) else size for size in shape]
            other = graph.constant(ones[draw(st.integers(0, len(shape))) :])
            name = graph.add(draw(st.sampled_from(["Add", "Mul"])), [last, other], shape)
        else:
            name = graph.add(step, [last], shape)
        values.append(name)
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=2, unique=True))
    return graph.model(outputs)


@st.composite
def convolutional(draw):
    """Convolutions with LeakyRelu, residuals, branches that are joined, and pools."""
    batch, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 5, 8, 16]))
    height, width = draw(st.integers(3, 13)), draw(st.integers(3, 17))
    graph = Graph(np.float32, (batch, channels, height, width))
    last = "x"
    for _ in range(draw(st.integers(1, 3))):
        _, inner, height, width = graph.shapes[last]
        outer = draw(st.sampled_from([1, 3, 4, 7, 8, 16, 17]))
        size = draw(st.sampled_from([1, 3]))
        stride = draw(st.sampled_from([1, 1, 2]))
        scale = 1 / math.sqrt(inner * size * size)
        weights = graph.constant((outer, inner, size, size), scale)
        inputs = [last, weights] + ([graph.constant((outer,))] if draw(st.booleans()) else [])
        shape = (batch, outer, -(-height // stride), -(-width // stride))
        pads = [size // 2] * 4
        convolved = graph.add("Conv", inputs, shape, pads=pads, strides=[stride, stride])
        active = graph.add("LeakyRelu", [convolved], shape, alpha=draw(ALPHAS_OF_NETWORKS))
        end = draw(st.sampled_from(["plain", "residual", "joined", "pool"]))
        if end == "residual":
            last = graph.add("Add", [active, convolved], shape)
        elif end == "joined":
            last = graph.add("Concat", [active, convolved], (batch, 2 * outer, *shape[2:]), axis=1)
        elif end == "pool" and min(shape[2:]) >= 2:
            pooled = (*shape[:2], shape[2] // 2, shape[3] // 2)
            last = graph.add("MaxPool", [active], pooled, kernel_shape=[2, 2], strides=[2, 2])
        else:
            last = active
    return graph.model([last])


# Larger slopes let the values of deep networks grow without bound.
ALPHAS_OF_NETWORKS = st.floats(-1, 1, width=32)


def compile_and_check(model, folder):
    onnx.checker.check_model(model, full_check=True)
    artifact = compile(model, output=folder / "random.lfa", measure=False)
    assert check(artifact, model_file(model, folder), samples=2, seed=1)


def model_file(model, folder):
    path = folder / "random.onnx"
    onnx.save(model, path)
    return path


@SETTINGS
@given(model=elementwise())
def test_elementwise(tmp_path_factory, model):
    compile_and_check(model, tmp_path_factory.mktemp("random"))


@SETTINGS
@given(model=convolutional())
def test_convolutional(tmp_path_factory, model):
    compile_and_check(model, tmp_path_factory.mktemp("random"))
