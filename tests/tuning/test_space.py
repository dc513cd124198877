"""Candidates: all of them are right, the rules' are among them, and equal layers share records."""

import dataclasses
import random

import pytest

from leakyforge.kernels import parse_target
from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.measure import Layer
from leakyforge.kernels.tuning.layers import Convolution
from leakyforge.kernels.tuning.machine import Local
from leakyforge.kernels.tuning.space import candidates
from leakyforge.kernels.tuning.worker import Result, _Bench
from leakyforge.kernels.tuning.workload import config_from_json, config_to_json, workload_key

HOST = parse_target("cpu")
PLAIN = Conv2dShape(
    height=9, width=10, in_channels=16, out_channels=32, kernel=(3, 3), strides=(1, 1),
    dilation=(1, 1), padding=(1, 1, 1, 1), itemsize=4,
)  # fmt: skip
SHAPES = {
    "winograd": PLAIN,
    "strided": dataclasses.replace(PLAIN, kernel=(4, 4), strides=(2, 2)),
    "pooled": dataclasses.replace(PLAIN, height=8, pooled=True),
    "dilated": dataclasses.replace(PLAIN, dilation=(2, 1), padding=(2, 0, 1, 3)),
    "dot": dataclasses.replace(PLAIN, out_channels=1),
    "line": dataclasses.replace(PLAIN, kernel=(1, 7), padding=(0, 3, 0, 3)),
    "double": dataclasses.replace(PLAIN, itemsize=8),
    "product": dataclasses.replace(
        PLAIN, height=1, width=12, in_channels=32, out_channels=40, kernel=(1, 1),
        padding=(0, 0, 0, 0), is_product=True,
    ),
}  # fmt: skip


def tunable(shape):
    inputs = ((1, shape.height, shape.width, shape.in_channels),)
    layer = Layer(shape, inputs, lambda tensor: tensor, copies=False)
    (rules, *_), _ = algorithms(shape, HOST, shape.in_channels, strict=False)
    key = workload_key(layer, shape.in_channels, strict=False)
    return Convolution("a layer", key, 1, 0, layer, shape.in_channels, False, rules)


@pytest.mark.parametrize("name", SHAPES)
def test_candidates_are_right(name):
    """Eight of each kind, compared with numpy's sum in float64."""
    shape = SHAPES[name]
    found = candidates(shape, HOST, shape.in_channels, strict=False)
    assert len(found) > 10
    assert len({each.config for each in found}) == len(found)
    bench = _Bench(tunable(shape), HOST, Local(HOST))
    for each in random.Random(1).sample(found, 8):
        built = bench.kernel(config_to_json(each.config))
        assert not isinstance(built, Result), f"{each.config}: {built}"


def test_a_wrong_candidate_is_found():
    bench = _Bench(tunable(PLAIN), HOST, Local(HOST))
    bench.desired = bench.desired * (1 + 1e-4)
    result = bench.kernel(config_to_json(tunable(PLAIN).rules.config))
    assert result.status == "wrong"
    assert "of the range, " in result.error


def test_the_rules_are_among_them():
    rules, _ = algorithms(PLAIN, HOST, 16, strict=False)
    found = {each.config for each in candidates(PLAIN, HOST, 16, strict=False)}
    assert {each.config for each in rules} <= found


@pytest.mark.parametrize("shape", [PLAIN, SHAPES["product"]], ids=["convolution", "product"])
def test_strict_keeps_to_the_definition(shape):
    found = candidates(shape, HOST, shape.in_channels, strict=True)
    assert {type(each.config).__name__ for each in found} == {"Conv2dConfig"}


def test_products_by_both_algorithms():
    shape = SHAPES["product"]
    found = candidates(shape, HOST, shape.in_channels, strict=False)
    kinds = {type(each.config).__name__ for each in found}
    assert kinds == {"Conv2dConfig", "StrassenConfig"}


def test_sizes_as_text():
    for each in candidates(PLAIN, HOST, 16, strict=False):
        assert config_from_json(config_to_json(each.config)) == each.config


@pytest.mark.parametrize("text", ["{}", '{"type": "Conv2dConfig"}', '{"type": "os"}', "[1]"])
def test_text_that_is_no_size(text):
    with pytest.raises(ValueError, match="unknown kernel"):
        config_from_json(text)


def test_equal_layers_have_one_key():
    first, second = tunable(PLAIN), tunable(PLAIN)
    assert first.workload == second.workload
    assert len({tunable(shape).workload for shape in SHAPES.values()}) == len(SHAPES)
    layer = first.layer
    keys = {
        workload_key(layer, 16, strict=False),
        workload_key(layer, 8, strict=False),
        workload_key(layer, 16, strict=True),
        workload_key(dataclasses.replace(layer, copies=True), 16, strict=False),
    }
    assert len(keys) == 4
