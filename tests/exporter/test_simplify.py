"""Simplification: what it leaves of a model, and that this computes the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from leakyforge.errors import ModelError
from leakyforge.exporter import export
from leakyforge.exporter.simplify import simplify
from leakyforge.runtime import check


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs.split(), output.split(), **attributes)


class TestConstants:
    def test_batch_normalization_goes_into_convolution(self, tmp_path):
        model = onnx.load(export("digits", tmp_path / "m.onnx"))
        assert operators(model).count("BatchNormalization") == 3
        before = model.SerializeToString()
        simplified = simplify(model)
        assert model.SerializeToString() == before
        # Flatten may become a Reshape.
        assert [name for name in operators(simplified) if name not in ("Flatten", "Reshape")] == [
            *["Conv", "LeakyRelu", "Conv", "LeakyRelu", "MaxPool"],
            *["Conv", "LeakyRelu", "MaxPool", "Gemm"],
        ]
        feeds = {"image": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
        (before,) = ReferenceEvaluator(model).run(None, feeds)
        (after,) = ReferenceEvaluator(simplified).run(None, feeds)
        # Sums of at most 288 float32 products, in three layers.
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())

    def test_constants(self, parse):
        model = parse(
            "g (float[2] x) => (float[2] y) { a = Constant <value_float = 2.0> ()"
            " b = Constant <value_float = 3.0> () c = Mul (a, b) y = Mul (x, c) }"
        )
        simplified = simplify(model)
        assert [name for name in operators(simplified) if name != "Constant"] == ["Mul"]
        (result,) = ReferenceEvaluator(simplified).run(None, {"x": np.float32([1, -2])})
        np.testing.assert_array_equal(result, np.float32([6, -12]))

    def test_pad_whose_amounts_are_computed(self, parse):
        """As torch's TorchScript exporter writes it: the front end refuses dynamic pads."""
        model = parse(
            "g (float[1,1,4,4] x) => (float[1,1,5,6] y) { a = Constant <value = int64[8] "
            '{0,0,0,1,0,0,1,1}> () c = Cast <to = 7> (a) y = Pad <mode = "constant"> (x, c) }'
        )
        simplified = simplify(model)
        assert [name for name in operators(simplified) if name != "Constant"] == ["Pad"]

    def test_pad_whose_amounts_come_from_constant_of_shape(self, parse):
        """The optimizer keeps ConstantOfShape, and with it all that is computed from it."""
        model = parse(
            "g (float[1,1,4,4] x) => (float[1,1,5,5] y)"
            " { ends = Constant <value = int64[2] {1, 1}> () six = Constant <value_ints = [6]> ()"
            " zeros = ConstantOfShape <value = int64[1] {0}> (six)"
            " pads = Concat <axis = 0> (zeros, ends)"
            ' y = Pad <mode = "constant"> (x, pads) }'
        )
        assert [name for name in operators(simplify(model)) if name != "Constant"] == ["Pad"]

    def test_functions_are_inlined(self):
        model = onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["": 18, "ours": 1]>
            g (float[2] x) => (float[2] y) { y = ours.Twice (x) }
            <domain: "ours", opset_import: ["": 18]>
            Twice (a) => (c) { b = LeakyRelu <alpha = 0.5> (a) c = LeakyRelu <alpha = 0.5> (b) }"""
        )
        simplified = simplify(model)
        assert operators(simplified) == ["LeakyRelu", "LeakyRelu"]
        assert not simplified.functions

    @pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5, -0.3])
    def test_leaky_relu_stays_with_its_alpha(self, parse, alpha):
        """Also where it is nearly something else: alpha 0 is no Relu (NaN), alpha 1 no Identity."""
        model = parse(
            f"g (float[2] x) => (float[2] y) {{ y = LeakyRelu <alpha = {alpha:.2f}> (x) }}"
        )
        (node,) = simplify(model).graph.node
        assert node.op_type == "LeakyRelu"
        assert helper.get_node_attr_value(node, "alpha") == np.float32(alpha)

    def test_inputs_and_outputs_keep_their_names(self, parse):
        model = parse(
            "g (float[2] x, float[2] z) => (float[2] y, float[2] x2)"
            " { y = Add (x, z) x2 = Identity (x) }"
        )
        simplified = simplify(model)
        assert [value.name for value in simplified.graph.input] == ["x", "z"]
        assert [value.name for value in simplified.graph.output] == ["y", "x2"]

    def test_says_nothing(self, tmp_path, capfd, caplog):
        simplify(onnx.load(export("digits", tmp_path / "m.onnx")))
        assert capfd.readouterr() == ("", "")
        assert not caplog.records


def normalised(op_type, weights, channels, *, layer=(), outputs="y", opset=18, **attributes):
    """An operator with attributes `layer` and a BatchNormalization; x has four channels."""
    generator = np.random.default_rng(0)
    rank = len(next(iter(weights.values())))
    arrays = {
        **{name: generator.standard_normal(shape) for name, shape in weights.items()},
        "scale": generator.uniform(0.5, 2, channels),
        "shift": generator.standard_normal(channels),
        "mean": generator.standard_normal(channels),
        "var": generator.uniform(0.5, 2, channels),
    }
    nodes = [
        node(op_type, " ".join(["x", *weights]), "t", **dict(layer)),
        node("BatchNormalization", "t scale shift mean var", outputs, **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 6][:rank])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, x):
    """ONNX Runtime's results; by itself it would fold BatchNormalization too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def assert_computes_the_same(simplified, model, products):
    """Up to the roundings of sums of so many products, before and after."""
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    for result, expected in zip(run(simplified, x), run(model, x), strict=True):
        atol = 4 * np.sqrt(products) * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


