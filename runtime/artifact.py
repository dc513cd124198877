"""The artifact file (`.lfa`): one zip, stored, written at once and checked before it is used.

    manifest.json          everything below, described; its hash is the zip's comment
    library/NAME.so        the compiled kernels of the variant for the processor NAME
    stages/N.onnx          a stage that ONNX Runtime runs
    weights/HASH.bin       one weight, as the kernels take it; variants share those that are equal
    reference/input_N.npy  inputs and reference outputs that `verify` replays
    reference/output_N.npy
    signature.ed25519      of the manifest, where the artifact is signed (see `signature`)

Of the variants only the one to run is read. Nothing in the file is executed before the signature,
if one is asked for, format, hashes, CPU features and TVM versions were checked.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactHashError,
    ArtifactIsDirectoryError,
    ArtifactNotFoundError,
)
from leakyforge.files import atomic_file, destination_problem
from leakyforge.runtime.manifest import FORMAT, Manifest, Variant, WeightSpec, parse_manifest
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.signature import MEMBER as SIGNATURE
from leakyforge.runtime.signature import SIZE as SIGNATURE_SIZE
from leakyforge.runtime.signature import check_signature, load_private_key, sign
from leakyforge.runtime.tensors import (
    ALIGNMENT,
    Array,
    TensorSpec,
    empty_aligned,
    format_shape,
    numpy_dtype,
)
from leakyforge.runtime.variants import choose_variant

SUFFIX = ".lfa"
MANIFEST = "manifest.json"
_COMMENT = b"leakyforge sha256="
# Bytes read and hashed at a time: small enough to stay in a cache between the two.
_CHUNK = 1 << 18
_AGAIN = "compile the model again"
_OTHER = "give a file that leakyforge compile wrote"
# What zipfile, json and numpy raise over damaged bytes; RuntimeError: "encrypted" by a flipped bit.
_UNREADABLE = (
    KeyError, TypeError, ValueError, OverflowError, EOFError, OSError, RuntimeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """One variant of an artifact in memory, checked.

    Attributes:
        path: where it was read from.
        manifest: what it says of itself.
        variant: the one that was read.
        library: bytes of the shared library.
        weight_memory: aligned bytes of all weights; `unpack_weights` gives the arrays.
        reference_inputs: by input name.
        reference_outputs: by output name.
        models: of the stages that ONNX Runtime runs, by member.
    """

    path: Path
    manifest: Manifest
    variant: Variant
    library: bytes
    weight_memory: Array
    reference_inputs: dict[str, Array]
    reference_outputs: dict[str, Array]
    models: dict[str, bytes] = field(default_factory=dict)


def pack_weights(
    weights: Sequence[Array],
) -> tuple[tuple[WeightSpec, ...], dict[str, bytes]]:
    """Describe weights, and give the members that hold them, named by their content."""
    specs, members = [], {}
    for weight in weights:
        data = np.ascontiguousarray(weight).tobytes()
        member = f"weights/{hashlib.sha256(data).hexdigest()[:16]}.bin"
        specs.append(WeightSpec(weight.shape, str(weight.dtype), member))
        members[member] = data
    return tuple(specs), members


def write_artifact(
    path: Path,
    manifest: Manifest,
    members: Mapping[str, bytes],
    reference_inputs: dict[str, Array],
    reference_outputs: dict[str, Array],
) -> None:
    """Write an artifact under a temporary name and rename it.

    Args:
        path: where to.
        manifest: what it says of itself; the hashes are entered here.
        members: libraries and weights of its variants, by name of the member.
        reference_inputs: by input name.
        reference_outputs: by output name.

    Raises:
        ArtifactError: the folder cannot be written, or the path is a directory. A file that was
            at `path` is then still there, whole.
    """
    members = dict(members)
    for index, spec in enumerate(manifest.inputs):
        members[f"reference/input_{index}.npy"] = _to_npy(reference_inputs[spec.name])
    for index, spec in enumerate(manifest.outputs):
        members[f"reference/output_{index}.npy"] = _to_npy(reference_outputs[spec.name])
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = dataclasses.replace(manifest, files=hashes)
    text = manifest.to_json()
    check_destination(path)
    try:
        with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.comment = _COMMENT + hashlib.sha256(text).hexdigest().encode()
            for name, data in {MANIFEST: text, **members}.items():
                # A fixed date: the same model and compiler give the same bytes.
                archive.writestr(zipfile.ZipInfo(name), data)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error


def sign_artifact(path: str | Path, key: str | Path) -> None:
    """Sign an artifact: it is written again, with the signature, and renamed.

    Every member is checked on the way. An older signature is replaced.

    Args:
        path: the artifact.
        key: Ed25519 private key in a PEM file.

    Raises:
        ArtifactError: the artifact is missing or damaged, or cannot be written; it is then as it
            was.
        KeyFileError: `key` is no such file.
        MissingDependencyError: `cryptography` is not installed.
    """
    path = Path(path)
    private = load_private_key(key)
    with _opened(path) as (archive, manifest):
        text = _manifest_text(archive, path)
        try:
            with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as signed:
                signed.comment = archive.comment
                signed.writestr(zipfile.ZipInfo(MANIFEST), text)
                for name, digest in manifest.files.items():
                    info = zipfile.ZipInfo(name)
                    info.file_size = archive.getinfo(name).file_size
                    with signed.open(info, "w") as member:
                        for chunk in _chunks(archive, path, name, digest):
                            member.write(chunk)
                signed.writestr(zipfile.ZipInfo(SIGNATURE), sign(text, private))
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


def read_artifact(
    path: str | Path,
    variant: str | None = None,
    *,
    references: bool = True,
    verify_key: str | Path | None = None,
) -> Artifact:
    """Read the variant that this machine runs best, or a named one, and check that it is whole.

    The members of the other variants are not read.

    Args:
        path: the artifact.
        variant: name of the variant.
        references: keep the reference inputs and outputs, which are checked anyway.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactSignatureError: it is not signed by `verify_key`, or was changed since.
        ArtifactNotFoundError: there is no file.
        ArtifactIsDirectoryError: the path is a directory.
        ArtifactFormatError: not an artifact, truncated, or of another format version.
        ArtifactHashError: a member is not what was written.
        ArtifactError: nothing in it runs here, or not the named variant (see `choose_variant`).
        KeyFileError: `verify_key` is no such file.
        MissingDependencyError: `verify_key` without the package `cryptography`.
    """
    path = Path(path)
    with _opened(path, verify_key) as (archive, manifest):
        chosen = choose_variant(manifest, path, variant)

        for weight in chosen.weights:
            size = archive.getinfo(weight.member).file_size
            if size != weight.nbytes:
                raise ValueError(f"{weight.member} has {size} bytes instead of {weight.nbytes}")

        def read(name: str) -> Array:
            return _read_member(archive, path, name, manifest.files[name])

        def read_references(specs: tuple[TensorSpec, ...], kind: str) -> dict[str, Array]:
            names = {spec.name: f"reference/{kind}_{i}.npy" for i, spec in enumerate(specs)}
            if references:
                return {spec.name: _from_npy(read(names[spec.name]), spec) for spec in specs}
            for name in names.values():
                _check_member(archive, path, name, manifest.files[name])
            return {}

        return Artifact(
            path,
            manifest,
            chosen,
            read(chosen.library).tobytes() if chosen.library else b"",
            _weight_memory(
                chosen.weights,
                lambda name, memory: _read_into(archive, path, name, manifest.files[name], memory),
            ),
            read_references(manifest.inputs, "input"),
            read_references(manifest.outputs, "output"),
            {name: read(name).tobytes() for name in chosen.models},
        )


def read_manifest(
    path: str | Path, *, whole: bool = False, verify_key: str | Path | None = None
) -> Manifest:
    """Read what an artifact says of itself, whatever machine it is for.

    Args:
        path: the artifact.
        whole: check the hash of every member too.
        verify_key: as of `read_artifact`.

    Raises:
        ArtifactError: as `read_artifact`, but for the machine.
    """
    path = Path(path)
    with _opened(path, verify_key) as (archive, manifest):
        if whole:
            for name, digest in manifest.files.items():
                _check_member(archive, path, name, digest)
        return manifest


@contextlib.contextmanager
def _opened(
    path: Path, verify_key: str | Path | None = None
) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """An artifact open for reading, and named errors for what goes wrong in the meantime."""
    try:
        if path.is_dir():
            raise ArtifactIsDirectoryError(f"{path} is a directory; give an {SUFFIX} file")
        if not path.is_file():
            raise ArtifactNotFoundError(
                f"artifact {path} does not exist; make it with: leakyforge compile"
            )
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive, path)
            yield archive, _read_manifest(archive, path, verify_key)
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


def _check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse members that are compressed, or larger together than the file: they would be bombs.

    Raises:
        zipfile.BadZipFile: the file is damaged, or no one of ours.
    """
    total = 0
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise zipfile.BadZipFile(f"{info.filename} is compressed")
        total += info.file_size
        if total > path.stat().st_size:
            raise zipfile.BadZipFile(f"{info.filename} is larger than the file")


