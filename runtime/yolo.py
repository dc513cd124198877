"""Boxes of YOLOv2's and YOLOv3's raw heads, decoded as Darknet does, and compared.

    x = (cell_x + sigmoid(t_x)) / cells_x        w = anchor_w exp(t_w)
    score = sigmoid(t_object) p(class)           p: sigmoid in version 3, softmax in version 2

(Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, 2018, section 2.1.)

Bounds, where the tolerance lets every t differ by d: a sigmoid moves by d / 4 and a softmax by
d / 2 at most, so that scores differ by d / 2 or 3 d / 4. A box of v cells moves by s = d / (4 v) of
its width, which leaves (1 - s) / (1 + s) >= 1 - 2 s of the union, and is exp(d) times as wide,
which leaves exp(-d); so for both axes, IoU >= 1 - d / 2 (1 / v_x + 1 / v_y) - 2 d.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leakyforge.errors import InputError
from leakyforge.runtime.suppression import overlap
from leakyforge.runtime.tensors import TensorSpec, format_shape

_Values = npt.NDArray[np.float64]

# Of Darknet's cfg/yolov2-tiny.cfg in cells, of yolov3-tiny.cfg and yolov3.cfg in pixels; by the
# number of heads.
_ANCHORS = {
    1: ((0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778),
        (9.77052, 9.16828)),
    2: ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)),
    3: ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198),
        (373, 326)),
}  # fmt: skip
_BOX_VALUES = 5
# Darknet's own thresholds, of `detector test` and of its non-maximum suppression.
_LEAST_SCORE = 0.25
_MOST_OVERLAP = 0.45


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
        output: index among the model's outputs.
        anchors: width and height of each of its anchors, in cells.
        softmax: whether classes exclude one another (version 2).
    """

    output: int
    anchors: tuple[tuple[float, float], ...]
    softmax: bool


@dataclass(frozen=True)
class Boxes:
    """Every box of every head, one a row.

    Attributes:
        corners: left, top, right and bottom as shares of the picture.
        cells: width and height in cells of its head.
        scores: of each class.
    """

    corners: _Values
    cells: _Values
    scores: _Values


@dataclass(frozen=True)
class BoxComparison:
    """The boxes that the reference keeps, beside ours of the same cells and anchors.

    Attributes:
        found: how many of those whose score and class are beyond doubt ours keeps, or keeps one
            of the same class that overlaps them; and the other way round.
        total: how many there are, both ways round.
        iou: of each box.
        least_iou: that the tolerance allows for each.
        score: difference of each box.
        most_score: that the tolerance allows for each.
    """

    found: int
    total: int
    iou: _Values
    least_iou: _Values
    score: _Values
    most_score: _Values


