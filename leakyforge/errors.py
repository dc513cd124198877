"""Every error that leakyforge raises on purpose.

A message is one line that names the thing, where it is and what to do. The command line prints
it to stderr and exits with status 2, or 1 for a `ParityError`; a library user catches
`LeakyforgeError`.
"""


class LeakyforgeError(Exception):
    """Base of all errors that a user can act on."""


class VersionError(LeakyforgeError):
    """Installed packages are not the pair that leakyforge was built for."""


class MissingDependencyError(LeakyforgeError):
    """An optional package, tool or device is needed and absent."""


class ModelError(LeakyforgeError):
    """An ONNX file or graph cannot be read, checked or imported."""


class UnsupportedOperatorError(ModelError):
    """The graph holds an operator that the compiler does not take."""


class ExportError(LeakyforgeError):
    """A model cannot be turned into ONNX."""


class ShapeError(LeakyforgeError):
    """A shape given by the user does not fit the model."""


class TargetError(LeakyforgeError):
    """A target is unknown or cannot be compiled for here."""


class CompileError(LeakyforgeError):
    """TVM refused a graph that had passed the checks."""


class ParityError(LeakyforgeError):
    """Compiled code differs from the reference by more than the tolerance."""


class InputError(LeakyforgeError):
    """A tensor fed to a session has the wrong name, shape or dtype."""


class ExecutionError(LeakyforgeError):
    """Compiled code fails on inputs that fit the declared shapes."""


class DeviceError(LeakyforgeError):
    """There is no device of the kind that is needed, or what is to run does not fit on it."""


class TuningError(LeakyforgeError):
    """A search cannot go on, or tuning records cannot be read or written."""


class EngineError(LeakyforgeError):
    """Another engine cannot be had, does not run the model, or its process ended."""


class KeyFileError(LeakyforgeError):
    """A file holds no key of the kind that signs or checks a signature."""


class ArtifactError(LeakyforgeError):
    """Base of the errors about an artifact file."""


class ArtifactNotFoundError(ArtifactError):
    """There is no file at the path."""


class ArtifactIsDirectoryError(ArtifactError):
    """The path is a directory."""


class ArtifactFormatError(ArtifactError):
    """The file is not an artifact, is truncated, or is of an unknown format version."""


class ArtifactHashError(ArtifactError):
    """A part of the file is not what was written."""


class ArtifactSignatureError(ArtifactError):
    """The artifact is not signed by the key that is asked for, or was changed since."""


class ArtifactCpuError(ArtifactError):
    """The artifact needs CPU features that this machine lacks."""


class ArtifactVersionError(ArtifactError):
    """The artifact was built with other TVM versions than those installed."""
