"""Convolutions with few output channels: when they are taken, and their tiles."""

import dataclasses

import numpy as np
import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.conv2d_dot import DotConfig, dot_config, pack_dot_weights
from leakyforge.kernels.schedules import NoMatch

SHAPE = Conv2dShape(
    height=64, width=64, in_channels=64, out_channels=3, kernel=(3, 3), strides=(1, 1),
    dilation=(1, 1), padding=(1, 1, 1, 1), itemsize=4,
)  # fmt: skip


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
@pytest.mark.parametrize(("width", "channels"), [(64, 3), (61, 3), (17, 1), (1, 2)])
def test_tiles_are_whole_and_fit_the_registers(target, width, channels):
    parsed = parse_target(target)
    shape = dataclasses.replace(SHAPE, width=width, out_channels=channels)
    config = dot_config(shape, parsed)
    assert isinstance(config, DotConfig)
    assert shape.out_width % config.columns == 0
    assert config.columns * channels < parsed.vector_registers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"in_channels": 63}, "its input channels are no multiple of 8"),
        ({"out_channels": 7}, "its output channels fill most of a vector"),
    ],
)
def test_declines_with_a_reason(change, reason):
    declined = dot_config(dataclasses.replace(SHAPE, **change), parse_target("cpu:x86-64-v3"))
    assert declined == NoMatch(reason)


_VOCODER = dataclasses.replace(
    SHAPE, height=1, width=16384, in_channels=8, out_channels=1, kernel=(1, 7), padding=(0, 3, 0, 3)
)


@pytest.mark.parametrize("shape", [SHAPE, _VOCODER], ids=["super-resolution", "vocoder"])
def test_last_layers_of_few_channels_are_taken(shape):
    """Of the vocoder's, a register tile of output channels took 3.5 times as long (Zen 3)."""
    (least, *_), _ = algorithms(shape, parse_target("cpu:x86-64-v3"), 8, strict=False)
    assert isinstance(least.config, DotConfig)


def test_packed_weights_hold_lanes_of_input_channels():
    weight = np.random.default_rng(0).standard_normal((3, 2, 2, 16)).astype(np.float32)
    packed = pack_dot_weights(weight, DotConfig(4, 3, 8, 28))
    assert packed.shape == (2, 2, 2, 3, 8)
    assert packed[1, 0, 1, 2, 5] == weight[2, 1, 0, 8 + 5]


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="15 accumulators exceed the registers"):
        DotConfig(5, 3, 8, 14)