def _read_manifest(archive: zipfile.ZipFile, path: Path, verify_key: str | Path | None) -> Manifest:
    """Manifest of an open artifact; its hash, its signature and its format are checked first."""
    text = _manifest_text(archive, path)
    if verify_key is not None:
        check_signature(text, _signature(archive), verify_key, path)
    fields: dict[str, Any] = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"{MANIFEST} holds no JSON object")
    if fields.get("format") != FORMAT:
        raise ArtifactFormatError(
            f"artifact {path} has format {fields.get('format')}, this leakyforge reads {FORMAT}; "
            "compile the model again"
        )
    return parse_manifest(fields)


def _signature(archive: zipfile.ZipFile) -> bytes | None:
    """The signature in an open artifact, None without one."""
    if SIGNATURE not in archive.namelist():
        return None
    with archive.open(SIGNATURE) as stream:
        return stream.read(SIGNATURE_SIZE)


def _manifest_text(archive: zipfile.ZipFile, path: Path) -> bytes:
    """Bytes of an open artifact's manifest, whose hash is right."""
    if not archive.comment.startswith(_COMMENT) or MANIFEST not in archive.namelist():
        raise ArtifactFormatError(f"{path} is a zip file but no leakyforge artifact; {_OTHER}")
    digest = archive.comment.removeprefix(_COMMENT).decode()
    if len(digest) != hashlib.sha256().digest_size * 2:
        raise ArtifactFormatError(f"artifact {path} is truncated; {_AGAIN}")
    text = archive.read(MANIFEST)
    _check_hash(path, MANIFEST, hashlib.sha256(text).hexdigest(), digest)
    return text


