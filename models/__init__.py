"""Models with LeakyRelu, built as ONNX graphs from numpy weights."""

from leakyforge.models.zoo import ZOO, ZooModel, build

__all__ = ["ZOO", "ZooModel", "build"]
