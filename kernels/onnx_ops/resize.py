"""ONNX operators Resize and Upsample: https://onnx.ai/onnx/operators/onnx__Resize.html.

The front end takes the scale from the sizes, resizes the last axes only, and knows neither
antialiasing nor aspect ratios. Here every axis is resized by itself: element i of the result is
the sum over taps k of weight[k, i] * data[index[k, i]], where indices and weights, which depend on
sizes and scales only, are computed at compile time.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, dtype_of, is_static, static_shape

Floats = npt.NDArray[np.float64]

# Coordinates that the front end maps as ONNX does where a scale is the ratio of the sizes.
_SAME_COORDINATES = ("half_pixel", "asymmetric", "align_corners")

_INPUTS = ("roi", "scales", "sizes")


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        size: of the input.
        result: size of the output.
        scale: output over input; need not be the ratio of the sizes.
        start: of the region of interest, as a share of the axis.
        end: of the region.
    """

    size: int
    result: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def convert_resize(node: Node) -> relax.Expr:
    """Resize from opset 11."""
    data = node.input(0)
    if not is_static(data):
        # The front end resizes a symbolic batch too.
        return node.standard()
    shape = static_shape(data, node.operator)
    axes = _axes(node, shape)
    if _front_end_agrees(node, axes):
        return node.standard()
    mode = node.text("mode", "nearest")
    coordinates = node.text("coordinate_transformation_mode", "half_pixel")
    result, outside = data, np.zeros((), bool)
    for position, axis in axes.items():
        places = source_places(axis, coordinates)
        if coordinates == "tf_crop_and_resize":
            beyond = (places < 0) | (places > axis.size - 1)
            outside = outside | beyond.reshape(-1, *(1,) * (len(shape) - 1 - position))
        if mode == "nearest":
            index = nearest(places, axis, node.text("nearest_mode", "round_prefer_floor"))
            result = relax.op.take(result, relax.const(index, "int64"), axis=position)
        elif axis.size != axis.result or axis.scale != 1 or axis.start != 0 or axis.end != 1:
            result = _weighted(node, result, position, *_taps(node, places, axis, mode))
    if outside.any():
        value = relax.const(float(node.attributes.get("extrapolation_value", 0.0)), dtype_of(data))
        mask = np.broadcast_to(outside, [int(size) for size in _shape(node, result)])
        result = relax.op.where(relax.const(np.ascontiguousarray(mask), "bool"), value, result)
    return result


def _shape(node: Node, value: relax.Expr) -> tuple[int, ...]:
    return static_shape(node.builder.normalize(value), node.operator)


def _axes(node: Node, shape: tuple[int, ...]) -> dict[int, Axis]:
    """The axes that are resized, in order."""
    rank = len(shape)
    chosen = [axis % rank for axis in node.attributes.get("axes", range(rank))]
    # Tensors without elements stand for inputs that are left out.
    values = [node.constant(1 + place, name) for place, name in enumerate(_INPUTS)]
    roi, scales, sizes = (None if value is None or not value.size else value for value in values)
    lengths = [shape[axis] for axis in chosen]
    if scales is not None:
        factors = [float(scale) for scale in scales]
        pairs = zip(lengths, factors, strict=True)
        results = [math.floor(length * factor) for length, factor in pairs]
    elif sizes is not None:
        results = [int(size) for size in sizes]
        factors = [size / length for size, length in zip(results, lengths, strict=True)]
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(chosen)
            results = [math.floor(factor * length + 0.5) for length in lengths]
    else:
        raise ModelError(f"{node.operator}: neither scales nor sizes are given")
    region = [0.0] * len(chosen) + [1.0] * len(chosen)
    if roi is not None and node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        region = [float(value) for value in roi]
    starts, ends = region[: len(chosen)], region[len(chosen) :]
    columns = zip(chosen, lengths, results, factors, starts, ends, strict=True)
    return {axis: Axis(*figures) for axis, *figures in columns}


