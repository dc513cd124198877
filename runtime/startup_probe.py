"""Loads one engine, runs it once and prints what that cost, as one line of JSON.

`startup` runs this file in a fresh process: `python -c TEXT ENGINE FILE FEEDS THREADS VARIANT KEY`,
where KEY is empty or the key that an artifact is signed by. It imports nothing of leakyforge before
the clock starts.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def resident_mb() -> float:
    """Resident memory of this process in MB, from /proc/self/statm (proc(5))."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


engine, path, feeds_file, thread_text, variant, key = sys.argv[1:]
with np.load(feeds_file) as stored:
    feeds = {key: stored[key] for key in stored.files}
memory = resident_mb()
began = time.perf_counter()
if engine == "leakyforge":
    from leakyforge.runtime.session import Session

    imported = time.perf_counter()
    session: Any = Session(path, threads=int(thread_text), variant=variant, verify_key=key or None)
else:
    import onnxruntime

    imported = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(thread_text)
    session = onnxruntime.InferenceSession(path, options)
made = time.perf_counter()
session.run(None, feeds)
ran = time.perf_counter()
sys.stdout.write(
    json.dumps(
        {
            "import_ms": (imported - began) * 1e3,
            "session_ms": (made - imported) * 1e3,
            "first_run_ms": (ran - made) * 1e3,
            "memory_mb": resident_mb() - memory,
        }
    )
)
