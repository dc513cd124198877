"""The figures of the study of activations, drawn by matplotlib."""

import math
import statistics
from pathlib import Path
from typing import Any

from leakyforge.errors import MissingDependencyError
from leakyforge.files import atomic_file
from leakyforge.study import Arm, Study, is_relu
from leakyforge.study_conclusions import difference

# The alpha that is drawn apart, and the range of x.
_ALPHA = 0.05
_RANGE = 4.0
_POINTS = 801
# Differences of accuracy beyond it are written at the edge, in points: the others stay readable.
_WIDEST = 8.0
_DOTS_PER_INCH = 110


def pyplot() -> Any:
    """Matplotlib's `pyplot`, drawing into files.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            "figures need matplotlib; pip install 'leakyforge[peers]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_activations(path: Path) -> None:
    """LeakyReLU and its derivative for alpha = 0.05, and below them the others.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    import numpy as np

    from leakyforge.models.activations import ACTIVATIONS

    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    # An even number of points has none at 0, where the derivative jumps.
    x = np.linspace(-_RANGE, _RANGE, _POINTS - 1)
    chosen = next(each for each in ACTIVATIONS if each.slope == _ALPHA)
    others = [each for each in ACTIVATIONS if each != chosen]
    for activation in [chosen, *others]:
        row = 0 if activation == chosen else 1
        slope = activation.slope
        label = activation.name
        if activation.learned:
            label += f", first slope {slope:g}"
        if activation.bounds is not None:
            label += f", mean slope {slope:.3f}"
        (line,) = axes[row][0].plot(x, activation.value(x, slope), label=label)
        derivative = activation.derivative(x, slope)
        # Broken at 0: there is nothing between the two sides.
        for side in (x < 0, x > 0):
            axes[row][1].plot(x[side], derivative[side], color=line.get_color())
        if activation.bounds is not None:
            low, high = activation.bounds
            below = x < 0
            band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
            axes[row][0].fill_between(x[below], low * x[below], high * x[below], **band)
            axes[row][1].fill_between(x[below], low, high, **band)
    # On these axes a slope of 0.05 is hardly seen: the negative side again, enlarged.
    inset = axes[0][0].inset_axes((0.12, 0.52, 0.35, 0.38))
    negative = x[x < 0]
    inset.plot(negative, chosen.value(negative, chosen.slope))
    inset.set_title("x < 0, enlarged", fontsize=9)
    inset.grid(alpha=0.3)
    titles = [
        [f"LeakyReLU, alpha = {_ALPHA:g}", f"Its derivative: 1 above 0, {_ALPHA:g} below"],
        ["The others (band: slopes that RReLU draws)", "Their derivatives"],
    ]
    for row in range(2):
        for column in range(2):
            axis = axes[row][column]
            axis.set_title(titles[row][column])
            axis.set_xlabel("x")
            axis.axhline(0, color="black", linewidth=0.6)
            axis.axvline(0, color="black", linewidth=0.6)
            axis.grid(alpha=0.3)
    axes[1][0].set_ylim(-1.6, 3)
    axes[1][0].legend(fontsize=9)
    _save(plt, figure, path)


