"""A multilayer perceptron of scikit-learn becomes an ONNX model, through skl2onnx."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter.check import one_line
from leakyforge.exporter.source import Array, Framework, Source, example

_KINDS = ("MLPClassifier", "MLPRegressor")
_INPUT = "features"


def is_perceptron(model: Any) -> bool:
    """Return whether `model` is an MLP of scikit-learn, without importing scikit-learn."""
    return any(
        base.__module__.startswith("sklearn.neural_network.") and base.__qualname__ in _KINDS
        for base in type(model).__mro__
    )


def export_perceptron(model: Any, *, opset: int, batch: int | str = 1) -> Source:
    """Return the ONNX model of a fitted MLPClassifier or MLPRegressor.

    Input `features`: [batch, features] float32. One output, [batch, ...] float32: of a classifier
    `probabilities`, as by predict_proba, in the order of `model.classes_`; of a regressor what
    predict returns, as a matrix.

    Args:
        model: The estimator.
        opset: Version of the ONNX operator set.
        batch: Number of rows, or the name of a symbolic dimension.

    Raises:
        ExportError: It is not fitted, or skl2onnx refuses it.
        MissingDependencyError: skl2onnx cannot be imported.
    """
    name = type(model).__name__
    title = f"scikit-learn {name}"
    try:
        import sklearn
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
        from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting {title} needs skl2onnx; run: pip install skl2onnx"
        ) from error
    if not hasattr(model, "n_features_in_"):
        raise ExportError(f"{title} is not fitted; call fit first")
    classifier = hasattr(model, "predict_proba")
    rows = batch if isinstance(batch, int) else None
    columns = int(model.n_features_in_)
    try:
        proto = convert_sklearn(
            model,
            initial_types=[(_INPUT, FloatTensorType([rows, columns]))],
            target_opset={"": opset},
            options={id(model): {"zipmap": False}} if classifier else None,
        )
        if classifier:
            # The label takes operators of ai.onnx.ml; it is the class of the largest probability.
            proto = select_model_inputs_outputs(proto, outputs=["probabilities"])
        elif model.n_outputs_ > 1:
            # skl2onnx ends every regressor in a Reshape to one column.
            proto = select_model_inputs_outputs(proto, outputs=[proto.graph.node[-1].input[0]])
        kept = [entry for entry in proto.opset_import if entry.domain == ""]
        del proto.opset_import[:]
        proto.opset_import.extend(kept)
        # skl2onnx writes the lowest opset that has all operators of the graph.
        proto = onnx.version_converter.convert_version(proto, opset)
    # Its errors have no common base.
    except Exception as error:
        raise ExportError(f"skl2onnx refuses {title}: {one_line(error)}") from error
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(batch, str):
        dim.dim_param = batch

    def run(arrays: Sequence[Array]) -> list[Array]:
        (features,) = arrays
        found = model.predict_proba(features) if classifier else model.predict(features)
        return [np.asarray(found, np.float32).reshape(len(features), -1)]

    examples = (example((rows or 1, columns)),)
    framework = Framework(f"scikit-learn {sklearn.__version__}", run, examples)
    return Source(proto, "scikit-learn", name, framework)
