"""Small questions and changes to expressions of Relax and TensorIR."""

from collections.abc import Mapping
from typing import Any

import tvm_ffi
from tvm import ir


def operator_name(expression: Any) -> str:
    """Name of the operator that an expression calls, empty for anything else."""
    return str(getattr(getattr(expression, "op", None), "name", ""))


def substitute(node: Any, values: Mapping[ir.Var, Any]) -> Any:
    """An expression or function with variables replaced."""
    return tvm_ffi.structural_mutate(
        node, (ir.Var, lambda variable, _: values.get(variable, variable))
    )
