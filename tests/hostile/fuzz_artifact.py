"""Fuzzes the artifact loader; no library is loaded: it is native code, and may do what it likes.

Bytes that begin with `{` are taken as a manifest, sealed with a right hash, beside the members of
artifacts that are compiled for it; one with launches is a launch plan for a device. Documents are
changed value by value.

pip install 'leakyforge[fuzz]'
mkdir -p tests/hostile/corpus/artifact
python tests/hostile/fuzz_artifact.py tests/hostile/corpus/artifact -max_total_time=300
"""

import contextlib
import dataclasses
import hashlib
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["leakyforge"]):
    from leakyforge.errors import LeakyforgeError
    from leakyforge.runtime import read_artifact, read_manifest
    from leakyforge.runtime.artifact import Artifact
    from leakyforge.runtime.plan import read_plan

from mutate import mutate_json

FOLDER = Path(tempfile.mkdtemp(prefix="leakyforge-fuzz-"))
FILE = FOLDER / "model.lfa"
# Of the artifacts that are compiled for it: what lies beside the manifest, and one with a plan.
MEMBERS: dict[str, bytes] = {}
PLANNED: list[Artifact] = []
_BYTES = 0.1


def read(data):
    """Whatever the bytes are: an artifact, or an error of ours."""
    if b'"launches"' in data:
        with contextlib.suppress(LeakyforgeError):
            read_plan(dataclasses.replace(PLANNED[0], library=data))
        return
    if data[:1] == b"{":
        with zipfile.ZipFile(FILE, "w") as archive:
            archive.comment = b"leakyforge sha256=" + hashlib.sha256(data).hexdigest().encode()
            archive.writestr("manifest.json", data)
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
    else:
        FILE.write_bytes(data)
    for function in (lambda: read_manifest(FILE, whole=True), lambda: read_artifact(FILE)):
        with contextlib.suppress(LeakyforgeError):
            function()


def mutate(data, max_size, seed):
    """A document that is changed in a few places, or other bytes."""
    choice = random.Random(seed)
    try:
        text = data.decode()
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object or choice.random() < _BYTES:
        return atheris.Mutate(data, max_size)
    for _ in range(choice.choice((1, 1, 1, 2, 4))):
        text = mutate_json(text, choice)
        if not isinstance(json.loads(text), dict):
            break
    return text.encode()[:max_size]


def seeds():
    """A folder with manifests and a plan, of a model with weights and a symbolic size."""
    from leakyforge import compile
    from leakyforge.models.zoo import build

    folder = FOLDER / "seeds"
    folder.mkdir()
    model = build("mlp", hidden=8)
    for target in ("cpu", "opencl"):
        path = compile(model, target, output=FOLDER / f"{target}.lfa", measure=False)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (folder / f"{target}.json").write_bytes(members.pop("manifest.json"))
        MEMBERS.update(members)
    PLANNED.append(read_artifact(FOLDER / "opencl.lfa"))
    (folder / "plan.json").write_bytes(PLANNED[0].library)
    return folder


if __name__ == "__main__":
    atheris.Setup([*sys.argv, str(seeds()), "-max_len=100000"], read, custom_mutator=mutate)
    atheris.Fuzz()
