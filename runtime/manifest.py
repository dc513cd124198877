"""What an artifact says of itself: fields, and their form in JSON."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from leakyforge.runtime.tensors import TensorSpec, numpy_dtype

FORMAT = 5
# Of numpy's arrays.
_MOST_AXES = 64
# The machines of code that a device runs, and what its devices are called.
OPENCL = "opencl"
CUDA = "cuda"
WEBGPU = "webgpu"
DEVICE_KINDS = {OPENCL: "OpenCL", CUDA: "CUDA", WEBGPU: "WebGPU"}


@dataclass(frozen=True)
class WeightSpec:
    """One weight of a variant.

    Attributes:
        shape: its sizes.
        dtype: numpy's name, or `bfloat16`.
        member: the file's member that holds its bytes; equal weights share one.
    """

    shape: tuple[int, ...]
    dtype: str
    member: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class OutputRecord:
    """How far one output lay from the reference when the artifact was compiled.

    Attributes:
        output: name of the output.
        error: largest absolute difference, as a share of the reference's range.
        tolerance: what was allowed, as a share of the range (see `tolerance`).
        used: how much of the tolerance that was, at most 1.
    """

    output: str
    error: float
    tolerance: float
    used: float


@dataclass(frozen=True)
class ParityRecord:
    """What comparing a variant with the reference outputs gave when it was compiled.

    A variant that differs is never written, so none of them says "fail".

    Attributes:
        result: "pass", or "not run".
        cpu: the processor of the machine that compiled it, or the device there.
        lacks: features that the variant needs and that processor lacks, or the instruction set
            that it is for, or a device of its kind; why it was not run.
        outputs: one record for each output of a variant that ran.
    """

    result: str = "not run"
    cpu: str = ""
    lacks: tuple[str, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What a CUDA kernel takes of a streaming multiprocessor, as ptxas says.

    Attributes:
        registers: of a thread, each of 32 bits.
        spill_stores: bytes that a thread writes to local memory for want of registers.
        spill_loads: bytes that it reads back.
        stack: bytes of a thread's local memory, arrays that are in no registers among them.
        shared: bytes of a block's shared memory.
        constant: bytes of constant memory, None where ptxas says nothing (from sm_90 on).
        threads: of a block.
        resident: threads that a multiprocessor holds at a time, None where the architecture's
            limits are not known (see `kernels.gpu.occupancy`).
        occupancy: `resident` as a share of the most that it holds of any kernel.
        limit: what keeps it from more: "registers", "shared memory", "threads" or "blocks".
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    constant: int | None
    threads: int
    resident: int | None
    occupancy: float | None
    limit: str | None


@dataclass(frozen=True)
class Kernel:
    """One call of a kernel.

    Attributes:
        name: of the function in the library.
        output: name of the layer's output in the ONNX graph, None where it was not traced.
        algorithm: of a convolution or product, else the rule that scheduled it, None where its
            loops were left as they were.
        flops: floating-point operations of its convolutions and products by their definition.
        computed: of the same by the algorithm: of whole tiles, or of fewer products.
        bytes_moved: bytes of its tensors, each once; None where `profile` measures them.
        resources: what it takes of the device, None but for CUDA.
    """

    name: str
    output: str | None
    algorithm: str | None
    flops: int
    computed: int
    bytes_moved: int | None = None
    resources: Resources | None = None


@dataclass(frozen=True)
class CompiledStage:
    """A part of a model that a function of the variant's library computes.

    Attributes:
        inputs: names of the values that it takes: inputs of the model, or outputs of the stages
            before it.
        outputs: names of the values that it gives.
        nodes: operator and name of each ONNX node.
        function: its name in the library.
        weights: how many of the variant's weights it takes after its inputs: those that follow on
            the weights of the stages before it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    function: str
    weights: int


