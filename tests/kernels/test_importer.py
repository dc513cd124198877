"""ONNX to Relax: the converters that we replace, refusals, and symbolic dimensions."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tvm.relax.frontend.onnx import onnx_frontend

from leakyforge.errors import ModelError, UnsupportedOperatorError
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.onnx_model import load_onnx
from leakyforge.runtime import Session


def desired(model, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def extremum(operator, shapes, dtype=TensorProto.FLOAT):
    names = [f"x{i}" for i in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", dtype, np.broadcast_shapes(*shapes))
    graph = helper.make_graph([helper.make_node(operator, names, ["y"])], "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize(
    "shapes",
    [[(3, 4)], [(3, 4)] * 2, [(3, 4)] * 3, [(3, 1), (4,), (2, 1, 1)]],
    ids=["one", "two", "three", "broadcast"],
)
@pytest.mark.parametrize(
    ("dtype", "numpy_type"), [(TensorProto.FLOAT, np.float32), (TensorProto.INT64, np.int64)]
)
def test_max_and_min(build, operator, shapes, dtype, numpy_type):
    model = extremum(operator, shapes, dtype)
    generator = np.random.default_rng(0)
    feeds = {
        f"x{i}": (10 * generator.standard_normal(shape)).astype(numpy_type)
        for i, shape in enumerate(shapes)
    }
    (actual,) = Session(build(model)).run(None, feeds)
    np.testing.assert_array_equal(actual, desired(model, feeds)[0], strict=True)


def test_leaky_relu_written_as_a_maximum(build, parse):
    model = parse(
        "g (float[4] x) => (float[4] y)"
        " { a = Constant <value = float {0.1}> () p = Mul (a, x) y = Max (p, x) }"
    )
    feeds = {"x": np.float32([-2, -0.5, 0, 3])}
    (actual,) = Session(build(model)).run(None, feeds)
    np.testing.assert_array_equal(actual, desired(model, feeds)[0])


def test_the_front_ends_own_converters_come_back(parse):
    before = onnx_frontend._get_convert_map
    import_onnx(parse("g (float[4] x) => (float[4] y) { y = Max (x, x) }"))
    assert onnx_frontend._get_convert_map is before
    with pytest.raises(ModelError):
        import_onnx(parse("g (float[4] x, float[3] z) => (float[4] y) { y = Max (x, z) }"))
    assert onnx_frontend._get_convert_map is before


def test_unsupported_operator_is_named_with_its_node(parse):
    model = parse("g (float[4] x) => (float[4] y) { y = RandomUniformLike (x) }")
    model.graph.node[0].name = "here"
    with pytest.raises(
        UnsupportedOperatorError, match=r"operator RandomUniformLike \(node 'here'\) is not"
    ):
        import_onnx(model)
    model.graph.node[0].name = ""
    with pytest.raises(UnsupportedOperatorError, match=r"operator RandomUniformLike \(node 'y'\)"):
        import_onnx(model)


def test_operator_of_another_domain_is_unsupported_under_a_known_name():
    node = helper.make_node("LeakyRelu", ["x"], ["y"], name="theirs", domain="com.example")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    model = helper.make_model(helper.make_graph([node], "g", [value], [result]))
    with pytest.raises(
        UnsupportedOperatorError, match=r"operator com\.example\.LeakyRelu \(node 'theirs'\)"
    ):
        import_onnx(model)


def test_refusal_of_the_front_end_is_one_line(parse):
    """Pads that a graph computes from values: the front end wants constants."""
    model = parse("g (float[2,2] x, int64[4] pads) => (float[a,b] y) { y = Pad (x, pads) }")
    with pytest.raises(ModelError, match="TVM's ONNX front end refuses graph 'g'") as caught:
        import_onnx(model)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_refusal_of_a_converter_of_ours_names_the_operator(parse):
    model = parse(
        "g (float[1,1,2,2] x, float[4] scales) => (float[a,b,c,d] y)"
        ' { y = Resize <mode = "nearest"> (x, , scales) }'
    )
    with pytest.raises(ModelError, match=r"^Resize: its scales must be known at compile time$"):
        import_onnx(model)


def test_empty_dimension_stays_empty(build, parse):
    """The front end by itself takes a size of 0 for an unknown one."""
    model = parse(
        "g (float[2,0,3] x, float[2,5,3] z) => (float[2,5,3] y, float[2,0,3] e)"
        " { y = Concat <axis = 1> (x, z) e = LeakyRelu (x) }"
    )
    session = Session(build(model))
    assert [spec.shape for spec in session.get_inputs()] == [(2, 0, 3), (2, 5, 3)]
    feeds = {
        "x": np.zeros((2, 0, 3), np.float32),
        "z": np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32),
    }
    joined, empty = session.run(None, feeds)
    np.testing.assert_array_equal(joined, feeds["z"])
    assert empty.shape == (2, 0, 3)


def test_unnamed_dimensions_become_symbols_of_their_own():
    """Two unnamed dimensions are not the same dimension."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in ("a", "b")
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=0)
    model = helper.make_model(
        helper.make_graph([node], "g", values, [result]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    main = import_onnx(load_onnx(model).proto)["main"]
    first, second = (str(variable.ty.shape[0]) for variable in main.params)
    assert (first, second) == ("a_dim0", "b_dim0")
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_inputs_keep_their_order_and_initializers_are_none_of_them(parse):
    model = parse(
        "g (float[1] c, float[2] z, float[2] a) => (float[2] y) { t = Sub (z, a) y = Add (t, c) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "c"))
    main = import_onnx(model)["main"]
    assert [variable.name for variable in main.params] == ["z", "a"]
