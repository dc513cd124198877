"""Winograd along one axis: when it is taken, its blocks, and its sums against float64."""

import dataclasses

import numpy as np
import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.algorithms import Algorithm, algorithms
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.cook_toom import cook_toom
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.winograd1d import (
    Winograd1dConfig,
    transform_weights1d,
    winograd1d_config,
)
from leakyforge.tolerance import tolerance

HOST = parse_target("cpu")
ROW = Conv2dShape(
    height=1, width=512, in_channels=64, out_channels=64, kernel=(1, 7), strides=(1, 1),
    dilation=(1, 3), padding=(0, 9, 0, 9), itemsize=4,
)  # fmt: skip


def config_of(shape, target=HOST):
    config = winograd1d_config(shape, target, shape.in_channels)
    assert isinstance(config, Winograd1dConfig), config
    return config


def definition(data, weight, shape):
    """The convolution's sum in float64."""
    (top, left, bottom, right), (step_y, step_x) = shape.padding, shape.dilation
    padded = np.pad(data.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    total = 0.0
    for i in range(shape.kernel[0]):
        for j in range(shape.kernel[1]):
            y, x = i * step_y, j * step_x
            window = padded[:, y : y + shape.out_height, x : x + shape.out_width]
            total = total + window @ weight[:, i, j].astype(np.float64).T
    return total


# Kernel, dilation, padding before and after, positions along the axis, lines, channels in and out.
CASES = {
    "two_taps": (2, 1, (1, 0), 33, 1, 16, 16),
    "three_taps": (3, 1, (1, 1), 64, 2, 16, 32),
    "four_taps": (4, 1, (1, 2), 61, 1, 32, 16),
    "five_taps": (5, 2, (4, 4), 50, 1, 16, 16),
    "six_taps_no_padding": (6, 1, (0, 0), 40, 1, 16, 16),
    "seven_dilated": (7, 3, (9, 9), 101, 1, 16, 48),
    "eleven_dilated": (11, 5, (25, 25), 127, 1, 24, 8),
    "shorter_than_a_tile": (3, 1, (1, 1), 2, 3, 8, 8),
    "one_position": (3, 1, (1, 1), 1, 1, 16, 16),
    "shorter_than_the_dilation": (3, 7, (7, 7), 5, 1, 16, 16),
    "pads_beyond_the_kernel": (3, 1, (5, 6), 20, 1, 16, 16),
    "many_lines": (3, 1, (1, 1), 17, 13, 24, 48),
    "short_lines": (3, 1, (1, 1), 8, 30, 72, 72),
    "short_dilated_lines": (5, 2, (4, 4), 9, 28, 16, 16),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", list(CASES))
def test_equal_to_the_definition(run_kernel, name, axis):
    taps, dilation, (before, after), length, lines, in_channels, out_channels = CASES[name]

    def sizes(along, across):
        return (along, across) if axis == 0 else (across, along)

    height, width = sizes(length, lines)
    (top, left), (bottom, right) = sizes(before, 0), sizes(after, 0)
    shape = Conv2dShape(
        height, width, in_channels, out_channels, sizes(taps, 1), (1, 1), sizes(dilation, 1),
        (top, left, bottom, right), 4,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    data = generator.standard_normal((2, height, width, in_channels)).astype(np.float32)
    weight = generator.standard_normal((out_channels, *shape.kernel, in_channels))
    weight = weight.astype(np.float32)
    algorithm = Algorithm(config_of(shape), cycles=0.0)
    packed = algorithm.pack(weight, shape)
    assert packed.shape == algorithm.packed_shape(shape)
    actual = run_kernel(
        algorithm.define(shape, {}, copies=False), algorithm.schedule, [data, packed]
    )
    desired = definition(data, weight, shape)
    limits = tolerance("float32", taps * in_channels)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


@pytest.mark.parametrize(("tiles", "block"), [(4, 4), (4, 12), (7, 28), (13, 13)])
def test_blocks_of_any_size(run_kernel, tiles, block):
    shape = dataclasses.replace(ROW, width=97, in_channels=16, out_channels=16)
    config = dataclasses.replace(config_of(shape), tiles=tiles, vectors=1, block=block)
    generator = np.random.default_rng(0)
    data = generator.standard_normal((1, 1, 97, 16)).astype(np.float32)
    weight = generator.standard_normal((16, 1, 7, 16)).astype(np.float32)
    algorithm = Algorithm(config, cycles=0.0)
    actual = run_kernel(
        algorithm.define(shape, {}, copies=False),
        algorithm.schedule,
        [data, algorithm.pack(weight, shape)],
    )
    desired = definition(data, weight, shape)
    limits = tolerance("float32", 7 * 16)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


def test_packed_weights_are_parts_of_the_kernel():
    config = Winograd1dConfig(4, 4, 2, 1, 1, 1, 4, 1, 4, 4, registers=14, block=4)
    weight = np.random.default_rng(0).standard_normal((8, 1, 7, 5)).astype(np.float32)
    packed = transform_weights1d(weight, config)
    assert packed.shape == (7, 2, 2, 5, 4)
    # Taps 4 to 6, and one beyond the kernel.
    part = np.append(weight[6, 0, 4:, 3].astype(np.float64), 0.0)
    place = cook_toom(4, 4).kernel[5] @ part
    np.testing.assert_allclose(packed[5, 1, 1, 3, 2], place, rtol=2.0**-23)


def test_taken_where_it_saves():
    found, _ = algorithms(ROW, HOST, ROW.in_channels, strict=False)
    assert found[0].name == "2 x F(4, 4) along one axis"


def test_one_output_is_computed_directly():
    """Winograd would compute a whole tile."""
    shape = dataclasses.replace(ROW, width=1, dilation=(1, 1), padding=(0, 3, 0, 3))
    found, _ = algorithms(shape, HOST, shape.in_channels, strict=False)
    assert found[0].name == "direct"


def test_strict_precision_does_without():
    found, refused = algorithms(ROW, HOST, ROW.in_channels, strict=True)
    assert [each.name for each in found] == ["direct"]
    assert any("strict" in reason for reason in refused)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strides": (1, 2)}, "with stride 1"),
        ({"padding": (1, 9, 1, 9)}, "no padding across"),
        ({"in_channels": 6}, "channels in multiples of"),
        ({"out_channels": 255}, "channels in multiples of"),
    ],
)
def test_declines_with_a_reason(change, reason):
    shape = dataclasses.replace(ROW, **change)
    declined = winograd1d_config(shape, HOST, shape.in_channels)
    assert isinstance(declined, NoMatch)
    assert reason in declined.reason


def test_joined_inputs_decide_the_vectors():
    config = winograd1d_config(ROW, HOST, 8)
    assert config.input_lanes <= 8


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
@pytest.mark.parametrize("channels", [(8, 8), (24, 48), (64, 64), (128, 512)])
def test_tiles_fit_registers_and_channels(target, channels):
    shape = dataclasses.replace(ROW, in_channels=channels[0], out_channels=channels[1])
    config = config_of(shape, parse_target(target))
    assert config.lines * config.tiles * config.vectors <= config.registers
    assert channels[1] % config.channels == 0
    assert config.block % config.tiles == 0


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="15 accumulators exceed the registers"):
        Winograd1dConfig(4, 4, 1, 1, 1, 1, 5, 3, 4, 4, registers=14, block=5)


def test_parts_of_another_length_than_the_tiles_are_refused():
    with pytest.raises(ValueError, match="parts share their tiles only where m = r"):
        Winograd1dConfig(4, 3, 2, 1, 1, 1, 4, 1, 4, 4, registers=14, block=4)
