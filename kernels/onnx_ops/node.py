"""What a converter of ours is given: one ONNX node, its inputs in Relax."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax, te
from tvm.relax.frontend.onnx import onnx_frontend

from leakyforge.errors import ModelError
from leakyforge.runtime.tensors import Array


@dataclass(frozen=True)
class Node:
    """A node at its conversion.

    Attributes:
        operator: its ONNX name.
        builder: where bindings go.
        inputs: in Relax, None for one that is left out at the middle.
        attributes: as the front end parsed them; texts are bytes.
        opset: of ai.onnx.
        context: what the front end hands on.
    """

    operator: str
    builder: relax.BlockBuilder
    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    opset: int
    context: Any

    def input(self, position: int) -> Any:
        """An input, None where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def constant(self, position: int, meaning: str) -> Array | None:
        """The value of an input, None where it is left out.

        Raises:
            ModelError: it is not known at compile time.
        """
        value = self.input(position)
        if value is None:
            return None
        if isinstance(value, tvm.ir.GenericConst):
            array: Array = value.value.numpy()
            return array
        if isinstance(value, relax.ShapeExpr):
            return np.array([int(size) for size in value.values])
        raise ModelError(f"{self.operator}: its {meaning} must be known at compile time")

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        value = self.attributes.get(name)
        return default if value is None else str(value.decode())

    def emit_te(self, function: Callable[..., te.Tensor], *arguments: Any) -> relax.Var:
        """Bind what a definition over tensors computes, in a kernel of the operator's name."""
        name = self.operator.lower()
        return self.builder.emit_te(function, *arguments, primfunc_name_hint=name)

    def standard(self, changed: Mapping[str, Any] | None = None) -> Any:
        """What the front end's own converter makes of the node, some attributes changed."""
        converter = STANDARD[self.operator].get_converter(self.opset)
        return converter(
            self.builder, self.inputs, {**self.attributes, **(changed or {})}, self.context
        )


STANDARD: Mapping[str, Any] = onnx_frontend._get_convert_map()


@dataclass(frozen=True)
class Converter:
    """A converter of ours, as the front end's table holds them.

    Attributes:
        operator: its ONNX name.
        convert: from a node to its result; a `relax.Tuple` where it has several.
    """

    operator: str
    convert: Callable[[Node], Any]

    def get_converter(self, opset: int) -> Callable[..., Any]:
        """The call that the front end makes for a node of that opset."""

        def call(builder: relax.BlockBuilder, inputs: Any, attributes: Any, context: Any) -> Any:
            return self.convert(Node(self.operator, builder, inputs, attributes, opset, context))

        return call


def is_static(value: relax.Expr, first: int = 0) -> bool:
    """Whether the sizes of a tensor are known at compile time, from axis `first` on."""
    shape = value.ty.shape
    return shape is not None and all(
        isinstance(size, tvm.tirx.IntImm) for size in list(shape)[first:]
    )


def static_shape(value: relax.Expr, operator: str, first: int = 0) -> tuple[int, ...]:
    """Sizes of a tensor, from axis `first` on.

    Raises:
        ModelError: one of them is not known at compile time.
    """
    if not is_static(value, first):
        raise ModelError(
            f"{operator}: the shape of its input must be known at compile time; give the symbolic "
            "dimensions of the model's inputs a size with --shape"
        )
    return tuple(int(size) for size in list(value.ty.shape)[first:])


def numpy_name(kind: int) -> str:
    """Numpy's name of an ONNX element type."""
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind))


def dtype_of(value: relax.Expr) -> str:
    """Numpy's name of a tensor's dtype."""
    return str(value.ty.dtype)
