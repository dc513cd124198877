"""ONNX's standard interface to an engine (`onnx.backend.base`), over the compiler and a session.

from leakyforge.kernels import backend
outputs = backend.prepare(model).run([x])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from leakyforge.errors import InputError, ModelError, TargetError
from leakyforge.kernels.compile import compile_in_memory
from leakyforge.kernels.constant_inputs import bind_inputs, constant_inputs
from leakyforge.kernels.onnx_model import fix_shapes, load_onnx
from leakyforge.onnx_graph import graph_inputs
from leakyforge.runtime.session import Session
from leakyforge.runtime.tensors import Array

_CPU = "CPU"


class PreparedModel(BackendRep):  # type: ignore[misc]
    """A checked model, compiled when its inputs are first seen.

    Shapes are compiled in, and so are the values of inputs that decide shapes (see
    `constant_inputs`): a run with others compiles again.

    Args:
        model: that passed the checks.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._inputs = [value.name for value in graph_inputs(model)]
        self._constants = constant_inputs(model)
        self._key: object = None
        self._session: Session | None = None

    def run(self, inputs: Any, **_options: Any) -> tuple[Array, ...]:
        """Run the model once.

        Args:
            inputs: an array for each input, in the order of the graph.

        Returns:
            An array for each output, in the order of the graph.

        Raises:
            InputError: another number of inputs, or one that is no tensor.
            ModelError: the model cannot be imported at these shapes (see its subclasses).
            CompileError: TVM fails on the graph.
            ExecutionError: the compiled code fails.
        """
        feeds = self._feeds(inputs)
        session = self._compiled(feeds)
        names = [spec.name for spec in session.get_inputs()]
        return tuple(session.run(None, {name: feeds[name] for name in names}))

    def _feeds(self, inputs: Sequence[Any]) -> dict[str, Array]:
        if len(inputs) != len(self._inputs):
            raise InputError(f"{len(inputs)} inputs; the model takes: {', '.join(self._inputs)}")
        feeds = {}
        for name, value in zip(self._inputs, inputs, strict=True):
            if value is None or isinstance(value, (list, tuple, dict)):
                raise InputError(f"input {name!r} is no tensor, and only tensors are supported")
            feeds[name] = np.asarray(value)
        return feeds

    def _compiled(self, feeds: dict[str, Array]) -> Session:
        """The session for these shapes and constants; the last one is kept."""
        constants = {name: feeds[name] for name in self._constants}
        key = (
            [array.shape for array in feeds.values()],
            [array.tobytes() for array in constants.values()],
        )
        if self._session is None or key != self._key:
            shapes = {name: array.shape for name, array in feeds.items() if name not in constants}
            fixed = fix_shapes(bind_inputs(self._model, constants), shapes)
            self._session = Session(compile_in_memory(fixed))
            self._key = key
        return self._session


class LeakyforgeBackend(Backend):  # type: ignore[misc]
    """leakyforge as ONNX's tools and its test suite call it; on the CPU of this machine."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = _CPU, **_options: Any) -> PreparedModel:
        """Check a model; it is compiled when its inputs are first seen.

        Raises:
            ModelError: it fails ONNX's checker, or has inputs or outputs that are no tensors.
            TargetError: the device is not `CPU`.
        """
        if not cls.supports_device(device):
            raise TargetError(f"device {device!r} is not supported; use {_CPU}")
        checked = load_onnx(model).proto
        for value in (*checked.graph.input, *checked.graph.output):
            if value.type.WhichOneof("value") not in (None, "tensor_type"):
                kind = value.type.WhichOneof("value").removesuffix("_type")
                raise ModelError(
                    f"{value.name!r} is of ONNX type {kind}, and only tensors are supported"
                )
        return PreparedModel(checked)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether code for a device can be compiled and run here: `CPU`, or `CPU:0`."""
        return device in (_CPU, f"{_CPU}:0")


prepare = LeakyforgeBackend.prepare
run_model = LeakyforgeBackend.run_model
supports_device = LeakyforgeBackend.supports_device
