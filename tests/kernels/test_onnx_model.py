"""Reading ONNX: what loads, what is refused and how, fixed shapes, and what folding leaves."""

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.errors import ModelError, ShapeError
from leakyforge.exporter.shapes import value_shape
from leakyforge.exporter.simplify import simplify
from leakyforge.kernels.onnx_model import fix_shapes, load_onnx
from leakyforge.onnx_graph import graph_inputs


def operators(proto):
    return [node.op_type for node in proto.graph.node]


def input_shapes(proto):
    return {value.name: value_shape(value) for value in graph_inputs(proto)}


@pytest.fixture
def affine(parse):
    """A product with a matrix that fills a file of its own when asked to."""
    model = parse("affine (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }")
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


class TestLoad:
    def test_file(self, affine, tmp_path):
        path = tmp_path / "some.model.onnx"
        onnx.save(affine, path)
        source = load_onnx(str(path))
        assert source.proto == affine
        assert source.name == "some.model"
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert source.path == path.resolve()

    def test_path_is_made_absolute(self, affine, tmp_path, monkeypatch):
        onnx.save(affine, tmp_path / "m.onnx")
        monkeypatch.chdir(tmp_path)
        assert load_onnx("m.onnx").path == (tmp_path / "m.onnx").resolve()

    def test_model_in_memory(self, affine):
        source = load_onnx(affine)
        assert (source.name, source.path) == ("affine", None)
        other = onnx.ModelProto()
        other.CopyFrom(affine)
        assert load_onnx(other).sha256 == source.sha256
        other.graph.initializer[0].raw_data = bytes(64 * 64 * 4)
        assert load_onnx(other).sha256 != source.sha256

    def test_missing_file_and_directory(self, tmp_path):
        with pytest.raises(ModelError, match=r"no\.onnx does not exist"):
            load_onnx(tmp_path / "no.onnx")
        with pytest.raises(ModelError, match="is a directory"):
            load_onnx(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds no ONNX graph"),
            (b"hello, I am a text file\n", "is not an ONNX file or is truncated"),
            (b"\x7fELF\x02\x01\x01" + bytes(64), "is not an ONNX file or is truncated"),
            (b"PK\x05\x06" + bytes(18), "is not an ONNX file or is truncated"),
        ],
    )
    def test_other_files(self, tmp_path, content, message):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load_onnx(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
    def test_truncated(self, affine, tmp_path, share):
        path = tmp_path / "cut.onnx"
        whole = affine.SerializeToString()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load_onnx(path)

    def test_every_truncation_is_an_error_of_ours(self, parse, tmp_path):
        """A cut between two fields is still protobuf: then the checker has to see it."""
        whole = parse(
            "g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.2> (x) }"
        ).SerializeToString()
        path = tmp_path / "cut.onnx"
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError):
                load_onnx(path)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("g (float[2] x) => (float[2] y) { y = Relu (z) }", "z"),
            ("g (float[2] x) => (float[2] y) { y = NoSuchOperator (x) }", "NoSuchOperator"),
            ("g (float[2] x) => (float[2] y) { y = LeakyRelu <slope = 0.1> (x) }", "slope"),
            ("g (float[2] x) => (float[3] y) { y = Relu (x) }", "2"),
            ("g (int32[2] x) => (int32[2] y) { y = LeakyRelu (x) }", "LeakyRelu"),
        ],
    )
    def test_invalid_graph(self, parse, tmp_path, text, reason):
        path = tmp_path / "invalid.onnx"
        onnx.save(parse(text), path)
        with pytest.raises(ModelError, match="fails the ONNX checker") as caught:
            load_onnx(path)
        assert reason in str(caught.value).partition("checker")[2]
        assert "\n" not in str(caught.value)

    def test_graph_without_an_output(self, parse):
        model = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
        del model.graph.output[:]
        with pytest.raises(ModelError, match="holds no ONNX graph with an output"):
            load_onnx(model)


class TestExternalData:
    @pytest.fixture
    def path(self, affine, tmp_path):
        path = tmp_path / "big.onnx"
        onnx.save_model(
            affine, path, save_as_external_data=True, location="big.data", size_threshold=0
        )
        return path

    def test_is_read_and_hashed(self, path):
        before = load_onnx(path)
        weight = numpy_helper.to_array(before.proto.graph.initializer[0])
        stored = np.frombuffer((path.parent / "big.data").read_bytes(), np.float32)
        np.testing.assert_array_equal(weight.ravel(), stored)

        changed = bytearray((path.parent / "big.data").read_bytes())
        changed[0] ^= 1
        (path.parent / "big.data").write_bytes(changed)
        assert load_onnx(path).sha256 != before.sha256

    def test_is_found_from_another_folder(self, path, tmp_path_factory, monkeypatch):
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert load_onnx(path).proto.graph.initializer[0].raw_data

    def test_absent(self, path):
        (path.parent / "big.data").unlink()
        with pytest.raises(ModelError, match=r"external data of .*big\.onnx cannot be read"):
            load_onnx(path)

    def test_truncated(self, path):
        data = path.parent / "big.data"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(ModelError, match=r"big\.onnx"):
            load_onnx(path)

    def test_outside_of_the_models_folder(self, path, tmp_path_factory):
        """A model must not make its reader open whatever file it names."""
        secret = tmp_path_factory.mktemp("elsewhere") / "secret.data"
        secret.write_bytes((path.parent / "big.data").read_bytes())
        proto = onnx.load(path, load_external_data=False)
        for entry in proto.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = f"../{secret.parent.name}/{secret.name}"
        onnx.save(proto, path)
        with pytest.raises(ModelError, match="external data"):
            load_onnx(path)


