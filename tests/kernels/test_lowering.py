"""Prefetched weights and register tiles in the code that LLVM makes."""

import numpy as np
import pytest
import tvm
from tvm import s_tir, te

from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.conv2d import BLOCK, Conv2dShape
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.target import parse_target

V3 = parse_target("cpu:x86-64-v3")


def deep(size: int = 13, kernel: int = 3) -> Conv2dShape:
    """A convolution with more weights than pixels."""
    pad = kernel // 2
    return Conv2dShape(
        size, size, 256, 512, (kernel, kernel), (1, 1), (1, 1), (pad, pad, pad, pad), 4
    )


def compiled(shape: Conv2dShape, name: str) -> str:
    """The assembly of an algorithm."""
    found, _ = algorithms(shape, V3, shape.in_channels, strict=False)
    algorithm = next(each for each in found if each.name == name)
    data = te.placeholder((1, shape.height, shape.width, shape.in_channels))
    packed = te.placeholder(algorithm.packed_shape(shape))
    output = algorithm.define(shape, {}, copies=False)(data, packed)
    schedule = s_tir.Schedule(te.create_prim_func([data, packed, output]))
    algorithm.schedule(schedule)
    library = tvm.compile(schedule.mod, V3.tvm, tir_pipeline=PIPELINE)
    return str(library.mod.inspect_source("asm"))


@pytest.mark.parametrize(
    ("shape", "name"), [(deep(), "F(4, 3)"), (deep(4), "direct"), (deep(4, 1), "direct")]
)
def test_weights_of_few_tiles_are_prefetched(shape, name):
    assembly = compiled(shape, name)
    assert "prefetcht1" in assembly


@pytest.mark.parametrize(("shape", "name"), [(deep(56), "direct"), (deep(13), "F(4, 3) in blocks")])
def test_weights_of_many_tiles_are_not(shape, name):
    assembly = compiled(shape, name)
    assert "prefetch" not in assembly


@pytest.mark.parametrize(("size", "depths"), [(4, (1, 3)), (56, (1, 2))])
def test_weights_of_few_tiles_are_taken_by_rows_of_the_kernel(size, depths):
    """Depths of the loops over the kernel's rows and columns: pixels lie between, or outside."""
    shape = deep(size)
    direct = next(
        each
        for each in algorithms(shape, V3, shape.in_channels, strict=True)[0]
        if each.name == "direct"
    )
    data = te.placeholder((1, size, size, shape.in_channels))
    packed = te.placeholder(direct.packed_shape(shape))
    output = direct.define(shape, {}, copies=False)(data, packed)
    schedule = s_tir.Schedule(te.create_prim_func([data, packed, output]))
    direct.schedule(schedule)
    loops = [
        schedule.get(loop) for loop in schedule.get_loops(schedule.get_sblock(f"{BLOCK}_update"))
    ]
    found = [depth for depth, loop in enumerate(loops) if int(loop.extent) == 3]
    assert tuple(found[:2]) == depths


@pytest.mark.parametrize(("shape", "name"), [(deep(), "F(4, 3)"), (deep(4), "direct")])
def test_sums_stay_in_registers_beside_a_prefetch(shape, name):
    # LLVM may not keep stores to memory out of a loop that holds a prefetch.
    assembly = compiled(shape, name)
    lines = assembly.splitlines()
    first = next(index for index, line in enumerate(lines) if "prefetcht1" in line)
    end = next(index for index in range(first, len(lines)) if lines[index].startswith("\tj"))
    loop = lines[first:end]
    assert any("vfmadd" in line for line in loop)
    stores = [line for line in loop if "mov" in line and line.rstrip().endswith(")")]
    assert stores == []


def test_prefetching_changes_no_result():
    shape = deep(4)
    found, _ = algorithms(shape, parse_target("cpu"), shape.in_channels, strict=False)
    direct = next(each for each in found if each.name == "direct")
    data = te.placeholder((1, 4, 4, 256))
    packed = te.placeholder(direct.packed_shape(shape))
    output = direct.define(shape, {}, copies=False)(data, packed)
    function = te.create_prim_func([data, packed, output])
    schedule = s_tir.Schedule(function)
    direct.schedule(schedule)
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, 4, 4, 256), dtype="float32")
    weight = generator.standard_normal((512, 3, 3, 256), dtype="float32")
    results = []
    for module, pipeline in ((schedule.mod, PIPELINE), (tvm.IRModule({"main": function}), "s_tir")):
        result = tvm.runtime.empty((1, 4, 4, 512), "float32")
        kernel = tvm.compile(module, "llvm", tir_pipeline=pipeline)["main"]
        kernel(tvm.runtime.tensor(image), tvm.runtime.tensor(direct.pack(weight, shape)), result)
        results.append(result.numpy())
    # The sums run in the same order; only multiply-adds round once instead of twice.
    terms = 9 * 256
    np.testing.assert_allclose(
        results[0], results[1], rtol=0, atol=6 * np.sqrt(terms) * 2**-24 * np.abs(results[1]).max()
    )
