"""LeakyRelu written with other operators: every form is found, and none that computes another."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leakyforge.exporter.recognise import recognise_leaky_relu

FLOATS = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
}
BFLOAT16 = TensorProto.BFLOAT16


def node(op_type, inputs, output="y", **attributes):
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def tensor(name, value, dtype=TensorProto.FLOAT):
    array = np.asarray(value, helper.tensor_dtype_to_np_dtype(dtype))
    return numpy_helper.from_array(array, name)


def build(nodes, constants=(), *, dtype=TensorProto.FLOAT, shape=("N", 3), opset=18, **options):
    """A model of x, and of another input w, whose constants are zero, inf, -inf and those given."""
    inputs = options.pop("inputs", [helper.make_tensor_value_info("x", dtype, shape)])
    outputs = options.pop("outputs", ["y"])
    standard = [tensor("0", 0, dtype)]
    if dtype in (*FLOATS, BFLOAT16):
        standard += [tensor("inf", np.inf, dtype), tensor("-inf", -np.inf, dtype)]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [*standard, *constants],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ours", 1)],
        ir_version=options.pop("ir_version", 8),
        **options,
    )


def values(dtype):
    """NaN, infinities, zeros, extremes and numbers, as many as no vector divides."""
    info = np.finfo(dtype)
    special = [0.0, 1.0, 3.0, info.max, info.tiny, info.smallest_subnormal, np.inf]
    both = np.array([*special, *(-np.array(special)), np.nan])
    numbers = np.random.default_rng(0).standard_normal(3 * 17 - len(both))
    with np.errstate(over="ignore"):
        return np.concatenate([both, numbers]).astype(dtype).reshape(17, 3)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def assert_same_results(actual, desired, x):
    """Equal bits; NaN equals NaN, and 0 equals -0."""
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(actual), full_check=True)
    for result, expected in zip(run(actual, x), run(desired, x), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def operators(model):
    return [node.op_type for node in model.graph.node]


def assert_recognised(model, alpha, *, x=None):
    """The whole model is one LeakyRelu."""
    found, (one,) = recognise_leaky_relu(model)
    (leaky,) = found.graph.node
    assert (leaky.op_type, list(leaky.input), list(leaky.output)) == ("LeakyRelu", ["x"], ["y"])
    assert helper.get_node_attr_value(leaky, "alpha") == one.alpha == alpha
    assert (one.input, one.output) == ("x", "y")
    assert [(each.domain, each.version) for each in found.opset_import if not each.domain] == [
        (each.domain, each.version) for each in model.opset_import if not each.domain
    ]
    if x is not None:
        assert_same_results(found, model, x)
    return one


def assert_refused(model):
    before = model.SerializeToString(deterministic=True)
    same, found = recognise_leaky_relu(model)
    assert found == []
    assert same.SerializeToString(deterministic=True) == before


def where_forms():
    """Every comparison of x with zero, either way round, with and without Not."""
    for operator, swapped, negated in itertools.product(
        ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"), (False, True), (False, True)
    ):
        takes_x = operator.startswith("Greater") ^ swapped ^ negated
        yield (
            f"{'Not ' * negated}{operator} {'0 x' if swapped else 'x 0'}",
            [
                node("Mul", "x a", "scaled"),
                node(operator, "0 x" if swapped else "x 0", "plain"),
                *([node("Not", "plain", "negated")] if negated else []),
                node(
                    "Where",
                    ("negated" if negated else "plain") + (" x scaled" if takes_x else " scaled x"),
                ),
            ],
        )


POSITIVE = {
    "Relu": [node("Relu", "x", "p")],
    "Max": [node("Max", "x 0", "p")],
    "Max swapped": [node("Max", "0 x", "p")],
    "Clip": [node("Clip", "x 0 inf", "p")],
    "Where": [node("Greater", "x 0", "is"), node("Where", "is x 0", "p")],
}
NEGATIVE = {
    "Min": [node("Min", "x 0", "n")],
    "Min swapped": [node("Min", "0 x", "n")],
    "Clip": [node("Clip", "x -inf 0", "n")],
    "-Relu(-x)": [node("Neg", "x", "m"), node("Relu", "m", "r"), node("Neg", "r", "n")],
    "x - Relu": [node("Sub", "0 x", "m"), node("Relu", "m", "r"), node("Sub", "0 r", "n")],
}
SCALED = [node("Neg", "x", "m"), node("Relu", "m", "r"), node("Mul", "r a", "s")]
# Forms that hold for alpha from 0 (where it says so, above 0) to 1; x, a and y are their names.
FORMS = {
    "Max(ax, x)": [node("Mul", "a x", "s"), node("Max", "s x")],
    "Max(x, ax)": [node("Mul", "a x", "s"), node("Max", "x s")],
    "Max(xa, x)": [node("Mul", "x a", "s"), node("Max", "s x")],
    "Max(x, xa)": [node("Mul", "x a", "s"), node("Max", "x s")],
    "Max(x, ax, x)": [node("Mul", "x a", "s"), node("Max", "x s x")],
    "-Min(-x, -ax)": [
        *[node("Mul", "x a", "s"), node("Neg", "s", "t"), node("Neg", "x", "m")],
        *[node("Min", "m t", "least"), node("Neg", "least")],
    ],
    **dict(where_forms()),
    **{
        f"{p} + a * {n}": [*POSITIVE[p], *NEGATIVE[n], node("Mul", "a n", "s"), node("Add", "p s")]
        for p, n in itertools.product(POSITIVE, NEGATIVE)
    },
    "a * Min + Relu": [
        *[*POSITIVE["Relu"], *NEGATIVE["Min"], node("Mul", "n a", "s"), node("Add", "s p")]
    ],
    "Sum": [*POSITIVE["Relu"], *NEGATIVE["Min"], node("Mul", "n a", "s"), node("Sum", "s p")],
    "Min(ax, 0) + Relu": [
        *[*POSITIVE["Relu"], node("Mul", "x a", "t"), node("Min", "t 0", "s"), node("Add", "s p")]
    ],
    "Relu(x) - a * Relu(-x)": [*SCALED, node("Relu", "x", "p"), node("Sub", "p s")],
    "Relu(x) + -(a * Relu(-x))": [
        *[*SCALED, node("Neg", "s", "t"), node("Relu", "x", "p"), node("Add", "p t")]
    ],
    "-(a * Relu(-x) - Relu(x))": [
        *[*SCALED, node("Relu", "x", "p"), node("Sub", "s p", "d"), node("Neg", "d")]
    ],
    "PRelu": [node("PRelu", "x a")],
    "behind Identity": [
        *[node("Identity", "x", "i"), node("Mul", "x a", "s"), node("Identity", "s", "t")],
        *[node("Greater", "i 0", "c"), node("Identity", "c", "d"), node("Where", "d x t")],
    ],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("form", FORMS)
def test_form(form, dtype):
    # Exact in every dtype, and as a float32.
    alpha = 0.199951171875
    model = build(FORMS[form], [tensor("a", alpha, dtype)], dtype=dtype)
    one = assert_recognised(model, alpha, x=values(FLOATS[dtype]))
    assert f"{alpha:g}" in one.pattern
    assert one.nodes[0] == "y"


@pytest.mark.parametrize("form", FORMS)
def test_form_in_bfloat16(form):
    """ONNX Runtime has no bfloat16 on CPUs; a product of two is rounded once there too."""
    model = build(FORMS[form], [tensor("a", 0.2, BFLOAT16)], dtype=BFLOAT16)
    assert_recognised(model, 0.2001953125)


@pytest.mark.parametrize("form", FORMS)
def test_alpha_of_one(form):
    model = build(FORMS[form], [tensor("a", 1.0)])
    assert_recognised(model, 1.0, x=values(np.float32))


class TestAlpha:
    @pytest.mark.parametrize("form", FORMS)
    def test_zero(self, form):
        """LeakyRelu of -inf is NaN then, of inf it is inf: Max(0 * inf, inf) is NaN."""
        model = build(FORMS[form], [tensor("a", 0.0)])
        if form.startswith(("Max(", "-Min(", "Min(")):
            assert_refused(model)
            assert np.isnan(run(model, np.float32([[np.inf, 1, 1]]))[0][0, 0])
        else:
            assert_recognised(model, 0.0, x=values(np.float32))

    @pytest.mark.parametrize("alpha", [1.5, 1e30])
    @pytest.mark.parametrize("form", FORMS)
    def test_above_one(self, form, alpha):
        """Products may become infinite."""
        model = build(FORMS[form], [tensor("a", alpha)])
        if form.startswith(("Max(", "-Min(")):
            assert_refused(model)
            assert run(model, np.float32([[2, 0, -2]]))[0][0, 0] == np.float32(alpha) * 2
        else:
            assert_recognised(model, np.float32(alpha), x=values(np.float32))

    @pytest.mark.parametrize("form", FORMS)
    def test_negative(self, form):
        """Only PRelu: elsewhere ONNX Runtime has zeros of another sign than its LeakyRelu."""
        model = build(FORMS[form], [tensor("a", -0.5)])
        if form != "PRelu":
            assert_refused(model)
            return
        x = values(np.float32)
        assert_recognised(model, -0.5, x=x)
        (result,) = run(model, x)
        (recognised,) = run(recognise_leaky_relu(model)[0], x)
        np.testing.assert_array_equal(np.signbit(recognised[x == 0]), np.signbit(result[x == 0]))

    @pytest.mark.parametrize("alpha", [0.1, 1e-300, 1 + 2**-40])
    def test_that_no_float32_holds(self, alpha):
        model = build(
            [node("PRelu", "x a")],
            [tensor("a", alpha, TensorProto.DOUBLE)],
            dtype=TensorProto.DOUBLE,
        )
        assert_refused(model)

    @pytest.mark.parametrize("alpha", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, alpha):
        assert_refused(build([node("PRelu", "x a")], [tensor("a", alpha)]))
        assert_refused(build(FORMS["Greater x 0"], [tensor("a", alpha)]))

    def test_minus_alpha(self):
        nodes = [*SCALED, node("Relu", "x", "p"), node("Add", "p s")]
        assert_recognised(build(nodes, [tensor("a", -0.25)]), 0.25, x=values(np.float32))
        assert_refused(build(nodes, [tensor("a", 0.25)]))

    def test_min(self):
        """Min(ax, x) is LeakyRelu from 1 upwards."""
        nodes = [node("Mul", "x a", "s"), node("Min", "x s")]
        assert_recognised(build(nodes, [tensor("a", 3.0)]), 3.0, x=values(np.float32))
        assert_refused(build(nodes, [tensor("a", 0.5)]))


def constant_node(name, **attributes):
    return node("Constant", "", name, **attributes)


TWO_TENTHS = np.float32(0.2)
# Nodes and initializers that make `a`.
PLACES = {
    "initializer": ([], [tensor("a", 0.2)]),
    "one element": ([], [tensor("a", [0.2])]),
    "one element of rank 2": ([], [tensor("a", [[0.2]])]),
    "one for each channel": ([], [tensor("a", [0.2, 0.2, 0.2])]),
    "Constant": ([constant_node("a", value=tensor("", 0.2))], []),
    "Constant of a float": ([constant_node("a", value_float=0.2)], []),
    "Constant of floats": ([constant_node("a", value_floats=[0.2])], []),
    "Identity": ([node("Identity", "b", "a")], [tensor("b", 0.2)]),
    "Cast": ([node("Cast", "b", "a", to=1)], [tensor("b", 0.2, TensorProto.DOUBLE)]),
    "Cast of a Constant": (
        [
            constant_node("b", value=tensor("", 0.2, TensorProto.DOUBLE)),
            node("Identity", "b", "c"),
            node("Cast", "c", "d", to=1),
            node("Identity", "d", "a"),
        ],
        [],
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "form", ["Max(ax, x)", "Less x 0", "Relu(x) - a * Relu(-x)", "PRelu", "Clip + a * Clip"]
)
def test_place_of_alpha(form, place):
    nodes, constants = PLACES[place]
    assert_recognised(build([*nodes, *FORMS[form]], constants), TWO_TENTHS, x=values(np.float32))


def test_cast_rounds_alpha():
    """0.2 as a float16, and that as a float32."""
    nodes = [node("Cast", "b", "c", to=10), node("Cast", "c", "a", to=1), *FORMS["PRelu"]]
    assert_recognised(build(nodes, [tensor("b", 0.2)]), np.float16(0.2), x=values(np.float32))


MAX = FORMS["Max(ax, x)"]


class TestShapes:
    """Operands that are broadcast must leave x as it is."""

    @pytest.mark.parametrize(
        ("shape", "alpha"),
        [
            (("N", 3), (1, 1, 1)),
            (("N", 1), (3,)),
            (("N", 3), (2, 1)),
            ((), (1,)),
            (None, (1,)),
        ],
    )
    def test_refused(self, shape, alpha):
        assert_refused(build(MAX, [tensor("a", np.full(alpha, 0.2))], shape=shape))

    @pytest.mark.parametrize(
        ("shape", "alpha"),
        [((2, 3, 4, 4), (3, 1, 1)), (("N", 3), (1, 3)), ((), ()), (None, ()), ((2, 3), (2, 3))],
    )
    def test_kept(self, shape, alpha):
        model = build(MAX, [tensor("a", np.full(alpha, 0.2))], shape=shape)
        assert_recognised(model, TWO_TENTHS)

    def test_slopes(self):
        shape = (2, 3, 4, 5)
        for slopes in ((3, 1, 1), (1, 3, 1, 1), (1,), ()):
            model = build(FORMS["PRelu"], [tensor("a", np.full(slopes, 0.2))], shape=shape)
            x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            assert_recognised(model, TWO_TENTHS, x=x)

    def test_zero_that_is_broadcast(self):
        nodes = [node("Greater", "x wide", "c"), node("Mul", "x a", "s"), node("Where", "c x s")]
        constants = [tensor("a", 0.2), tensor("wide", np.zeros((4, 1, 1)))]
        assert_refused(build(nodes, constants))

    def test_empty_constant(self):
        assert_refused(build(MAX, [tensor("a", np.zeros(0))], shape=(0,)))


def float_input(name, shape=("N", 3)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


TWO_INPUTS = [float_input("x"), float_input("w")]
ALPHA = tensor("a", 0.2)
NEARLY = {
    "another x": [node("Mul", "a w", "s"), node("Max", "s x")],
    "another x in the condition": [
        *[node("Greater", "w 0", "c"), node("Mul", "a x", "s"), node("Where", "c x s")]
    ],
    "branches swapped": [
        *[node("Greater", "x 0", "c"), node("Mul", "a x", "s"), node("Where", "c s x")]
    ],
    "a condition that underflows": [
        *[node("Mul", "a x", "s"), node("Greater", "s 0", "c"), node("Where", "c x s")]
    ],
    "compared with alpha": [
        *[node("Greater", "x a", "c"), node("Mul", "a x", "s"), node("Where", "c x s")]
    ],
    "a product rounded twice": [
        *[node("Mul", "x b", "s"), node("Mul", "s b", "t"), node("Max", "x t")]
    ],
    "a sum of products": [node("Mul", "x b", "s"), node("Sum", "s s s", "t"), node("Min", "x t")],
    "a sum that rounds": [node("Relu", "x", "p"), node("Mul", "x a", "s"), node("Add", "p s")],
    "Relu": [node("Greater", "x 0", "c"), node("Where", "c x 0")],
    "Max with alpha": [node("Max", "x a")],
    "Max of three": [node("Mul", "x a", "s"), node("Max", "x s a")],
    "Clip without an upper bound": [
        *[node("Clip", "x 0", "p"), node("Min", "x 0", "n"), node("Mul", "a n", "s")],
        node("Add", "p s"),
    ],
    "Clip to alpha": [
        *[node("Clip", "x 0 a", "p"), node("Min", "x 0", "n"), node("Mul", "a n", "s")],
        node("Add", "p s"),
    ],
    "a sum of the wrong signs": [*SCALED, node("Relu", "x", "p"), node("Sub", "s p")],
    "a slope that is computed": [node("PRelu", "x w")],
    "Div": [node("Div", "x a", "s"), node("Min", "x s")],
    "alpha and Relu": [node("Relu", "x", "p"), node("Add", "p a")],
    "Neg twice": [node("Neg", "x", "m"), node("Neg", "m")],
    "nothing": [node("Add", "x 0")],
    "Mul of another domain": [node("Mul", "a x", "s", domain="ours"), node("Max", "s x")],
    "Max of another domain": [node("Mul", "a x", "s"), node("Max", "s x", domain="ours")],
}


class TestRefused:
    @pytest.mark.parametrize("case", NEARLY)
    def test_nearly(self, case):
        # 0.75 squared, and three times 0.75, are float32 numbers.
        constants = [ALPHA, tensor("b", 0.75)]
        assert_refused(build(NEARLY[case], constants, inputs=TWO_INPUTS))

    def test_slopes_that_differ(self):
        assert_refused(build(FORMS["PRelu"], [tensor("a", [0.2, 0.2, 0.3])]))

    def test_alpha_that_is_fed(self):
        scalar = float_input("a", [])
        assert_refused(build(MAX, inputs=[float_input("x"), scalar]))
        overridable = build(MAX, [ALPHA], inputs=[float_input("x"), scalar])
        assert_refused(overridable)

    def test_alpha_among_the_inputs_of_old_files(self):
        """Before version 4 of the format all initializers are."""
        names = ("0", "inf", "-inf", "a")
        model = build(
            [node("Mul", "a x", "s"), node("Max", "s x")],
            [ALPHA],
            inputs=[float_input("x"), *(float_input(name, []) for name in names)],
            ir_version=3,
            opset=8,
        )
        found, (one,) = recognise_leaky_relu(model)
        assert operators(found) == ["LeakyRelu"]
        assert one.alpha == TWO_TENTHS

    @pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
    def test_integers(self, dtype):
        assert_refused(build(MAX, [tensor("a", 1, dtype)], dtype=dtype))
        assert_refused(build(FORMS["PRelu"], [tensor("a", 1, dtype)], dtype=dtype))

    def test_bfloat16_before_opset_16(self):
        model = build(MAX, [tensor("a", 0.2, BFLOAT16)], dtype=BFLOAT16, opset=15)
        assert_refused(model)

    @pytest.mark.parametrize("opset", [7, 9, 13, 15, 23])
    def test_other_opsets_are_taken(self, opset):
        assert_recognised(
            build([node("PRelu", "x a")], [ALPHA], opset=opset), TWO_TENTHS, x=values(np.float32)
        )

    def test_clip_of_old_opsets(self):
        """Its bounds are attributes, and the upper one is the largest number by default."""
        nodes = [node("Clip", "x", "p", min=0.0), *NEGATIVE["-Relu(-x)"]]
        nodes += [node("Mul", "n a", "s"), node("Add", "p s")]
        assert_refused(build(nodes, [ALPHA], opset=10))


class TestGraph:
    def test_intermediate_values_that_others_read(self):
        model = build(
            [node("Mul", "a x", "s"), node("Max", "s x"), node("Tanh", "s", "t")],
            [ALPHA],
            outputs=["y", "t"],
        )
        found, _ = recognise_leaky_relu(model)
        assert sorted(operators(found)) == ["LeakyRelu", "Mul", "Tanh"]
        assert_same_results(found, model, values(np.float32))

    def test_intermediate_value_that_is_an_output(self):
        model = build(MAX, [ALPHA], outputs=["y", "s"])
        found, _ = recognise_leaky_relu(model)
        assert sorted(operators(found)) == ["LeakyRelu", "Mul"]
        assert [value.name for value in found.graph.output] == ["y", "s"]
        assert_same_results(found, model, values(np.float32))

    def test_result_that_is_read_twice(self):
        model = build(
            [node("Mul", "a x", "s"), node("Max", "s x", "l"), node("Add", "l l")], [ALPHA]
        )
        found, _ = recognise_leaky_relu(model)
        assert operators(found) == ["LeakyRelu", "Add"]
        assert_same_results(found, model, values(np.float32))

    def test_one_after_the_other(self):
        nodes = [
            *[node("Mul", "a x", "s"), node("Max", "s x", "l"), node("Neg", "l", "m")],
            *[node("PRelu", "m a", "k"), node("Mul", "a k", "t"), node("Max", "k t")],
        ]
        model = build(nodes, [ALPHA])
        found, recognised = recognise_leaky_relu(model)
        assert operators(found) == ["LeakyRelu", "Neg", "LeakyRelu", "LeakyRelu"]
        assert [(one.input, one.output) for one in recognised] == [
            *[("x", "l"), ("m", "k"), ("k", "y")]
        ]
        assert_same_results(found, model, values(np.float32))

    def test_report(self):
        nodes = [
            helper.make_node("Mul", ["a", "x"], ["s"], "scale"),
            helper.make_node("Max", ["s", "x"], ["y"], "larger"),
        ]
        found, (one,) = recognise_leaky_relu(build(nodes, [ALPHA]))
        assert one.pattern == "Max(Mul(0.2, x), x)"
        assert one.nodes == ("larger", "scale")
        assert found.graph.node[0].name == "larger"
        assert not any(tensor.name == "a" for tensor in found.graph.initializer)

    def test_subgraph(self):
        """x and alpha come from the graph outside."""
        branch = helper.make_graph(MAX, "then", [], [float_input("y")])
        other = helper.make_graph([node("Neg", "x", "z")], "else", [], [float_input("z")])
        model = build(
            [node("If", "c", then_branch=branch, else_branch=other)],
            [tensor("c", True, TensorProto.BOOL), ALPHA],
        )
        found, (one,) = recognise_leaky_relu(model)
        assert one.input == "x"
        (then,) = [each.g for each in found.graph.node[0].attribute if each.name == "then_branch"]
        assert [each.op_type for each in then.node] == ["LeakyRelu"]
        assert_same_results(found, model, values(np.float32))

    def test_clamped_leaky_relu_of_the_speech_embedding(self):
        """Google's speech embedding: max(LeakyRelu(x), -0.4) has two bends and stays as it is."""
        model = build(
            [node("LeakyRelu", "x", "l", alpha=0.2), node("Max", "l floor")],
            [tensor("floor", -0.4)],
        )
        assert_refused(model)
        (result,) = run(model, np.float32([[-1, -3, 5]]))
        np.testing.assert_array_equal(result, np.float32([[-0.2, -0.4, 5]]))


