"""A torch module or TorchScript becomes an ONNX model, by one of torch's two exporters.

Source: https://docs.pytorch.org/docs/stable/onnx.html. torch is imported only when it is needed.
"""

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from leakyforge.errors import ExportError
from leakyforge.exporter.check import all_nodes, check_bytes, one_line
from leakyforge.exporter.foreign import quiet, reason
from leakyforge.exporter.source import Framework, Source
from leakyforge.exporter.torch_tensors import (
    example_tensors,
    import_torch,
    outputs,
    to_array,
    to_tensor,
)

# Outside these the exporters warn and write another opset, or operators they do not know.
DYNAMO_OPSET_MIN = 18
TORCHSCRIPT_OPSET_MAX = 20


def is_torch_module(model: Any) -> bool:
    """Return whether `model` is a `torch.nn.Module`, without importing torch."""
    return _is_a(model, "torch.nn.modules.module", "Module")


def is_torchscript(model: Any) -> bool:
    """Return whether `model` is a `torch.jit.ScriptModule`, without importing torch."""
    return _is_a(model, "torch.jit._script", "ScriptModule")


def _is_a(model: Any, module: str, name: str) -> bool:
    return any(
        (base.__module__, base.__qualname__) == (module, name) for base in type(model).__mro__
    )


def export_module(
    module: Any,
    *,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    opset: int,
    batch: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamo: bool = True,
) -> Source:
    """Return the ONNX model of `module` in evaluation mode; the module's modes stay as they are.

    Args:
        module: A `torch.nn.Module`, or a `torch.jit.ScriptModule`, which goes through the
            TorchScript exporter always.
        example_inputs: A tensor, or a tuple or list of one tensor per argument.
        input_shapes: Instead of example_inputs, the shape of each argument by its name in
            `forward`; the dtype is that of the parameters.
        opset: Version of the ONNX operator set, 18 to 23 for dynamo, 13 to 20 for TorchScript.
        batch: Name of dimension 0 of every input if that is to be symbolic.
        input_names: Names of the inputs; by default those of the arguments of `forward`.
        output_names: Names of the outputs; by default the exporter's choice.
        dynamo: Which exporter: torch.export (True) or TorchScript (False).

    Raises:
        ExportError: An argument does not fit, the exporter refuses the module, or what it made is
            not what was asked for.
        MissingDependencyError: torch cannot be imported.
    """
    torch = import_torch("exporting a torch module")
    scripted = is_torchscript(module)
    dynamo = dynamo and not scripted
    kind = "TorchScript" if scripted else "torch module"
    name = str(module.original_name) if scripted else type(module).__name__
    title = f"{kind} {name}"
    if dynamo and opset < DYNAMO_OPSET_MIN:
        raise ExportError(
            f"torch's dynamo exporter writes opset {DYNAMO_OPSET_MIN} and later, not {opset}; "
            f"use opset={DYNAMO_OPSET_MIN} or dynamo=False"
        )
    other = "" if scripted else " or dynamo=True"
    if not dynamo and opset > TORCHSCRIPT_OPSET_MAX:
        raise ExportError(
            f"torch's TorchScript exporter writes opset {TORCHSCRIPT_OPSET_MAX} and earlier, "
            f"not {opset}; use opset={TORCHSCRIPT_OPSET_MAX}{other}"
        )
    tensors = (*module.parameters(), *module.buffers())
    arguments = _arguments(module)
    inputs = example_tensors(title, example_inputs, input_shapes, arguments, tensors)
    names = _checked_names(title, arguments, input_names, len(inputs))
    check_bytes(sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    export = _dynamo if dynamo else _torchscript
    with _evaluation_mode(module), quiet() as caught:
        # In front of "always": torch's own modules warn about values that no input changes.
        torch.jit.TracerWarning.ignore_lib_warnings()
        try:
            model = export(
                torch,
                module,
                inputs,
                opset=opset,
                batch=batch,
                input_names=names,
                output_names=None if output_names is None else list(output_names),
            )
        # Whatever is wrong in the module's own code comes through here as well.
        except Exception as error:
            exporter = "dynamo" if dynamo else "TorchScript"
            raise ExportError(
                f"torch's {exporter} exporter refuses {title}: {reason(error)}; check that it "
                "runs on example_inputs and that no Python branch depends on a tensor's values"
            ) from error
    _refuse_frozen_values(title, caught, torch.jit.TracerWarning)
    _check_result(title, model, batch, names, output_names)
    strip_sources(model)

    def run(arrays: Sequence[Any]) -> list[Any]:
        with _evaluation_mode(module), quiet(), torch.no_grad():
            found = module(
                *(to_tensor(array, like.device) for array, like in zip(arrays, inputs, strict=True))
            )
        return [to_array(tensor) for tensor in outputs(found)]

    examples = tuple(to_array(tensor) for tensor in inputs)
    return Source(model, kind, name, Framework(f"torch {torch.__version__}", run, examples))


def _arguments(module: Any) -> list[str]:
    """Names of the positional arguments of `forward`."""
    if is_torchscript(module):
        return [argument.name for argument in module.forward.schema.arguments[1:]]
    parameters = inspect.signature(module.forward).parameters.values()
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _checked_names(
    title: str, arguments: list[str], input_names: Sequence[str] | None, count: int
) -> list[str]:
    if input_names is None:
        # With *args there are fewer names than inputs.
        names = arguments[:count]
        return names if len(names) == count else [f"input_{i}" for i in range(count)]
    if len(input_names) != count:
        raise ExportError(
            f"{title} has {count} example_inputs and {len(input_names)} input_names; "
            "give one name for each"
        )
    return list(input_names)


def _dynamo(
    torch: Any, module: Any, inputs: tuple[Any, ...], *, opset: int, batch: str | None, **names: Any
) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=None if batch is None else tuple({0: batch} for _ in inputs),
        verbose=False,
        **names,
    )
    return program.model_proto


