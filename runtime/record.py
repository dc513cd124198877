"""Parity records: every variant of a new artifact that runs here is compared with the reference."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from leakyforge.errors import DeviceError, MissingDependencyError, ParityError
from leakyforge.runtime import cpu
from leakyforge.runtime.artifact import Artifact, place_weights
from leakyforge.runtime.cuda import choose_cuda_device
from leakyforge.runtime.manifest import (
    CUDA,
    DEVICE_KINDS,
    WEBGPU,
    Manifest,
    OutputRecord,
    ParityRecord,
)
from leakyforge.runtime.opencl import choose_device
from leakyforge.runtime.parity import OutputParity, replay
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.variants import missing_features
from leakyforge.runtime.webgpu import choose_adapter, device_name


def record_parity(
    path: Path,
    manifest: Manifest,
    members: Mapping[str, bytes],
    reference_inputs: dict[str, Array],
    reference_outputs: dict[str, Array],
) -> Manifest:
    """The manifest with a parity record in each variant, before the artifact is written.

    Args:
        path: where it will be written, for the error message.
        manifest: what it will say of itself.
        members: libraries and weights of its variants, by name of the member.
        reference_inputs: by input name.
        reference_outputs: by output name.

    Raises:
        ParityError: an output of a variant is outside the tolerance.
    """
    variants = []
    for variant in manifest.variants:
        artifact = Artifact(
            path,
            manifest,
            variant,
            members.get(variant.library, b""),
            place_weights(variant.weights, members),
            reference_inputs,
            reference_outputs,
            {name: members[name] for name in variant.models},
        )
        variants.append(dataclasses.replace(variant, parity=_record(artifact)))
    return dataclasses.replace(manifest, variants=tuple(variants))


def _record(artifact: Artifact) -> ParityRecord:
    machine, here = artifact.manifest.machine, cpu.model_name()
    if machine in DEVICE_KINDS:
        try:
            here = _device_name(artifact)
        except (DeviceError, MissingDependencyError):
            return ParityRecord("not run", here, (f"{DEVICE_KINDS[machine]} device",))
    elif machine != cpu.machine():
        return ParityRecord("not run", here, (f"instruction set {machine}",))
    missing = missing_features(artifact.variant)
    if missing:
        return ParityRecord("not run", here, missing)
    outputs = tuple(_output(artifact, row) for row in replay(artifact))
    return ParityRecord("pass", here, outputs=outputs)


def _device_name(artifact: Artifact) -> str:
    """The device that a session of the artifact would take."""
    if artifact.manifest.machine == CUDA:
        return choose_cuda_device(artifact.variant.name).name
    if artifact.manifest.machine == WEBGPU:
        return device_name(choose_adapter())
    return str(choose_device().name)


def _output(artifact: Artifact, row: OutputParity) -> OutputRecord:
    """Record of an output that passed.

    Raises:
        ParityError: it did not.
    """
    error, allowed = row.max_abs, row.atol
    if row.range > 0:
        error, allowed = error / row.range, allowed / row.range
    if not row.passed:
        what = row.problem or f"{error:.2e} of its range, the tolerance is {allowed:.2e}"
        raise ParityError(
            f"{artifact.path} is not written: output {row.output!r} of variant "
            f"{artifact.variant.name} differs from {artifact.manifest.reference}: {what} "
            f"({row.origin}); try another --target, and report the model"
        )
    return OutputRecord(row.output, error, allowed, row.needed)
