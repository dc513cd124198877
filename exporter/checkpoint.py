"""Weights from a file into the graph of a zoo model.

Names are those of the graph's weights, like `conv1.weight`; those of a batch normalization are
torch's: `norm1.weight`, `norm1.bias`, `norm1.running_mean` and `norm1.running_var`.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter.check import one_line
from leakyforge.exporter.source import Array, is_floating
from leakyforge.exporter.torch_tensors import import_torch

# Inputs that are learned, by operator; the constants of others are part of the architecture.
_LEARNED = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "PRelu": ("weight",),
    "InstanceNormalization": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}
# What torch counts and inference does not read.
_IGNORED = "num_batches_tracked"


def is_torchscript_file(path: Path) -> bool:
    """Return whether a `.pt` file holds TorchScript and not a pickle."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> Any:
    """Read a TorchScript file, which executes no Python.

    Raises:
        ExportError: It is truncated.
        MissingDependencyError: torch cannot be imported.
    """
    torch = import_torch(f"reading {path}")
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"{path} is truncated or is not TorchScript: {one_line(error)}; save it again"
        ) from error


def read_state_dict(path: Path) -> dict[str, Array]:
    """Read the tensors of a torch checkpoint without unpickling anything else.

    A dict of tensors, or a dict with exactly one such dict in it, as training programs save it
    beside their counters.

    Raises:
        ExportError: The file is truncated or holds more than tensors and plain values.
        MissingDependencyError: torch cannot be imported.
    """
    torch = import_torch(f"reading {path}")
    try:
        found = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise _unreadable(path, error) from error
        raise ExportError(
            f"{path} holds pickled Python objects, and unpickling runs code; save "
            "module.state_dict(), or the module with torch.export.save or torch.jit.save"
        ) from error
    # What a truncated archive raises has no common base.
    except Exception as error:
        raise _unreadable(path, error) from error
    dicts = [each for each in (found, *_values(found)) if _is_state_dict(torch, each)]
    if len(dicts) != 1:
        raise ExportError(
            f"{path} holds {len(dicts)} dicts of tensors ({type(found).__name__}); save one, "
            "module.state_dict()"
        )
    # numpy lacks bfloat16, and the zoo is float32.
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in dicts[0].items()
    }


def read_safetensors(path: Path) -> dict[str, Array]:
    """Read a safetensors file.

    Raises:
        ExportError: It is truncated or is none.
        MissingDependencyError: The package safetensors cannot be imported.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path} needs the package safetensors; run: pip install safetensors"
        ) from error
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ExportError(
            f"{path} is not a safetensors file, is truncated, or has a dtype that numpy lacks: "
            f"{one_line(error)}"
        ) from error


def put_weights(model: onnx.ModelProto, weights: Mapping[str, Array], path: Path) -> None:
    """Replace the weights of a zoo model's graph by those of a file.

    Args:
        model: The model, which is changed.
        weights: Arrays of floating point by name; converted to float32.
        path: Their file, for the error.

    Raises:
        ExportError: Names or shapes are not those of the graph: all that differ are named.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    places = {name: stored[initializer] for name, initializer in _places(model)}
    given = {name: array for name, array in weights.items() if name.rpartition(".")[2] != _IGNORED}
    problems = [f"{name} is missing" for name in places if name not in given]
    problems += [f"{name} is not in the model" for name in given if name not in places]
    for name in places.keys() & given.keys():
        shape, wanted = given[name].shape, tuple(places[name].dims)
        if shape != wanted:
            problems.append(f"{name} is {_shape(shape)} and should be {_shape(wanted)}")
        elif not is_floating(given[name]):
            problems.append(f"{name} is {given[name].dtype} and should be floating point")
    if problems:
        raise ExportError(
            f"{path} does not fit zoo model {model.graph.name!r}: {'; '.join(sorted(problems))}; "
            "give a file and options of the same network"
        )
    for name, tensor in places.items():
        array = np.ascontiguousarray(given[name], np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _places(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """For each weight its name in a file, and that of its initializer."""
    for node in model.graph.node:
        parts = _LEARNED.get(node.op_type, ())
        for part, initializer in zip(parts, node.input[1:], strict=False):
            yield f"{initializer.rpartition('.')[0]}.{part}", initializer


def _values(found: Any) -> list[Any]:
    return list(found.values()) if isinstance(found, Mapping) else []


def _is_state_dict(torch: Any, value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(each, torch.Tensor) for each in value.values())
    )


def _unreadable(path: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{path} is truncated or is not a torch checkpoint: {one_line(error)}; save it again"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
