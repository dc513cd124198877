"""The report of the study of activations: every statement in it is computed from the figures."""

import statistics
from collections.abc import Iterator

from leakyforge.intervals import CONFIDENCE
from leakyforge.study import Study, is_relu
from leakyforge.study_conclusions import (
    conclusions,
    difference,
    geometric,
    gradient_ratio,
    names,
    points,
)


def markdown(study: Study) -> str:
    """The report."""
    lines = [
        "# What an activation does to a network that trains",
        "",
        "Written by `leakyforge study`, conclusions included: the sentences follow from the "
        "figures and change with them.",
        "",
        "![LeakyReLU and the others](activations.png)",
        "",
        "## What the data show",
        "",
        *(f"- {text}" for text in conclusions(study)),
        "",
        "![Accuracy, gradients, units and latency](study.png)",
    ]
    for depth in study.depths:
        lines += ["", f"## {depth} hidden layers", "", *_accuracies(study, depth)]
        lines += ["", *_inside(study, depth), "", *_latencies(study, depth)]
    return "\n".join([*lines, "", *_method(study)]) + "\n"


def _accuracies(study: Study, depth: int) -> Iterator[str]:
    """Table of accuracies."""
    percent = f"{100 * CONFIDENCE:.0f} %"
    yield (
        f"| activation | rate | test accuracy, % | difference to ReLU, points [{percent} interval] "
        "| against ReLU |"
    )
    yield "|---|---|---|---|---|"
    words = {1: "higher", -1: "lower", 0: "no difference shown"}
    for arm in study.at(depth):
        cells = ["-", "reference"]
        if not is_relu(arm):
            change = difference(study, arm)
            cells = [points(change), words[change.sign]]
        spread = f" ± {100 * statistics.stdev(arm.accuracies):.2f}" if len(arm.runs) > 1 else ""
        yield (
            f"| {arm.activation} | {arm.rate:g} | {100 * arm.mean('accuracy'):.2f}{spread} | "
            f"{' | '.join(cells)} |"
        )


def _inside(study: Study, depth: int) -> Iterator[str]:
    """Table of gradients and units."""
    yield (
        "| activation | gradient of the first / last hidden layer, before | after training "
        "| saturated derivatives, % | dead units, % | never above 0, % |"
    )
    yield "|---|---|---|---|---|---|"
    for arm in study.at(depth):
        before, after = (
            geometric([gradient_ratio(getattr(run, name)) for run in arm.runs])
            for name in ("first_gradients", "last_gradients")
        )
        sided = f"{100 * arm.mean('never_positive'):.1f}" if arm.kind == "rectifier" else "-"
        yield (
            f"| {arm.activation} | {before:.2g} | {after:.2g} | {100 * arm.mean('saturated'):.1f} "
            f"| {100 * arm.mean('dead'):.1f} | {sided} |"
        )


def _latencies(study: Study, depth: int) -> Iterator[str]:
    """Table of latencies."""
    yield "| activation | operator | median, us | 10th to 90th percentile | ratio to ReLU |"
    yield "|---|---|---|---|---|"
    reference = study.reference(depth).median_ms
    for arm in study.at(depth):
        yield (
            f"| {arm.activation} | {arm.operator} | {1e3 * arm.median_ms:.0f} | "
            f"{1e3 * arm.p10_ms:.0f} to {1e3 * arm.p90_ms:.0f} | {arm.median_ms / reference:.2f} |"
        )


def _method(study: Study) -> Iterator[str]:
    """How it was done, and what it cannot show."""
    seeds = len(study.arms[0].runs)
    comparisons = sum(not is_relu(arm) for arm in study.arms)
    halves = [
        (change.high - change.low) / 2
        for change in (difference(study, arm) for arm in study.arms if not is_relu(arm))
    ]
    edges = [
        f"{arm.activation} at {arm.depth} layers"
        for arm in study.arms
        if arm.rate in (min(study.rates), max(study.rates))
    ]
    parity = max(run.parity for arm in study.arms for run in arm.runs)
    yield "## How it was done"
    yield ""
    yield (
        f"{study.date}, {study.cpu}. Perceptrons of {study.width} units a layer, without "
        "normalization or skip connections, so that what an activation does multiplies from layer "
        f"to layer; scikit-learn's digits, {study.train_images} images to train on and "
        f"{study.test_images} to test on; {study.epochs} epochs of gradient descent with momentum "
        f"0.9, {seeds} {'seed' if seeds == 1 else 'seeds'}. Weights start with the gain of each "
        "activation. The learning rate is chosen for each activation and depth out of "
        f"{', '.join(f'{rate:g}' for rate in study.rates)} on held-out training images with other "
        "seeds."
    )
    yield ""
    yield (
        f"All {sum(len(arm.runs) for arm in study.arms)} networks were exported to ONNX, compiled "
        f"and checked against ONNX Runtime (at most {parity:.2g} of the tolerance was needed); "
        "each artifact has exactly the accuracy of the network that was trained. RReLU draws its "
        "slopes in training only; compiled it is LeakyRelu with their mean."
    )
    yield ""
    yield (
        "Accuracy is the mean over seeds ± their standard deviation. Differences are between "
        "networks of equal seed, with Student's interval. Saturated is a derivative whose absolute "
        f"value is below {study.saturated_below:g} on a training image, after training: the "
        "negative side of LeakyReLU 0.01 counts, that of 0.05 does not. Gradient norms are "
        "Euclidean, of the mean loss over the training images by the weights of a layer; ratios "
        "are averaged geometrically. "
        f"Latency is that of {study.test_images} images at once in the compiled artifact of the "
        f"first seed, {study.threads} thread, the artifacts in turn: only ratios mean anything on "
        "another machine, and a machine that is busy makes them noisy."
    )
    yield ""
    yield "## What it cannot show"
    yield ""
    yield (
        f"- {comparisons} intervals of {100 * CONFIDENCE:.0f} % each: where nothing differed, "
        f"{comparisons * (1 - CONFIDENCE):.1f} of them would be expected to exclude 0 by chance."
    )
    if seeds == 1:
        yield "- One seed has no spread, and so no interval: nothing is shown to differ."
    else:
        yield (
            f"- Half an interval is {100 * statistics.median(halves):.1f} points in the median: a "
            "smaller difference is seldom shown, so 'no difference shown' is not 'equal'."
        )
    yield (
        f"- The spread is that of seeds; the {study.test_images} test images are always the same, "
        f"and one of them is {100 / study.test_images:.2f} points."
    )
    yield f"- The rate chosen is the smallest or largest on offer for: {names(edges)}."
    yield "- Several pairs share one network of ReLU's: their counts are no independent trials."
    yield "- One small data set and one architecture: nothing here is a law for others."
