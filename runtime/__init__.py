"""Everything that needs only TVM's runtime: artifact, session, parity, benchmark."""

from leakyforge.runtime.artifact import Artifact, read_artifact, read_manifest
from leakyforge.runtime.benchmark import BenchReport, bench
from leakyforge.runtime.manifest import Manifest
from leakyforge.runtime.parity import ParityReport, check, verify
from leakyforge.runtime.profiler import ProfileReport, profile
from leakyforge.runtime.session import Session

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
    "verify",
]
