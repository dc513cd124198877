"""Barriers no later than they have to be.

TVM places a barrier before the first statement that reads what other work items wrote. Loads into
registers that stand in front of it would be waited for where a barrier of the device ends all
memory accesses of a work item, as on AMD's RDNA. A pass moves the barrier in front of them:

    before   shared = registers; registers = global; barrier; sums += shared * shared
    after    shared = registers; barrier; registers = global; sums += shared * shared

Source of what waits: LLVM, "User Guide for AMDGPU Backend", memory model of GFX10-GFX11.
"""

from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx

from leakyforge.kernels.expressions import operator_name


@tirx.transform.prim_func_pass(opt_level=0)
class AdvanceBarriers:
    """Pass over kernels in which TVM has placed barriers."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Called by TVM."""
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(function.body, (tirx.BufferStore, stores.append))
        # Which others may read, or have written.
        common = {store.buffer for store in stores if store.buffer.scope() != "local"}

        def advance(sequence: tirx.SeqStmt, mutator: tvm_ffi.StructuralMutator) -> tirx.SeqStmt:
            statements: list[tirx.Stmt] = []
            for statement in mutator.default_mutate(sequence):
                place = len(statements)
                if operator_name(getattr(statement, "value", None)) == "tirx.tvm_storage_sync":
                    while place and _is_private(statements[place - 1], common):
                        place -= 1
                statements.insert(place, statement)
            return tirx.SeqStmt(statements)

        return tvm_ffi.structural_mutate(function, (tirx.SeqStmt, advance))


def _is_private(statement: tirx.Stmt, common: set[Any]) -> bool:
    """Whether a statement changes registers only, and reads nothing that any work item writes."""
    stores: list[tirx.BufferStore] = []
    loads: list[ir.TensorLoad] = []
    # Calls for their effect, such as barriers, and what declares memory.
    others: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(
        statement,
        [
            (tirx.BufferStore, stores.append),
            (ir.TensorLoad, loads.append),
            ((tirx.Evaluate, tirx.AllocBuffer, tirx.AttrStmt), others.append),
        ],
    )
    return (
        not others
        and all(store.buffer.scope() == "local" for store in stores)
        and not any(load.source in common for load in loads)
    )
