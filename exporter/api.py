"""`export`: a model of any kind becomes a checked ONNX file that computes the same."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from leakyforge.errors import ExportError, ModelError
from leakyforge.exporter.check import checked_model
from leakyforge.exporter.checkpoint import (
    is_torchscript_file,
    put_weights,
    read_safetensors,
    read_state_dict,
    read_torchscript,
)
from leakyforge.exporter.dtypes import DTYPES, convert
from leakyforge.exporter.keras_export import (
    export_keras,
    export_saved_model,
    is_keras_model,
    read_keras,
)
from leakyforge.exporter.onnx_file import read_onnx
from leakyforge.exporter.provenance import stamp
from leakyforge.exporter.sklearn_export import export_perceptron, is_perceptron
from leakyforge.exporter.source import Source, sha256
from leakyforge.exporter.torch_export import export_module, is_torch_module, is_torchscript
from leakyforge.exporter.torch_program import export_program, is_program, read_program
from leakyforge.exporter.verify import verify
from leakyforge.files import atomic_file, destination_problem
from leakyforge.models import ZOO, build
from leakyforge.models.options import DEFAULT_OPSET, OPSET_MIN, checked_batch, checked_opset
from leakyforge.opsets import at_least, check_opset, to_opset

# Endings that make a name a path; what lies there is looked into.
_PICKLES = (".pkl", ".pickle", ".joblib")
_ENDINGS = (
    ".onnx", ".pt", ".pth", ".pt2", ".safetensors", ".keras", ".h5", ".cfg", *_PICKLES,
)  # fmt: skip

# What the message of a missing file and of an unknown one asks for.
_FILES = ".onnx, .pt, .pth, .pt2, .safetensors, .keras, .h5, .cfg, or the folder of a SavedModel"
_PARAMETERS = frozenset(
    (
        "opset", "batch", "example_inputs", "input_shapes", "input_names", "output_names", "dynamo",
        "zoo", "weights",
    )
)  # fmt: skip


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    batch: int | str | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamo: bool = True,
    zoo: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    simplify: bool = False,
    dtype: str = "float32",
    **options: Any,
) -> Path:
    """Write `model` as one ONNX file that has passed ONNX's checker and strict shape inference.

    Where the model is from a framework, the outputs of both are compared first, on seeded random
    inputs and with a tolerance from dtype and number of roundings. The file's metadata say where
    it is from (`leakyforge.exporter.provenance`). It is written under a temporary name and renamed:
    on an error nothing is left behind and an existing file stays as it was.

    Pickled Python objects are never read, since that runs code. TorchScript runs no Python; `.pt2`,
    Keras and SavedModel files describe programs for their framework: give only those that you
    trust.

    Args:
        model: One of

            - name of a zoo model (see `leakyforge.models.ZOO`)
            - `onnx.ModelProto` with its weights inside, or a path to `.onnx`
            - `torch.nn.Module`, exported in evaluation mode
            - `torch.jit.ScriptModule`, or a path to TorchScript (`.pt`, `.pth`)
            - `torch.export.ExportedProgram`, or a path to `.pt2`
            - path to a state dict (`.pt`, `.pth`) or `.safetensors`, with `zoo`
            - path to a network of darknet (`.cfg`), with `weights`
            - `keras.Model`, or a path to `.keras`, `.h5` or the folder of a SavedModel
            - fitted MLPClassifier or MLPRegressor of scikit-learn
        path: The file to write; its folder must exist.
        opset: Version of the ONNX operator set, 13 to 23, and never another one in the file:
            18 if omitted; an ONNX model keeps its own, or is raised to 13.
        batch: Batch size, 1 if omitted, of a zoo, darknet, Keras or scikit-learn model; a str is
            the name of a symbolic dimension. For torch only a str, which makes dimension 0 of every
            input symbolic.
        example_inputs: For torch: a tensor, or a tuple of one per argument.
        input_shapes: For torch, instead of example_inputs, and for Keras models with open sizes:
            shape by input name.
        input_names: For a torch module: names of the inputs, by default those of the arguments.
        output_names: For a torch module: names of the outputs, by default the exporter's choice.
        dynamo: For a torch module: True for torch.export (opset 18 and later), False for the
            TorchScript exporter (opset 20 and earlier), which TorchScript takes always.
        zoo: For a file of weights: name of the zoo model that they are for.
        weights: For a network of darknet: its file of weights.
        simplify: Fold what is constant and BatchNormalization, inline functions, and write
            LeakyRelu where the model computes it with other operators; `compile` does so anyway.
        dtype: `float32` for the model as it is, `float16`, or `int8` (QDQ, calibrated on seeded
            random inputs in the range that the model declares; with inputs of your own, see
            `leakyforge.exporter.quantize`).
        **options: Options of a zoo model, like `size=320`.

    Returns:
        The path of the file.

    Raises:
        ExportError: The model cannot be read or exported, its outputs differ, an option does not
            apply to it or is out of range, or the file cannot be written.
        MissingDependencyError: A package that the kind of model needs cannot be imported.
    """
    destination = Path(path)
    problem = destination_problem(destination)
    if problem is not None:
        raise ExportError(problem)
    if opset is not None:
        opset = checked_opset(opset)
    if dtype not in DTYPES:
        raise ExportError(f"dtype={dtype!r} is unknown; use {', '.join(DTYPES)}")
    given = {
        "opset": opset,
        "batch": batch,
        "example_inputs": example_inputs,
        "input_shapes": input_shapes,
        "input_names": input_names,
        "output_names": output_names,
        # Its default is True, so only False was given.
        "dynamo": None if dynamo else False,
        "zoo": zoo,
        "weights": weights,
        **options,
    }
    given = {name: value for name, value in given.items() if value is not None}
    source = _from_path(model, given) if _is_path(model) else _from_object(model, given)
    checked = checked_model(source.proto, opset=opset)
    errors = verify(source, checked)
    if simplify:
        # Not at the top: it loads onnxscript, which takes half a second.
        from leakyforge.exporter.simplify import simplify as simplified

        checked = checked_model(simplified(checked))
    if dtype != "float32":
        checked = checked_model(convert(checked, dtype))
    stamp(checked, source, errors, dtype)
    data = checked.SerializeToString()
    try:
        with atomic_file(destination) as stream:
            stream.write(data)
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    return destination


def _is_path(model: Any) -> bool:
    if isinstance(model, str):
        is_file = model.lower().endswith(_ENDINGS) or os.sep in model or Path(model).exists()
        return model not in ZOO and is_file
    return isinstance(model, os.PathLike)


def _from_object(model: Any, given: dict[str, Any]) -> Source:
    """Convert a model in memory, or build one of the zoo."""
    if isinstance(model, str):
        if "weights" in given:
            raise ExportError(
                f"weights={str(given['weights'])!r} cannot be given for zoo model {model}; give "
                f"that file as the model, with zoo={model!r} (--zoo {model})"
            )
        _allow("a zoo model", given, "opset", "batch", *(given.keys() - _PARAMETERS))
        return Source(build(model, **given), "zoo", model)
    if isinstance(model, onnx.ModelProto):
        _allow("an onnx.ModelProto", given, "opset")
        return Source(_at_opset(model, given), "onnx", model.graph.name)
    # On torch a Keras model is a torch module too.
    if is_keras_model(model):
        _allow("a Keras model", given, "opset", "batch", "input_shapes")
        return export_keras(model, **_with_opset(given))
    if is_torch_module(model):
        kind = "TorchScript" if is_torchscript(model) else "a torch module"
        _allow(
            kind, given,
            "opset", "batch", "example_inputs", "input_shapes", "input_names", "output_names",
            "dynamo",
        )  # fmt: skip
        if not isinstance(given.get("batch", ""), str):
            raise ExportError(
                f"batch={given['batch']!r} cannot be set for {kind}: its example_inputs have one; "
                "give a name like 'N' to make it symbolic"
            )
        return export_module(model, **_with_opset(given))
    if is_program(model):
        _allow("a torch.export program", given, "opset", "example_inputs")
        return export_program(model, **_with_opset(given))
    if is_perceptron(model):
        _allow("a scikit-learn model", given, "opset", "batch")
        return export_perceptron(model, **_with_opset(given))
    raise ExportError(
        f"cannot export a {type(model).__module__}.{type(model).__qualname__}; give the name of a "
        "zoo model, a path, an onnx.ModelProto, or a model of torch, Keras or scikit-learn (MLP)"
    )


def _from_path(model: Any, given: dict[str, Any]) -> Source:
    """Read what lies at a path and convert it."""
    path = Path(model)
    if not path.exists():
        raise ExportError(f"{path} does not exist; give the path of a file ({_FILES})")
    try:
        source = _read(path, given)
        if source.files:
            return source
        return dataclasses.replace(source, name=path.name, files={"source": sha256(path)})
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, given: dict[str, Any]) -> Source:
    ending = path.suffix.lower()
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ExportError(f"{path} is a directory without a saved_model.pb; give {_FILES}")
        _allow("a SavedModel", given, "opset", "batch", "input_shapes")
        return export_saved_model(path, **_with_opset(given))
    if ending in _PICKLES:
        raise ExportError(
            f"{path} is a pickle, and unpickling runs the code in it; load it yourself if you "
            "trust it and give the object to leakyforge.export"
        )
    if ending == ".onnx":
        _allow("an ONNX file", given, "opset")
        source = read_onnx(path)
        return dataclasses.replace(source, proto=_at_opset(source.proto, given))
    if ending == ".cfg":
        return _darknet(path, given)
    if ending in (".keras", ".h5"):
        _allow("a Keras file", given, "opset", "batch", "input_shapes")
        return _from_object(read_keras(path), given)
    if ending == ".pt2":
        return _from_object(read_program(path), given)
    if ending == ".safetensors":
        return _zoo_with_weights(path, "safetensors", given)
    if ending in (".pt", ".pth"):
        if is_torchscript_file(path):
            return _from_object(read_torchscript(path), given)
        return _zoo_with_weights(path, "state dict", given)
    raise ExportError(f"cannot tell by its name what {path} is; give {_FILES}")


def _zoo_with_weights(path: Path, kind: str, given: dict[str, Any]) -> Source:
    """A zoo model with the weights of a file."""
    options = dict(given)
    zoo = options.pop("zoo", None)
    # First, since what is no file of weights at all should be called that.
    weights = read_safetensors(path) if kind == "safetensors" else read_state_dict(path)
    if zoo is None:
        raise ExportError(
            f"{path} holds weights without their network; name its zoo model with zoo=NAME "
            f"(--zoo NAME), one of {', '.join(sorted(ZOO))}"
        )
    _allow("a file of weights", options, "opset", "batch", *(options.keys() - _PARAMETERS))
    proto = build(zoo, **options)
    put_weights(proto, weights, path)
    return Source(proto, f"{kind} for zoo model {zoo}", path.name, files={"source": sha256(path)})


def _darknet(path: Path, given: dict[str, Any]) -> Source:
    _allow("a network of darknet", given, "opset", "batch", "weights")
    options = dict(given)
    weights = options.pop("weights", None)
    if weights is None:
        raise ExportError(
            f"{path} holds no weights; give their file with weights=FILE (--weights FILE)"
        )
    # Not at the top: only this kind of source needs it.
    from leakyforge.models.darknet import read_darknet

    proto = read_darknet(path, Path(weights), **options)
    files = {"source": sha256(path), "weights": sha256(Path(weights))}
    return Source(proto, "darknet", path.name, files=files)


def _at_opset(model: onnx.ModelProto, given: Mapping[str, Any]) -> onnx.ModelProto:
    """An ONNX model at the opset that is asked for, else at one that the checks take."""
    try:
        check_opset(model, f"model {model.graph.name!r}")
        if "opset" in given:
            return to_opset(model, given["opset"])
        return at_least(model, OPSET_MIN)
    except ModelError as error:
        raise ExportError(str(error)) from error


def _with_opset(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a converter: the default opset, and a batch that is checked."""
    options = {"opset": DEFAULT_OPSET, **given}
    if "batch" in options:
        options["batch"] = checked_batch(options["batch"])
    return options


def _allow(kind: str, given: Mapping[str, Any], *names: str) -> None:
    """Raise if an option is given that is not among `names`: ignoring it would hide a mistake."""
    wrong = sorted(given.keys() - set(names))
    if wrong:
        raise ExportError(f"{kind} takes no option {', '.join(wrong)}; leave it out")
