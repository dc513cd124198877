"""ONNX operator NonMaxSuppression: https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html."""

from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]


def non_max_suppression(
    boxes: _Floats, scores: _Floats, most: int, limit: float, least: float, *, is_centre: bool
) -> npt.NDArray[np.int64]:
    """The best boxes of each class that overlap with no better one.

    Args:
        boxes: [batch, box, 4], two opposite corners (y, x), or centre and size (x, y, w, h).
        scores: [batch, class, box].
        most: boxes of a class in a batch.
        limit: what the intersection of two boxes may be of their union.
        least: what a score has to be above.
        is_centre: whether boxes are centre and size.

    Returns:
        [number, 3]: batch, class and box, by batch, class and score.
    """
    found = [np.zeros((0, 3), np.int64)]
    for batch, corners in enumerate(_corners(boxes, is_centre=is_centre)):
        for kind, values in enumerate(scores[batch]):
            left = np.argsort(-values, kind="stable")
            left = left[values[left] > least]
            kept: list[int] = []
            while left.size and len(kept) < most:
                first, left = left[0], left[1:]
                kept.append(int(first))
                left = left[~(overlap(corners[first], corners[left]) > limit)]
            found.append(np.array([(batch, kind, box) for box in kept], np.int64).reshape(-1, 3))
    return np.concatenate(found)


def _corners(boxes: _Floats, *, is_centre: bool) -> _Floats:
    """Least and greatest coordinates of each box along both axes."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if is_centre:
        centres, halves = first, second / np.float32(2)
        first, second = centres - halves, centres + halves
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def overlap(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Intersection over union of boxes by their corners [..., 4]; 0 where one has no area."""
    size = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.prod(np.maximum(size, 0), axis=-1)
    areas = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (first, second)]
    union = areas[0] + areas[1] - shared
    has_area = (shared > 0) & (union > 0)
    return np.asarray(np.where(has_area, shared / np.where(has_area, union, 1), 0))
