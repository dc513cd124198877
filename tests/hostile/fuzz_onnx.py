"""Fuzzes reading, checking, folding and importing ONNX, not the generation of code.

Seeds are the small models of ONNX's own test suite, one for each operator; a model is changed field
by field, and sometimes byte by byte.

pip install 'leakyforge[fuzz]'
python tests/hostile/fuzz_onnx.py tests/hostile/corpus/onnx -max_total_time=300 -rss_limit_mb=6000
"""

import contextlib
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["leakyforge"]):
    from leakyforge.errors import LeakyforgeError
    from leakyforge.kernels.importer import import_onnx
    from leakyforge.kernels.onnx_model import fold, load_onnx

import onnx
from google.protobuf.message import DecodeError
from mutate import TEXTS, mutate_message

FOLDER = Path(tempfile.mkdtemp(prefix="leakyforge-fuzz-"))
FILE = FOLDER / "model.onnx"
_LARGEST_SEED = 3000
_BYTES = 0.1


def read(data):
    """Whatever the bytes are: a model, or an error of ours."""
    FILE.write_bytes(data)
    with contextlib.suppress(LeakyforgeError):
        import_onnx(fold(load_onnx(FILE).proto))


def mutate(data, max_size, seed):
    """The bytes of a model that is changed in a few places."""
    choice = random.Random(seed)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return atheris.Mutate(data, max_size)
    if choice.random() < _BYTES:
        return atheris.Mutate(data, max_size)
    graph = model.graph
    names = [name for node in graph.node for name in (node.op_type, *node.input, *node.output)]
    names += [each.name for node in graph.node for each in node.attribute]
    texts = (*TEXTS, *names, *OPERATORS)
    for _ in range(choice.choice((1, 1, 1, 2, 4))):
        mutate_message(model, choice, texts)
    changed = model.SerializeToString()
    return changed if len(changed) <= max_size else data


def seeds():
    """A folder with a small model of each operator."""
    from onnx.backend.test.loader import load_model_tests

    folder = FOLDER / "seeds"
    folder.mkdir()
    seen = set()
    for case in load_model_tests(kind="node"):
        operators = frozenset(node.op_type for node in case.model.graph.node)
        content = case.model.SerializeToString()
        if operators not in seen and len(content) < _LARGEST_SEED:
            seen.add(operators)
            (folder / f"{case.name}.onnx").write_bytes(content)
    return folder


OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = [*sys.argv, str(seeds()), "-timeout=60", "-max_len=20000"]
    atheris.Setup(arguments, read, custom_mutator=mutate)
    atheris.Fuzz()
