"""Reading an ONNX file with its external data."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from leakyforge.errors import ExportError
from leakyforge.exporter.check import one_line
from leakyforge.exporter.source import Source, sha256


def read_onnx(path: Path) -> Source:
    """Read an ONNX file; weights in other files are taken inside.

    Raises:
        ExportError: It is not ONNX, is truncated, or its external data cannot be read.
    """
    try:
        # Without a format onnx goes by the ending of the name.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ExportError(f"{path} is not an ONNX file or is truncated; export it again") from error
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"external data of {path} cannot be read: {one_line(error)}") from error
    return Source(model, "onnx", path.name, files={"source": sha256(path)})
