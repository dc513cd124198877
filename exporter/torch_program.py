"""A program of `torch.export` becomes an ONNX model, and a `.pt2` file becomes a program.

A `.pt2` file may hold pickles, and unpickling runs code: those that torch can read without are
read so, the others are refused. torch evaluates the file's symbolic expressions with sympy, so that
only files from a trusted place may be read all the same.
"""

import contextlib
import io
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from leakyforge.errors import ExportError
from leakyforge.exporter.foreign import quiet, reason
from leakyforge.exporter.source import Framework, Source
from leakyforge.exporter.torch_export import DYNAMO_OPSET_MIN, strip_sources
from leakyforge.exporter.torch_tensors import (
    example_tensors,
    import_torch,
    outputs,
    to_array,
    to_tensor,
)

# Prefixes of a .pt2 archive's members that torch unpickles whatever they hold.
_PICKLED = (b"/constants/custom_obj_", b"/constants/opaque_obj_")


def is_program(model: Any) -> bool:
    """Return whether `model` is a `torch.export.ExportedProgram`, without importing torch."""
    kind = type(model)
    return (kind.__module__, kind.__qualname__) == (
        "torch.export.exported_program",
        "ExportedProgram",
    )


def read_program(path: Path) -> Any:
    """Read a `.pt2` file.

    Raises:
        ExportError: It is not one, is truncated, or holds pickled objects.
        MissingDependencyError: torch cannot be imported.
    """
    torch = import_torch(f"reading {path}")
    data = path.read_bytes()
    if any(prefix in data for prefix in _PICKLED):
        raise _pickled(path)
    with quiet(), _no_unpickling():
        try:
            return torch.export.load(io.BytesIO(data))
        except pickle.UnpicklingError as error:
            raise _pickled(path) from error
        # Its errors have no common base.
        except Exception as error:
            raise ExportError(
                f"{path} is truncated or is no program of torch.export: {reason(error)}; write it "
                "with torch.export.save"
            ) from error


def _pickled(path: Path) -> ExportError:
    return ExportError(
        f"{path} holds pickled objects, and unpickling runs code; export the program again without "
        "custom objects among its constants and inputs"
    )


@contextlib.contextmanager
def _no_unpickling() -> Iterator[None]:
    """Torch reads tensors only: `torch.export.load` itself would fall back to all of pickle."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def export_program(program: Any, *, example_inputs: Any = None, opset: int) -> Source:
    """Return the ONNX model of a `torch.export.ExportedProgram`.

    Args:
        program: The program; dimensions that it leaves symbolic stay so.
        example_inputs: A tensor, or a tuple of one per input; by default those in the program.
        opset: Version of the ONNX operator set, 18 to 23.

    Raises:
        ExportError: An argument does not fit, or the exporter refuses the program.
        MissingDependencyError: torch cannot be imported.
    """
    torch = import_torch("exporting a torch.export program")
    name = str(program.graph_module.__class__.__name__)
    title = f"torch.export program {name}"
    if opset < DYNAMO_OPSET_MIN:
        raise ExportError(
            f"torch's exporter writes opset {DYNAMO_OPSET_MIN} and later for a program, not "
            f"{opset}; use opset={DYNAMO_OPSET_MIN}"
        )
    if example_inputs is None and program.example_inputs is not None:
        positional, keywords = program.example_inputs
        if keywords:
            raise ExportError(
                f"{title} takes the keyword arguments {', '.join(keywords)}; export it again with "
                "positional ones"
            )
        example_inputs = positional
    arguments = [str(each) for each in program.graph_signature.user_inputs]
    inputs = example_tensors(title, example_inputs, None, arguments, ())
    with quiet():
        try:
            model: onnx.ModelProto = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, verbose=False
            ).model_proto
        # Its errors have no common base.
        except Exception as error:
            raise ExportError(f"torch's exporter refuses {title}: {reason(error)}") from error
    strip_sources(model)

    def run(arrays: Sequence[Any]) -> list[Any]:
        with quiet(), torch.no_grad():
            found = program.module()(
                *(to_tensor(array, like.device) for array, like in zip(arrays, inputs, strict=True))
            )
        return [to_array(tensor) for tensor in outputs(found)]

    examples = tuple(to_array(tensor) for tensor in inputs)
    # A program may refuse other sizes than those it was made with.
    framework = Framework(f"torch {torch.__version__}", run, examples, sizes_fixed=True)
    return Source(model, "torch.export program", name, framework)