class TestBatchNormalization:
    @pytest.mark.parametrize(
        ("op_type", "weights", "channels", "layer", "products"),
        [
            ("Conv", {"w": (8, 4, 3, 3)}, 8, {}, 36),
            ("Conv", {"w": (8, 4, 3, 3), "b": (8,)}, 8, {"pads": [1, 1, 1, 1]}, 36),
            ("Conv", {"w": (8, 2, 3, 3)}, 8, {"group": 2}, 18),
            ("ConvTranspose", {"w": (4, 6, 3, 3), "b": (6,)}, 6, {}, 36),
            ("ConvTranspose", {"w": (4, 3, 3, 3)}, 6, {"group": 2}, 18),
            ("Gemm", {"w": (4, 5), "b": (5,)}, 5, {"alpha": 0.5, "beta": 2.0}, 4),
            ("Gemm", {"w": (5, 4), "b": (1, 5)}, 5, {"transB": 1}, 4),
        ],
    )
    def test_goes_into(self, op_type, weights, channels, layer, products):
        model = normalised(op_type, weights, channels, layer=layer, epsilon=0.01)
        simplified = simplify(model)
        assert operators(simplified) == [op_type]
        assert_computes_the_same(simplified, model, products)

    def test_with_leaky_relu_behind_it(self):
        model = normalised("Conv", {"w": (8, 4, 3, 3)}, 8, outputs="n")
        model.graph.node.extend([node("Mul", "n a", "s"), node("Max", "n s", "y")])
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "a"))
        simplified = simplify(model)
        assert operators(simplified) == ["Conv", "LeakyRelu"]
        assert_computes_the_same(simplified, model, 36)

    def test_stays_where_the_layers_result_is_read(self):
        model = normalised("Conv", {"w": (8, 4, 3, 3)}, 8)
        model.graph.output.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, None))
        simplified = simplify(model)
        assert operators(simplified) == ["Conv", "BatchNormalization"]
        assert_computes_the_same(simplified, model, 36)

    def test_stays_where_the_weights_are_shared(self):
        model = normalised("Conv", {"w": (8, 4, 3, 3)}, 8)
        model.graph.node.append(node("Conv", "x w", "z", pads=[1, 1, 1, 1]))
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
        simplified = simplify(model)
        assert sorted(operators(simplified)) == ["BatchNormalization", "Conv", "Conv"]
        assert_computes_the_same(simplified, model, 36)

    @pytest.mark.parametrize(
        ("outputs", "options"),
        [
            ("y running_mean running_var", {"training_mode": 1}),
            ("y mean_out var_out saved_mean saved_var", {"opset": 9}),
        ],
    )
    def test_training_mode(self, outputs, options):
        model = normalised("Conv", {"w": (8, 4, 3, 3)}, 8, outputs=outputs, **options)
        with pytest.raises(ModelError, match="BatchNormalization 'y' is in training mode"):
            simplify(model)


