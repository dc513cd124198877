"""Operators that ONNX defines by other operators are replaced by that definition.

ONNX gives many operators a function body (https://onnx.ai/onnx/intro/concepts.html#functions);
those that the front end has no converter for, or a wrong one, are compiled by way of it.
"""

import onnx
from onnx import inliner

from leakyforge.errors import ModelError
from leakyforge.kernels.importer import unsupported_operators
from leakyforge.opsets import opset_of
from leakyforge.runtime.reference import one_line

# The front end's converters of these are wrong or take less than the definition.
_BY_DEFINITION = frozenset(("Attention", "LayerNormalization", "RMSNormalization"))
_DOMAINS = ("", "ai.onnx")
# Bodies call other functions; none goes deeper than this.
_DEPTH = 8


def expand_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in which every operator with a body that the front end lacks is that body.

    Raises:
        ModelError: ONNX cannot put a body in.
    """
    for _ in range(_DEPTH):
        names = _expandable(model)
        if not names:
            break
        try:
            model = inliner.inline_selected_functions(
                _complete(model), [("", name) for name in names], inline_schema_functions=True
            )
        except Exception as error:
            raise ModelError(
                f"the definition of {', '.join(names)} cannot be put into graph "
                f"{model.graph.name!r}: {one_line(error)}"
            ) from error
    return model


def _complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types of all values and the defaults of all attributes.

    A body refers to both, and the inliner adds neither.
    """
    complete = onnx.shape_inference.infer_shapes(model, data_prop=True)
    opset = opset_of(complete)
    for node in complete.graph.node:
        if node.domain in _DOMAINS and onnx.defs.has(node.op_type, opset):
            written = {item.name for item in node.attribute}
            for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items():
                if attribute.default_value.type and name not in written:
                    node.attribute.append(attribute.default_value)
    return complete


def _expandable(model: onnx.ModelProto) -> list[str]:
    """Names of the operators to replace."""
    used = {node.op_type for node in model.graph.node if node.domain in _DOMAINS}
    wanted = used & _BY_DEFINITION | set(unsupported_operators(used))
    opset = opset_of(model)
    return sorted(name for name in wanted if _has_body(name, opset))


def _has_body(name: str, opset: int) -> bool:
    if not onnx.defs.has(name, opset):
        return False
    schema = onnx.defs.get_schema(name, opset)
    return bool(schema.has_function or schema.has_context_dependent_function)
