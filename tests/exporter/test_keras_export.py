"""Keras models on the backend at hand, and SavedModels of TensorFlow."""

import importlib.util
import os
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter import export


def installed(package):
    return importlib.util.find_spec(package) is not None


HAS_TENSORFLOW = installed("tensorflow") and installed("tf2onnx")


@pytest.fixture(scope="module")
def keras():
    if not installed("keras"):
        pytest.skip("keras is not installed")
    if not HAS_TENSORFLOW and not installed("torch"):
        pytest.skip("neither tensorflow with tf2onnx nor torch is installed")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow" if HAS_TENSORFLOW else "torch")
    import keras

    keras.utils.set_random_seed(0)
    return keras


@pytest.fixture(scope="module")
def network(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3),
            layers.LeakyReLU(negative_slope=0.1),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


@pytest.fixture(scope="module")
def two(keras):
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    leaky = keras.layers.LeakyReLU(negative_slope=0.2)
    return keras.Model([left, right], [leaky(left + right), keras.layers.Dense(3)(right)])


def compare(path, model, *arrays):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    actual = session.run(None, dict(zip(names, arrays, strict=True)))
    desired = model.predict(list(arrays) if len(arrays) > 1 else arrays[0], verbose=0)
    for ours, theirs in zip(
        actual, desired if isinstance(desired, list) else [desired], strict=True
    ):
        # Sums of 27 and 144 products.
        atol = 6 * np.sqrt(27 + 144) * 2.0**-24 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def images(count):
    return np.random.default_rng(0).standard_normal((count, 8, 8, 3)).astype(np.float32)


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_object(network, tmp_path):
    path = export(network, tmp_path / "m.onnx")
    compare(path, network, images(1))
    (value,) = onnx.load(path).graph.input
    assert dims(value) == [1, 8, 8, 3]


def test_symbolic_batch(network, tmp_path):
    path = export(network, tmp_path / "m.onnx", batch="N", opset=17)
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    for value in (*model.graph.input, *model.graph.output):
        assert dims(value)[0] == "N"
    compare(path, network, images(3))


@pytest.mark.parametrize("batch", [2, "N"])
def test_two_inputs_and_two_outputs(two, batch, tmp_path):
    path = export(two, tmp_path / "m.onnx", batch=batch)
    assert [value.name for value in onnx.load(path).graph.input] == ["left", "right"]
    generator = np.random.default_rng(0)
    compare(path, two, *(generator.standard_normal((2, 4)).astype(np.float32) for _ in range(2)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_file(network, ending, tmp_path):
    file = tmp_path / f"net{ending}"
    network.save(file)
    path = export(file, tmp_path / "m.onnx")
    compare(path, network, images(1))
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["leakyforge.source.kind"] == "Keras model"
    assert facts["leakyforge.source.name"] == file.name
    assert facts["leakyforge.source.framework"].startswith("keras 3")
    assert len(facts["leakyforge.source.sha256"]) == 64
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ExportError, match="is truncated, is not a Keras model, or holds"):
        export(file, tmp_path / "m.onnx")


def test_open_sizes_have_to_be_given(keras, tmp_path):
    model = keras.Sequential(
        [keras.layers.Input((None, None, 3), name="image"), keras.layers.Conv2D(4, 3)]
    )
    with pytest.raises(ExportError, match=r"input 'image' .*\[None, None, None, 3\].*image=1x"):
        export(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="has no input picture; its inputs are image"):
        export(model, tmp_path / "m.onnx", input_shapes={"picture": (1, 8, 8, 3)})
    with pytest.raises(ExportError, match=r"not \[1, 8, 8, 4\]"):
        export(model, tmp_path / "m.onnx", input_shapes={"image": (1, 8, 8, 4)})
    path = export(model, tmp_path / "m.onnx", input_shapes={"image": (2, 8, 8, 3)})
    compare(path, model, images(2))


def test_random_output_is_refused(keras, tmp_path):
    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.uniform((1, 4), seed=keras.random.SeedGenerator(1))

    model = keras.Sequential([keras.layers.Input((4,)), Noise()])
    with pytest.raises(ExportError, match=r"differs between keras|Keras refuses to export"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_python_code_in_a_file_is_refused(keras, ending, tmp_path):
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / f"m{ending}")
    with pytest.raises(ExportError, match="holds Python code, which is refused"):
        export(tmp_path / f"m{ending}", tmp_path / "m.onnx")


def test_model_without_inputs(keras, tmp_path):
    with pytest.raises(ExportError, match="has no inputs yet; call it once"):
        export(keras.Sequential([keras.layers.Dense(3)]), tmp_path / "m.onnx")


def test_option_that_does_not_apply(network, tmp_path):
    with pytest.raises(ExportError, match="Keras model takes no option example_inputs"):
        export(network, tmp_path / "m.onnx", example_inputs=images(1))


def test_keras_not_installed(tmp_path, monkeypatch):
    (tmp_path / "m.keras").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingDependencyError, match="pip install keras tensorflow tf2onnx"):
        export(tmp_path / "m.keras", tmp_path / "m.onnx")


def test_tensorflow_not_installed(tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorflow tf2onnx"):
        export(tmp_path / "net", tmp_path / "m.onnx")


def test_directory_that_is_no_saved_model(tmp_path):
    with pytest.raises(ExportError, match=r"is a directory without a saved_model\.pb"):
        export(tmp_path, tmp_path / "m.onnx")


@pytest.mark.skipif(not HAS_TENSORFLOW, reason="tensorflow or tf2onnx is not installed")
class TestSavedModel:
    @pytest.fixture
    def tensorflow(self, keras):
        if keras.backend.backend() != "tensorflow":
            pytest.skip("Keras does not run on tensorflow")
        return pytest.importorskip("tensorflow", reason="tensorflow is not installed")

    @pytest.mark.parametrize("batch", [None, 3, "N"])
    def test_same_outputs(self, tensorflow, network, batch, tmp_path):
        network.export(tmp_path / "net", verbose=False)
        path = export(tmp_path / "net", tmp_path / "m.onnx", batch=batch)
        compare(path, network, images(batch if isinstance(batch, int) else 1))
        facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert facts["leakyforge.source.kind"] == "SavedModel"
        assert facts["leakyforge.source.framework"] == f"tensorflow {tensorflow.__version__}"

    def test_two_inputs(self, tensorflow, two, tmp_path):
        two.export(tmp_path / "net", verbose=False)
        path = export(tmp_path / "net", tmp_path / "m.onnx", batch=2)
        generator = np.random.default_rng(0)
        arrays = (generator.standard_normal((2, 4)).astype(np.float32) for _ in range(2))
        compare(path, two, *arrays)

    def test_damaged(self, tensorflow, network, tmp_path):
        network.export(tmp_path / "net", verbose=False)
        (tmp_path / "net" / "saved_model.pb").write_bytes(b"not a graph")
        with pytest.raises(ExportError, match="refuses SavedModel net"):
            export(tmp_path / "net", tmp_path / "m.onnx")

    def test_without_signature(self, tensorflow, tmp_path):
        tensorflow.saved_model.save(tensorflow.Module(), str(tmp_path / "net"))
        with pytest.raises(ExportError, match="has no signature serving_default but none"):
            export(tmp_path / "net", tmp_path / "m.onnx")
