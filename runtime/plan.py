"""A launch plan: what a device runs for a model, in order, over buffers that are planned ahead.

Everything is static: where the buffers lie, which of them a kernel is given, its grid and its
groups. What a run computes lies in one arena, where tensors that are not needed at the same time
share memory. A launcher needs no TVM.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leakyforge.errors import ArtifactFormatError
from leakyforge.runtime.artifact import Artifact
from leakyforge.runtime.manifest import WeightSpec
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import TensorSpec, numpy_dtype

Sizes = tuple[int, int, int]
# Of a CUDA grid along x.
_MOST_GROUPS = 2**31 - 1

# Buffers begin at multiples of it in the arena: CL_DEVICE_MEM_BASE_ADDR_ALIGN of NVIDIA's devices,
# the largest in use. WebGPU's minStorageBufferOffsetAlignment is at most 256, and CUDA's vectors of
# four numbers want 16.
ALIGNMENT = 512


@dataclass(frozen=True)
class Buffer:
    """Memory of one tensor, or of several that lie in the arena.

    Attributes:
        size: in bytes.
        offset: of its first byte in the arena; None for memory of its own, which weights have.
    """

    size: int
    offset: int | None = None


@dataclass(frozen=True)
class Launch:
    """One run of a kernel.

    Attributes:
        program: index of the program that it is in.
        kernel: its name there.
        buffers: indices of the buffers that are its arguments.
        grid: groups along x, y and z.
        group: work items of a group along x, y and z.
    """

    program: int
    kernel: str
    buffers: tuple[int, ...]
    grid: Sizes
    group: Sizes


@dataclass(frozen=True)
class LaunchPlan:
    """What computes a model.

    Attributes:
        programs: sources, each compiled by itself: one in OpenCL C, or one in WGSL for each
            kernel; CUDA C++ until it is a cubin.
        cubin: the only program, compiled for one CUDA architecture; else empty.
        arena: bytes of the memory that the inputs, the outputs and what lies between them share.
        buffers: those that lie in the arena, and those of the weights.
        inputs: the buffer of each input of the model.
        weights: the buffer of each weight.
        outputs: the buffer of each output.
        launches: in order.
    """

    programs: tuple[str, ...]
    cubin: bytes
    arena: int
    buffers: tuple[Buffer, ...]
    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: tuple[int, ...]
    launches: tuple[Launch, ...]

    def __post_init__(self) -> None:
        """Check that the numbers can be meant.

        Raises:
            ValueError: a buffer or a program does not exist, a buffer leaves the arena, or a size
                is not positive.
        """
        used = {*self.inputs, *self.weights, *self.outputs}
        used |= {index for launch in self.launches for index in launch.buffers}
        if used and not 0 <= min(used) <= max(used) < len(self.buffers):
            raise ValueError(f"{len(self.buffers)} buffers, but {max(used)} is used")
        sizes = [size for launch in self.launches for size in (*launch.grid, *launch.group)]
        if min((*sizes, *(buffer.size for buffer in self.buffers)), default=1) < 1:
            raise ValueError("sizes of buffers, grids and groups must be positive")
        for buffer in self.buffers:
            if buffer.offset is not None and not 0 <= buffer.offset <= self.arena - buffer.size:
                raise ValueError(f"buffer {buffer} leaves the arena of {self.arena} bytes")
        programs = 1 if self.cubin else len(self.programs)
        if not all(0 <= launch.program < programs for launch in self.launches):
            raise ValueError(f"a launch is of none of the {programs} programs")
        if max(sizes, default=1) > _MOST_GROUPS:
            raise ValueError(f"grids and groups have up to {_MOST_GROUPS} along an axis")

    @property
    def memory(self) -> int:
        """Bytes of device memory that a run takes: the arena, and what lies outside of it."""
        return self.arena + sum(each.size for each in self.buffers if each.offset is None)

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
        plan = parse_plan(artifact.library)
        _check_buffers(plan, artifact)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArtifactFormatError(
            f"{artifact.path} holds no launch plan: {one_line(error)}; compile the model again"
        ) from error
    return plan


def _check_buffers(plan: LaunchPlan, artifact: Artifact) -> None:
    """Check that every tensor has a buffer that holds it.

    Raises:
        ValueError: there are more or fewer, or one is too small.
    """
    manifest = artifact.manifest
    tensors: list[tuple[str, Sequence[int], Sequence[TensorSpec | WeightSpec]]] = [
        ("inputs", plan.inputs, manifest.inputs),
        ("weights", plan.weights, artifact.variant.weights),
        ("outputs", plan.outputs, manifest.outputs),
    ]
    for kind, indices, specs in tensors:
        if len(indices) != len(specs):
            raise ValueError(f"it has {len(indices)} {kind} instead of {len(specs)}")
        for index, spec in zip(indices, specs, strict=True):
            size = math.prod(int(each) for each in spec.shape) * numpy_dtype(spec.dtype).itemsize
            held = plan.buffers[index].size
            if size > held:
                raise ValueError(f"one of its {kind} takes {size} bytes, its buffer has {held}")


def parse_plan(text: bytes) -> LaunchPlan:
    """A plan out of an artifact.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    fields: dict[str, Any] = json.loads(text)
    launches = tuple(
        Launch(
            int(entry["program"]),
            str(entry["kernel"]),
            _integers(entry["buffers"]),
            _three(entry["grid"]),
            _three(entry["group"]),
        )
        for entry in fields["launches"]
    )
    return LaunchPlan(
        programs=tuple(map(str, fields["programs"])),
        cubin=base64.b64decode(fields["cubin"], validate=True),
        arena=int(fields["arena"]),
        buffers=tuple(_buffer(**entry) for entry in fields["buffers"]),
        inputs=_integers(fields["inputs"]),
        weights=_integers(fields["weights"]),
        outputs=_integers(fields["outputs"]),
        launches=launches,
    )


def _buffer(size: int, offset: int | None) -> Buffer:
    _integers([size] if offset is None else [size, offset])
    return Buffer(size, offset)


def _integers(values: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(value, int) for value in values):
        raise TypeError(f"{values} are not integers")
    return tuple(values)


def _three(values: list[Any]) -> Sizes:
    x, y, z = _integers(values)
    return x, y, z
