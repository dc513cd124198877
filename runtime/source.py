"""Reading an ONNX file together with its identity: a hash over it and its external data.

This module imports onnx and is itself imported only where an ONNX file is at hand.
"""

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from leakyforge.errors import ModelError
from leakyforge.runtime.reference import one_line


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read an ONNX file with its external data; says nothing of whether the graph is valid.

    Returns:
        The model, and the SHA-256 of its file and then of its external files, in hexadecimal.

    Raises:
        ModelError: there is no such file, it is not ONNX or truncated, or its external data are
            absent.
    """
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise ModelError(f"ONNX file {path} {kind}; give the path of an .onnx file")
    try:
        # Without a format onnx goes by the ending of the name.
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX file or is truncated: {one_line(error)}; export the model again"
        ) from error
    except OSError as error:
        raise ModelError(f"ONNX file {path} cannot be read: {error.strerror}") from error
    try:
        digest = hashlib.sha256()
        for file in [path, *(path.parent / name for name in external_files(proto))]:
            digest.update(file.read_bytes())
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"external data of {path} cannot be read: {one_line(error)}") from error
    return proto, digest.hexdigest()


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Names of the files that hold a model's weights, sorted; none where they are inside."""
    names = {
        entry.value
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(names)
