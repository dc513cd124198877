"""A launch plan: what a device runs for a model, in order, over buffers that are planned ahead.

Everything is static: the sizes of the buffers, which of them a kernel is given, its grid and its
groups. A launcher needs no TVM.
"""

import base64
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from leakyforge.errors import ArtifactFormatError
from leakyforge.runtime.artifact import Artifact
from leakyforge.runtime.reference import one_line

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One run of a kernel.

    Attributes:
        kernel: its name in the program.
        buffers: indices of the buffers that are its arguments.
        grid: groups along x, y and z.
        group: work items of a group along x, y and z.
    """

    kernel: str
    buffers: tuple[int, ...]
    grid: Sizes
    group: Sizes


@dataclass(frozen=True)
class LaunchPlan:
    """What computes a model.

    Attributes:
        source: the program in OpenCL C; empty where it is compiled.
        cubin: the program, compiled for one CUDA architecture; empty where it is source.
        buffers: size of each buffer in bytes; buffers whose contents do not live at the same time
            are one.
        inputs: the buffer of each input of the model.
        weights: the buffer of each weight.
        outputs: the buffer of each output.
        launches: in order.
    """

    source: str
    cubin: bytes
    buffers: tuple[int, ...]
    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: tuple[int, ...]
    launches: tuple[Launch, ...]

    def __post_init__(self) -> None:
        """Check that the numbers can be meant.

        Raises:
            ValueError: a buffer does not exist, or a size is not positive.
        """
        used = {*self.inputs, *self.weights, *self.outputs}
        used |= {index for launch in self.launches for index in launch.buffers}
        if used and not 0 <= min(used) <= max(used) < len(self.buffers):
            raise ValueError(f"{len(self.buffers)} buffers, but {max(used)} is used")
        sizes = [size for launch in self.launches for size in (*launch.grid, *launch.group)]
        if min((*sizes, *self.buffers), default=1) < 1:
            raise ValueError("sizes of buffers, grids and groups must be positive")

    def to_json(self) -> bytes:
        """The plan as it is written."""
        fields = {**dataclasses.asdict(self), "cubin": base64.b64encode(self.cubin).decode()}
        return json.dumps(fields, indent=1).encode()


def read_plan(artifact: Artifact) -> LaunchPlan:
    """The plan that an artifact for a device holds.

    Raises:
        ArtifactFormatError: it holds none.
    """
    try:
        return parse_plan(artifact.library)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactFormatError(
            f"{artifact.path} holds no launch plan: {one_line(error)}; compile the model again"
        ) from error


def parse_plan(text: bytes) -> LaunchPlan:
    """A plan out of an artifact.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    fields: dict[str, Any] = json.loads(text)
    launches = tuple(
        Launch(
            str(entry["kernel"]),
            _integers(entry["buffers"]),
            _three(entry["grid"]),
            _three(entry["group"]),
        )
        for entry in fields["launches"]
    )
    return LaunchPlan(
        source=str(fields["source"]),
        cubin=base64.b64decode(fields["cubin"], validate=True),
        buffers=_integers(fields["buffers"]),
        inputs=_integers(fields["inputs"]),
        weights=_integers(fields["weights"]),
        outputs=_integers(fields["outputs"]),
        launches=launches,
    )


def _integers(values: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(value, int) for value in values):
        raise TypeError(f"{values} are not integers")
    return tuple(values)


def _three(values: list[Any]) -> Sizes:
    x, y, z = _integers(values)
    return x, y, z
