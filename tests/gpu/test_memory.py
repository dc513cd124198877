"""Places in the arena: nothing that is needed at one time overlaps, and little is wasted."""

import numpy as np
import pytest

from leakyforge.kernels import compile
from leakyforge.kernels.gpu.memory import Lifetime, place
from leakyforge.models import build
from leakyforge.runtime import read_artifact
from leakyforge.runtime.plan import read_plan


def arena(tensors, offsets):
    return max(
        (offset + tensor.size for tensor, offset in zip(tensors, offsets, strict=True)), default=0
    )


def least(tensors, alignment):
    """What the launch that needs most needs: no placement takes less."""
    times = {tensor.first for tensor in tensors}
    return max(
        sum(
            tensor.size + -tensor.size % alignment
            for tensor in tensors
            if tensor.first <= time <= tensor.last
        )
        for time in times
    )


@pytest.mark.parametrize("seed", range(20))
def test_nothing_overlaps(seed):
    random = np.random.default_rng(seed)
    alignment = int(random.choice([1, 16, 512]))
    tensors = [
        Lifetime(int(size), int(first), int(first + length))
        for size, first, length in random.integers((1, -1, 0), (900, 12, 6), (seed, 3))
    ]
    offsets = place(tensors, alignment)
    placed = list(zip(tensors, offsets, strict=True))
    assert all(offset % alignment == 0 for offset in offsets)
    for index, (tensor, offset) in enumerate(placed):
        for other, start in placed[:index]:
            apart = offset + tensor.size <= start or start + other.size <= offset
            assert apart or not tensor.overlaps(other)
    # Each at most behind all the others.
    total = sum(tensor.size + -tensor.size % alignment for tensor in tensors)
    assert arena(tensors, offsets) <= total


def test_the_smallest_gap():
    # The second launch finds gaps of 90 and of 50 bytes, which the first one has left.
    first = [(100, 1), (90, 0), (80, 1), (60, 1), (50, 0), (45, 1)]
    tensors = [*(Lifetime(size, 0, last) for size, last in first), Lifetime(40, 1, 1)]
    assert place(tensors, 10) == [0, 100, 190, 270, 330, 380, 330]


def test_a_chain_takes_two_places():
    tensors = [Lifetime(64, position, position + 1) for position in range(-1, 9)]
    assert arena(tensors, place(tensors, 16)) == 128


@pytest.mark.parametrize(
    ("name", "options"), [("digits", {}), ("small-cnn", {"size": 24, "features": 4})]
)
def test_a_models_arena_is_what_its_largest_launch_needs(name, options, tmp_path):
    path = compile(build(name, **options), "opencl", output=tmp_path / "m.lfa")
    plan = read_plan(read_artifact(path))
    times = {}
    for position, launch in enumerate(plan.launches):
        for index in launch.buffers:
            times.setdefault(index, []).append(position)
    for index in plan.inputs:
        times.setdefault(index, []).append(-1)
    for index in plan.outputs:
        times.setdefault(index, []).append(len(plan.launches))
    activations = [index for index in times if index not in plan.weights]
    tensors = [
        Lifetime(plan.buffers[index].size, min(times[index]), max(times[index]))
        for index in activations
    ]
    offsets = [plan.buffers[index].offset for index in activations]
    assert plan.arena == arena(tensors, offsets) <= least(tensors, 512)
    for index in plan.weights:
        assert plan.buffers[index].offset is None
