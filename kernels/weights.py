"""Weights as parameters: they travel beside the compiled library instead of inside it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@dataclass(frozen=True)
class HoistedModule:
    """A module whose `main` takes the model's inputs and then its weights.

    Attributes:
        module: the module without constants in `main`.
        weights: arrays in the order of the added parameters.
    """

    module: tvm.IRModule
    weights: list[npt.NDArray[np.generic]]


@mutator
class _Hoister(PyExprMutator):  # type: ignore[misc]
    """Replaces every constant by a parameter, one for each distinct array."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: list[tvm.ir.GenericConst] = []
        self.variables: list[relax.Var] = []

    def visit_generic_const_(self, op: tvm.ir.GenericConst) -> relax.Var:
        for constant, variable in zip(self.constants, self.variables, strict=True):
            if constant.value.same_as(op.value):
                return variable
        variable = relax.Var(f"weight_{len(self.variables)}", op.ty)
        self.constants.append(op)
        self.variables.append(variable)
        return variable


def hoist_weights(module: tvm.IRModule) -> HoistedModule:
    """Turn the constants of `main` into trailing parameters."""
    hoister = _Hoister()
    main = module["main"]
    body = hoister.visit_expr(main.body)
    hoisted = relax.Function(
        [*main.params, *hoister.variables], body, main.ret_ty, main.is_pure, main.attrs
    )
    result = tvm.IRModule({**module.functions, module.get_global_var("main"): hoisted})
    return HoistedModule(
        relax.transform.Normalize()(result),
        [constant.value.numpy() for constant in hoister.constants],
    )
