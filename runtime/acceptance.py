"""Whether an artifact does what its model is for as well as ONNX Runtime, by family of models.

Beside the comparison of tensors: what their differences do to boxes, pictures, sound and classes.
Every bound is what the tolerance of the tensors allows, or what nobody can see or hear.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leakyforge.errors import InputError
from leakyforge.runtime import yolo
from leakyforge.runtime.tensors import Array, TensorSpec, format_shape
from leakyforge.tolerance import tolerance

_Values = npt.NDArray[np.float64]
# One rounding to 8 bits loses a twelfth of a step squared: what a picture file loses anyway.
_PSNR_OF_8_BITS = 20 * np.log10(255 * np.sqrt(12))
# The least change of level that is heard at 80 dB above the threshold (Jesteadt, Wier and Green,
# "Intensity discrimination as a function of frequency and sensation level", JASA 61, 1977).
_HEARD_DB = 0.5
# The spectrogram of HiFi-GAN (Kong, Kim and Bae, NeurIPS 2020; config_v1.json, meldataset.py).
_RATE, _WINDOW, _HOP, _MELS, _HIGHEST, _FLOOR = 22050, 1024, 256, 80, 8000.0, 1e-5


@dataclass(frozen=True)
class Acceptance:
    """One measure of one variant against one reference, over all samples.

    Attributes:
        measure: what was measured.
        value: its worst value.
        bound: the value that just passes.
        at_least: whether `bound` is the least that passes, else the greatest.
        origin: where the bound comes from.
        reference: engine and setting.
        variant: of the artifact.
    """

    measure: str
    value: float
    bound: float
    at_least: bool
    origin: str
    reference: str = ""
    variant: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Samples:
    """Outputs of both engines, and the inputs that they come from.

    Attributes:
        inputs: the model's.
        outputs: the model's.
        ours: outputs by name, for each sample.
        theirs: those of the reference.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    ours: Sequence[Mapping[str, Array]]
    theirs: Sequence[Mapping[str, Array]]

    def pairs(self, spec: TensorSpec) -> list[tuple[_Values, _Values]]:
        """An output of ours and of the reference, in float64, for each sample."""
        return [
            (ours[spec.name].astype(np.float64), theirs[spec.name].astype(np.float64))
            for ours, theirs in zip(self.ours, self.theirs, strict=True)
        ]


def accept(family: str, samples: Samples) -> list[Acceptance]:
    """The measures of a family.

    Args:
        family: one of `FAMILIES`.
        samples: to compare.

    Raises:
        InputError: the family is unknown, its outputs are of another form, or the samples hold
            nothing that could be compared.
    """
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; use one of {', '.join(FAMILIES)}")
    return FAMILIES[family](samples)


def _limit(spec: TensorSpec, theirs: _Values) -> float:
    """Largest difference that the tolerance allows anywhere in an output."""
    limits = tolerance(spec.dtype, spec.rounding_steps, spec.quantisations)
    extent = float(np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs)))
    return (limits.range_share + limits.rtol) * extent


def _refuse(family: str, spec: TensorSpec, wanted: str) -> InputError:
    return InputError(
        f"output {spec.name!r} has shape {format_shape(spec.shape)}, and family {family} takes "
        f"{wanted}; check without --family"
    )


def _classifier(samples: Samples) -> list[Acceptance]:
    """Top-1: our first class has to be the reference's, or one as good within the tolerance."""
    agreeing = total = 0
    for spec in samples.outputs:
        if len(spec.shape) < 2:
            raise _refuse("classifier", spec, "a batch of scores")
        for ours, theirs in samples.pairs(spec):
            ours, theirs = (each.reshape(len(each), -1) for each in (ours, theirs))
            if theirs.shape[1] < 2:
                raise _refuse("classifier", spec, "several classes")
            chosen = np.take_along_axis(theirs, ours.argmax(1)[:, None], 1)[:, 0]
            # Each of two scores may differ by the tolerance.
            agreeing += int(np.sum(chosen >= theirs.max(1) - 2 * _limit(spec, theirs)))
            total += len(theirs)
    return [
        Acceptance(
            "top-1 agreement",
            agreeing / total,
            1.0,
            at_least=True,
            origin="the same class, or one whose score is the same within the tolerance",
        )
    ]