class TestDead:
    def test_nodes_and_weights(self, parse):
        model = parse(
            "g (float[2] x) => (float[2] y) { d = Mul (x, w) e = Tanh (d) y = LeakyRelu (x) }"
        )
        model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
        simplified = simplify(model)
        assert operators(simplified) == ["LeakyRelu"]
        assert not simplified.graph.initializer

    def test_operands_of_a_recognised_leaky_relu(self, parse):
        model = parse(
            "g (float[2] x) => (float[2] y) { a = Constant <value_float = 0.1> ()"
            " s = Mul (x, a) y = Max (s, x) }"
        )
        simplified = simplify(model)
        assert operators(simplified) == ["LeakyRelu"]
        assert not simplified.graph.initializer


# Scripted functions of torch and onnxscript make alpha like this.
FUNCTION = """<ir_version: 10, opset_import: ["": 18, "ours": 1]>
g (float[2,3] x) => (float[2,3] y) { y = ours.Leaky <alpha = 0.3> (x) }
<domain: "ours", opset_import: ["": 18]>
Leaky <alpha> (x) => (y) {
    number = Constant <value_float: float = @alpha> ()
    zero = Constant <value_float = 0.0> ()
    slope = CastLike (number, x)
    bound = CastLike (zero, x)
    is_positive = Greater (x, bound)
    scaled = Mul (x, slope)
    y = Where (is_positive, x, scaled)
}"""


class TestLeakyRelu:
    def test_in_a_function_whose_caller_gives_alpha(self):
        simplified = simplify(onnx.parser.parse_model(FUNCTION))
        (leaky,) = simplified.graph.node
        assert leaky.op_type == "LeakyRelu"
        assert helper.get_node_attr_value(leaky, "alpha") == np.float32(0.3)

    def test_alpha_that_is_computed(self, parse):
        model = parse(
            "g (float[2,3] x) => (float[2,3] y) { shape = Constant <value_ints = [1]> ()"
            " one = ConstantOfShape <value = float[1] {1.0}> (shape)"
            " four = Constant <value_float = 4.0> () a = Div (one, four)"
            " s = Mul (x, a) y = Max (s, x) }"
        )
        (leaky,) = simplify(model).graph.node
        assert leaky.op_type == "LeakyRelu"
        assert helper.get_node_attr_value(leaky, "alpha") == 0.25

    @pytest.mark.parametrize(
        "text",
        [
            "s = Mul (x, a) t = Max (s, x) y = Neg (t)",
            "n = Neg (x) m = Relu (n) p = Relu (x) s = Mul (a, m) d = Sub (p, s) y = Neg (d)",
        ],
    )
    def test_artifact_passes_its_check(self, parse, build, text):
        """The reference is the model as it was."""
        model = parse(
            f"g (float[3,37] x) => (float[3,37] y) {{ a = Constant <value_float = 0.1> () {text} }}"
        )
        assert operators(simplify(model)) == ["LeakyRelu", "Neg"]
        report = check(build(model))
        assert report
        assert all(row.max_ulp == 0 for row in report.outputs)
