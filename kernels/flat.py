"""Elementwise kernels over arrays of any length, at the speed of memory.

    for i in range(n):                                    # the definition
        y[i] = f(x[i], ...)

    for i in range(head):                                 # up to an aligned address of y
        y[i] = f(x[i], ...)
    for b in parallel((n - head) // block):               # serial where there is little to do
        v0, v1, ... = vectors of x from head + b * block
        y[head + b * block: ...] = f(v0), f(v1), ...
    for i in range(head + whole blocks, n):
        y[i] = f(x[i], ...)

1. A block is `_LOADS` vectors, all read before the first is written: in the caches, alternating
   reads and writes reached 0.75 to 0.85 of memcpy's speed with two threads, these 0.95 to 0.99
   (Zen 4). Prefetching made it slower.
2. Threads share the blocks from `PARALLEL_BYTES` upwards: there, two of them take as long as one,
   since waking the second one costs 3 us.
3. From `streaming_bytes`, the size of the last cache, upwards the arrays do not stay in the caches.
   An ordinary store would read each line of y first; a non-temporal one goes past the caches and
   moves a third less: 1.2 to 1.7 times memcpy's speed there, and 0.6 to 0.7 in the caches (Zen 4).

Non-temporal stores come to TVM as LLVM IR (LLVM Language Reference, `!nontemporal`). They are not
ordered with the stores after them, so a chunk of blocks ends with a fence, before TVM's threads say
that they are done (Intel SDM, volume 1, 10.4.6.2; AMD64 manual, volume 2, 7.4.2).
"""

from collections.abc import Callable, Sequence

import tvm_ffi
from tvm import ir, tirx

from leakyforge.kernels.bfloat16 import narrow, widen
from leakyforge.kernels.elements import Element
from leakyforge.kernels.target import CpuTarget

# Bytes read and written from which on threads share the work.
PARALLEL_BYTES = 1 << 19
# Vectors that a block reads before it writes.
_LOADS = 8
# Bytes of the output between two fences.
_CHUNK_BYTES = 1 << 16

_LLVM_IR = """
define linkonce_odr i64 @leakyforge_address(ptr %place) alwaysinline {{
  %address = ptrtoint ptr %place to i64
  ret i64 %address
}}
define linkonce_odr void @leakyforge_stream(ptr %place, <{lanes} x i{bits}> %value) alwaysinline {{
  store <{lanes} x i{bits}> %value, ptr %place, align {alignment}, !nontemporal !0
  ret void
}}
define linkonce_odr void @leakyforge_fence() alwaysinline {{
  call void @llvm.x86.sse.sfence()
  ret void
}}
declare void @llvm.x86.sse.sfence()
!0 = !{{i32 1}}
"""


def flat_function(
    name: str,
    element: Element,
    inputs: Sequence[str],
    dtype: str,
    target: CpuTarget,
    streaming_bytes: int,
) -> tirx.PrimFunc:
    """A function of flat arrays, which may lie at any address; the output may be an input.

    Args:
        name: of the function in the library.
        element: the definition, from one expression for each input.
        inputs: their names; the output comes after them and is called `out`.
        dtype: of all arrays; those of bfloat16 are passed as uint16.
        target: what to compile for.
        streaming_bytes: bytes read and written from which on the output bypasses the caches.
    """
    return _Flat(element, inputs, dtype, target).function(name, streaming_bytes)


