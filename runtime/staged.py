"""Running an artifact of several stages: some compiled, the others in ONNX Runtime."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from leakyforge.errors import (
    ArtifactError,
    ExecutionError,
    InputError,
    MissingDependencyError,
)
from leakyforge.runtime.artifact import Artifact
from leakyforge.runtime.manifest import OnnxStage, Stage
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, format_shapes
from leakyforge.runtime.vm import VmFunction, VmLibrary


class _Runs(Protocol):
    """What computes a stage."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs for the inputs in their order."""
        ...


class StagedEngine:
    """The stages of a variant, which hand values to one another by name.

    Args:
        artifact: whose variant has stages.
        threads: of both engines, which take turns.

    Raises:
        ArtifactError: the system's loader refuses the library, or ONNX Runtime a stage.
        InputError: more threads than CPUs.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._path = artifact.path
        self._results = [spec.name for spec in artifact.manifest.outputs]
        self._library = VmLibrary(artifact, threads) if artifact.library else None
        self._stages: list[tuple[Stage, _Runs]] = []
        taken = 0
        for stage in artifact.variant.stages:
            if isinstance(stage, OnnxStage):
                self._stages.append((stage, _OnnxFunction(artifact, stage, threads)))
            else:
                assert self._library is not None
                weights = slice(taken, taken + stage.weights)
                taken += stage.weights
                function = VmFunction(self._library, stage.function, len(stage.outputs), weights)
                self._stages.append((stage, function))
        self._last_reads = _last_reads([stage for stage, _ in self._stages], self._results)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs, owned by the caller, for inputs in the order of the model's.

        Raises:
            ExecutionError: a stage fails on inputs that fit the declared shapes.
        """
        values = dict(feeds)
        for (stage, function), finished in zip(self._stages, self._last_reads, strict=True):
            outputs = function.run({name: values[name] for name in stage.inputs})
            values.update(zip(stage.outputs, outputs, strict=True))
            for name in finished:
                del values[name]
        return [values[name].copy() if name in feeds else values[name] for name in self._results]

    def instrument(self, hook: Callable[..., None] | None) -> None:
        """Have a hook called around every function of the compiled stages; None takes it away."""
        if self._library is None:
            raise InputError(f"no stage of {self._path} is compiled: it has no kernels")
        self._library.instrument(hook)


def _last_reads(stages: list[Stage], results: list[str]) -> list[list[str]]:
    """For each stage, the values that nothing needs after it."""
    needed = set(results)
    last = []
    for stage in reversed(stages):
        names = {*stage.inputs, *stage.outputs}
        last.append(sorted(names - needed))
        needed |= names
    return last[::-1]


class _OnnxFunction:
    """A stage in a session of ONNX Runtime's."""

    def __init__(self, artifact: Artifact, stage: OnnxStage, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"artifact {artifact.path} runs a part of its model in ONNX Runtime, which is not "
                "installed; run: pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # Threads that wait by spinning would take the CPUs from the compiled stage behind it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                artifact.models[stage.model], options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtifactError(
                f"onnxruntime {onnxruntime.__version__} refuses {stage.model} of artifact "
                f"{artifact.path}: {one_line(error)}"
            ) from error
        self._stage = stage
        self._model = artifact.manifest.model

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs of the stage.

        Raises:
            ExecutionError: ONNX Runtime fails on these inputs.
        """
        try:
            outputs = self._session.run(list(self._stage.outputs), dict(feeds))
        except Exception as error:
            raise ExecutionError(
                f"model {self._model!r} failed in ONNX Runtime, in {self._stage.model} on "
                f"{format_shapes(feeds)}: {one_line(error)}"
            ) from error
        # A scalar may come as a number; what is no tensor stays as it is, for the next such stage.
        return [np.asarray(each) if isinstance(each, np.generic) else each for each in outputs]
