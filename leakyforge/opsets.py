"""Versions of ONNX's operator set: which are read, and how an older model is raised.

The conversion is onnx's own version converter. Four things that it does wrong or lets pass are
put right here: operands that broadcast along an axis before opset 7, BatchNormalization in training
mode, the coordinates of Upsample and of Resize before opset 11, and intermediate types that it
leaves undefined.
onnx is imported when it is first used: a machine that only runs artifacts has none.
"""

from typing import TYPE_CHECKING, Any

from leakyforge.errors import ModelError
from leakyforge.onnx_graph import light_copy, nodes_within, restore_weights, value_shapes

if TYPE_CHECKING:
    import onnx

OLDEST, NEWEST = 6, 28
# What ONNX Runtime runs is this and later.
OLDEST_OF_ONNXRUNTIME = 7
_STANDARD_DOMAINS = ("", "ai.onnx")
# From here on, operands broadcast as in numpy, and BatchNormalization has no training mode.
_NUMPY_BROADCAST = 7
_WITH_BROADCAST_AXIS = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "PRelu", "Pow", "Sub", "Xor")
)
# From here on, Resize says how it maps coordinates.
_RESIZE_COORDINATES = 11


def opset_of(model: "onnx.ModelProto") -> int:
    """The version of ai.onnx that a model imports.

    Raises:
        ModelError: it imports none or several.
    """
    versions = {item.version for item in model.opset_import if item.domain in _STANDARD_DOMAINS}
    if len(versions) != 1:
        raise ModelError(
            f"model {model.graph.name!r} imports {len(versions)} versions of ai.onnx; set exactly "
            "one in opset_import"
        )
    return int(versions.pop())


def check_opset(model: "onnx.ModelProto", where: str) -> None:
    """Refuse a model whose version of ai.onnx is not read.

    Raises:
        ModelError: it imports no version, several, or one outside of 6 to 28. Before 6, a model
            is read if all of its operators were defined as they are at 6.
    """
    opset = opset_of(model)
    if opset > NEWEST:
        raise ModelError(
            f"{where} is at opset {opset}, and opsets {OLDEST} to {NEWEST} are read; export it at "
            f"opset {NEWEST}, or lower it with onnx.version_converter"
        )
    if opset < OLDEST and not _is_unchanged(model, opset):
        raise ModelError(
            f"{where} is at opset {opset}, and opsets {OLDEST} to {NEWEST} are read; export it "
            "again, or raise it with onnx.version_converter"
        )


def _is_unchanged(model: "onnx.ModelProto", opset: int) -> bool:
    """Whether all operators of a model are defined at its opset as they are at the oldest."""
    from onnx import defs

    def defined(operator: str, version: int) -> int:
        if not defs.has(operator, version, ""):
            return 0
        return int(defs.get_schema(operator, version, "").since_version)

    standard = (node for node in nodes_within(model.graph) if node.domain in _STANDARD_DOMAINS)
    return all(
        0 < defined(operator, opset) == defined(operator, OLDEST)
        for operator in {node.op_type for node in standard}
    )


def at_least(model: "onnx.ModelProto", version: int) -> "onnx.ModelProto":
    """The model, raised to a version of ai.onnx where its own is older.

    Raises:
        ModelError: as `to_opset`.
    """
    return to_opset(model, max(opset_of(model), version))


def to_opset(model: "onnx.ModelProto", version: int) -> "onnx.ModelProto":
    """The same model at another version of ONNX's operator set.

    Args:
        model: of any size, its weights inside; stays as it is.
        version: of ai.onnx; equal to the model's own, the model itself is returned.

    Raises:
        ModelError: the model imports no version, or an operator has no equal there: names the
            node, its operator and the opset.
    """
    from onnx import version_converter

    opset = opset_of(model)
    if opset == version:
        return model
    light = light_copy(model)
    if opset < OLDEST:
        # That they mean the same there was checked; the converter lacks some of the steps.
        for item in light.opset_import:
            item.version = OLDEST if item.domain in _STANDARD_DOMAINS else item.version
    if opset < _NUMPY_BROADCAST <= version:
        _check_inference(light)
        _align_operands(light)
    try:
        converted = version_converter.convert_version(light, version)
    except Exception as error:
        raise _refused(light, opset, version, error) from error
    if opset < _RESIZE_COORDINATES <= version:
        _say_coordinates(converted)
    # The converter leaves types in it undefined, which ONNX Runtime refuses.
    converted.graph.ClearField("value_info")
    restore_weights(converted, model)
    return converted