def _check_hash(path: Path, name: str, found: str, digest: str) -> None:
    if found != digest:
        raise ArtifactHashError(
            f"{name} in artifact {path} was changed after it was written; compile the model again"
        )


def place_weights(specs: Sequence[WeightSpec], members: Mapping[str, bytes]) -> Array:
    """Aligned memory of a variant's weights, copied out of the members."""

    def copy(name: str, memory: Array) -> None:
        memory[:] = np.frombuffer(members[name], np.uint8)

    return _weight_memory(specs, copy)


def unpack_weights(memory: Array, specs: Sequence[WeightSpec]) -> list[Array]:
    """Arrays over the memory of a variant's weights, without a copy."""
    places, _ = _places(specs)
    return [
        memory[places[spec.member]].view(numpy_dtype(spec.dtype)).reshape(spec.shape)
        for spec in specs
    ]


def _weight_memory(specs: Sequence[WeightSpec], fill: Callable[[str, Array], None]) -> Array:
    """Aligned memory of a variant's weights; `fill` puts each member where it belongs."""
    places, size = _places(specs)
    memory = empty_aligned((size,), np.dtype(np.uint8))
    for name, place in places.items():
        fill(name, memory[place])
    return memory


def _places(specs: Sequence[WeightSpec]) -> tuple[dict[str, slice], int]:
    """Where each member lies in memory, on 64-byte boundaries, and the size of it all."""
    places: dict[str, slice] = {}
    end = 0
    for spec in specs:
        if spec.member not in places:
            start = end + -end % ALIGNMENT
            end = start + spec.nbytes
            places[spec.member] = slice(start, end)
    return places, end


