"""What the study of activations concludes, in sentences that are computed from its figures."""

import math
import statistics
from collections.abc import Iterable, Sequence

from leakyforge.intervals import Estimate, estimate, paired, regression_slope
from leakyforge.study import Arm, Study, is_relu

# Ten classes: a network at or below twice the accuracy of guessing has learnt nothing.
_LEARNT = 0.2
_LEAKY = "LeakyRelu"


def conclusions(study: Study) -> list[str]:
    """One paragraph for each question."""
    return [
        _always_better(study),
        _higher_is_better(study),
        _best(study),
        _vanishing(study),
        _dead(study),
        _cost(study),
    ]


def difference(study: Study, arm: Arm) -> Estimate:
    """An arm's accuracy minus ReLU's, seed by seed."""
    return paired(arm.accuracies, study.reference(arm.depth).accuracies)


def gradient_ratio(norms: Sequence[float]) -> float:
    """Norm of the first hidden layer's gradient divided by the last one's; the logits are apart."""
    return norms[0] / norms[-2] if norms[-2] else 0.0


def _leaky(study: Study, depth: int) -> list[Arm]:
    """LeakyReLU with its several slopes; not RReLU, which is trained otherwise."""
    return [arm for arm in study.at(depth) if arm.activation.startswith("LeakyReLU")]


def _always_better(study: Study) -> str:
    """Whether LeakyReLU beats ReLU, for every slope and depth."""
    parts, signs = [], []
    for depth in study.depths:
        here = [(arm, difference(study, arm).sign) for arm in _leaky(study, depth)]
        signs += [sign for _, sign in here]
        words = [
            f"{text} {_slopes(arm for arm, sign in here if sign == wanted)}"
            for wanted, text in ((1, "above ReLU"), (-1, "below ReLU"), (0, "no difference shown"))
            if any(sign == wanted for _, sign in here)
        ]
        better, equal, total = _pairs(study, depth)
        parts.append(
            f"{depth} layers: {', '.join(words)}; LeakyReLU was better in {better} of {total} "
            f"pairs of equal seeds, equal in {equal}"
        )
    if not signs:
        return "No LeakyReLU was compared with ReLU."
    if all(sign > 0 for sign in signs):
        verdict = "here it does"
    elif any(sign < 0 for sign in signs):
        verdict = "the data contradict it"
    elif any(sign > 0 for sign in signs):
        verdict = "shown for some slopes only"
    else:
        verdict = "the data do not show it"
    return f"**LeakyReLU always beats ReLU: {verdict}.** {_sentence(parts)}"


def _pairs(study: Study, depth: int) -> tuple[int, int, int]:
    """Pairs of a LeakyReLU and the ReLU of the same seed: better, equal, all."""
    reference = study.reference(depth).accuracies
    pairs = [
        (ours, theirs)
        for arm in _leaky(study, depth)
        for ours, theirs in zip(arm.accuracies, reference, strict=True)
    ]
    better = sum(ours > theirs for ours, theirs in pairs)
    return better, sum(ours == theirs for ours, theirs in pairs), len(pairs)


def slope_effect(study: Study, depth: int) -> Estimate | None:
    """Change of the accuracy with alpha from 0 (ReLU) on: a line for each seed; None without any.

    In accuracy per unit of alpha.
    """
    arms = [study.reference(depth), *_leaky(study, depth)]
    if len(arms) < 2:
        return None
    slopes = [arm.slope for arm in arms]
    series = zip(*(arm.accuracies for arm in arms), strict=True)
    return estimate([regression_slope(slopes, accuracies) for accuracies in series])


def _higher_is_better(study: Study) -> str:
    """Whether the accuracy rises with alpha."""
    effects = {depth: slope_effect(study, depth) for depth in study.depths}
    known = {depth: effect for depth, effect in effects.items() if effect is not None}
    if not known:
        return "No two slopes were compared."
    signs = {effect.sign for effect in known.values()}
    if signs == {1}:
        verdict = "here it is"
    elif -1 in signs:
        verdict = "the data contradict it"
    elif 1 in signs:
        verdict = "shown at some depths only"
    else:
        verdict = "the data do not show it"
    parts = [
        f"{depth} layers: a line through the accuracies from alpha = 0 to the largest changes by "
        f"{points(effect, 0.1)} points for every 0.1 of alpha"
        for depth, effect in known.items()
    ]
    return f"**A higher alpha is better: {verdict}.** {_sentence(parts)}"


