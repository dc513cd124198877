"""Multilayer perceptrons of scikit-learn."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter import export

network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")

X = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
TWO = (X[:, 0] > 0).astype(int)
THREE = TWO + (X[:, 1] > 0.3)


@pytest.fixture
def fit():
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")

    def fit(kind, y, **options):
        model = getattr(network, kind)(
            hidden_layer_sizes=(8, 5), max_iter=20, random_state=0, **options
        )
        return model.fit(X, y)

    return fit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize(
    ("kind", "y"),
    [
        ("MLPClassifier", TWO), ("MLPClassifier", THREE), ("MLPRegressor", X[:, 0]),
        ("MLPRegressor", X[:, :2]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", ["N", 5])
def test_same_outputs(kind, y, activation, batch, fit, tmp_path):
    model = fit(kind, y, activation=activation)
    path = export(model, tmp_path / "m.onnx", batch=batch, opset=16)
    proto = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 16)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"features": X[:5]})
    desired = model.predict_proba(X[:5]) if kind == "MLPClassifier" else model.predict(X[:5])
    desired = desired.reshape(5, -1)
    assert actual.shape == desired.shape
    # Sums of 4, 8 and 5 products, and activations of at most 16 roundings each.
    atol = 6 * np.sqrt(4 + 8 + 5 + 3 * 16) * 2.0**-24 * np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["leakyforge.source.kind"] == "scikit-learn"
    assert facts["leakyforge.source.name"] == kind


def test_not_fitted(fit, tmp_path):
    with pytest.raises(ExportError, match="scikit-learn MLPClassifier is not fitted"):
        export(network.MLPClassifier(), tmp_path / "m.onnx")


def test_option_that_does_not_apply(tmp_path):
    with pytest.raises(ExportError, match="scikit-learn model takes no option dynamo"):
        export(network.MLPRegressor(), tmp_path / "m.onnx", dynamo=False)


def test_skl2onnx_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(MissingDependencyError, match="run: pip install skl2onnx"):
        export(network.MLPRegressor(), tmp_path / "m.onnx")


def test_other_estimators(tmp_path):
    from sklearn.svm import SVC

    with pytest.raises(ExportError, match=r"cannot export a sklearn\.svm\._classes\.SVC"):
        export(SVC(), tmp_path / "m.onnx")
