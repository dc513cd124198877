"""Which variant of an artifact a machine runs."""

from collections.abc import Iterable
from pathlib import Path

from leakyforge.errors import ArtifactCpuError, ArtifactError, ArtifactVersionError
from leakyforge.pins import TVM_PINS
from leakyforge.runtime import cpu
from leakyforge.runtime.manifest import DEVICE_KINDS, Manifest, Variant

ALL = "all"


def missing_features(variant: Variant) -> tuple[str, ...]:
    """CPU features that a variant needs and this machine lacks, sorted."""
    return tuple(sorted(set(variant.features) - cpu.host_features()))


def choose_variant(manifest: Manifest, path: Path, name: str | None = None) -> Variant:
    """The first variant that this machine can run, or the one that is named.

    Args:
        manifest: of the artifact.
        path: of the artifact, for the error messages.
        name: the only variant to take.

    Raises:
        ArtifactCpuError: another instruction set, or CPU features that are absent here.
        ArtifactVersionError: compiled with other TVM packages than those installed.
        ArtifactError: there is no variant of that name.
    """
    check_machine(manifest, path)
    if name is not None:
        variant = _named(manifest, path, name)
        missing = missing_features(variant)
        if missing:
            raise ArtifactCpuError(
                f"variant {name} of artifact {path} needs CPU features that {cpu.model_name()} "
                f"lacks: {', '.join(missing)}; give another of its variants "
                f"({_names(manifest.variants)}) or none"
            )
        return variant
    for variant in manifest.variants:
        missing = missing_features(variant)
        if not missing:
            return variant
    everywhere = ", or with --target cpu:fat for every x86-64 machine"
    raise ArtifactCpuError(
        f"artifact {path} was compiled for {variant.name} and needs CPU features that "
        f"{cpu.model_name()} lacks: {', '.join(missing)}; compile it with --target cpu here"
        f"{everywhere if manifest.machine == 'x86_64' else ''}"
    )


def choose_variants(
    manifest: Manifest, path: Path, name: str | None
) -> tuple[list[Variant], dict[str, str]]:
    """The variants to check: the one that `choose_variant` takes, or with `all` each that runs.

    Returns:
        Those that run here, and for each of the others why it does not.

    Raises:
        ArtifactError: as `choose_variant`; with `all`, where none runs here.
    """
    best = choose_variant(manifest, path, None if name == ALL else name)
    if name != ALL:
        return [best], {}
    missing = {variant.name: missing_features(variant) for variant in manifest.variants}
    return (
        [variant for variant in manifest.variants if not missing[variant.name]],
        {
            name: f"{cpu.model_name()} lacks {', '.join(features)}"
            for name, features in missing.items()
            if features
        },
    )


def check_machine(manifest: Manifest, path: Path) -> None:
    """Check what all variants have in common.

    Raises:
        ArtifactCpuError: another instruction set.
        ArtifactVersionError: compiled with other TVM packages than those installed.
    """
    if manifest.machine in DEVICE_KINDS:
        # No TVM is needed, and the device is looked for when a session is made.
        return
    if manifest.machine != cpu.machine():
        raise ArtifactCpuError(
            f"artifact {path} is for {manifest.machine}, this machine is {cpu.machine()}; "
            "compile the model for this machine"
        )
    if manifest.versions != TVM_PINS:
        raise ArtifactVersionError(
            f"artifact {path} was built with {_versions(manifest.versions)}, "
            f"installed is {_versions(TVM_PINS)}; compile the model again"
        )


def _named(manifest: Manifest, path: Path, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    raise ArtifactError(
        f"artifact {path} has no variant {name!r}; give one of: {_names(manifest.variants)}"
    )


def _names(variants: Iterable[Variant]) -> str:
    return ", ".join(variant.name for variant in variants)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
