"""torch's tensors and numpy's arrays, and example inputs; torch is imported when it is needed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter.source import Array


def import_torch(purpose: str) -> Any:
    """Return torch.

    Raises:
        MissingDependencyError: It cannot be imported.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs torch; pip install 'leakyforge[torch]'"
        ) from error
    return torch


def to_array(tensor: Any) -> Array:
    """Return a tensor's values as an array of the same dtype."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def to_tensor(array: Array, device: Any) -> Any:
    """Return an array's values as a tensor of the same dtype."""
    import torch

    if array.dtype == np.dtype(ml_dtypes.bfloat16):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def outputs(value: Any) -> Iterator[Any]:
    """Yield the tensors in what a module returned, in order; others than tensors are passed over.

    torch's exporters flatten tuples, lists and dicts in the same way.
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from outputs(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from outputs(each)


def example_tensors(
    title: str,
    example_inputs: Any,
    input_shapes: Mapping[str, Sequence[int]] | None,
    arguments: Sequence[str],
    tensors: Iterable[Any],
) -> tuple[Any, ...]:
    """Return one tensor for each input.

    Args:
        title: What an error calls the model.
        example_inputs: A tensor, or a tuple or list of them; None with input_shapes.
        input_shapes: Shape of each input by name, for seeded normal values; None otherwise.
        arguments: Names of the inputs that the model has, in order.
        tensors: Its parameters, whose dtype and device the values take.

    Raises:
        ExportError: Neither or both are given, or they do not fit.
    """
    import torch

    if (example_inputs is None) == (input_shapes is None):
        raise ExportError(
            f"{title} needs example_inputs or input_shapes, one of the two; give a tensor for each "
            f"argument, or shapes by name (--input-shape {arguments[0] if arguments else 'x'}="
            "1x3x224x224)"
        )
    if input_shapes is not None:
        wanted = list(arguments[: len(input_shapes)])
        if set(wanted) != set(input_shapes):
            raise ExportError(
                f"{title} has the inputs {', '.join(arguments)}, not {', '.join(input_shapes)}; "
                "give the shape of each by its name"
            )
        floating = (tensor for tensor in tensors if tensor.is_floating_point())
        like = next(floating, torch.zeros(0))
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(*input_shapes[name], generator=generator).to(like.device, like.dtype)
            for name in wanted
        )
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)) and all(
        isinstance(value, torch.Tensor) for value in example_inputs
    ):
        return tuple(example_inputs)
    raise ExportError(
        f"example_inputs of {title} are a {type(example_inputs).__name__}; "
        "give a tensor, or a tuple of one per argument"
    )