def with_function(body, attributes=(), opset=18, **call):
    function = helper.make_function(
        "ours", "Leaky", ["x"], ["y"], body, [helper.make_opsetid("", opset)], list(attributes)
    )
    return build([node("Leaky", "x", domain="ours", **call)], functions=[function])


class TestFunction:
    """Values inside of a function have no dtype and no shape."""

    @pytest.mark.parametrize("place", ["Constant", "Constant of a float", "Cast of a Constant"])
    @pytest.mark.parametrize("form", ["Max(ax, x)", "Relu(x) - a * Relu(-x)", "PRelu"])
    def test_found(self, form, place):
        model = with_function([*PLACES[place][0], *FORMS[form]])
        found, (one,) = recognise_leaky_relu(model)
        assert [each.op_type for each in found.functions[0].node] == ["LeakyRelu"]
        assert one.alpha == TWO_TENTHS
        assert_same_results(found, model, values(np.float32))

    def test_rank_that_is_unknown(self):
        """A slope does not change it, another operand might."""
        assert_refused(with_function([*PLACES["Constant of floats"][0], *MAX]))
        model = with_function([*PLACES["Constant of floats"][0], *FORMS["PRelu"]])
        assert len(recognise_leaky_relu(model)[1]) == 1

    def test_alpha_that_the_caller_gives(self):
        reference = onnx.AttributeProto(
            name="value_float", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT
        )
        constant = node("Constant", "", "a")
        constant.attribute.append(reference)
        assert_refused(with_function([constant, *MAX], ["alpha"], alpha=0.2))

    def test_alpha_in_the_dtype_of_x(self):
        constant = constant_node("b", value_float=0.2)
        assert_refused(with_function([constant, node("CastLike", "b x", "a"), *MAX]))