def _refused(light: "onnx.ModelProto", opset: int, version: int, error: Exception) -> ModelError:
    """The error for a model that the converter refuses; looks for the node, which it conceals."""
    for node in light.graph.node:
        problem = _problem(light, node, version)
        if problem is not None:
            return ModelError(
                f"operator {node.op_type} (node {_name(node)!r}) of opset {opset} cannot be "
                f"converted to opset {version}: {problem}; export the model at opset {version}"
            )
    return ModelError(
        f"model {light.graph.name!r} of opset {opset} cannot be converted to opset {version}: "
        f"{_last_part(error)}; export it at opset {version}"
    )


def _problem(light: "onnx.ModelProto", node: "onnx.NodeProto", version: int) -> str | None:
    """Why the converter refuses a model of this one node; None where it does not."""
    import onnx

    alone = onnx.ModelProto()
    alone.CopyFrom(light)
    del alone.graph.node[:], alone.graph.output[:], alone.graph.value_info[:]
    alone.graph.node.append(node)
    known = {value.name: value for value in _inferred(light)}
    listed = {value.name for value in alone.graph.input}
    listed |= {tensor.name for tensor in alone.graph.initializer}
    alone.graph.input.extend(known[name] for name in node.input if name in known.keys() - listed)
    alone.graph.output.extend(known[name] for name in node.output if name in known)
    try:
        onnx.version_converter.convert_version(alone, version)
    except Exception as error:  # noqa: BLE001 - its errors have no common base
        return _last_part(error)
    return None


def _inferred(light: "onnx.ModelProto") -> list[Any]:
    """Every value of a graph whose type is known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(light).graph
    return [*graph.input, *graph.value_info, *graph.output]


def _check_inference(model: "onnx.ModelProto") -> None:
    """Refuse BatchNormalization of opset 6 that computes the statistics of its own input."""
    for node in model.graph.node:
        is_test = any(item.name == "is_test" and item.i for item in node.attribute)
        if node.op_type == "BatchNormalization" and not is_test:
            raise ModelError(
                f"operator BatchNormalization (node {_name(node)!r}) of opset 6 is in training "
                "mode (is_test=0); export the model for inference"
            )


def _align_operands(model: "onnx.ModelProto") -> None:
    """Give second operands that begin at an axis of the first the shape that numpy broadcasts.

    Before opset 7 the axis was an attribute, and for the slopes of PRelu always the channels.
    """
    from onnx import helper

    shapes = value_shapes(model)
    for position, node in reversed(list(enumerate(model.graph.node))):
        axis = next((item.i for item in node.attribute if item.name == "axis"), None)
        if node.op_type == "PRelu":
            axis = 1
        if axis is None or node.op_type not in _WITH_BROADCAST_AXIS:
            continue
        kept = [item for item in node.attribute if item.name != "axis"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if any(name not in shapes for name in node.input):
            raise ModelError(
                f"operator {node.op_type} (node {_name(node)!r}) of opset 6 broadcasts operands of "
                "unknown shape; export the model at opset 13"
            )
        first, second = (shapes[name] for name in node.input)
        behind = len(first) - (axis + len(first) if axis < 0 else axis) - len(second)
        if behind > 0 and second != (1,):
            aligned = f"{node.output[0]}_{node.input[1]}"
            axes = list(range(len(second), len(second) + behind))
            unsqueeze = helper.make_node("Unsqueeze", [node.input[1]], [aligned], axes=axes)
            node.input[1] = aligned
            model.graph.node.insert(position, unsqueeze)


def _say_coordinates(model: "onnx.ModelProto") -> None:
    """Write the attributes of Resize that mean what Upsample and the first Resize did.

    ONNX Runtime takes the pixel below where they enlarge, and the one above where they shrink.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        if node.op_type != "Resize":
            continue
        attributes = {"coordinate_transformation_mode": "asymmetric"}
        mode = next((item.s for item in node.attribute if item.name == "mode"), b"nearest")
        if mode == b"nearest":
            scales = constants.get(node.input[2])
            values = [] if scales is None else numpy_helper.to_array(scales).tolist()
            shrinks = bool(values) and min(values) < 1
            if shrinks and max(values) > 1:
                raise ModelError(
                    f"operator Resize (node {_name(node)!r}) enlarges along one axis and shrinks "
                    "along another, which opset 11 has no equal for; export the model at opset 11"
                )
            attributes["nearest_mode"] = "ceil" if shrinks else "floor"
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())


def _name(node: "onnx.NodeProto") -> str:
    return str(node.name or node.output[0])


def _last_part(error: Exception) -> str:
    """An error of the converter's without the C++ location in front of it."""
    return " ".join(str(error).rpartition("failed: ")[2].split())[:300]
