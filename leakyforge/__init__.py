"""From a model with LeakyRelu to a compiled artifact, checked against ONNX Runtime."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leakyforge.exporter import export
    from leakyforge.kernels import compile
    from leakyforge.runtime import Session, bench, check, verify

__all__ = ["Session", "bench", "check", "compile", "export", "verify"]

_ROOMS = {
    "export": "leakyforge.exporter",
    "compile": "leakyforge.kernels",
    "Session": "leakyforge.runtime",
    "bench": "leakyforge.runtime",
    "check": "leakyforge.runtime",
    "verify": "leakyforge.runtime",
}

# In a source tree the rooms lie beside this folder; setuptools maps them into it when installed.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """Load a room when one of its names is first used: a session must not load the compiler."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'leakyforge' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