@dataclass(frozen=True)
class OnnxStage:
    """A part of a model that ONNX Runtime runs.

    Attributes:
        inputs: as in `CompiledStage`.
        outputs: as there.
        nodes: for operator and name of each ONNX node, why it is not compiled.
        model: the member that holds the part as an ONNX model.
        size: its bytes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: dict[str, str]
    model: str
    size: int


Stage = CompiledStage | OnnxStage


@dataclass(frozen=True)
class Variant:
    """The code of a model for one kind of CPU or device.

    Attributes:
        name: LLVM's name of the processor, nvcc's name of the architecture, `opencl` or `webgpu`.
        features: LLVM's names of what the code may use.
        target: TVM's target as written in JSON.
        thread_hint: cores that schedules assumed.
        tuning_records: keys of the tuning records used.
        library: the member that holds the compiled kernels, or a device's launch plan; empty where
            no stage is compiled.
        library_size: its size in bytes.
        weights: in the order of the parameters after the inputs.
        kernels: the calls of a run in their order; those of every branch, and some that the
            virtual machine does without. A device's are the launches of its plan.
        memory: bytes of a device's memory that a run takes, weights among them; None for a CPU.
        parity: its comparison with the reference.
        stages: in the order in which they run; none where the library computes the whole model.
    """

    name: str
    features: tuple[str, ...]
    target: str
    thread_hint: int
    tuning_records: tuple[str, ...]
    library: str
    library_size: int
    weights: tuple[WeightSpec, ...]
    kernels: tuple[Kernel, ...]
    memory: int | None = None
    parity: ParityRecord = ParityRecord()
    stages: tuple[Stage, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Members that hold the stages for ONNX Runtime."""
        return tuple(stage.model for stage in self.stages if isinstance(stage, OnnxStage))

    @property
    def members(self) -> tuple[str, ...]:
        """Members that the variant needs, each once."""
        weights = (spec.member for spec in self.weights)
        return tuple(dict.fromkeys(filter(None, [self.library, *weights, *self.models])))


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        model: name of the model.
        onnx_sha256: hash of the ONNX file that it was compiled from.
        onnx_path: where that file was, None for a model that was in memory.
        inputs: what `main` takes.
        outputs: what `main` gives.
        machine: instruction set, x86_64 or aarch64, or a key of `DEVICE_KINDS`.
        reference: what computed the reference outputs.
        versions: TVM packages that compiled it; the same must load it.
        leakyforge: version of leakyforge that wrote it.
        variants: the code for each kind of CPU, the most demanding first.
        files: SHA-256 of the other members.
        format: version of this layout.
    """

    model: str
    onnx_sha256: str
    onnx_path: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    machine: str
    reference: str
    versions: dict[str, str]
    leakyforge: str
    variants: tuple[Variant, ...]
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> bytes:
        """The manifest as it is written."""
        return json.dumps(self.to_dict(), indent=1).encode()


def parse_manifest(fields: dict[str, Any]) -> Manifest:
    """A manifest from the values that JSON gave.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a manifest.
    """
    manifest: Manifest = _parsed(Manifest, fields, "manifest")
    if not manifest.variants or not manifest.outputs:
        raise ValueError("it holds no variant or no output")
    for spec in (*manifest.inputs, *manifest.outputs):
        if min(spec.rounding_steps, spec.quantisations) < 0:
            raise ValueError(f"{spec.name!r} has fewer than no roundings")
        _check_tensor(spec.name, spec.dtype, spec.shape)
    for variant in manifest.variants:
        for weight in variant.weights:
            _check_tensor(weight.member, weight.dtype, weight.shape)
        _check_stages(variant, manifest.inputs, manifest.outputs)
    return manifest


def _check_stages(
    variant: Variant, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Refuse stages of which one reads what none before it gives."""
    if not variant.stages:
        return
    there = {spec.name for spec in inputs}
    for stage in variant.stages:
        if not there.issuperset(stage.inputs):
            raise ValueError(f"no stage gives {min(set(stage.inputs) - there)!r} to the next")
        there.update(stage.outputs)
    if not there.issuperset(spec.name for spec in outputs):
        raise ValueError("no stage gives an output of the model")
    weights = [stage.weights for stage in variant.stages if isinstance(stage, CompiledStage)]
    if sum(weights) != len(variant.weights):
        raise ValueError("its stages take another number of weights than it has")


def _check_tensor(name: str, dtype: str, shape: Sequence[int | str]) -> None:
    """Refuse dtypes that are not plain numbers, and sizes that no array has."""
    kind = numpy_dtype(dtype)
    # Numpy's kinds of booleans, integers and floating point; V are those of ml_dtypes.
    if kind.name != dtype or kind.kind not in "biufV" or kind.hasobject or kind.itemsize > 8:
        raise TypeError(f"{name!r} has dtype {dtype}")
    if len(shape) > _MOST_AXES or any(isinstance(size, int) and size < 0 for size in shape):
        raise ValueError(f"{name!r} has shape {list(shape)[:8]}")


def _parsed(kind: Any, value: Any, where: str) -> Any:
    """A value that JSON gave as a field's type: a dataclass, a tuple, or a plain one.

    Raises:
        KeyError, TypeError: it is of another type, or a field is absent or unknown.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        types = get_type_hints(kind)
        wrong = types.keys() ^ value.keys()
        if wrong:
            raise KeyError(f"{where} lacks or does not know {min(wrong)!r}")
        return kind(**{key: _parsed(types[key], value[key], f"{where}.{key}") for key in types})
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_parsed(parts[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _parsed(parts[1], each, f"{where}[{key!r}]") for key, each in value.items()}
    if origin in (Union, UnionType):
        for part in parts:
            with contextlib.suppress(KeyError, TypeError):
                return _parsed(part, value, where)
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind or (kind is type(None) and value is None):
        return value
    raise TypeError(f"{where} is {str(value)[:100]!r}")
