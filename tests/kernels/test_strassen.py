"""Strassen's algorithm: its sums, when it is taken, and products against float64."""

import dataclasses
import functools

import numpy as np
import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.schedules import NoMatch
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
    dilation=(1, 1), padding=(0, 0, 0, 0), itemsize=4,
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
    left = generator.standard_normal((rows, inner)).astype(np.float32)
    right = generator.standard_normal((inner, columns)).astype(np.float32)
    if tile is None:
        config = (
            StrassenConfig(1, 1, 8, 8, 14, 1) if rows == 2 else any_config(rows, inner, columns)
        )
    else:
        *sizes, blocks = tile
        config = StrassenConfig(*sizes, 4, 28, blocks)
    actual = run_kernel(
        functools.partial(strassen, columns=columns, config=config, note={}),
        lambda schedule: schedule_strassen(schedule, config),
        [left, strassen_weights(right, config)],
    )
    desired = left.astype(np.float64) @ right
    limits = tolerance("float32", inner)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


def any_config(rows, inner, columns):
    """The sizes that the rule takes; where it declines by its estimate, one row of one vector."""
    shape = dataclasses.replace(PRODUCT, width=rows, in_channels=inner, out_channels=columns)
    config = strassen_config(shape, HOST)
    return StrassenConfig(1, 1, 8, 8, 14, 1) if isinstance(config, NoMatch) else config


def test_taken_for_a_large_batch():
    assert isinstance(strassen_config(PRODUCT, HOST), StrassenConfig)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 63}, "halves must be whole"),
        ({"in_channels": 783}, "halves must be whole"),
        ({"out_channels": 10}, "halves must be whole"),
        # The sums of the weights are larger than the weights, which is all that a small batch does.
        ({"width": 2, "in_channels": 4096, "out_channels": 4096}, "estimated"),
    ],
)
def test_declines_with_a_reason(change, reason):
    declined = strassen_config(dataclasses.replace(PRODUCT, **change), HOST)
    assert isinstance(declined, NoMatch)
    assert reason in declined.reason


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_tiles_fit_the_registers_and_divide_the_rows(target):
    config = strassen_config(PRODUCT, parse_target(target))
    assert isinstance(config, StrassenConfig)
    assert config.rows * config.vectors <= config.registers
    assert 32 % (config.rows * config.blocks) == 0


def test_config_over_budget_is_refused():
    with pytest.raises(ValueError, match="15 accumulators exceed the registers"):
        StrassenConfig(5, 3, 4, 4, registers=14, blocks=1)
