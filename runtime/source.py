"""Reading an ONNX file together with its identity: a hash over it and its external data.

This module imports onnx and is itself imported only where an ONNX file is at hand.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from leakyforge.errors import ModelError
from leakyforge.onnx_graph import weight_bytes
from leakyforge.runtime.reference import one_line

_BLOCK = 2**20


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read an ONNX file with its external data; says nothing of whether the graph is valid.

    Returns:
        The model, and the SHA-256 of its file and then of its external files, in hexadecimal.

    Raises:
        ModelError: there is no such file, it is not ONNX or truncated, or its external data are
            absent.
    """
    try:
        if not path.is_file():
            kind = "is a directory" if path.is_dir() else "does not exist"
            raise ModelError(f"ONNX file {path} {kind}; give the path of an .onnx file")
        # Without a format onnx goes by the ending of the name.
        proto = onnx.load(path, format="protobuf", load_external_data=False)
        _read_texts(proto)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is not an ONNX file or is truncated: {one_line(error)}; export the model again"
        ) from error
    except OSError as error:
        raise ModelError(f"ONNX file {path} cannot be read: {error.strerror}") from error
    files = external_files(proto)
    try:
        # The weights first: this refuses files outside of the model's folder before one is opened.
        _check_lengths(proto)
        onnx.load_external_data_for_model(proto, str(path.parent))
        digest = hashlib.sha256()
        for file in [path, *(path.parent / name for name in files)]:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    except (OSError, RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        # RuntimeError: what the system says to onnx's C++.
        raise ModelError(
            f"external data of {path} cannot be read: {one_line(error).rstrip('.')}; put the whole "
            "files that it names beside it, or export the model again"
        ) from error
    return proto, digest.hexdigest()


def _read_texts(message: Any) -> None:
    """Look at every text of a message: protobuf gives one that is not UTF-8 as bytes.

    Raises:
        UnicodeDecodeError: one is not UTF-8.
    """
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                _read_texts(inner)
        elif field.type == field.TYPE_STRING:
            for text in value if field.is_repeated else (value,):
                if isinstance(text, bytes):
                    text.decode()


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Names of the files that hold a model's weights, sorted; none where they are inside."""
    return sorted(
        {
            entry.value
            for tensor in _external_tensors(proto)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _external_tensors(proto: onnx.ModelProto) -> Iterator[Any]:
    """Weights and constants of a graph that are in other files."""
    yield from filter(uses_external_data, proto.graph.initializer)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and uses_external_data(attribute.t):
                yield attribute.t


def _check_lengths(proto: onnx.ModelProto) -> None:
    """Refuse weights whose length in their file is not what their shape takes."""
    for tensor in _external_tensors(proto):
        for entry in tensor.external_data:
            size = weight_bytes(tensor)
            if entry.key == "length" and entry.value != str(size):
                raise ValueError(f"weight {tensor.name!r} has {entry.value} bytes, not {size}")
