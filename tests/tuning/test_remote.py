"""RPC: a tracker and two servers on loopback; one dies in the middle, nothing is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("tornado")

from tvm import rpc

from leakyforge.kernels import parse_target
from leakyforge.kernels.tuning.machine import Tracker
from leakyforge.kernels.tuning.records import MEASURED, Records
from leakyforge.kernels.tuning.tune import tune

KEY = "loopback"
TRIALS = 10


@pytest.fixture
def tracker():
    from tvm.rpc.tracker import Tracker as TrackerProcess

    process = TrackerProcess(host="127.0.0.1", port=9190, port_end=9999, silent=True)
    yield Tracker("127.0.0.1", process.port, KEY)
    process.terminate()


@pytest.fixture
def servers(tracker):
    address = f"{tracker.host}:{tracker.port}"
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", tracker.host, "--silent"]
    found = [
        subprocess.Popen(
            [*command, "--tracker", address, "--key", KEY],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]  # fmt: skip
    session = rpc.connect_tracker(tracker.host, tracker.port)
    deadline = time.monotonic() + 120
    while session.summary()["queue_info"].get(KEY, {}).get("free", 0) < 2:
        assert time.monotonic() < deadline, "the servers do not start"
        time.sleep(0.2)
    yield found
    for server in found:
        kill(server)


def kill(server):
    """End a server and the process that serves its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_one_server_dies_in_the_middle(model, tracker, servers, tmp_path):
    records = tmp_path / "records.sqlite"

    def on_progress(states, _share):
        if sum(state.trials for state in states) >= 3 and servers[0].poll() is None:
            kill(servers[0])

    host = parse_target("cpu")
    report = tune(
        model, str(host.tvm), tracker=tracker, servers=2, trials=TRIALS, layers=["16 -> 32"],
        records=records, on_progress=on_progress,
    )  # fmt: skip
    assert servers[0].poll() is not None
    assert servers[1].poll() is None
    (state,) = report.layers
    assert state.trials == TRIALS
    assert state.winner is not None
    with Records(records, create=False) as database:
        trials = database.trials(state.key)
    assert len(trials) == len({trial.config for trial in trials}) == TRIALS
    assert {trial.status for trial in trials} == {MEASURED}
    assert {trial.place for trial in trials} == {KEY}
