"""Where the pass over barriers puts them, in kernels written by hand."""

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from leakyforge.kernels.gpu.barriers import AdvanceBarriers


@T.prim_func
def reads_an_input(x: T.Buffer((8,)), y: T.Buffer((8,))):
    shared = T.alloc_buffer((8,), scope="shared")
    held = T.alloc_buffer((2,), scope="local")
    shared[0] = x[0]
    held[0] = x[1]
    if x[2] > T.float32(0):
        held[1] = held[0]
    T.evaluate(T.tvm_storage_sync("shared"))
    y[0] = shared[1] + held[1]


@T.prim_func
def reads_shared_memory(x: T.Buffer((8,)), y: T.Buffer((8,))):
    shared = T.alloc_buffer((8,), scope="shared")
    held = T.alloc_buffer((1,), scope="local")
    shared[0] = x[0]
    held[0] = shared[0]
    T.evaluate(T.tvm_storage_sync("shared"))
    shared[0] = held[0]


@T.prim_func
def reads_what_is_overwritten(x: T.Buffer((8,)), y: T.Buffer((8,))):
    held = T.alloc_buffer((1,), scope="local")
    held[0] = y[1]
    T.evaluate(T.tvm_storage_sync("shared"))
    y[0] = held[0]


@T.prim_func
def has_two_barriers(x: T.Buffer((8,)), y: T.Buffer((8,))):
    held = T.alloc_buffer((1,), scope="local")
    y[0] = x[0]
    T.evaluate(T.tvm_storage_sync("shared"))
    held[0] = x[1]
    T.evaluate(T.tvm_storage_sync("shared"))
    y[1] = held[0]


def order(function):
    """What a function stores to, and its barriers among that."""
    found = []
    tvm_ffi.structural_walk(
        function.body,
        [
            (tirx.BufferStore, lambda store: found.append(store.buffer.name)),
            (tirx.Evaluate, lambda _: found.append("barrier")),
        ],
    )
    return found


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reads_an_input, ["shared", "barrier", "held", "held", "y"]),
        (reads_shared_memory, ["shared", "held", "barrier", "shared"]),
        (reads_what_is_overwritten, ["held", "barrier", "y"]),
        (has_two_barriers, ["y", "barrier", "barrier", "held", "y"]),
    ],
)
def test_moves_in_front_of_what_is_private(function, expected):
    moved = AdvanceBarriers()(tvm.IRModule({"main": function}))["main"]
    assert order(moved) == expected
