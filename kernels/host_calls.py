"""Calls of functions outside of compiled code, which are the runtime's, under its names for them.

What TVM's compiler registers from Python is missing where an artifact runs.
"""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.errors import CompileError
from leakyforge.runtime.host_functions import HOST_FUNCTIONS

_OF_TVM, _OURS, _OF_RUNTIME = "relax.run.", "leakyforge.", "vm.builtin."


def call_host_functions(module: tvm.IRModule) -> tvm.IRModule:
    """The module with calls of the runtime's functions in place of the compiler's.

    Raises:
        CompileError: one has no equal in the runtime.
    """
    renamer = _Renamer()
    functions = {
        variable: renamer.visit_expr(function) if isinstance(function, relax.Function) else function
        for variable, function in module.functions.items()
    }
    if renamer.unknown:
        raise CompileError(
            f"the model calls {renamer.unknown[0]}, which is only where the compiler is; have ONNX "
            "Runtime run that part with --fallback onnxruntime"
        )
    return tvm.IRModule(functions, attrs=module.attrs)


@mutator
class _Renamer(PyExprMutator):  # type: ignore[misc]
    """Puts the runtime's names in the place of the compiler's.

    Attributes:
        unknown: names that have no such place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unknown: list[str] = []

    def visit_extern_func_(self, op: relax.ExternFunc) -> relax.ExternFunc:
        name = str(op.global_symbol)
        ours = name.replace(_OF_TVM, _OURS)
        if not name.startswith(_OF_RUNTIME) and ours not in HOST_FUNCTIONS:
            self.unknown.append(name)
        return op if ours == name else relax.ExternFunc(ours)
