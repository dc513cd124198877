"""Runs sessions for a long time: no wrong result, no growth of memory.

python -m benchmarks.endurance                       8 threads, 10 000 runs each, both ways
python -m benchmarks.endurance --threads 2 --runs 100

One way, all threads share a session; the other way, each has its own. Inputs differ from run to
run, and each result has to be the one that a single thread got for that input, to the last bit.
"""

import resource
import sys
import tempfile
import threading
from pathlib import Path

import click
import numpy as np

from leakyforge import Session, compile, export

# Inputs that the runs take in turn.
_INPUTS = 16
# Runs of each thread before memory is measured: allocators and pools have their final size then.
_WARM = 200
# Bytes by which memory may grow in all: what allocators and new threads take by chance. In 80 000
# runs that is 26 bytes for each, less than the smallest object.
_SLACK = 2 << 20


def endure(artifact: Path, *, threads: int, runs: int, shared: bool) -> tuple[int, int]:
    """Wrong results, and bytes of memory that the runs added.

    Args:
        artifact: of a model with one input.
        threads: that call sessions at the same time.
        runs: of each thread.
        shared: whether they call one session, or one each.
    """
    first = Session(artifact)
    (spec,) = first.get_inputs()
    generator = np.random.default_rng(0)
    feeds = [
        {spec.name: generator.standard_normal(spec.shape).astype(spec.dtype)}
        for _ in range(_INPUTS)
    ]
    desired = [[output.copy() for output in first.run(None, each)] for each in feeds]
    sessions = [first if shared else Session(artifact) for _ in range(threads)]
    wrong = [0] * threads

    def call(index: int, count: int) -> None:
        for run in range(count):
            which = (run + index) % _INPUTS
            outputs = sessions[index].run(None, feeds[which])
            if not all(map(np.array_equal, outputs, desired[which])):
                wrong[index] += 1

    def all_call(count: int) -> None:
        callers = [threading.Thread(target=call, args=(index, count)) for index in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    all_call(min(_WARM, runs))
    before = _peak_bytes()
    all_call(runs)
    return sum(wrong), _peak_bytes() - before


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=10_000, show_default=True)
def main(threads: int, runs: int) -> None:
    """Run the classifier of digits from many threads; exit status 1 where something is wrong."""
    failed = False
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        artifact = compile(export("digits", Path(folder) / "digits.onnx"))
        for shared in (True, False):
            wrong, growth = endure(artifact, threads=threads, runs=runs, shared=shared)
            way = "one session" if shared else "one session each"
            click.echo(
                f"{threads} threads x {runs} runs, {way}: {wrong} wrong results, "
                f"{growth >> 10} KiB more memory"
            )
            failed = failed or wrong > 0 or growth > _SLACK
    sys.exit(failed)


if __name__ == "__main__":
    main()