def _read_member(archive: zipfile.ZipFile, path: Path, name: str, digest: str) -> Array:
    """Bytes of a member in memory of their own."""
    memory = empty_aligned((archive.getinfo(name).file_size,), np.dtype(np.uint8))
    _read_into(archive, path, name, digest, memory)
    return memory


def _read_into(archive: zipfile.ZipFile, path: Path, name: str, digest: str, memory: Array) -> None:
    """Read a member once, into memory of its size, and hash it on the way.

    Raises:
        ArtifactHashError: its hash is not the one that the manifest names.
        zipfile.BadZipFile: the file is damaged.
    """
    size = archive.getinfo(name).file_size
    if size != len(memory):
        raise zipfile.BadZipFile(f"{name} has {size} bytes instead of {len(memory)}")
    target, position = memory.data, 0
    for chunk in _chunks(archive, path, name, digest):
        target[position : position + len(chunk)] = chunk
        position += len(chunk)


def _check_member(archive: zipfile.ZipFile, path: Path, name: str, digest: str) -> None:
    """Check the size and the hash of a member, which is not kept."""
    for _ in _chunks(archive, path, name, digest):
        pass


def _chunks(archive: zipfile.ZipFile, path: Path, name: str, digest: str) -> Iterator[bytes]:
    """A member piece by piece; its size and hash are compared after the last one."""
    size, position, digester = archive.getinfo(name).file_size, 0, hashlib.sha256()
    with archive.open(name) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
            position += len(chunk)
            digester.update(chunk)
    if position != size:
        raise zipfile.BadZipFile(f"{name} has {position} bytes instead of {size}")
    _check_hash(path, name, digester.hexdigest(), digest)


def _from_npy(data: Array, spec: TensorSpec) -> Array:
    """A stored input or output.

    Raises:
        ValueError: it is not of the dtype and the shape that the manifest says.
    """
    # Untyped in the numpy that Python 3.10 gets.
    stored: Array = np.lib.format.read_array(  # type: ignore[no-untyped-call, unused-ignore]
        io.BytesIO(data.data), allow_pickle=False
    )
    if stored.dtype.itemsize == numpy_dtype(spec.dtype).itemsize:
        stored = stored.view(numpy_dtype(spec.dtype))
    fits = len(stored.shape) == len(spec.shape) and all(
        isinstance(declared, str) or declared == size
        for declared, size in zip(spec.shape, stored.shape, strict=True)
    )
    if not fits or stored.dtype != numpy_dtype(spec.dtype):
        raise ValueError(
            f"the reference of {spec.name!r} is {stored.dtype} {format_shape(stored.shape)} "
            f"instead of {spec.dtype} {format_shape(spec.shape)}"
        )
    return stored


def _to_npy(array: Array) -> bytes:
    """Array in numpy's format; bfloat16, which that does not know, as its 16-bit pattern."""
    stream = io.BytesIO()
    stored = array.view(np.uint16) if str(array.dtype) == "bfloat16" else array
    np.save(stream, stored, allow_pickle=False)
    return stream.getvalue()