def _super_resolution(samples: Samples) -> list[Acceptance]:
    """Pictures in [0, 1], cut to that and rounded to 8 bits as ESRGAN's own test.py does."""
    psnr, steps, inside = np.inf, 0.0, 0
    for spec in samples.outputs:
        if len(spec.shape) != 4:
            raise _refuse("super-resolution", spec, "pictures, NxCxHxW")
        for ours, theirs in samples.pairs(spec):
            inside += int(np.count_nonzero((theirs > 0.0) & (theirs < 1.0)))
            ours, theirs = np.clip(ours, 0.0, 1.0), np.clip(theirs, 0.0, 1.0)
            noise = float(np.mean(np.square(ours - theirs)))
            psnr = min(psnr, -10 * np.log10(noise) if noise > 0.0 else np.inf)
            change = np.abs(np.round(255 * ours) - np.round(255 * theirs))
            steps = max(steps, float(change.max(initial=0.0)))
    if inside == 0:
        raise InputError("no value of the pictures is between 0 and 1: nothing can be compared")
    return [
        Acceptance(
            "PSNR in dB", float(psnr), float(_PSNR_OF_8_BITS), at_least=True,
            origin="less than rounding to 8 bits loses: 20 log10(255 √12)",
        ),
        Acceptance(
            "largest change in 8 bits", steps, 1.0, at_least=False,
            origin="a value beside the middle of two steps is rounded either way",
        ),
    ]  # fmt: skip


def _vocoder(samples: Samples) -> list[Acceptance]:
    """Sound as log-mel spectrogram of HiFi-GAN, at 22050 Hz."""
    largest = 0.0
    for spec in samples.outputs:
        for ours, theirs in samples.pairs(spec):
            if theirs.shape[-1] < _WINDOW:
                raise _refuse("vocoder", spec, f"sound of at least {_WINDOW} samples")
            difference = np.abs(_log_mel(ours) - _log_mel(theirs))
            largest = max(largest, float(difference.max(initial=0.0)))
    return [
        Acceptance(
            "log-mel distance in dB, largest", largest, _HEARD_DB, at_least=False,
            origin="the least change of level that is heard (Jesteadt et al., 1977)",
        )
    ]  # fmt: skip


def _log_mel(sound: _Values) -> _Values:
    """Level in dB of each mel band of each window of the last axis, not below the floor."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW, axis=-1)[..., ::_HOP, :]
    # Periodic, as torch.hann_window.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    levels = np.abs(np.fft.rfft(windows * hann)) @ _mel_bands().T
    return np.asarray(20 * np.log10(np.maximum(levels, _FLOOR)))


def _mel_bands() -> _Values:
    """Triangles of equal area over the frequencies, by Slaney's mel scale, [bands, frequencies]."""
    # Linear below 1000 Hz, then 27 bands for a factor of 6.4.
    last = 15 + 27 * np.log(_HIGHEST / 1000) / np.log(6.4)
    mels = np.linspace(0.0, last, _MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * 2 / (high - low))


def _yolo(samples: Samples) -> list[Acceptance]:
    """Boxes after non-maximum suppression (see `yolo`)."""
    heads = yolo.find_heads(samples.inputs, samples.outputs)
    comparisons: list[yolo.BoxComparison] = []
    for index in range(len(samples.theirs)):
        outputs = [samples.pairs(spec)[index] for spec in samples.outputs]
        limits = [
            _limit(spec, theirs)
            for spec, (_, theirs) in zip(samples.outputs, outputs, strict=True)
        ]  # fmt: skip
        comparisons += yolo.compare_boxes(heads, outputs, limits)
    total = sum(each.total for each in comparisons)
    if total == 0:
        raise InputError(
            "the reference finds no box beyond doubt: nothing can be compared; give a picture with "
            "--inputs"
        )
    iou = np.concatenate([each.iou for each in comparisons])
    score = np.concatenate([each.score for each in comparisons])
    least_iou = np.concatenate([each.least_iou for each in comparisons])
    most_score = np.concatenate([each.most_score for each in comparisons])
    worst_box, worst_score = np.argmin(iou - least_iou), np.argmax(score - most_score)
    allowed = "what the tolerance of the heads allows"
    return [
        Acceptance(
            "boxes found after suppression", sum(each.found for each in comparisons) / total, 1.0,
            at_least=True, origin="but those whose score or class the tolerance leaves open",
        ),
        Acceptance(
            "IoU of a box, worst", float(iou[worst_box]), float(least_iou[worst_box]),
            at_least=True, origin=allowed,
        ),
        Acceptance(
            "difference of a score, worst", float(score[worst_score]),
            float(most_score[worst_score]), at_least=False, origin=allowed,
        ),
    ]  # fmt: skip


FAMILIES: Mapping[str, Callable[[Samples], list[Acceptance]]] = {
    "yolo": _yolo,
    "super-resolution": _super_resolution,
    "vocoder": _vocoder,
    "classifier": _classifier,
}
