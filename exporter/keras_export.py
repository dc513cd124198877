"""A Keras model or a TensorFlow SavedModel becomes an ONNX model.

Keras writes ONNX itself (`model.export`), through tf2onnx where it runs on TensorFlow and through
torch's exporter where it runs on torch; a SavedModel goes through tf2onnx.
Source: https://keras.io/api/models/model_saving_apis/export/.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter.foreign import quiet, reason
from leakyforge.exporter.source import Array, Framework, Source, example

Shapes = Mapping[str, Sequence[int]]


def is_keras_model(model: Any) -> bool:
    """Return whether `model` is a `keras.Model`, without importing Keras."""
    return any(
        base.__module__.split(".")[0] == "keras" and base.__qualname__ == "Model"
        for base in type(model).__mro__
    )


def read_keras(path: Path) -> Any:
    """Read a `.keras` or `.h5` file, without the Python code that a Lambda layer may hold.

    Raises:
        ExportError: Keras refuses it.
        MissingDependencyError: Keras or its backend cannot be imported.
    """
    keras = _import_keras(f"reading {path}")
    with quiet():
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        # Its errors have no common base.
        except Exception as error:
            raise ExportError(
                f"{path} is truncated, is not a Keras model, or holds Python code, which is "
                f"refused: {reason(error)}; save it again with model.save"
            ) from error


def export_keras(
    model: Any, *, opset: int, batch: int | str = 1, input_shapes: Shapes | None = None
) -> Source:
    """Return the ONNX model of a Keras model at inference.

    Args:
        model: A `keras.Model` with defined inputs (Sequential or functional).
        opset: Version of the ONNX operator set.
        batch: Batch size, or the name of a symbolic dimension.
        input_shapes: The whole shape of inputs with dimensions that are open besides the batch.

    Raises:
        ExportError: A shape is missing or does not fit, or Keras refuses the model.
        MissingDependencyError: Keras or its backend cannot be imported.
    """
    keras = _import_keras("exporting a Keras model")
    title = f"Keras model {model.name}"
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ExportError(f"{title} has no inputs yet; call it once on an array, then export it")
    specs = [(each.name, tuple(each.shape), str(each.dtype)) for each in inputs]
    shapes = _full_shapes(title, specs, batch, input_shapes)
    signature = [
        keras.InputSpec(shape=shape, dtype=dtype, name=name)
        for (name, _, dtype), shape in zip(specs, shapes, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder, quiet():
        file = Path(folder) / "model.onnx"
        try:
            if not model.built:
                model.build([shape for _, shape, _ in specs])
            model.export(
                str(file),
                format="onnx",
                verbose=False,
                input_signature=signature if len(signature) == 1 else [signature],
                opset_version=opset,
            )
            proto = onnx.load(file)
        except ImportError as error:
            raise MissingDependencyError(
                f"exporting {title} needs what Keras lacks: {reason(error)}; "
                "run: pip install tf2onnx"
            ) from error
        # Its errors have no common base.
        except Exception as error:
            raise ExportError(f"Keras refuses to export {title}: {reason(error)}") from error
    _name_batch(proto, batch)

    def run(arrays: Sequence[Array]) -> list[Array]:
        with quiet():
            found = model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)
            return [
                np.asarray(keras.ops.convert_to_numpy(each)) for each in keras.tree.flatten(found)
            ]

    name = f"keras {keras.__version__} on {keras.backend.backend()}"
    return Source(proto, "Keras model", model.name, Framework(name, run, _examples(specs, shapes)))


def export_saved_model(
    folder: Path, *, opset: int, batch: int | str = 1, input_shapes: Shapes | None = None
) -> Source:
    """Return the ONNX model of the signature `serving_default` of a TensorFlow SavedModel.

    Its graph is run to compare it, and operators of TensorFlow can read and write files: only
    folders from a trusted place may be given.

    Args:
        folder: The folder with `saved_model.pb`.
        opset: Version of the ONNX operator set.
        batch: Batch size, or the name of a symbolic dimension, where the signature leaves it open.
        input_shapes: The whole shape of inputs with dimensions that are open besides the batch.

    Raises:
        ExportError: There is no such signature, a shape is missing, or tf2onnx refuses the graph.
        MissingDependencyError: TensorFlow or tf2onnx cannot be imported.
    """
    title = f"SavedModel {folder.name}"
    with quiet():
        try:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            import tensorflow as tf
            import tf2onnx
        except ImportError as error:
            raise MissingDependencyError(
                f"exporting {title} needs TensorFlow and tf2onnx; "
                "run: pip install tensorflow tf2onnx"
            ) from error
        try:
            loaded = tf.saved_model.load(str(folder))
            signatures = loaded.signatures
            found = signatures.get("serving_default")
            if found is None:
                names = ", ".join(signatures) or "none"
                raise ExportError(
                    f"{title} has no signature serving_default but {names}; save it with that one"
                )
            # A signature has names and no order.
            specs = [
                (name, tuple(each.shape), each.dtype.name)
                for name, each in sorted(found.structured_input_signature[1].items())
            ]
            shapes = _full_shapes(title, specs, batch, input_shapes)
            wanted = [
                tf.TensorSpec(shape, dtype, name)
                for (name, _, dtype), shape in zip(specs, shapes, strict=True)
            ]

            def call(*tensors: Any) -> Any:
                names = (name for name, _, _ in specs)
                # Through `loaded`: the variables live only as long as it does.
                serve = loaded.signatures["serving_default"]
                return serve(**dict(zip(names, tensors, strict=True)))

            proto, _ = tf2onnx.convert.from_function(
                tf.function(call, input_signature=wanted), input_signature=wanted, opset=opset
            )
        except ExportError:
            raise
        # Their errors have no common base.
        except Exception as error:
            raise ExportError(f"tf2onnx refuses {title}: {reason(error)}") from error
    _name_batch(proto, batch)
    outputs = [value.name for value in proto.graph.output]

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = call(*(tf.constant(array) for array in arrays))
        return [np.asarray(results[name]) for name in outputs]

    framework = Framework(f"tensorflow {tf.__version__}", run, _examples(specs, shapes))
    return Source(proto, "SavedModel", folder.name, framework)


def _import_keras(purpose: str) -> Any:
    with quiet():
        try:
            # TensorFlow's C++ logs beside Python's streams.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            import keras
        except ImportError as error:
            raise MissingDependencyError(
                f"{purpose} needs Keras and its backend ({reason(error)}); run: pip install "
                "keras tensorflow tf2onnx, or with torch installed pip install keras and set "
                "KERAS_BACKEND=torch"
            ) from error
    return keras


def _full_shapes(
    title: str,
    specs: Sequence[tuple[str, tuple[int | None, ...], str]],
    batch: int | str,
    given: Shapes | None,
) -> list[tuple[int | None, ...]]:
    """The shape of each input, in which only a symbolic batch is still None."""
    given = given or {}
    unknown = sorted(given.keys() - {name for name, _, _ in specs})
    if unknown:
        names = ", ".join(name for name, _, _ in specs)
        raise ExportError(f"{title} has no input {', '.join(unknown)}; its inputs are {names}")
    shapes = []
    for name, declared, _ in specs:
        first = batch if isinstance(batch, int) else None
        shape = tuple(given.get(name, declared))
        if name not in given and shape and shape[0] is None:
            shape = (first, *shape[1:])
        fits = len(shape) == len(declared) and all(
            old in (None, new) for old, new in zip(declared, shape, strict=True)
        )
        if not fits or None in shape[1:]:
            raise ExportError(
                f"input {name!r} of {title} has the shape {list(declared)}, not {list(shape)}; "
                f"give all sizes with input_shapes (--input-shape {name}=1x...)"
            )
        shapes.append(shape)
    return shapes


def _examples(
    specs: Sequence[tuple[str, tuple[int | None, ...], str]],
    shapes: Sequence[tuple[int | None, ...]],
) -> tuple[Array, ...]:
    return tuple(
        example([1 if size is None else size for size in shape], dtype)
        for (_, _, dtype), shape in zip(specs, shapes, strict=True)
    )


def _name_batch(model: onnx.ModelProto, batch: int | str) -> None:
    """Give dimension 0 of inputs and outputs, where it is symbolic, the name that was asked for."""
    # Keras and TensorFlow have no names of dimensions: each exporter invents others.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output) if isinstance(batch, str) else ():
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = str(batch)
