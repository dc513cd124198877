"""`export`: a zoo model, an ONNX model or a torch module becomes a checked ONNX file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from leakyforge.errors import ExportError
from leakyforge.exporter.check import checked_model
from leakyforge.exporter.torch_export import export_module, is_torch_module
from leakyforge.files import atomic_file, destination_problem
from leakyforge.models import build
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_opset


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    batch: int | str | None = None,
    example_inputs: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamo: bool = True,
    **options: Any,
) -> Path:
    """Write `model` as one ONNX file that has passed ONNX's checker and strict shape inference.

    The file is written under a temporary name and renamed: on an error nothing is left behind and
    an existing file stays as it was.

    Args:
        model: Name of a zoo model (see `leakyforge.models.ZOO`), an `onnx.ModelProto` with its
            weights inside, or a `torch.nn.Module`, exported in evaluation mode.
        path: The file to write; its folder must exist.
        opset: Version of the ONNX operator set, 13 to 23, and never another one in the file:
            18 if omitted, for a `ModelProto` its own.
        batch: Batch size of a zoo model; a str is the name of a symbolic dimension. For a torch
            module only a str, which makes dimension 0 of every input symbolic.
        example_inputs: For a torch module, required: a tensor, or a tuple of one per argument.
        input_names: For a torch module: names of the inputs, by default those of the arguments.
        output_names: For a torch module: names of the outputs, by default the exporter's choice.
        dynamo: For a torch module: True for torch.export (opset 18 and later), False for the
            TorchScript exporter (opset 20 and earlier).
        **options: Options of a zoo model, like `size=320`.

    Returns:
        The path of the file.

    Raises:
        ExportError: The model cannot be exported, an option does not apply to it or is out of
            range, or the file cannot be written.
        MissingDependencyError: `model` is a torch module and torch cannot be imported.
    """
    destination = Path(path)
    problem = destination_problem(destination)
    if problem is not None:
        raise ExportError(problem)
    if opset is not None:
        opset = checked_opset(opset)
    torch_options = {
        "example_inputs": example_inputs,
        "input_names": input_names,
        "output_names": output_names,
        # Its default is True, so only False was given.
        "dynamo": None if dynamo else False,
    }

    if is_torch_module(model):
        _refuse("a torch module", options)
        if batch is not None and not isinstance(batch, str):
            raise ExportError(
                f"batch={batch!r} cannot be set for a torch module: its example_inputs have one; "
                "give a name like 'N' to make it symbolic"
            )
        proto = export_module(
            model,
            example_inputs,
            opset=DEFAULT_OPSET if opset is None else opset,
            batch=None if batch is None else str(checked_batch(batch)),
            input_names=input_names,
            output_names=output_names,
            dynamo=dynamo,
        )
    elif isinstance(model, str):
        _refuse("a zoo model", torch_options)
        given = {"opset": opset, "batch": batch}
        options |= {name: value for name, value in given.items() if value is not None}
        proto = build(model, **options)
    elif isinstance(model, onnx.ModelProto):
        _refuse("an onnx.ModelProto", options | torch_options | {"batch": batch})
        proto = model
    else:
        raise ExportError(
            f"cannot export a {type(model).__module__}.{type(model).__qualname__}; give the name "
            "of a zoo model, an onnx.ModelProto or a torch.nn.Module"
        )
    data = checked_model(proto, opset=opset).SerializeToString()
    try:
        with atomic_file(destination) as stream:
            stream.write(data)
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    return destination


def _refuse(kind: str, options: dict[str, Any]) -> None:
    """Raise if any of the options is given: ignoring one would hide a mistake."""
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ExportError(f"{kind} takes no option {', '.join(given)}; leave it out")
