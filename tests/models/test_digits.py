"""The digits classifier: its accuracy on images that it was not trained on, and its weights."""

import numpy as np
import onnxruntime
import pytest

from leakyforge.exporter import export
from leakyforge.models import build
from leakyforge.models.digits import WEIGHTS


@pytest.fixture(scope="module")
def split():
    pytest.importorskip("sklearn", reason="the digits data need scikit-learn")
    from leakyforge.models.digits_data import digits_split

    return digits_split()


def test_accuracy_through_the_file(split, tmp_path):
    path = export("digits", tmp_path / "digits.onnx", batch="N")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": split.test_images})
    assert logits.shape == (450, 10)
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == split.test_labels).mean() >= 0.97


def test_split_is_stratified_and_holds_out_what_is_not_trained_on(split):
    assert split.train_images.shape == (1347, 1, 8, 8)
    assert split.test_images.shape == (450, 1, 8, 8)
    assert split.train_images.dtype == np.float32
    assert 0 <= split.train_images.min() <= split.train_images.max() <= 1
    assert np.bincount(split.test_labels).min() >= 43
    trained_on = {image.tobytes() for image in split.train_images}
    assert not any(image.tobytes() in trained_on for image in split.test_images)


def test_operators():
    operators = [node.op_type for node in build("digits").graph.node]
    assert operators.count("LeakyRelu") == operators.count("BatchNormalization") == 3


def test_weights_file_is_small_and_float32():
    assert WEIGHTS.stat().st_size < 200_000
    with np.load(WEIGHTS, allow_pickle=False) as weights:
        assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


def test_training_repeats_and_gives_the_weights_that_the_model_reads(split, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="training needs torch")
    from leakyforge.models import train_digits

    monkeypatch.setattr(train_digits, "EPOCHS", 1)
    threads = torch.get_num_threads()
    try:
        weights, accuracy = train_digits.train(split)
        again, _ = train_digits.train(split)
    finally:
        torch.set_num_threads(threads)
    assert 0.5 < accuracy <= 1
    train_digits.write_weights(tmp_path / "digits.npz", weights)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]
    with np.load(WEIGHTS) as shipped, np.load(tmp_path / "digits.npz") as written:
        assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in shipped.items()}
        for name, value in written.items():
            np.testing.assert_array_equal(value, again[name])
