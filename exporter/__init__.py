"""Models become checked ONNX files."""

from leakyforge.exporter.api import export

__all__ = ["export"]
