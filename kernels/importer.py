"""ONNX to Relax: TVM's front end, with the converters that we replace and one kind of error."""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from leakyforge.errors import LeakyforgeError, ModelError, UnsupportedOperatorError
from leakyforge.exporter.shapes import value_shape
from leakyforge.kernels.half import layer_name
from leakyforge.kernels.onnx_ops import CONVERTERS
from leakyforge.kernels.packed import widen_packed_types
from leakyforge.onnx_graph import PRODUCTS, graph_inputs, nodes_within

_STANDARD_DOMAINS = ("", "ai.onnx")
# Attribute of `main`: names of the layers of `LAYERS` in the ONNX graph, in order.
LAYER_NAMES = "leakyforge.layers"
# What the front end makes of ONNX's `PRODUCTS`, one for one.
LAYERS = (
    "relax.matmul",
    "relax.nn.conv1d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d",
    "relax.nn.conv2d_transpose",
)
# Attributes of Constant that hold numbers, and the type of these.
_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
# Handled by the front end itself, outside its table of converters.
_BUILT_IN = {"Constant", "If"}


class _Elementwise(onnx_frontend.OnnxOpConverter):  # type: ignore[misc]
    """Operators of several tensors as a chain: the front end stacks them and then reduces."""

    operator: ClassVar[Any]

    @classmethod
    def _impl_v1(cls, _builder: Any, inputs: Any, _attributes: Any, _params: Any) -> relax.Expr:
        result = inputs[0]
        for value in list(inputs)[1:]:
            result = cls.operator(result, value)
        return result


class _Max(_Elementwise):
    """ONNX operator Max."""

    operator = staticmethod(relax.op.maximum)


class _Min(_Elementwise):
    """ONNX operator Min."""

    operator = staticmethod(relax.op.minimum)


class _Sum(_Elementwise):
    """ONNX operator Sum."""

    operator = staticmethod(relax.op.add)


_REPLACED = {"Max": _Max, "Min": _Min, "Sum": _Sum, **CONVERTERS}


def import_onnx(proto: onnx.ModelProto) -> tvm.IRModule:
    """Import a checked and folded model.

    Returns:
        A module whose `main` takes the model's inputs in the order of the graph.

    Raises:
        UnsupportedOperatorError: an operator that TVM's front end does not have; names the node.
        ModelError: the front end refuses the graph, or an operator looks at packed bits.
    """
    _check_operators(proto)
    named = _name_symbols(proto)
    widen_packed_types(named)
    _omit_empty_scales(named)
    _give_constants_tensors(named)
    # The front end prints what it cannot convert.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with _our_converters(), quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = from_onnx(named, shape_dict=_static_shapes(named))
        except LeakyforgeError as error:
            # The frames hold the front end's builder, whose end TVM logs: it shall come now.
            raise error.with_traceback(None) from None
        except Exception as error:
            raise ModelError(
                f"TVM's ONNX front end refuses graph {proto.graph.name!r}: {_last_line(error)}"
            ) from error
    if len(module["main"].params) != len(graph_inputs(proto)):
        raise ModelError(f"TVM's ONNX front end changed the inputs of graph {proto.graph.name!r}")
    module = _with_tensor_outputs(module)
    # The front end keeps no name.
    names = [layer_name(node.output[0]) for node in named.graph.node if node.op_type in PRODUCTS]
    module["main"] = module["main"].with_attr(LAYER_NAMES, names)
    return module


def _with_tensor_outputs(module: tvm.IRModule) -> tvm.IRModule:
    """The module with tensors in place of outputs that the front end left as Relax's shapes."""
    main = module["main"]
    result = main.body.body
    is_tuple = isinstance(result.ty, relax.TupleType)
    kinds = list(result.ty.fields) if is_tuple else [result.ty]
    if not any(isinstance(kind, relax.ShapeType) for kind in kinds):
        return module
    bindings = []

    def bind(name: str, kind: relax.Type, value: relax.Expr) -> relax.Var:
        bindings.append(relax.VarBinding(relax.Var(name, kind), value))
        return bindings[-1].var

    outputs = []
    for index, kind in enumerate(kinds):
        output = result
        if is_tuple:
            output = bind(f"output_{index}", kind, relax.TupleGetItem(result, index))
        if isinstance(kind, relax.ShapeType):
            tensor = relax.TensorType([kind.ndim], "int64")
            output = bind(f"sizes_{index}", tensor, relax.op.shape_to_tensor(output))
        outputs.append(output)
    body = relax.SeqExpr(
        [*main.body.blocks, relax.BindingBlock(bindings)],
        relax.Tuple(outputs) if is_tuple else outputs[0],
    )
    types = [output.ty for output in outputs]
    returned = relax.TupleType(types) if is_tuple else types[0]
    function = relax.Function(main.params, body, returned, main.is_pure, main.attrs)
    variable = module.get_global_var("main")
    return relax.transform.Normalize()(tvm.IRModule({**module.functions, variable: function}))


@contextlib.contextmanager
def _our_converters() -> Iterator[None]:
    """Put our converters over the front end's for the time of one import."""
    original = onnx_frontend._get_convert_map
    onnx_frontend._get_convert_map = lambda: {**original(), **_REPLACED}
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original


def _check_operators(proto: onnx.ModelProto) -> None:
    """Refuse a graph with operators that the front end has no converter for."""
    for node in nodes_within(proto.graph):
        if unsupported_operators([operator(node)]):
            raise UnsupportedOperatorError(
                f"operator {operator(node)} (node {node.name or node.output[0]!r}) is not "
                "supported by the compiler; replace it in the model, cut the graph before it, or "
                "have ONNX Runtime run it with --fallback onnxruntime"
            )


def operator(node: onnx.NodeProto) -> str:
    """Name of a node's operator; a foreign one is `domain.Operator`."""
    return node.op_type if node.domain in _STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def unsupported_operators(names: Iterable[str]) -> list[str]:
    """Those that the front end has no converter for, sorted; a foreign one is `domain.Operator`."""
    return sorted(
        set(names) - onnx_frontend._get_convert_map().keys() - _REPLACED.keys() - _BUILT_IN
    )


def _name_symbols(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every unknown dimension of an input has a name of its own."""
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for value in graph_inputs(named):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{value.name}_dim{axis}"
    return named


def _omit_empty_scales(named: onnx.ModelProto) -> None:
    """Omit inputs of Resize that hold nothing, as exporters write them: the front end counts them.

    With opset 11 they had to be there: scales of no elements meant that sizes apply.
    """
    empty = {tensor.name for tensor in named.graph.initializer if 0 in tensor.dims}
    for node in named.graph.node:
        if node.op_type == "Constant" and any(0 in item.t.dims for item in node.attribute):
            empty.add(node.output[0])
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]


def _give_constants_tensors(named: onnx.ModelProto) -> None:
    """Numbers of Constant nodes become tensors, which is all that the front end takes."""
    for node in named.graph.node:
        if node.op_type != "Constant":
            continue
        (attribute,) = node.attribute
        if attribute.name in _NUMBERS:
            value = np.array(onnx.helper.get_attribute_value(attribute), _NUMBERS[attribute.name])
            tensor = numpy_helper.from_array(value)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))


def _static_shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes without a symbol: the front end by itself takes a size of 0 for an unknown one."""
    shapes = {}
    for value in graph_inputs(proto):
        shape = value_shape(value)
        if shape is not None and all(isinstance(size, int) for size in shape):
            shapes[value.name] = [int(size) for size in shape]
    return shapes


def _last_line(error: Exception) -> str:
    """The message of a TVM error without the C++ frames that come before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
