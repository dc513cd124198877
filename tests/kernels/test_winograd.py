"""Winograd: its matrices, when it is taken, and how much precision it costs."""

import dataclasses

import numpy as np
import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.cook_toom import cook_toom
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.winograd import (
    WinogradConfig,
    transform_weights,
    winograd_configs,
)

SHAPE = Conv2dShape(
    height=52, width=52, in_channels=64, out_channels=128, kernel=(3, 3), strides=(1, 1),
    dilation=(1, 1), padding=(1, 1, 1, 1), itemsize=4,
)  # fmt: skip
HOST = parse_target("cpu")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("outputs", [2, 3, 4, 6])
def test_matrices_compute_a_correlation(outputs, size):
    matrices = cook_toom(outputs, size)
    generator = np.random.default_rng(0)
    data, kernel = generator.standard_normal(outputs + size - 1), generator.standard_normal(size)
    actual = matrices.output @ ((matrices.kernel @ kernel) * (matrices.input @ data))
    desired = np.correlate(data, kernel, "valid")
    np.testing.assert_allclose(actual, desired, rtol=0, atol=64 * np.finfo(float).eps)


def test_two_outputs_are_lavins_matrices_up_to_signs():
    matrices = cook_toom(2, 3)
    assert np.abs(matrices.kernel).tolist() == [[1, 0, 0], [0.5] * 3, [0.5] * 3, [0, 0, 1]]
    assert np.abs(matrices.input).tolist() == [
        [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1],
    ]  # fmt: skip


def test_rounding_grows_less_than_the_tolerance_allows():
    """A tile's outputs in float32, at the length of YOLO's widest layer, against float64."""
    length, matrices = 512, cook_toom(4, 3)
    generator = np.random.default_rng(0)
    data = generator.standard_normal((200, length, 6, 6))
    kernel = generator.standard_normal((length, 3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3), axis=(2, 3))
    desired = np.einsum("tkyxij,kij->tyx", windows, kernel)

    def single(array):
        return array.astype(np.float32)

    a, b = single(matrices.output), single(matrices.input)
    u = single(np.einsum("xi,kij,yj->kxy", matrices.kernel, kernel, matrices.kernel))
    v = np.einsum("xi,tkij,yj->tkxy", b, single(data), b)
    actual = np.einsum("ix,txy,jy->tij", a, (u * v).sum(axis=1), a)
    share = np.abs(actual - desired).max() / np.abs(desired).max()
    assert share < 6 * np.sqrt(9 * length) * 2.0**-24


def test_packed_weights_are_transformed():
    config = WinogradConfig(4, 3, 1, 1, 1, 4, 4, registers=14, block=0)
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 5)).astype(np.float32)
    packed = transform_weights(weight, config)
    assert packed.shape == (36, 2, 5, 4)
    assert packed.dtype == np.float32
    matrix = cook_toom(4, 3).kernel
    place = (matrix @ weight[5, :, :, 2].astype(np.float64) @ matrix.T)[1, 3]
    assert packed[1 * 6 + 3, 1, 2, 1] == np.float32(place)
    assert not packed[:, 1, :, 2:].any()


def test_weights_of_a_stride_are_those_of_its_phases():
    config = WinogradConfig(2, 2, 1, 1, 1, 4, 4, registers=14, block=0)
    weight = np.random.default_rng(0).standard_normal((4, 4, 4, 5)).astype(np.float32)
    packed = transform_weights(weight, config)
    assert packed.shape == (9, 1, 20, 4)
    matrix = cook_toom(2, 2).kernel
    # Rows of phase 1, columns of phase 0.
    place = (matrix @ weight[3, 1::2, 0::2, 2].astype(np.float64) @ matrix.T)[2, 0]
    assert packed[2 * 3 + 0, 0, 2 * 5 + 2, 3] == np.float32(place)


def test_joined_inputs_decide_the_vectors():
    configs = winograd_configs(SHAPE, HOST, 8)
    assert {config.input_lanes for config in configs} <= {4, 8}


def best(shape, target):
    found, _ = algorithms(shape, target, shape.in_channels, strict=False)
    return found[0]


def test_large_weights_take_smaller_tiles():
    """F(4, 3) would read four times the weights of the model from memory."""
    target = parse_target('{"kind":"llvm","mcpu":"znver5","num-cores":2}')
    shape = dataclasses.replace(SHAPE, height=14, width=14, in_channels=512, out_channels=1024)
    assert best(shape, target).config.outputs == 2


def test_weights_in_a_cache_take_blocks():
    assert best(SHAPE, HOST).name == "F(4, 3) in blocks"


def test_one_pixel_is_computed_directly():
    """Winograd would compute a whole tile."""
    assert best(dataclasses.replace(SHAPE, height=1, width=1), HOST).name == "direct"


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="15 accumulators exceed the registers"):
        WinogradConfig(4, 3, 3, 5, 1, 4, 4, registers=14, block=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (5, 5)}, "takes 2x2 and 3x3 kernels"),
        ({"kernel": (1, 3)}, "takes 2x2 and 3x3 kernels"),
        ({"strides": (2, 2)}, "of stride 1"),
        ({"kernel": (4, 4)}, "4x4 ones of stride 2"),
        ({"dilation": (2, 2)}, "without dilation"),
        ({"in_channels": 3}, "channels in multiples of"),
        ({"out_channels": 255}, "channels in multiples of"),
    ],
)
def test_declines_with_a_reason(change, reason):
    declined = winograd_configs(dataclasses.replace(SHAPE, **change), HOST)
    assert isinstance(declined, NoMatch)
    assert reason in declined.reason


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
@pytest.mark.parametrize("channels", [(32, 64), (64, 128), (40, 24), (512, 1024)])
def test_tiles_are_whole_and_fit_the_registers(target, channels):
    parsed = parse_target(target)
    shape = dataclasses.replace(SHAPE, in_channels=channels[0], out_channels=channels[1])
    configs = winograd_configs(shape, parsed)
    assert {(config.outputs, config.block > 0) for config in configs} == {
        (2, True), (2, False), (4, True), (4, False),
    }  # fmt: skip
    for config in configs:
        assert channels[1] % config.channels == 0
        assert channels[0] % config.input_lanes == 0
        accumulators = config.rows * config.columns * config.vectors
        assert accumulators + config.vectors + 1 <= parsed.vector_registers
