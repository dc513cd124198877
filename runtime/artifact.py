"""The artifact file (`.lfa`): one zip, stored, written at once and checked before it is used.

    manifest.json          everything below, described; its hash is the zip's comment
    library.so             the compiled kernels
    weights.bin            packed weights, each on a 64-byte boundary
    reference/input_N.npy  inputs and reference outputs that `verify` replays
    reference/output_N.npy

Nothing in the file is executed before format, hashes, CPU features and TVM versions were checked.
"""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import (
    ArtifactCpuError,
    ArtifactError,
    ArtifactFormatError,
    ArtifactHashError,
    ArtifactIsDirectoryError,
    ArtifactNotFoundError,
    ArtifactVersionError,
)
from leakyforge.files import atomic_file, destination_problem
from leakyforge.pins import TVM_PINS
from leakyforge.runtime import cpu
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import ALIGNMENT, Array, TensorSpec, empty_aligned, numpy_dtype

FORMAT = 1
SUFFIX = ".lfa"
MANIFEST = "manifest.json"
LIBRARY = "library.so"
WEIGHTS = "weights.bin"
_COMMENT = b"leakyforge sha256="
# Bytes read and hashed at a time: small enough to stay in a cache between the two.
_CHUNK = 1 << 18
_AGAIN = "compile the model again"
_OTHER = "give a file that leakyforge compile wrote"
# What zipfile, json and numpy raise over damaged bytes; RuntimeError: "encrypted" by a flipped bit.
_UNREADABLE = (KeyError, TypeError, ValueError, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class WeightSpec:
    """Place of one weight in `weights.bin`, in bytes."""

    shape: tuple[int, ...]
    dtype: str
    offset: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        model: name of the model.
        onnx_sha256: hash of the ONNX file that it was compiled from.
        onnx_path: where that file was, None for a model that was in memory.
        inputs: what `main` takes.
        outputs: what `main` gives.
        weights: places in `weights.bin`, in the order of the parameters after the inputs.
        target: TVM's target as written in JSON.
        machine: instruction set, as in x86_64.
        cpu: LLVM's name of the processor.
        cpu_features: LLVM's names of what the code may use.
        thread_hint: cores that schedules assumed.
        reference: what computed the reference outputs.
        tuning_records: keys of the tuning records used.
        versions: TVM packages that compiled it; the same must load it.
        leakyforge: version of leakyforge that wrote it.
        files: SHA-256 of the other members.
        format: version of this layout.
    """

    model: str
    onnx_sha256: str
    onnx_path: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[WeightSpec, ...]
    target: str
    machine: str
    cpu: str
    cpu_features: tuple[str, ...]
    thread_hint: int
    reference: str
    tuning_records: tuple[str, ...]
    versions: dict[str, str]
    leakyforge: str
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Artifact:
    """A checked artifact in memory.

    Attributes:
        path: where it was read from.
        manifest: what it says of itself.
        library: bytes of the shared library.
        weight_memory: aligned bytes of all weights; `unpack_weights` gives the arrays.
        reference_inputs: by input name.
        reference_outputs: by output name.
    """

    path: Path
    manifest: Manifest
    library: bytes
    weight_memory: Array
    reference_inputs: dict[str, Array]
    reference_outputs: dict[str, Array]


def pack_weights(weights: Sequence[Array]) -> tuple[bytes, tuple[WeightSpec, ...]]:
    """Lay weights one after the other on 64-byte boundaries."""
    packed = bytearray()
    specs = []
    for weight in weights:
        packed += bytes(-len(packed) % ALIGNMENT)
        specs.append(WeightSpec(weight.shape, str(weight.dtype), len(packed)))
        packed += np.ascontiguousarray(weight).tobytes()
    return bytes(packed), tuple(specs)


def write_artifact(
    path: Path,
    manifest: Manifest,
    library: bytes,
    weights: bytes,
    reference_inputs: dict[str, Array],
    reference_outputs: dict[str, Array],
) -> None:
    """Write an artifact under a temporary name and rename it.

    Raises:
        ArtifactError: the folder cannot be written, or the path is a directory. A file that was
            at `path` is then still there, whole.
    """
    members = {LIBRARY: library, WEIGHTS: weights}
    for index, spec in enumerate(manifest.inputs):
        members[f"reference/input_{index}.npy"] = _to_npy(reference_inputs[spec.name])
    for index, spec in enumerate(manifest.outputs):
        members[f"reference/output_{index}.npy"] = _to_npy(reference_outputs[spec.name])
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = dataclasses.replace(manifest, files=hashes)
    text = json.dumps(manifest.to_dict(), indent=1).encode()
    check_destination(path)
    try:
        with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.comment = _COMMENT + hashlib.sha256(text).hexdigest().encode()
            for name, data in {MANIFEST: text, **members}.items():
                # A fixed date: the same model and compiler give the same bytes.
                archive.writestr(zipfile.ZipInfo(name), data)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error


def check_destination(path: Path) -> None:
    """Make sure that an artifact can be written, before the work whose result goes there.

    Raises:
        ArtifactIsDirectoryError: the path is a directory.
        ArtifactError: its folder is missing, or it is another thing that is no file.
    """
    problem = destination_problem(path)
    if problem is not None:
        raise (ArtifactIsDirectoryError if path.is_dir() else ArtifactError)(problem)


def is_artifact(path: Path) -> bool:
    """Whether a path is to be read as an artifact: by its ending, or by its first bytes."""
    if path.suffix == SUFFIX or path.is_dir():
        return True
    return path.is_file() and zipfile.is_zipfile(path)


def read_artifact(path: str | Path) -> Artifact:
    """Read an artifact and check that it is whole; says nothing of whether it can run here.

    Raises:
        ArtifactNotFoundError: there is no file.
        ArtifactIsDirectoryError: the path is a directory.
        ArtifactFormatError: not an artifact, truncated, or of another format version.
        ArtifactHashError: a member is not what was written.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtifactIsDirectoryError(f"{path} is a directory; give an {SUFFIX} file")
    if not path.is_file():
        raise ArtifactNotFoundError(
            f"artifact {path} does not exist; make it with: leakyforge compile"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(archive, path)
            members = {
                name: _read_member(archive, path, name, digest)
                for name, digest in manifest.files.items()
            }
        return Artifact(
            path,
            manifest,
            members[LIBRARY].tobytes(),
            members[WEIGHTS],
            _references(members, manifest.inputs, "input"),
            _references(members, manifest.outputs, "output"),
        )
    except zipfile.BadZipFile as error:
        if "CRC" in str(error):
            raise ArtifactHashError(
                f"artifact {path} was changed after it was written: {error}; {_AGAIN}"
            ) from error
        raise ArtifactFormatError(
            f"{path} is no artifact or is truncated: {error}; {_OTHER}"
        ) from error
    except _UNREADABLE as error:
        raise ArtifactFormatError(
            f"artifact {path} cannot be read: {one_line(error)}; {_AGAIN}"
        ) from error


def check_runs_here(manifest: Manifest, path: Path) -> None:
    """Check that this machine can run the artifact's code.

    Raises:
        ArtifactCpuError: another instruction set, or CPU features that are absent here.
        ArtifactVersionError: compiled with other TVM packages than those installed.
    """
    if manifest.machine != cpu.machine():
        raise ArtifactCpuError(
            f"artifact {path} is for {manifest.machine}, this machine is {cpu.machine()}; "
            "compile the model for this machine"
        )
    missing = sorted(set(manifest.cpu_features) - cpu.host_features())
    if missing:
        raise ArtifactCpuError(
            f"artifact {path} was compiled for {manifest.cpu} and needs CPU features that "
            f"{cpu.model_name()} lacks: {', '.join(missing)}; compile it with --target cpu here, "
            "or with --target cpu:x86-64-v3 for most machines"
        )
    if manifest.versions != TVM_PINS:
        raise ArtifactVersionError(
            f"artifact {path} was built with {_versions(manifest.versions)}, "
            f"installed is {_versions(TVM_PINS)}; compile the model again"
        )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    """Manifest of an open artifact, its hash and its format checked first."""
    if not archive.comment.startswith(_COMMENT) or MANIFEST not in archive.namelist():
        raise ArtifactFormatError(f"{path} is a zip file but no leakyforge artifact; {_OTHER}")
    digest = archive.comment.removeprefix(_COMMENT).decode()
    if len(digest) != hashlib.sha256().digest_size * 2:
        raise ArtifactFormatError(f"artifact {path} is truncated; {_AGAIN}")
    text = archive.read(MANIFEST)
    _check_hash(path, MANIFEST, hashlib.sha256(text).hexdigest(), digest)
    fields: dict[str, Any] = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"{MANIFEST} holds no JSON object")
    if fields.get("format") != FORMAT:
        raise ArtifactFormatError(
            f"artifact {path} has format {fields.get('format')}, this leakyforge reads {FORMAT}; "
            "compile the model again"
        )
    for key, kind in (("inputs", TensorSpec), ("outputs", TensorSpec), ("weights", WeightSpec)):
        fields[key] = tuple(
            kind(**{**entry, "shape": tuple(entry["shape"])}) for entry in fields[key]
        )
    for key in ("cpu_features", "tuning_records"):
        fields[key] = tuple(fields[key])
    return Manifest(**fields)


def _check_hash(path: Path, name: str, found: str, digest: str) -> None:
    if found != digest:
        raise ArtifactHashError(
            f"{name} in artifact {path} was changed after it was written; compile the model again"
        )


def unpack_weights(memory: Array, specs: tuple[WeightSpec, ...]) -> list[Array]:
    """Arrays over the memory of packed weights, without a copy."""
    weights = []
    for spec in specs:
        dtype = numpy_dtype(spec.dtype)
        end = spec.offset + math.prod(spec.shape) * dtype.itemsize
        weights.append(memory[spec.offset : end].view(dtype).reshape(spec.shape))
    return weights


def _read_member(archive: zipfile.ZipFile, path: Path, name: str, digest: str) -> Array:
    """Bytes of a member in aligned memory, read once and hashed on the way.

    Raises:
        ArtifactHashError: its hash is not the one that the manifest names.
        zipfile.BadZipFile: the file is damaged.
    """
    info = archive.getinfo(name)
    if info.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"{name} is larger than the file")
    memory = empty_aligned((info.file_size,), np.dtype(np.uint8))
    target, position, digester = memory.data, 0, hashlib.sha256()
    with archive.open(info) as stream:
        while chunk := stream.read(_CHUNK):
            target[position : position + len(chunk)] = chunk
            position += len(chunk)
            digester.update(chunk)
    if position != len(memory):
        raise zipfile.BadZipFile(f"{name} has {position} bytes instead of {len(memory)}")
    _check_hash(path, name, digester.hexdigest(), digest)
    return memory


def _references(
    members: Mapping[str, Array], specs: tuple[TensorSpec, ...], kind: str
) -> dict[str, Array]:
    """Stored inputs or outputs by name."""
    arrays = {}
    for index, spec in enumerate(specs):
        data = io.BytesIO(members[f"reference/{kind}_{index}.npy"].data)
        stored = np.load(data, allow_pickle=False)
        arrays[spec.name] = stored.view(numpy_dtype(spec.dtype))
    return arrays


def _to_npy(array: Array) -> bytes:
    """Array in numpy's format; bfloat16, which that does not know, as its 16-bit pattern."""
    stream = io.BytesIO()
    stored = array.view(np.uint16) if str(array.dtype) == "bfloat16" else array
    np.save(stream, stored, allow_pickle=False)
    return stream.getvalue()
