"""Models with LeakyRelu, built as ONNX graphs from numpy weights."""

from leakyforge.models.darknet import read_darknet
from leakyforge.models.zoo import ZOO, ZooModel, build

__all__ = ["ZOO", "ZooModel", "build", "read_darknet"]
