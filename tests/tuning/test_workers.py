"""Worker processes: what a candidate does to its process costs only its own trial."""

import sys
from pathlib import Path

import pytest

from leakyforge.errors import TuningError
from leakyforge.kernels.tuning.machine import Tracker
from leakyforge.kernels.tuning.records import CRASHED, FAILED, MEASURED, TIMED_OUT, WRONG
from leakyforge.kernels.tuning.worker import Model, Task
from leakyforge.kernels.tuning.workers import Workers

# A spawned process finds the function by its module's name.
sys.path.insert(0, str(Path(__file__).parent))

import faulty


@pytest.fixture
def workers(model):
    workers = Workers(Model(str(model), "cpu", (), strict=False), measure=faulty.measure, seconds=5)
    yield workers
    workers.close()


def outcome(workers, what):
    workers.submit(Task("workload", ("rules", what), 1))
    (ended,) = ended_tasks(workers)
    return ended[1][1]


def ended_tasks(workers):
    ended = []
    while workers.pending:
        ended += workers.finished()
    return ended


def test_each_fault_is_its_own(workers):
    assert outcome(workers, "fine").status == MEASURED
    crashed = outcome(workers, "crash")
    assert crashed.status == CRASHED
    assert "the process ended" in crashed.error
    hung = outcome(workers, "hang")
    assert (hung.status, hung.error) == (TIMED_OUT, "took more than 5 s")
    raised = outcome(workers, "raise")
    assert (raised.status, raised.error) == (FAILED, "a candidate's fault")
    assert outcome(workers, "wrong").status == WRONG
    lost = outcome(workers, "lose")
    assert (lost.status, lost.error) == (CRASHED, "2 servers were lost: gone")
    assert outcome(workers, "fine").status == MEASURED


def test_without_a_server_the_search_ends(workers):
    workers.submit(Task("workload", ("rules", "alone"), 1))
    with pytest.raises(TuningError, match="no server is left to measure on: nobody there"):
        ended_tasks(workers)


def test_without_a_tracker(model):
    with pytest.raises(TuningError, match=r"no RPC tracker answers at 127\.0\.0\.1:9: .*rpc_track"):
        Workers(Model(str(model), "cpu", (), strict=False), Tracker("127.0.0.1", 9, "key"))