def _torchscript(
    torch: Any, module: Any, inputs: tuple[Any, ...], *, opset: int, batch: str | None, **names: Any
) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        module,
        inputs,
        file,
        dynamo=False,
        opset_version=opset,
        dynamic_axes=None if batch is None else {name: {0: batch} for name in names["input_names"]},
        **names,
    )
    return onnx.load_model_from_string(file.getvalue())


@contextlib.contextmanager
def _evaluation_mode(module: Any) -> Iterator[None]:
    """Evaluation mode for the export: the dynamo exporter would keep dropout as it is."""
    # A frozen ScriptModule has no mode.
    modes = [(part, part.training) for part in module.modules() if hasattr(part, "training")]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _refuse_frozen_values(
    title: str, caught: list[warnings.WarningMessage], tracer_warning: type[Warning]
) -> None:
    """Refuse what the tracer recorded as a constant although it depends on the inputs."""
    for warning in caught:
        if issubclass(warning.category, tracer_warning):
            raise ExportError(
                f"torch's TorchScript exporter would fix values of {title} that depend on its "
                f"inputs, at {warning.filename}:{warning.lineno} "
                f"({one_line(str(warning.message).split('.')[0])}); use dynamo=True"
            )


def _check_result(
    title: str,
    model: onnx.ModelProto,
    batch: str | None,
    input_names: list[str],
    output_names: Sequence[str] | None,
) -> None:
    found_inputs = [value.name for value in model.graph.input]
    if found_inputs != input_names:
        raise ExportError(
            f"{title} became a graph with the inputs {', '.join(found_inputs)} instead of "
            f"{', '.join(input_names)}; leave out the inputs that it does not use"
        )
    found_outputs = [value.name for value in model.graph.output]
    if output_names is not None and found_outputs != list(output_names):
        raise ExportError(
            f"{title} has {len(found_outputs)} outputs and {len(output_names)} output_names; "
            "give one name for each"
        )
    for value in model.graph.input if batch is not None else ():
        if value.type.tensor_type.shape.dim[0].dim_param != batch:
            raise ExportError(
                f"the batch of input {value.name!r} of {title} is not symbolic after the export; "
                "the module fixes it, so leave batch out"
            )


def strip_sources(model: onnx.ModelProto) -> None:
    """Drop the stack traces that the dynamo exporter keeps: paths and code of this machine."""
    for node in all_nodes(model):
        del node.metadata_props[:]
