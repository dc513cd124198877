"""Strassen's algorithm: its sums, when it is taken, and products against float64."""

import dataclasses
import functools

import numpy as np
import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.strassen import (
    StrassenConfig,
    schedule_strassen,
    strassen,
    strassen_config,
    strassen_weights,
)
from leakyforge.tolerance import tolerance

HOST = parse_target("cpu")
PRODUCT = Conv2dShape(
    height=1, width=64, in_channels=784, out_channels=512, kernel=(1, 1), strides=(1, 1),
    dilation=(1, 1), padding=(0, 0, 0, 0), itemsize=4, is_product=True,
)  # fmt: skip


# The last: tiles of two vectors, one row in a tile, and cut tiles with the rows in two blocks.
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "tile"),
    [(64, 784, 512, None), (2, 16, 16, None), (6, 48, 32, None), (14, 80, 96, None),
     (8, 32, 64, (2, 2, 8, 1)), (10, 16, 32, (1, 4, 4, 1)), (16, 32, 64, (4, 3, 8, 2)),
     (8, 16, 40, (2, 3, 4, 1))],
)  # fmt: skip
def test_equal_to_the_definition(run_kernel, rows, inner, columns, tile):
    generator = np.random.default_rng(0)
    shape = dataclasses.replace(PRODUCT, width=rows, in_channels=inner, out_channels=columns)
    left = generator.standard_normal((1, 1, rows, inner)).astype(np.float32)
    right = generator.standard_normal((columns, 1, 1, inner)).astype(np.float32)
    if tile is None:
        config = strassen_config(shape, HOST)
    else:
        *sizes, blocks = tile
        config = StrassenConfig(*sizes, 4, 28, blocks)
    actual = run_kernel(
        functools.partial(strassen, shape=shape, config=config, note={}),
        lambda schedule: schedule_strassen(schedule, config),
        [left, strassen_weights(right, config)],
    )
    desired = left.astype(np.float64) @ right[:, 0, 0].T
    limits = tolerance("float32", inner)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


def names(shape, strict=False):
    found, refused = algorithms(shape, HOST, shape.in_channels, strict=strict)
    return [each.name for each in found], refused


def test_taken_for_a_large_batch():
    assert names(PRODUCT)[0][0] == "Strassen"


def test_not_taken_for_a_small_batch():
    """The sums of the weights are larger than the weights, which is all that it reads."""
    small = dataclasses.replace(PRODUCT, width=2, in_channels=4096, out_channels=4096)
    assert names(small)[0][0] == "direct"


def test_not_offered_to_convolutions():
    assert "Strassen" not in names(dataclasses.replace(PRODUCT, is_product=False))[0]


@pytest.mark.parametrize("change", [{"width": 63}, {"in_channels": 783}, {"out_channels": 10}])
def test_declines_with_a_reason(change):
    found, refused = names(dataclasses.replace(PRODUCT, **change))
    assert "Strassen" not in found
    assert any("Strassen: halves must be whole" in reason for reason in refused)


def test_strict_precision_keeps_to_the_definition():
    found, refused = names(PRODUCT, strict=True)
    assert "Strassen" not in found
    assert "Strassen: precision is strict" in refused


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_tiles_fit_the_registers_and_divide_the_rows(target):
    config = strassen_config(PRODUCT, parse_target(target))
    assert isinstance(config, StrassenConfig)
    assert config.rows * config.vectors <= config.registers
    assert 32 % (config.rows * config.blocks) == 0


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="15 accumulators exceed the registers"):
        StrassenConfig(5, 3, 4, 4, registers=14, blocks=1)