class TestFixShapes:
    @pytest.fixture
    def pair(self, parse):
        return parse(
            "pair (float[N,3] a, float[N,M] b) => (float[N,K] y) { y = Concat <axis = 1> (a, b) }"
        )

    def test_nothing_to_fix(self, pair):
        assert fix_shapes(pair, {}) is pair

    def test_symbol_that_two_inputs_share(self, pair):
        before = pair.SerializeToString()
        fixed = fix_shapes(pair, {"b": (5, 4)})
        assert input_shapes(fixed) == {"a": (5, 3), "b": (5, 4)}
        assert value_shape(fixed.graph.output[0]) == (5, 7)
        assert pair.SerializeToString() == before

    def test_symbols_of_the_other_input_stay(self, pair):
        fixed = fix_shapes(pair, {"a": (5, 3)})
        assert input_shapes(fixed) == {"a": (5, 3), "b": (5, "M")}

    def test_both_given(self, pair):
        fixed = fix_shapes(pair, {"b": (2, 1), "a": (2, 3)})
        assert input_shapes(fixed) == {"a": (2, 3), "b": (2, 1)}

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({"c": (1, 3)}, r"no input 'c'; its inputs: a, b"),
            ({"a": (1, 3, 1)}, r"shape 1x3x1 does not fit input 'a' of shape Nx3"),
            ({"a": ()}, r"shape scalar does not fit input 'a'"),
            ({"a": (1, 4)}, r"shape 1x4 does not fit input 'a' of shape Nx3"),
            ({"a": (1, 3), "b": (2, 4)}, r"shape 2x4 does not fit input 'b' of shape NxM"),
        ],
    )
    def test_refused(self, pair, shapes, message):
        with pytest.raises(ShapeError, match=message) as caught:
            fix_shapes(pair, shapes)
        assert "\n" not in str(caught.value)

    def test_shape_that_the_graph_does_not_take(self, parse):
        model = parse(
            "g (float[N,M] x) => (float[N,K] y) { w = Constant <value = float[3,2] "
            "{1,2,3,4,5,6}> ()  y = MatMul (x, w) }"
        )
        assert value_shape(fix_shapes(model, {"x": (4, 3)}).graph.output[0]) == (4, 2)
        with pytest.raises(ShapeError, match="the model does not take x=4x5"):
            fix_shapes(model, {"x": (4, 5)})

    def test_recorded_shapes_of_old_sizes_go(self, parse):
        model = onnx.shape_inference.infer_shapes(
            parse("g (float[N,3] x) => (float[N,3] y) { t = Neg (x) y = LeakyRelu (t) }")
        )
        fixed = fix_shapes(model, {"x": (7, 3)})
        assert [value_shape(value) for value in fixed.graph.value_info] == [(7, 3)]

    def test_unnamed_dimensions_and_unknown_rank(self):
        for shape in ([None, 3], None):
            value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
            graph = helper.make_graph(
                [helper.make_node("Relu", ["x"], ["y"])],
                "g",
                [value],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
            assert input_shapes(model)["x"] == (None if shape is None else ("?", 3))
            fixed = fix_shapes(model, {"x": (2, 3)})
            assert input_shapes(fixed) == {"x": (2, 3)}
            assert value_shape(fixed.graph.output[0]) == (2, 3)

    def test_an_input_that_is_also_an_initializer_is_none(self, parse):
        model = parse("g (float[N] x, float[1] c) => (float[N] y) { y = Add (x, c) }")
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "c"))
        assert list(input_shapes(model)) == ["x"]
        with pytest.raises(ShapeError, match="no input 'c'; its inputs: x"):
            fix_shapes(model, {"c": (1,)})


class TestFold:
    def test_is_the_exporters(self, parse):
        """What it does is tested there."""
        model = parse(
            "g (float[2] x) => (float[2] y) { a = Constant <value_float = 2.0> ()"
            " b = Constant <value_float = 0.1> () c = Mul (a, b) s = Mul (x, c) y = Max (s, x) }"
        )
        assert operators(simplify(model)) == ["LeakyRelu"]
