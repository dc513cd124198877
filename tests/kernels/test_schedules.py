"""Elementwise kernels of a model: in vectors across their axes, whatever the shape."""

import math
import re

import numpy as np
import pytest
import tvm
from tvm import s_tir, te

from leakyforge.kernels import parse_target
from leakyforge.kernels.leaky_relu import leaky_relu
from leakyforge.kernels.schedules import PARALLEL_WORK, match_elementwise
from leakyforge.runtime.tensors import empty_aligned

V3 = parse_target("cpu:x86-64-v3")
SHAPES = [
    (1,), (7,), (8,), (9,), (997,), (1, 1, 1), (1, 1002), (7, 13, 3), (64, 24), (8, 17), (17, 8),
    (16, 16, 17), (10, 8, 3), (6, 10, 14, 3), (3, 5, 130), (2, 3, 4, 5, 7),
    (PARALLEL_WORK + 1,), (40, 41, 43), (64, 64, 17),
]  # fmt: skip
# Their rows, of 130 and of 14x3 elements, fill vectors of two only.
PAIRS = [(3, 5, 130), (6, 10, 14, 3)]


def scheduled(shape, bias_shape, target):
    """LeakyRelu of a sum, as FuseTIR makes it of Add and LeakyRelu."""
    x = te.placeholder(shape, "float32", "x")
    bias = te.placeholder(bias_shape, "float32", "bias")
    skipped = len(shape) - len(bias_shape)
    total = te.compute(shape, lambda *index: x(*index) + bias(*index[skipped:]), "total")
    function = te.create_prim_func([x, bias, leaky_relu(total, 0.2)])
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    assert match_elementwise(schedule, target) is None
    return schedule.mod


def loops(module, kind):
    """Extents of the loops of a kind: `vectorized`, `parallel` or `range`."""
    extents = []
    for name, text in re.findall(r"in (?:T\.)?(\w+)\((.*)\):", module["main"].script()):
        bounds = [int(bound) for bound in re.findall(r"\d+", text)]
        if name == "grid" and kind == "range":
            extents += bounds
        elif name == kind:
            extents.append(bounds[-1] - sum(bounds[:-1]))
    return sorted(extents)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axes", ["every", "last"])
def test_equal_to_numpy(shape, axes):
    target = parse_target("cpu")
    bias_shape = shape if axes == "every" else shape[-1:]
    kernel = tvm.compile(scheduled(shape, bias_shape, target), target.tvm)["main"]
    generator = np.random.default_rng(0)
    x, bias, out = (
        empty_aligned(each, np.dtype(np.float32)) for each in (shape, bias_shape, shape)
    )
    x[...], bias[...] = (generator.standard_normal(each.shape) for each in (x, bias))
    out[...] = np.nan
    kernel(x, bias, out)
    total = x + bias
    np.testing.assert_array_equal(out, np.where(total >= 0, total, total * np.float32(0.2)))


@pytest.mark.parametrize(
    "shape", [s for s in SHAPES if np.prod(s) >= 8 and s not in PAIRS], ids=str
)
def test_code_is_vectors_without_divisions_of_the_index(shape):
    module = scheduled(shape, shape, V3)
    assert loops(module, "vectorized")
    assembly = tvm.compile(module, V3.tvm).mod.inspect_source("asm")
    assert re.search(r"vmulps\s", assembly)
    assert not re.search(r"vpmul|vgather|vinsertps", assembly)


def test_rest_is_a_loop_of_its_own():
    module = scheduled((7, 13, 5), (7, 13, 5), V3)
    assert loops(module, "vectorized") == [8]
    assert loops(module, "range") == [455 % 8, 455 // 8]


def test_rows_are_fused_where_no_axis_fills_vectors():
    module = scheduled((100, 16, 17), (100, 16, 17), V3)
    assert loops(module, "vectorized") == [8]
    assert loops(module, "range") == [16 * 17 // 8, 100]


def test_broadcast_keeps_the_channels_innermost():
    module = scheduled((128, 16, 24), (24,), V3)
    assert loops(module, "vectorized") == [8]
    assert loops(module, "range") == [24 // 8, 128 * 16]


def test_threads_share_enough_work_only():
    odd = PARALLEL_WORK + 1
    assert loops(scheduled((odd,), (odd,), V3), "parallel") == [odd // 8]
    assert loops(scheduled((odd - 8,), (odd - 8,), V3), "parallel") == []


@pytest.mark.parametrize("shape", PAIRS, ids=str)
def test_axes_whose_vectors_would_be_of_two_elements_stay_apart(shape):
    module = scheduled(shape, shape, V3)
    assert loops(module, "vectorized") == []
    assert loops(module, "range") == sorted([shape[-1], math.prod(shape[:-1])])