UNARY = ["Neg", "Relu", "Identity", "Abs"]
BINARY = ["Add", "Sub", "Max", "Min"]
COMPARISONS = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
ALPHAS = [-1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.5, 2.0]


@st.composite
def graphs(draw):
    """Operators on x, zero and earlier values, among them whole forms; all values are outputs."""
    nodes, numbers, conditions = [], ["x"], []
    for step in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["unary", "binary", "compare", "scale", "where", "form"]))
        recent = st.sampled_from([*numbers[-3:], *numbers[-1:], "x"])
        operand = st.one_of(recent, recent, st.just("0"))
        out = f"v{step}"
        if kind == "unary":
            nodes.append(node(draw(st.sampled_from(UNARY)), draw(recent), out))
        elif kind == "binary":
            operands = f"{draw(operand)} {draw(recent)}"
            nodes.append(node(draw(st.sampled_from(BINARY)), operands, out))
        elif kind == "compare":
            operands = f"{draw(operand)} {draw(recent)}"
            nodes.append(node(draw(st.sampled_from(COMPARISONS)), operands, f"c{step}"))
            conditions.append(f"c{step}")
            continue
        elif kind == "scale":
            alpha = draw(st.sampled_from(range(len(ALPHAS))))
            operator = draw(st.sampled_from(["Mul", "PRelu"]))
            nodes.append(node(operator, f"{draw(recent)} a{alpha}", out))
        elif kind == "where" and conditions:
            operands = f"{draw(st.sampled_from(conditions))} {draw(operand)} {draw(operand)}"
            nodes.append(node("Where", operands, out))
        else:
            # A form with one operand exchanged, perhaps for itself.
            form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
            alpha = draw(st.sampled_from(range(len(ALPHAS))))
            names = {"x": draw(recent), "a": f"a{alpha}", "y": out}
            names["inf"], names["-inf"], names["0"] = "inf", "-inf", "0"
            changed = draw(st.integers(0, 2 * len(form)))
            for index, old in enumerate(form):
                inputs = [names.get(name, f"{out}{name}") for name in old.input]
                if index == changed and old.op_type not in ("Not", "Where", "Clip", "Identity"):
                    inputs[-1] = draw(recent) if old.op_type != "PRelu" else inputs[-1]
                (output,) = (names.get(name, f"{out}{name}") for name in old.output)
                nodes.append(node(old.op_type, " ".join(inputs), output))
        numbers.append(out)
    nodes.append(node(draw(st.sampled_from(BINARY)), f"{draw(recent)} {draw(recent)}"))
    return nodes, [*numbers[1:], "y"]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE])
@settings(deadline=None, max_examples=100)
@given(drawn=graphs())
def test_random_graphs_compute_the_same(dtype, drawn):
    nodes, outputs = drawn
    constants = [tensor(f"a{index}", alpha, dtype) for index, alpha in enumerate(ALPHAS)]
    model = build(nodes, constants, dtype=dtype, outputs=outputs)
    found, recognised = recognise_leaky_relu(model)
    assert operators(found).count("LeakyRelu") == len(recognised)
    assert_same_results(found, model, values(FLOATS[dtype]))
