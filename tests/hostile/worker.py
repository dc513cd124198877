"""Reads hostile files in processes with limits and prints how each ended, as JSON.

python tests/hostile/worker.py onnx|artifact [PART_OF_A_NAME]
"""

import contextlib
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import artifact_files
import onnx_files
from pebble import ProcessExpired, ProcessPool

from leakyforge.errors import LeakyforgeError, ParityError

BYTES = 6 << 30
SECONDS = 60
CORPORA = {"onnx": onnx_files, "artifact": artifact_files}


def limit():
    """Memory that a worker may take, its libraries among it."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def compile_file(path):
    from leakyforge.kernels import compile

    compile(path, measure=False)


def open_file(path):
    from leakyforge.runtime import Session, verify

    try:
        if not verify(path):
            raise ParityError("parity: FAIL")
    except LeakyforgeError:
        # Reads less of the file, and so may take what `verify` refuses.
        with contextlib.suppress(LeakyforgeError):
            Session(path)
        raise


def run(kind, name, root):
    """How one case ended: the class and the message of its error, or `None`."""
    folder = Path(tempfile.mkdtemp(dir=root))
    path = CORPORA[kind].CASES[name](folder)
    start = time.monotonic()
    try:
        (compile_file if kind == "onnx" else open_file)(path)
        error, message = None, ""
    except LeakyforgeError as problem:
        error, message = "LeakyforgeError", f"{type(problem).__name__}: {problem}"
    except BaseException as problem:  # noqa: BLE001 - what is not named is reported
        error, message = type(problem).__name__, str(problem)[:2000]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"error": error, "message": message, "seconds": round(time.monotonic() - start, 1),
            "peak_mb": peak, "path": str(path)}  # fmt: skip


def main():
    kind, *part = sys.argv[1:]
    names = [name for name in CORPORA[kind].CASES if not part or part[0] in name]
    outcomes = {}
    with (
        tempfile.TemporaryDirectory(prefix="leakyforge-hostile-") as root,
        ProcessPool(max_workers=2, initializer=limit) as pool,
    ):
        runs = {name: pool.schedule(run, (kind, name, root), timeout=SECONDS) for name in names}
        for name, future in runs.items():
            try:
                outcomes[name] = future.result()
            except (ProcessExpired, FutureTimeoutError) as problem:
                outcomes[name] = {"error": type(problem).__name__, "message": str(problem),
                                  "seconds": SECONDS, "peak_mb": 0, "path": ""}  # fmt: skip
    print(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
