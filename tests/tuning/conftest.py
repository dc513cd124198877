"""A small model to tune, and its layers."""

import pytest

from leakyforge.exporter import export
from leakyforge.kernels import parse_target
from leakyforge.kernels.tuning.layers import tunable_layers


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The classifier of digits, not compiled."""
    return export("digits", tmp_path_factory.mktemp("tuning") / "digits.onnx")


@pytest.fixture(scope="session")
def layers(model):
    """Its layers for this machine."""
    return tunable_layers(str(model), parse_target("cpu"), {}, strict=False)
