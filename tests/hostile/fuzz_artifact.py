"""Fuzzes the artifact loader; no library is loaded: it is native code, and may do what it likes.

Bytes that begin with `{` are taken as a manifest, sealed with a right hash.

pip install 'leakyforge[fuzz]'
mkdir -p tests/hostile/corpus/artifact
python tests/hostile/fuzz_artifact.py tests/hostile/corpus/artifact -max_total_time=300
"""

import contextlib
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["leakyforge.runtime"]):
    from leakyforge.errors import LeakyforgeError
    from leakyforge.runtime import read_artifact, read_manifest

FILE = Path(tempfile.mkdtemp(prefix="leakyforge-fuzz-")) / "model.lfa"


def read(data):
    """Whatever the bytes are: an artifact, or an error of ours."""
    if data[:1] == b"{":
        with zipfile.ZipFile(FILE, "w") as archive:
            archive.comment = b"leakyforge sha256=" + hashlib.sha256(data).hexdigest().encode()
            archive.writestr("manifest.json", data)
    else:
        FILE.write_bytes(data)
    for function in (lambda: read_manifest(FILE, whole=True), lambda: read_artifact(FILE)):
        with contextlib.suppress(LeakyforgeError):
            function()


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
