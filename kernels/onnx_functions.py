"""Operators that ONNX defines by other operators are replaced by that definition.

ONNX gives many operators a function body (https://onnx.ai/onnx/intro/concepts.html#functions);
those that the front end has no converter for, or a wrong one, are compiled by way of it.
"""

from typing import Any

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
                _complete(model), names, inline_schema_functions=True
            )
        except Exception as error:
            operators = ", ".join(name for _, name in names)
            raise ModelError(
                f"the definition of {operators} cannot be put into graph "
                f"{model.graph.name!r}: {one_line(error)}"
            ) from error
    return model


def _complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types of all values and the defaults of all attributes.

    A body refers to both, and the inliner adds neither.
    """
    complete = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {value.name for value in (*complete.graph.input, *complete.graph.value_info)}
    complete.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in complete.graph.initializer
        if tensor.name not in known
    )
    # The inliner asks for the type of inputs that are left out, too.
    complete.graph.value_info.append(
        onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None)
    )
    for node in complete.graph.node:
        schema = _schema(complete, node)
        written = {item.name for item in node.attribute}
        for name, attribute in ({} if schema is None else schema.attributes).items():
            if attribute.default_value.type and name not in written:
                node.attribute.append(attribute.default_value)
    return complete


def _expandable(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Domains and names of the operators to replace."""
    found = set()
    for node in model.graph.node:
        domain = "" if node.domain in _DOMAINS else node.domain
        name = f"{domain}.{node.op_type}" if domain else node.op_type
        schema = _schema(model, node)
        if schema is None or not (schema.has_function or schema.has_context_dependent_function):
            continue
        if name in _BY_DEFINITION or _does_not_saturate(node) or unsupported_operators([name]):
            found.add((domain, node.op_type))
    return sorted(found)


def _does_not_saturate(node: onnx.NodeProto) -> bool:
    """Whether a node is a CastLike of which onnxscript's optimizer makes a Cast that saturates."""
    return node.op_type == "CastLike" and any(
        item.name == "saturate" and not item.i for item in node.attribute
    )


def _schema(model: onnx.ModelProto, node: onnx.NodeProto) -> Any:
    """ONNX's definition of a node's operator; None for one that is not ONNX's."""
    if node.domain in _DOMAINS:
        domain, opset = "", opset_of(model)
    else:
        domain = node.domain
        versions = [item.version for item in model.opset_import if item.domain == domain]
        opset = max(versions, default=0)
    if not onnx.defs.has(node.op_type, opset, domain):
        return None
    return onnx.defs.get_schema(node.op_type, opset, domain)
