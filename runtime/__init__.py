"""Everything that needs only TVM's runtime: artifact, session, parity, benchmark."""

from typing import TYPE_CHECKING

from leakyforge.lazy import lazy_names
from leakyforge.runtime.artifact import Artifact, read_artifact, read_manifest, sign_artifact
from leakyforge.runtime.manifest import Manifest
from leakyforge.runtime.session import Session

if TYPE_CHECKING:
    from leakyforge.runtime.benchmark import BenchReport, bench
    from leakyforge.runtime.parity import ParityReport, check, verify
    from leakyforge.runtime.profiler import ProfileReport, profile

__all__ = [
    "Artifact",
    "BenchReport",
    "Manifest",
    "ParityReport",
    "ProfileReport",
    "Session",
    "bench",
    "check",
    "profile",
    "read_artifact",
    "read_manifest",
    "sign_artifact",
    "verify",
]

# A session needs none of these, and they take 4 MB and 40 ms.
__getattr__ = lazy_names(
    __name__,
    {
        "BenchReport": "leakyforge.runtime.benchmark",
        "bench": "leakyforge.runtime.benchmark",
        "ParityReport": "leakyforge.runtime.parity",
        "check": "leakyforge.runtime.parity",
        "verify": "leakyforge.runtime.parity",
        "ProfileReport": "leakyforge.runtime.profiler",
        "profile": "leakyforge.runtime.profiler",
    },
)
