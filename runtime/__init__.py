"""Everything that needs only TVM's runtime: artifact, session, parity, benchmark."""

from leakyforge.runtime.artifact import Artifact, Manifest, read_artifact
from leakyforge.runtime.session import Session

__all__ = ["Artifact", "Manifest", "Session", "read_artifact"]
