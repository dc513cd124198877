"""Fuzzes reading, checking, folding and importing ONNX, not the generation of code.

pip install 'leakyforge[fuzz]'
python tests/hostile/fuzz_onnx.py tests/hostile/corpus/onnx -max_total_time=300 -rss_limit_mb=6000
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["leakyforge.kernels.onnx", "leakyforge.runtime.source"]):
    from leakyforge.errors import LeakyforgeError
    from leakyforge.kernels.importer import import_onnx
    from leakyforge.kernels.onnx_model import fold, load_onnx

FILE = Path(tempfile.mkdtemp(prefix="leakyforge-fuzz-")) / "model.onnx"


def read(data):
    """Whatever the bytes are: a model, or an error of ours."""
    FILE.write_bytes(data)
    with contextlib.suppress(LeakyforgeError):
        import_onnx(fold(load_onnx(FILE).proto))


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