class _Flat:
    """The arrays of one function and what is computed from their shape."""

    def __init__(
        self, element: Element, inputs: Sequence[str], dtype: str, target: CpuTarget
    ) -> None:
        if dtype == "bfloat16":
            scalar = tvm_ffi.dtype("uint16")
            self.element: Element = lambda *bits: narrow(element(*map(widen, bits)))
        else:
            scalar = tvm_ffi.dtype(dtype)
            self.element = element
        self.itemsize = scalar.itemsize
        # Wider vectors than a core works on at once were up to a tenth slower (Zen 4).
        self.alignment = target.multiply_add_bits // 2 // 8
        self.lanes = self.alignment // self.itemsize
        self.block = self.lanes * (_LOADS // len(inputs))
        self.vector = str(scalar.with_lanes(self.lanes))
        self.size = tirx.Var("n", "int64")
        # Without an assumption that arrays are different ones: `out` may be an input.
        arrays = [
            tirx.decl_buffer((self.size,), str(scalar), array, data_alignment=self.itemsize)
            for array in (*inputs, "out")
        ]
        self.inputs, self.out = arrays[:-1], arrays[-1]
        self.head = tirx.Var("head", "int64")
        self.blocks = tirx.Var("blocks", "int64")

    def function(self, name: str, streaming_bytes: int) -> tirx.PrimFunc:
        """The whole function: the head, the blocks in one of three ways, the rest."""
        address = tirx.call_extern("int64", "leakyforge_address", tirx.address_of(self.out[0]))
        gap = tirx.floormod(_int(0) - address, _int(self.alignment))
        head = tirx.min(tirx.floordiv(gap, _int(self.itemsize)), self.size)
        blocks = tirx.floordiv(self.size - self.head, _int(self.block))
        moved = self.size * _int(self.itemsize * (len(self.inputs) + 1))
        rest = self.head + self.blocks * _int(self.block)
        ways = tirx.IfThenElse(
            moved < _int(PARALLEL_BYTES),
            self._stored(tirx.ForKind.SERIAL),
            tirx.IfThenElse(
                moved < _int(streaming_bytes),
                self._stored(tirx.ForKind.PARALLEL),
                self._streamed(),
            ),
        )
        body = tirx.SeqStmt(
            [
                tirx.Bind(self.head, head),
                self._elements(_int(0), self.head),
                tirx.Bind(self.blocks, blocks),
                ways,
                self._elements(rest, self.size - rest),
            ]
        )
        source = _LLVM_IR.format(lanes=self.lanes, bits=8 * self.itemsize, alignment=self.alignment)
        body = tirx.AttrStmt(ir.StringImm(""), "pragma_import_llvm", ir.StringImm(source), body)
        return tirx.PrimFunc([*self.inputs, self.out], body).with_attr("global_symbol", name)

    def _elements(self, start: ir.Expr, count: ir.Expr) -> tirx.Stmt:
        """One element at a time."""
        i = tirx.Var("i", "int64")
        values = [array[start + i] for array in self.inputs]
        store = tirx.BufferStore(self.out, self.element(*values), [start + i])
        return tirx.For(i, _int(0), count, tirx.ForKind.SERIAL, store)

    def _stored(self, kind: tirx.ForKind) -> tirx.Stmt:
        """All blocks with ordinary stores."""
        b = tirx.Var("b", "int64")

        def store(start: ir.Expr, value: ir.Expr) -> tirx.Stmt:
            return tirx.BufferStore(self.out, value, [tirx.Ramp(start, _int(1), self.lanes)])

        return tirx.For(b, _int(0), self.blocks, kind, self._block(b, store))

    def _streamed(self) -> tirx.Stmt:
        """All blocks with non-temporal stores, in chunks that end with a fence."""
        scalar = tvm_ffi.dtype(f"int{8 * self.itemsize}")
        integers = str(scalar.with_lanes(self.lanes))

        def store(start: ir.Expr, value: ir.Expr) -> tirx.Stmt:
            # One function for all dtypes: it stores bits.
            place = tirx.address_of(self.out[start])
            bits = tirx.reinterpret(integers, value)
            return tirx.Evaluate(tirx.call_extern("void", "leakyforge_stream", place, bits))

        c, b = tirx.Var("c", "int64"), tirx.Var("b", "int64")
        in_chunk = _int(max(1, _CHUNK_BYTES // (self.block * self.itemsize)))
        chunks = tirx.floordiv(self.blocks + in_chunk - _int(1), in_chunk)
        count = tirx.min(in_chunk, self.blocks - c * in_chunk)
        block = self._block(c * in_chunk + b, store)
        chunk = tirx.SeqStmt(
            [
                tirx.For(b, _int(0), count, tirx.ForKind.SERIAL, block),
                tirx.Evaluate(tirx.call_extern("void", "leakyforge_fence")),
            ]
        )
        return tirx.For(c, _int(0), chunks, tirx.ForKind.PARALLEL, chunk)

    def _block(self, index: ir.Expr, store: Callable[[ir.Expr, ir.Expr], tirx.Stmt]) -> tirx.Stmt:
        """One block: every vector is read before the first is written."""
        vectors = self.block // self.lanes
        starts = [
            self.head + index * _int(self.block) + _int(k * self.lanes) for k in range(vectors)
        ]
        reads, writes = [], []
        for start in starts:
            values = []
            for array in self.inputs:
                value = tirx.Var("v", self.vector)
                ramp = tirx.Ramp(start, _int(1), self.lanes)
                reads.append(tirx.Bind(value, tirx.BufferLoad(array, [ramp])))
                values.append(value)
            writes.append(store(start, self.element(*values)))
        return tirx.SeqStmt([*reads, *writes])


def _int(value: int) -> ir.Expr:
    return tirx.const(value, "int64")
