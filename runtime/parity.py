"""Parity: compiled outputs against a reference, with tolerances that come from the arithmetic.

`check` runs ONNX Runtime beside the artifact; `verify` replays what the artifact carries and
needs neither onnx nor onnxruntime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import InputError, ModelError
from leakyforge.opsets import OLDEST_OF_ONNXRUNTIME, at_least
from leakyforge.runtime.acceptance import Acceptance, Samples, accept
from leakyforge.runtime.artifact import Artifact, read_artifact, read_manifest
from leakyforge.runtime.histogram import histogram
from leakyforge.runtime.manifest import Manifest
from leakyforge.runtime.own_rounding import OwnRounding, compare_roundings
from leakyforge.runtime.reference import Reference, load_reference, random_feeds
from leakyforge.runtime.session import Session, check_feeds
from leakyforge.runtime.tensors import Array, TensorSpec, format_shape, numpy_dtype
from leakyforge.runtime.variants import choose_variants
from leakyforge.tolerance import Tolerance, tolerance

# Batch sizes that a symbolic dimension takes in turn, so that a kernel's tail is seen.
_SYMBOL_SIZES = (1, 3, 2, 4)


@dataclass(frozen=True)
class OutputParity:
    """One output against one reference, over all samples.

    Attributes:
        output: name of the output.
        reference: engine and setting that computed the desired values.
        max_abs: largest absolute difference.
        max_rel: largest difference relative to the desired value, where that is not 0.
        max_ulp: largest distance in representable values, None for other than floating point.
        worst_index: where the largest absolute difference is.
        cosine: cosine similarity of the two outputs as vectors, 1 where both are all zero.
        snr_db: signal-to-noise ratio in decibels, infinite for equal outputs.
        range: largest finite magnitude of the desired output.
        atol: absolute tolerance that applied.
        rtol: relative tolerance that applied.
        origin: where the tolerance came from.
        needed: least share of the tolerance that would have passed; 1 or less passes.
        passed: whether the output is within the tolerance in every sample.
        problem: what is wrong where it is not a difference in values, else empty.
        variant: of the artifact, the variant that computed it.
        histogram: how many elements of all samples have which share of their tolerance as their
            error (see `histogram`); empty where there is a problem.
    """

    output: str
    reference: str
    max_abs: float
    max_rel: float
    max_ulp: int | None
    worst_index: tuple[int, ...]
    cosine: float
    snr_db: float
    range: float
    atol: float
    rtol: float
    origin: str
    needed: float
    passed: bool
    problem: str = ""
    variant: str = ""
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class NegativeShare:
    """How much of one LeakyRelu's input was below zero: its alpha is tested only there."""

    node: str
    alpha: float
    share: float