def draw_study(study: Study, path: Path) -> None:
    """Accuracy against ReLU's, gradients by layer, units, and latency.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    plt = pyplot()
    colors = {arm.activation: f"C{index}" for index, arm in enumerate(study.at(study.depths[0]))}
    columns = max(2, len(study.depths))
    figure, axes = plt.subplots(3, columns, figsize=(6.5 * columns, 13), layout="constrained")
    for axis, depth in zip(axes[0], study.depths, strict=False):
        _draw_differences(axis, study, depth, colors)
    deepest = study.at(study.depths[-1])
    for axis, name, when in (
        (axes[1][0], "first_gradients", "before training"),
        (axes[1][1], "last_gradients", "after training"),
    ):
        _draw_gradients(axis, deepest, name, colors)
        axis.set_title(f"Gradient of each layer's weights, {study.depths[-1]} layers, {when}")
    _draw_units(axes[2][0], deepest)
    _draw_latency(axes[2][1], study, colors)
    for axis in (*axes[0][len(study.depths) :], *axes[1][2:], *axes[2][2:]):
        axis.set_visible(False)
    _save(plt, figure, path)


def _draw_differences(axis: Any, study: Study, depth: int, colors: dict[str, str]) -> None:
    """Differences to ReLU of every seed, their mean and its interval."""
    arms = [arm for arm in study.at(depth) if not is_relu(arm)]
    reference = study.reference(depth)
    for place, arm in enumerate(arms):
        change = difference(study, arm)
        pairs = zip(arm.accuracies, reference.accuracies, strict=True)
        points = [100 * (ours - theirs) for ours, theirs in pairs]
        if abs(100 * change.mean) > _WIDEST:
            side = math.copysign(1, change.mean)
            text = f"{100 * change.mean:+.0f} points"
            axis.text(side * 0.97 * _WIDEST, place, text, va="center",
                      ha="left" if side < 0 else "right")  # fmt: skip
            continue
        color = colors[arm.activation]
        axis.plot(points, [place] * len(points), "o", color=color, alpha=0.35, markersize=5)
        ends = [100 * min(max(end, -1.0), 1.0) for end in (change.low, change.high)]
        axis.plot(ends, [place] * 2, color=color, linewidth=2)
        axis.plot(100 * change.mean, place, "D", color=color, markersize=7)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlim(-_WIDEST, _WIDEST)
    axis.set_yticks(range(len(arms)), [arm.activation for arm in arms])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(f"Test accuracy minus ReLU's ({100 * reference.mean('accuracy'):.1f} %), "
                   f"{depth} layers")  # fmt: skip
    axis.set_xlabel("points; dots: seeds, diamond and line: mean and 95 % interval")


def _draw_gradients(axis: Any, arms: list[Arm], name: str, colors: dict[str, str]) -> None:
    """Geometric mean over seeds of every layer's gradient norm."""
    for arm in arms:
        layers = list(zip(*(getattr(run, name) for run in arm.runs), strict=True))
        means = [statistics.geometric_mean(norms) if min(norms) > 0 else 0.0 for norms in layers]
        axis.plot(range(1, len(means) + 1), means, "o-", label=arm.activation, markersize=4,
                  color=colors[arm.activation])  # fmt: skip
    axis.set_yscale("log")
    axis.set_xticks(range(1, len(means) + 1), [*range(1, len(means)), "logits"])
    axis.set_xlabel("layer, from the image on")
    axis.set_ylabel("norm")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)


def _draw_units(axis: Any, arms: list[Arm]) -> None:
    """Shares of saturated derivatives, of dead units, and of units on one side."""
    series = [
        ("saturated derivatives", [100 * arm.mean("saturated") for arm in arms]),
        ("units never above 0", [
            100 * arm.mean("never_positive") if arm.kind == "rectifier" else math.nan
            for arm in arms
        ]),
        ("dead units", [100 * arm.mean("dead") for arm in arms]),
    ]  # fmt: skip
    _draw_bars(axis, [arm.activation for arm in arms], series)
    axis.set_title(f"Units after training, {arms[0].depth} layers")
    axis.set_xlabel("% of units, or of units and training images")


def _draw_latency(axis: Any, study: Study, colors: dict[str, str]) -> None:
    """Ratios of the medians to ReLU's."""
    series = [
        (
            f"{depth} layers",
            [arm.median_ms / study.reference(depth).median_ms for arm in study.at(depth)],
        )
        for depth in study.depths
    ]
    _draw_bars(axis, list(colors), series)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_title("Latency of the compiled network")
    axis.set_xlabel("ratio to ReLU's in the same run")


def _draw_bars(axis: Any, names: list[str], series: list[tuple[str, list[float]]]) -> None:
    """Groups of horizontal bars, one bar of each series for each name."""
    height = 0.8 / len(series)
    for index, (label, values) in enumerate(series):
        places = [place + index * height for place in range(len(values))]
        axis.barh(places, values, height, label=label)
    middle = 0.4 - height / 2
    axis.set_yticks([place + middle for place in range(len(names))], names)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=9)


def _save(plt: Any, figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with atomic_file(path) as stream:
        # Without the name of the program, equal figures are equal bytes.
        figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)