def find_heads(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[Head]:
    """The heads among the outputs of a model: one of version 2, or two or three of version 3.

    Raises:
        InputError: another number of outputs, or an output that is no head.
    """
    anchors = _ANCHORS.get(len(outputs))
    pictures = [spec.shape for spec in inputs]
    if anchors is None or len(pictures) != 1 or len(pictures[0]) != 4:
        raise InputError(
            f"family yolo takes one picture and gives one to three raw heads, not {len(outputs)} "
            f"outputs for {len(pictures)} inputs; check without --family"
        )
    each = len(anchors) // len(outputs)
    for spec in outputs:
        fits = len(spec.shape) == 4 and all(isinstance(size, int) for size in spec.shape[1:])
        if not fits or int(spec.shape[1]) % each or int(spec.shape[1]) // each <= _BOX_VALUES:
            raise InputError(
                f"output {spec.name!r} has shape {format_shape(spec.shape)}, and a head of family "
                f"yolo has {each} times 5 values and the classes as channels"
            )
    # The finest cells have the smallest anchors.
    order = sorted(range(len(outputs)), key=lambda index: -int(outputs[index].shape[3]))
    heads = []
    for rank, index in enumerate(order):
        chosen = anchors[rank * each : (rank + 1) * each]
        stride = 1.0
        if len(outputs) > 1:
            stride = int(pictures[0][3]) / int(outputs[index].shape[3])
        cells = tuple((width / stride, height / stride) for width, height in chosen)
        heads.append(Head(index, cells, softmax=len(outputs) == 1))
    return heads


def compare_boxes(
    heads: Sequence[Head], outputs: Sequence[tuple[_Values, _Values]], limits: Sequence[float]
) -> list[BoxComparison]:
    """Compare the boxes of each picture of one sample.

    Args:
        heads: of the model.
        outputs: ours and the reference's, for each output of the model, [N, channels, rows,
            columns].
        limits: largest difference that the tolerance allows, for each output.
    """
    comparisons = []
    for picture in range(len(outputs[0][0])):
        ours = _join(decode(head, outputs[head.output][0][picture]) for head in heads)
        theirs = _join(decode(head, outputs[head.output][1][picture]) for head in heads)
        counts = [outputs[head.output][1][picture, 0].size * len(head.anchors) for head in heads]
        allowed = np.repeat([limits[head.output] for head in heads], counts)
        factor = 0.75 if heads[0].softmax else 0.5
        comparisons.append(_compare(ours, theirs, allowed, factor * allowed))
    return comparisons


def decode(head: Head, values: _Values) -> Boxes:
    """Boxes of one head of one picture, [channels, rows, columns]."""
    anchors = np.array(head.anchors)
    channels, rows, columns = values.shape
    split = values.reshape(len(anchors), channels // len(anchors), rows, columns)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)))
    sizes = np.array([columns, rows]).reshape(1, 2, 1, 1)
    centre = (_sigmoid(split[:, :2]) + grid) / sizes
    cells = anchors[:, :, None, None] * np.exp(split[:, 2:4])
    half = cells / sizes / 2
    classes = split[:, _BOX_VALUES:]
    if head.softmax:
        powers = np.exp(classes - classes.max(axis=1, keepdims=True))
        classes = powers / powers.sum(axis=1, keepdims=True)
    else:
        classes = _sigmoid(classes)
    return Boxes(
        _rows(np.concatenate([centre - half, centre + half], axis=1)),
        _rows(cells),
        _rows(_sigmoid(split[:, 4:5]) * classes),
    )


def suppress(boxes: Boxes) -> npt.NDArray[np.int64]:
    """Rows that non-maximum suppression keeps, each box being of its best class."""
    best, classes = boxes.scores.max(axis=1), boxes.scores.argmax(axis=1)
    kept = []
    left = np.argsort(-best, kind="stable")
    left = left[best[left] >= _LEAST_SCORE]
    while left.size:
        first, left = left[0], left[1:]
        kept.append(first)
        overlaps = overlap(boxes.corners[first], boxes.corners[left]) > _MOST_OVERLAP
        left = left[~(overlaps & (classes[left] == classes[first]))]
    return np.array(kept, np.int64)


def _compare(ours: Boxes, theirs: Boxes, allowed: _Values, most_score: _Values) -> BoxComparison:
    """Compare the boxes of one picture, given what every value and every score may differ."""
    kept, other = suppress(theirs), suppress(ours)
    counts = [
        _found(theirs, kept, ours, other, most_score),
        _found(ours, other, theirs, kept, most_score),
    ]
    limits = allowed[kept]
    shift = limits / 2 * (1 / theirs.cells[kept]).sum(axis=1)
    label = theirs.scores[kept].argmax(axis=1)
    return BoxComparison(
        sum(found for found, _ in counts),
        sum(total for _, total in counts),
        overlap(ours.corners[kept], theirs.corners[kept]),
        1.0 - shift - 2 * limits,
        np.abs(ours.scores[kept, label] - theirs.scores[kept, label]),
        most_score[kept],
    )


def _found(
    boxes: Boxes,
    kept: npt.NDArray[np.int64],
    others: Boxes,
    among: npt.NDArray[np.int64],
    most_score: _Values,
) -> tuple[int, int]:
    """How many kept boxes are among the others', and how many ought to be."""
    classes = others.scores[among].argmax(axis=1)
    found = total = 0
    for row in kept:
        second, best = np.sort(boxes.scores[row])[-2:] if boxes.scores.shape[1] > 1 else (
            0.0, boxes.scores[row, 0]
        )  # fmt: skip
        # Beside the threshold, or with two classes as good, either decision is right.
        if best - _LEAST_SCORE < most_score[row] or best - second < 2 * most_score[row]:
            continue
        total += 1
        same = classes == boxes.scores[row].argmax()
        near = overlap(boxes.corners[row], others.corners[among]) >= _MOST_OVERLAP
        found += bool(np.any(same & (near | (among == row))))
    return found, total


def _rows(values: _Values) -> _Values:
    """[anchors, values, rows, columns] to one box a row."""
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


def _join(parts: Iterable[Boxes]) -> Boxes:
    joined = list(parts)
    return Boxes(
        np.concatenate([part.corners for part in joined]),
        np.concatenate([part.cells for part in joined]),
        np.concatenate([part.scores for part in joined]),
    )


def _sigmoid(values: _Values) -> _Values:
    return np.asarray(1.0 / (1.0 + np.exp(-values)))