@dataclass(frozen=True)
class ParityReport:
    """Result of a parity check; true where every output of every variant that ran passed.

    Attributes:
        artifact: its path.
        samples: inputs that were compared.
        seed: of the inputs, None where they were given.
        outputs: one row for each variant, reference and output.
        leaky_relus: how much of each LeakyRelu was tested.
        not_run: for each variant that was asked for and cannot run here, why.
        roundings: for each variant, reference and output, its loss beside the reference's own,
            where that was asked for.
        acceptance: for each variant and reference, the measures of a family of models, where one
            was named.
    """

    artifact: str
    samples: int
    seed: int | None
    outputs: tuple[OutputParity, ...]
    leaky_relus: tuple[NegativeShare, ...]
    not_run: dict[str, str] = field(default_factory=dict)
    roundings: tuple[OwnRounding, ...] = ()
    acceptance: tuple[Acceptance, ...] = ()

    def __bool__(self) -> bool:
        groups = (self.outputs, self.roundings, self.acceptance)
        return all(row.passed for rows in groups for row in rows)

    @property
    def never_negative(self) -> tuple[NegativeShare, ...]:
        """LeakyRelus that never saw x < 0."""
        return tuple(row for row in self.leaky_relus if row.share == 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON; infinities and NaN become texts."""
        return {"passed": bool(self), **finite_fields(asdict(self))}


def finite_fields(value: Any) -> Any:
    """Plain values in which infinities and NaN, which JSON does not have, are texts."""
    if isinstance(value, dict):
        return {key: finite_fields(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_fields(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def check(
    artifact: str | Path,
    onnx: str | Path | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    samples: int = 4,
    seed: int = 0,
    variant: str | None = None,
    device: str | None = None,
    float64: bool = False,
    family: str | None = None,
    verify_key: str | Path | None = None,
) -> ParityReport:
    """Compare an artifact with ONNX Runtime, with its graph optimisations on and off.

    Args:
        artifact: the artifact's path.
        onnx: the ONNX file that it was compiled from; by default the one that the artifact names,
            or one of that name beside the artifact.
        inputs: one array for each input; by default seeded random ones.
        samples: number of random inputs; symbolic dimensions take other sizes in each.
        seed: of the random inputs.
        variant: the variant to check; by default the best for this CPU, `all` for each that runs.
        device: for a device's artifact, as in `Session`.
        float64: evaluate the model in float64 too, and judge what is lost to rounding by what ONNX
            Runtime itself loses (see `own_rounding`); takes seconds to minutes.
        family: what the model is for, one of `acceptance.FAMILIES`: boxes, pictures, sound or
            classes are compared too.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact cannot be loaded here, or is not signed by `verify_key`.
        ModelError: the ONNX file is absent, is not the one, ONNX Runtime refuses it, or it cannot
            be evaluated in float64.
        InputError: `inputs` do not fit the model, samples is below 1, or the outputs are not those
            of the family.
        DeviceError: a device's artifact, and no such device.
    """
    if samples < 1:
        raise InputError(f"samples={samples}, but a check needs at least 1")
    path = Path(artifact)
    manifest = read_manifest(path, verify_key=verify_key)
    variants, not_run = choose_variants(manifest, path, variant)
    proto = find_onnx(manifest, path, onnx)
    specs = manifest.inputs
    if inputs is None:
        feeds = [
            random_feeds(specs, seed + index, _symbol_sizes(specs, index))
            for index in range(samples)
        ]
    else:
        feeds = [check_feeds(specs, inputs)]
    actual = {
        each.name: _outputs(read_artifact(path, each.name, verify_key=verify_key), feeds, device)
        for each in variants
    }
    references = [load_reference(proto, optimised=optimised) for optimised in (True, False)]
    if references[0].name == references[1].name:
        del references[1]
    exact = _exact_outputs(proto, feeds) if float64 else None
    rows: list[OutputParity] = []
    roundings: list[OwnRounding] = []
    acceptance: list[Acceptance] = []
    for reference in references:
        desired = [reference.run(feed) for feed in feeds]
        if exact is not None:
            _check_exact(manifest.outputs, desired, exact, reference.name)
        for name, ours in actual.items():
            compared = compare_outputs(manifest.outputs, ours, desired, reference.name)
            rows += [replace(row, variant=name) for row in compared]
            if exact is not None:
                roundings += compare_roundings(
                    manifest.outputs, ours, desired, exact, reference.name, name
                )
            # Another shape or a NaN has failed already, and is no picture.
            if family is not None and not any(row.problem for row in compared):
                measures = accept(family, Samples(specs, manifest.outputs, ours, desired))
                acceptance += [
                    replace(row, reference=reference.name, variant=name) for row in measures
                ]
    return ParityReport(
        str(artifact),
        len(feeds),
        seed if inputs is None else None,
        tuple(rows),
        negative_shares(proto, feeds),
        not_run,
        tuple(roundings),
        tuple(acceptance),
    )


def _exact_outputs(proto: Any, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """Outputs of the model in float64."""
    from leakyforge.runtime.float64 import evaluate_float64

    return evaluate_float64(proto, feeds)


def _check_exact(
    specs: Sequence[TensorSpec],
    desired: Sequence[Mapping[str, Array]],
    exact: Sequence[Mapping[str, Array]],
    reference: str,
) -> None:
    """Refuse outputs in float64 that the reference's roundings do not explain."""
    rounded = [
        {spec.name: sample[spec.name].astype(numpy_dtype(spec.dtype)) for spec in specs}
        for sample in exact
    ]
    for row in compare_outputs(specs, desired, rounded, "float64"):
        if not row.passed:
            raise ModelError(
                f"output {row.output!r} of {reference} is {row.max_abs:.2e} from that in float64, "
                f"and its roundings explain {row.atol:.2e}; check without --float64"
            )


def verify(
    artifact: str | Path,
    variant: str | None = None,
    device: str | None = None,
    verify_key: str | Path | None = None,
) -> ParityReport:
    """Replay the inputs that an artifact carries and compare with the outputs that it carries.

    Every member of the file is checked, those of variants that do not run here too.

    Args:
        artifact: the artifact's path.
        variant: the variant to run; by default the best for this CPU, `all` for each that runs.
        device: for a device's artifact, as in `Session`.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact is damaged, cannot be loaded here, or is not signed by
            `verify_key`.
    """
    path = Path(artifact)
    manifest = read_manifest(path, whole=True, verify_key=verify_key)
    variants, not_run = choose_variants(manifest, path, variant)
    rows = [
        row
        for each in variants
        for row in replay(read_artifact(path, each.name, verify_key=verify_key), device)
    ]
    return ParityReport(str(artifact), 1, None, tuple(rows), (), not_run)


def replay(artifact: Artifact, device: str | None = None) -> list[OutputParity]:
    """Compare one variant's outputs with those that the artifact carries."""
    rows = compare_outputs(
        artifact.manifest.outputs,
        _outputs(artifact, [artifact.reference_inputs], device),
        [artifact.reference_outputs],
        f"stored: {artifact.manifest.reference}",
    )
    return [replace(row, variant=artifact.variant.name) for row in rows]


def _outputs(
    artifact: Artifact, feeds: Sequence[Mapping[str, Array]], device: str | None
) -> list[dict[str, Array]]:
    """Outputs of one variant by name, for each of the inputs."""
    session = Session(artifact, device=device)
    names = [spec.name for spec in artifact.manifest.outputs]
    return [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]


def find_onnx(manifest: Manifest, artifact: Path, onnx: str | Path | None) -> Any:
    """The model that an artifact was compiled from, its hash compared with the artifact's.

    It is raised to the oldest opset that ONNX Runtime runs.

    Raises:
        ModelError: the file is absent, is another one, or is not ONNX.
    """
    # Only here: a machine that merely runs artifacts has no onnx.
    from leakyforge.runtime.source import read_onnx

    path = Path(onnx) if onnx is not None else _recorded_onnx(artifact, manifest)
    if onnx is None and not path.is_file():
        raise ModelError(f"ONNX file {path} does not exist; give the model with --onnx FILE")
    proto, digest = read_onnx(path)
    if digest != manifest.onnx_sha256:
        raise ModelError(
            f"{path} is not the file that artifact {artifact} was compiled from (SHA-256 "
            "differs); compile it again, or give the right file with --onnx FILE"
        )
    return at_least(proto, OLDEST_OF_ONNXRUNTIME)


def _recorded_onnx(artifact: Path, manifest: Manifest) -> Path:
    """Where the artifact's ONNX file should be: where it was, or beside the artifact."""
    if manifest.onnx_path is None:
        raise ModelError(
            f"artifact {artifact} was compiled from a model in memory; give a file with --onnx FILE"
        )
    recorded = Path(manifest.onnx_path)
    return recorded if recorded.is_file() else artifact.parent / recorded.name


def _symbol_sizes(specs: Sequence[TensorSpec], index: int) -> dict[str, int]:
    """Sizes for the symbolic dimensions in one sample."""
    size = _SYMBOL_SIZES[index % len(_SYMBOL_SIZES)]
    return {dim: size for spec in specs for dim in spec.shape if isinstance(dim, str)}


def compare_outputs(
    specs: Sequence[TensorSpec],
    actual: Sequence[Mapping[str, Array]],
    desired: Sequence[Mapping[str, Array]],
    reference: str,
) -> list[OutputParity]:
    """Compare every output over all samples; the row of an output is its worst sample."""
    rows = []
    for spec in specs:
        limits = tolerance(spec.dtype, spec.rounding_steps, spec.quantisations)
        samples = [
            compare(spec.name, ours[spec.name], theirs[spec.name], limits, reference)
            for ours, theirs in zip(actual, desired, strict=True)
        ]
        worst = max(samples, key=lambda row: (not row.passed, row.needed))
        # Of a sample with a problem it is empty, and so is then the sum.
        counts = zip(*(row.histogram for row in samples), strict=False)
        rows.append(replace(worst, histogram=tuple(map(sum, counts))))
    return rows


def compare(
    name: str, actual: Array, desired: Array, limits: Tolerance, reference: str
) -> OutputParity:
    """Compare one output with its reference.

    Shape, dtype, and the places of NaN and of infinities must be equal; every other element must
    lie within `limits.range_share * range + limits.rtol * |desired|`.
    """
    problem = ""
    if actual.shape != desired.shape:
        problem = f"shape {format_shape(actual.shape)} instead of {format_shape(desired.shape)}"
    elif actual.dtype != desired.dtype:
        problem = f"dtype {actual.dtype} instead of {desired.dtype}"
    if problem:
        return _failed(name, reference, limits, problem)
    ours, theirs = _as_float64(actual), _as_float64(desired)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        problem = "NaN or infinity where the reference has another value"
    elif not np.isfinite(ours[finite]).all():
        problem = f"{np.count_nonzero(~np.isfinite(ours[finite]))} values are NaN or infinite"
    if problem:
        return _failed(name, reference, limits, problem)
    ours, theirs = np.where(finite, ours, 0.0), np.where(finite, theirs, 0.0)
    difference = np.abs(ours - theirs)
    if actual.dtype.kind in "iub":
        # Large integers may be equal as float64 and yet differ.
        difference = np.where(actual == desired, 0.0, np.maximum(difference, 1.0))
    extent = float(np.max(np.abs(theirs), initial=0.0))
    allowed = limits.range_share * extent + limits.rtol * np.abs(theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(difference == 0, 0.0, difference / allowed)
        relative = np.where(theirs == 0, 0.0, difference / np.abs(theirs))
    worst = int(np.argmax(difference)) if difference.size else 0
    needed = float(np.max(shares, initial=0.0))
    return OutputParity(
        output=name,
        reference=reference,
        max_abs=float(np.max(difference, initial=0.0)),
        max_rel=float(np.max(relative, initial=0.0)),
        max_ulp=max_ulp(actual, desired),
        worst_index=tuple(int(i) for i in np.unravel_index(worst, actual.shape))
        if actual.size
        else (),
        cosine=_cosine(ours, theirs),
        snr_db=_snr_db(ours, theirs),
        range=extent,
        atol=limits.range_share * extent,
        rtol=limits.rtol,
        origin=limits.origin,
        needed=needed,
        passed=needed <= 1.0,
        histogram=histogram(shares),
    )


def _failed(name: str, reference: str, limits: Tolerance, problem: str) -> OutputParity:
    """Row of an output that cannot be compared value by value."""
    nan, inf = float("nan"), float("inf")
    return OutputParity(
        name, reference, inf, inf, None, (), nan, -inf, nan, nan, limits.rtol, limits.origin, inf,
        False, problem,
    )  # fmt: skip


def _as_float64(array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    return array.astype(np.float64)


def max_ulp(actual: Array, desired: Array) -> int | None:
    """Largest distance in units of least precision: representable values between two floats.

    Patterns are mapped to integers that count up with the value (Dawson, "Comparing Floating
    Point Numbers, 2012 Edition"); +0 and -0 are the same, positions where either is NaN are left
    out. None for other than floating-point dtypes.
    """
    if actual.dtype.kind != "f" and str(actual.dtype) != "bfloat16":
        return None
    bits = actual.dtype.itemsize * 8
    signed = np.dtype(f"int{bits}")
    both = ~(np.isnan(_as_float64(actual)) | np.isnan(_as_float64(desired)))
    if not both.any():
        return 0
    places = []
    for array in (actual, desired):
        pattern = (
            np.ascontiguousarray(array)
            .view(signed)[both]
            .astype(object if bits == 64 else np.int64)
        )
        places.append(np.where(pattern < 0, -(pattern + 2 ** (bits - 1)), pattern))
    return int(np.max(np.abs(places[0] - places[1])))


def _cosine(ours: Any, theirs: Any) -> float:
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    if norms == 0.0:
        return 1.0 if np.array_equal(ours, theirs) else 0.0
    return float(np.vdot(ours, theirs)) / norms


def _snr_db(ours: Any, theirs: Any) -> float:
    noise = float(np.linalg.norm(ours - theirs))
    signal = float(np.linalg.norm(theirs))
    if noise == 0.0:
        return float("inf")
    return 20.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def negative_shares(proto: Any, feeds: Sequence[Mapping[str, Array]]) -> tuple[NegativeShare, ...]:
    """Share of each LeakyRelu's input values that are below zero, over all samples."""
    import onnx as onnx_package

    nodes = [node for node in proto.graph.node if node.op_type == "LeakyRelu"]
    if not nodes:
        return ()
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    watched = onnx_package.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx_package.ValueInfoProto(name=name) for name in names)
    inputs = {name: _Share() for name in names}
    reference: Reference = load_reference(watched, optimised=False)
    for feed in feeds:
        for name, values in reference.run(feed).items():
            inputs[name].add(values)
    return tuple(
        NegativeShare(node.name or node.output[0], _alpha(node), inputs[node.input[0]].share)
        for node in nodes
    )


class _Share:
    """Counts values and those below zero."""

    def __init__(self) -> None:
        self.negative = 0
        self.total = 0

    def add(self, values: Array) -> None:
        self.negative += int(np.count_nonzero(_as_float64(values) < 0))
        self.total += values.size

    @property
    def share(self) -> float:
        return self.negative / self.total if self.total else 0.0


def _alpha(node: Any) -> float:
    """Alpha of a LeakyRelu node; ONNX's default is 0.01."""
    return next((float(item.f) for item in node.attribute if item.name == "alpha"), 0.01)
