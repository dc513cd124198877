"""From a model with LeakyRelu to a compiled artifact, checked against ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING

from leakyforge.lazy import lazy_names

if TYPE_CHECKING:
    from leakyforge.exporter import export
    from leakyforge.kernels import compile
    from leakyforge.runtime import Session, bench, check, verify

__all__ = ["Session", "bench", "check", "compile", "export", "verify"]

# A session must not load the compiler.
__getattr__ = lazy_names(
    __name__,
    {
        "export": "leakyforge.exporter",
        "compile": "leakyforge.kernels",
        "Session": "leakyforge.runtime",
        "bench": "leakyforge.runtime",
        "check": "leakyforge.runtime",
        "verify": "leakyforge.runtime",
    },
)

# In a source tree the rooms lie beside this folder; setuptools maps them into it when installed.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
