"""The pinned pair of TVM packages, checked before anything of TVM is loaded."""

import functools
from importlib import metadata

from leakyforge.errors import VersionError

TVM_PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None where it is absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def check_tvm_pins() -> None:
    """Make sure that the pinned pair is installed.

    Raises:
        VersionError: a package is absent or has another version. With apache-tvm-ffi 0.1.15,
            which pip picks by itself, tensorized schedules end in a segmentation fault.
    """
    found = {name: installed_version(name) for name in TVM_PINS}
    if found != TVM_PINS:
        have = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
        want = " ".join(f"{name}=={version}" for name, version in TVM_PINS.items())
        raise VersionError(
            f"leakyforge needs an exact pair of packages; found {have}; run: pip install {want}"
        )