def _best(study: Study) -> str:
    """The highest mean, and who beats or loses to ReLU."""
    parts = []
    for depth in study.depths:
        best = max(study.at(depth), key=lambda arm: arm.mean("accuracy"))
        others = [arm for arm in study.at(depth) if not is_relu(arm)]
        above = [arm.activation for arm in others if difference(study, arm).sign > 0]
        below = [arm.activation for arm in others if difference(study, arm).sign < 0]
        parts.append(
            f"{depth} layers: {best.activation} has the highest mean, "
            f"{100 * best.mean('accuracy'):.1f} %; above ReLU: {names(above)}; "
            f"below: {names(below)}"
        )
    return f"**Which is best.** {_sentence(parts)}"


def _vanishing(study: Study) -> str:
    """How the gradient shrinks in the deepest network, and who does not learn."""
    depth = study.depths[-1]
    ratios = {
        arm.activation: geometric([gradient_ratio(run.first_gradients) for run in arm.runs])
        for arm in study.at(depth)
    }
    order = sorted(ratios, key=lambda name: ratios[name])
    stuck = [
        f"{arm.activation} ({arm.depth} layers)"
        for arm in study.arms
        if arm.mean("accuracy") < _LEARNT
    ]
    return (
        f"**Vanishing gradients.** Before training, with {depth} layers, the gradient of the first "
        f"hidden layer is {ratios[order[0]]:.1e} of the last one's with {order[0]} and between "
        f"{ratios[order[min(1, len(order) - 1)]]:.2g} and {ratios[order[-1]]:.2g} of it with the "
        f"others. Not above {100 * _LEARNT:.0f} % in the mean, so next to guessing: "
        f"{names(stuck)}."
    )


def _dead(study: Study) -> str:
    """Dead units of ReLU, and those of LeakyReLU that are on the linear side for good."""
    parts = []
    for depth in study.depths:
        text = f"{depth} layers: {100 * study.reference(depth).mean('dead'):.1f} % of ReLU's units"
        leaky = _leaky(study, depth)
        if leaky:
            stuck = [100 * arm.mean("never_positive") for arm in leaky]
            dead = max(100 * arm.mean("dead") for arm in leaky)
            text += (
                f" and {dead:.1f} % of LeakyReLU's at the most; {min(stuck):.1f} to "
                f"{max(stuck):.1f} % of LeakyReLU's stay at or below 0 on all of them, where they "
                "pass a gradient on but are linear"
            )
        parts.append(text)
    return f"**Dead units, whose derivative is 0 on all training images.** {_sentence(parts)}"


def noise(study: Study, depth: int) -> tuple[float, float] | None:
    """Least and greatest ratio to ReLU's latency among artifacts of the same code, if several.

    LeakyRelu with one alpha or another is the same code: they differ by noise only.
    """
    reference = study.reference(depth).median_ms
    same = [arm.median_ms / reference for arm in study.at(depth) if arm.operator == _LEAKY]
    return (min(same), max(same)) if len(same) > 1 else None


def _cost(study: Study) -> str:
    """Latency of LeakyReLU and of the others, against ReLU's."""
    parts = []
    for depth in study.depths:
        reference = study.reference(depth).median_ms
        others = ", ".join(
            f"{arm.activation} {arm.median_ms / reference:.2f}"
            for arm in study.at(depth)
            if arm.operator not in {_LEAKY, "Relu"}
        )
        text = f"{depth} layers: {others or 'no other was timed'}"
        spread = noise(study, depth)
        if spread is not None:
            low, high = spread
            fits = "holds 1" if low <= 1 <= high else "does not hold 1"
            text += (
                f"; LeakyRelu, whose alphas run the same code, {low:.2f} to {high:.2f}, a range "
                f"that {fits}"
            )
        parts.append(text)
    return f"**Latency as a ratio to ReLU's, in the same run.** {_sentence(parts)}"


def _slopes(arms: Iterable[Arm]) -> str:
    return "for alpha " + ", ".join(f"{arm.slope:g}" for arm in arms)


def names(items: Sequence[str]) -> str:
    """Names in a row, or that there are none."""
    return ", ".join(items) or "none"


def _sentence(parts: Sequence[str]) -> str:
    """Parts that stand for themselves, the first letter of each a capital."""
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def points(change: Estimate, scale: float = 1.0) -> str:
    """A difference in percentage points with its interval."""
    mean, low, high = (100 * scale * each for each in (change.mean, change.low, change.high))
    if math.isinf(low):
        return f"{mean:+.2f}"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def geometric(values: Sequence[float]) -> float:
    """Geometric mean; 0 where a value is."""
    return statistics.geometric_mean(values) if min(values) > 0 else 0.0
