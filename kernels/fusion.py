"""How much of a graph may become one expression.

A fused kernel computes an element by one expression, in which an operand that is read twice stands
twice: of k operators that read their operand r times, the expression has r**k leaves, and a chain
of a dozen LeakyRelu would never end to compile. Where an expression would grow past a bound, the
operator is kept out of the fusion, and its result is an array in memory.
"""

from collections import Counter
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

# Four LeakyRelu have 81, and compile in a fifth of a second; five take five times as long.
_MOST_READS = 128
# Different arrays that an expression reads: with 128 of them LLVM takes seconds for a kernel.
_MOST_ARRAYS = 24
# relax.OpPatternKind: injective functions and simpler ones become part of another's expression.
_INJECTIVE = 2
_OPAQUE = 8


@tvm.transform.module_pass(opt_level=0)
class LimitFusion:
    """Pass that marks functions whose expressions would be too long; before `FuseOps`."""

    def transform_module(
        self, module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """The module with those functions opaque."""
        limiter = _Limiter(module)
        main = module.get_global_var("main")
        limiter.builder_.update_func(main, limiter.visit_expr(module[main]))
        return limiter.builder_.get()


@mutator
class _Limiter(PyExprMutator):  # type: ignore[misc]
    """Counts the reads of each value's expression, and cuts where there are too many.

    Calls of one function share it, so what is cut off is a copy of it.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._module = module
        self._reads: dict[relax.Var, int] = {}
        self._arrays: dict[relax.Var, frozenset[relax.Expr]] = {}
        self._factors: dict[str, list[int]] = {}
        self._opaque: dict[str, Any] = {}
        self._result: tuple[int, frozenset[relax.Expr]] | None = None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self._result = None
        super().visit_var_binding_(binding)
        result = self._counted()
        if result is not None:
            self._reads[binding.var], self._arrays[binding.var] = result

    def _counted(self) -> tuple[int, frozenset[relax.Expr]] | None:
        """What `visit_call_` left for the binding around it."""
        return self._result

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.call_tir":
            return call
        variable, arguments = call.args[0], call.args[1]
        function = self._module[variable]
        pattern = int(function.attrs.get("op_pattern", _OPAQUE))
        if pattern > _INJECTIVE or not isinstance(arguments, relax.Tuple):
            return call
        name = str(variable.name_hint)
        if name not in self._factors:
            self._factors[name] = _reads_of_parameters(function)
        operands = list(arguments.fields)
        reads = sum(
            factor * self._reads.get(each, 1)
            for each, factor in zip(operands, self._factors[name], strict=False)
        )
        arrays = frozenset[relax.Expr]().union(
            *(self._arrays.get(each, {each}) for each in operands)
        )
        if reads <= _MOST_READS and len(arrays) <= _MOST_ARRAYS:
            self._result = reads, arrays
            return call
        if name not in self._opaque:
            self._opaque[name] = self.builder_.add_func(
                function.with_attr("op_pattern", _OPAQUE).without_attr("global_symbol"), name
            )
        return relax.Call(
            call.op, [self._opaque[name], *call.args[1:]], call.attrs, list(call.ty_args)
        )


def _reads_of_parameters(function: tirx.PrimFunc) -> list[int]:
    """How often each parameter stands in the expression of an element of the last one written."""
    reads: dict[ir.Var, Counter[ir.Var]] = {}
    last = function.params[-1]
    stores: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, stores.append))
    for store in stores:
        loads: list[ir.TensorLoad] = []
        tvm_ffi.structural_walk(store.value, (ir.TensorLoad, loads.append))
        found: Counter[ir.Var] = Counter()
        for load in loads:
            found.update(reads.get(load.source, {load.source: 1}))
        last, reads[store.buffer] = store.buffer, found
    counted = reads.get(last, Counter())
    return [counted[parameter] for parameter in function.params]