def _front_end_agrees(node: Node, axes: dict[int, Axis]) -> bool:
    """Whether the front end's image operator, which has schedules, computes the same."""
    whole = all(axis.result == axis.size * axis.scale for axis in axes.values())
    same = node.text("coordinate_transformation_mode", "half_pixel") in _SAME_COORDINATES
    plain = node.text("mode", "nearest") in ("nearest", "linear")
    special = {"axes", "antialias", "exclude_outside", "keep_aspect_ratio_policy"}
    return (
        len(axes) == 4
        and whole
        and same
        and plain
        and not special & node.attributes.keys()
        and all(axes[position].scale == 1 for position in (0, 1))
        and all(axes[position].scale >= 1 for position in (2, 3))
    )


def source_places(axis: Axis, mode: str) -> Floats:
    """Where in the input each element of the output lies, by `coordinate_transformation_mode`."""
    place = np.arange(axis.result, dtype=np.float64)
    exact = axis.scale * axis.size
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and exact != 1):
        return (place + 0.5) / axis.scale - 0.5
    if mode == "pytorch_half_pixel":
        return np.full_like(place, -0.5)
    if mode == "half_pixel_symmetric":
        offset = axis.size / 2 * (1 - axis.result / exact)
        return offset + (place + 0.5) / axis.scale - 0.5
    if mode == "align_corners":
        return place * 0 if exact == 1 else place * (axis.size - 1) / (exact - 1)
    if mode == "asymmetric":
        return place / axis.scale
    if mode == "tf_crop_and_resize":
        extent = (axis.end - axis.start) * (axis.size - 1)
        inside = place * 0 + extent / 2 if exact == 1 else place * extent / (exact - 1)
        return axis.start * (axis.size - 1) + inside
    raise ModelError(f"Resize: unknown coordinate_transformation_mode {mode!r}")


def nearest(places: Floats, axis: Axis, mode: str) -> npt.NDArray[np.int64]:
    """Index of the pixel that each place takes, by `nearest_mode`."""
    rounded = {
        "floor": np.floor(places),
        "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
    }[mode]
    return np.clip(rounded, 0, axis.size - 1).astype(np.int64)


def _taps(
    node: Node, places: Floats, axis: Axis, mode: str
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Indices and weights of shape [taps, size of the output]."""
    antialias = bool(node.attributes.get("antialias", 0))
    stretch = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil((2 if mode == "cubic" else 1) / stretch)
    index = np.floor(places).astype(np.int64) + np.arange(1 - reach, reach + 1)[:, None]
    distance = np.abs(index - places) * stretch
    if mode == "cubic":
        weights = cubic(distance, float(node.attributes.get("cubic_coeff_a", -0.75)))
    else:
        weights = np.maximum(1 - distance, 0)
    if node.attributes.get("exclude_outside", 0):
        weights = np.where((index >= 0) & (index < axis.size), weights, 0)
        weights = weights / weights.sum(axis=0)
    elif antialias:
        weights = weights / weights.sum(axis=0)
    return np.clip(index, 0, axis.size - 1), weights


def cubic(distance: Floats, a: float) -> Floats:
    """Keys's convolution kernel (IEEE Trans. ASSP 29(6), 1981) at distances of 0 or more."""
    x = distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _weighted(
    node: Node,
    data: relax.Expr,
    position: int,
    index: npt.NDArray[np.int64],
    weights: Floats,
) -> relax.Expr:
    """Sum over the taps of an axis."""
    data = node.builder.normalize(data)
    dtype, rank = dtype_of(data), len(data.ty.shape)
    total = None
    for places, factors in zip(index, weights, strict=True):
        if not factors.any():
            continue
        shaped = factors.reshape(-1, *(1,) * (rank - 1 - position))
        taken = relax.op.take(data, relax.const(places, "int64"), axis=position)
        part = relax.op.multiply(taken, relax.const(shaped.astype(dtype), dtype))
        total = part if total is None else relax.op.add(total, part)
    return node.builder.normalize(total)
