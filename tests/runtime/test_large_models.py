"""Models of more than 2 GiB, the limit lowered to 1 kB: the same code without the gigabytes."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leakyforge import onnx_graph
from leakyforge.errors import ExportError, ModelError
from leakyforge.exporter.float16 import to_float16
from leakyforge.exporter.inspect import inspect_onnx
from leakyforge.exporter.quantize import calibration_feeds, quantize_qdq
from leakyforge.kernels import compile
from leakyforge.kernels.onnx_model import load_onnx
from leakyforge.models import build
from leakyforge.onnx_graph import external_copy, is_large, light_copy, restore_weights, save_onnx
from leakyforge.opsets import to_opset
from leakyforge.runtime import bench, check
from leakyforge.runtime.reference import load_reference


@pytest.fixture
def path(tmp_path):
    """The digits classifier with its weights in a file of their own, in a limit that they pass."""
    path = tmp_path / "digits.onnx"
    onnx.save_model(
        build("digits"), path, save_as_external_data=True, location="digits.data", size_threshold=0
    )
    return path


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_WEIGHT_BYTES", 1000)


def test_compiled_and_checked(path, limit):
    assert is_large(load_onnx(path).proto)
    artifact = compile(path, measure=False)
    report = check(artifact)
    assert report
    assert len(report.leaky_relus) == 3
    assert bench(artifact, seconds=0.1).startups


def test_symbolic_shapes_are_fixed(tmp_path, limit):
    path = tmp_path / "batch.onnx"
    onnx.save_model(build("digits", batch="N"), path, save_as_external_data=True, location="data")
    assert check(compile(path, measure=False, shapes={"image": (3, 1, 8, 8)}), samples=1)


def test_reference_gives_the_same(limit):
    model = build("digits")
    feeds = {"image": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
    large = load_reference(model).run(feeds)["logits"]
    onnx_graph.MAX_WEIGHT_BYTES = 10**9
    np.testing.assert_array_equal(large, load_reference(model).run(feeds)["logits"])


def test_wrong_graph_is_still_refused(path, limit):
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="NoSuchOperator"):
        load_onnx(path)


def test_one_in_memory_has_to_be_saved_first(limit):
    with pytest.raises(ModelError, match=r"more than 2 GiB; save it with"):
        load_onnx(build("digits"))


@pytest.mark.parametrize("convert", [to_float16, lambda m: quantize_qdq(m, calibration_feeds(m))])
def test_conversion_is_refused(convert, limit, monkeypatch):
    monkeypatch.setattr("leakyforge.exporter.check.MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 2 GiB"):
        convert(build("digits"))


def test_light_copy_and_back():
    model = build("digits")
    before = model.SerializeToString()
    light = light_copy(model)
    names = {tensor.name for tensor in light.graph.initializer}
    kept = [tensor.name for tensor in model.graph.initializer if tensor.name not in names]
    assert [value.name for value in light.graph.input] == ["image", *kept]
    assert light.ByteSize() < model.ByteSize() / 4
    assert light.metadata_props == model.metadata_props
    restore_weights(light, model)
    assert [value.name for value in light.graph.input] == ["image"]
    tensors = {tensor.name: tensor for tensor in light.graph.initializer}
    assert all(tensors[tensor.name] == tensor for tensor in model.graph.initializer)
    assert model.SerializeToString() == before


def test_saved_with_a_file_of_weights(tmp_path, limit):
    model = build("digits")
    save_onnx(model, tmp_path / "large.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    saved = onnx.load(tmp_path / "large.onnx").graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in saved}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(arrays[tensor.name], numpy_helper.to_array(tensor))


def test_saved_whole(tmp_path):
    model = build("digits")
    save_onnx(model, tmp_path / "small.onnx")
    assert onnx.load(tmp_path / "small.onnx") == model


def test_external_copy_names_every_large_weight():
    model = build("digits")
    external, weights = external_copy(model, "somewhere")
    assert external.graph.input == model.graph.input
    outside = [t.name for t in external.graph.initializer if t.external_data]
    assert outside == [tensor.name for tensor in weights]


def test_old_opset(limit):
    model = build("digits", opset=13)
    assert to_opset(model, 18).graph.initializer != []


def test_inspect_reads_no_weights(path):
    whole = inspect_onnx(path)
    (path.parent / "digits.data").unlink()
    assert inspect_onnx(path).weight_bytes == whole.weight_bytes == 15578 * 4


class TestExternalFiles:
    def relocate(self, path, key, value):
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value
        onnx.save(model, path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("location", "../secret", "points outside"),
            ("location", "a/../../secret", "points outside"),
            ("location", "/etc/passwd", "absolute path"),
            ("location", "link", "symbolic link"),
            ("location", "", "empty"),
            ("location", ".", "not regular file"),
            ("location", "absent", "not regular file"),
            ("offset", "100000000", "exceeds file size"),
            ("offset", "-4", "non-negative"),
            ("length", "100", r"has 100 bytes, not \d+"),
        ],
    )
    def test_refused(self, path, key, value, message):
        (path.parent.parent / "secret").write_bytes(bytes(10**6))
        (path.parent / "link").symlink_to(path.parent.parent / "secret")
        self.relocate(path, key, value)
        with pytest.raises(ModelError, match=message) as caught:
            load_onnx(path)
        assert "external data of" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_data_of_constant_nodes_is_hashed(self, parse, tmp_path):
        model = parse("g (float[64] x) => (float[64] y) { y = Add (x, c) }")
        array = numpy_helper.from_array(np.ones(64, np.float32))
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=array))
        onnx.save_model(
            model, tmp_path / "m.onnx", save_as_external_data=True, location="data",
            size_threshold=0, convert_attribute=True,
        )  # fmt: skip
        before = load_onnx(tmp_path / "m.onnx").sha256
        (tmp_path / "data").write_bytes(bytes(256))
        assert load_onnx(tmp_path / "m.onnx").sha256 != before
