"""Other engines: where they are installed, their processes, and turns."""

import sys

import numpy as np
import pytest

from leakyforge.errors import EngineError
from leakyforge.runtime import engines
from leakyforge.runtime.engines import PEERS, Peer, Worker, copy_worker, interleave, interpreter


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and the commands that would have installed something into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commands = []
    monkeypatch.setattr("venv.create", lambda folder, with_pip: folder.mkdir(parents=True))
    monkeypatch.setattr(engines, "_pip_install", lambda _python, *names: commands.append(names))
    return commands


def absent(**fields):
    return Peer(("no_such_module",), environment="absent", **fields)


class TestInterpreter:
    def test_what_imports_here_runs_here(self, cache):
        peer = Peer(("json",), ("json",), environment="json")
        assert interpreter(peer, installs_large=False) == sys.executable
        assert cache == []

    def test_small_ones_are_installed_once(self, cache, tmp_path):
        peer = absent(requirements=("engine>=2", "numpy"), tools=("converter",))
        python = interpreter(peer, installs_large=False)
        assert python == str(tmp_path / "leakyforge/peers/absent/bin/python")
        assert cache == [("engine>=2", "numpy"), ("--no-deps", "converter")]
        assert interpreter(peer, installs_large=False) == python
        assert len(cache) == 2

    def test_large_ones_are_installed_where_they_are_named(self, cache):
        peer = absent(requirements=("engine",), large=True)
        with pytest.raises(EngineError, match="gigabytes; name it with --peer"):
            interpreter(peer, installs_large=False)
        assert cache == []
        python = interpreter(peer, installs_large=True)
        assert interpreter(peer, installs_large=False) == python

    def test_without_requirements(self, cache):
        with pytest.raises(EngineError, match="no_such_module: not all"):
            interpreter(absent(), installs_large=True)

    def test_failed_installation_is_tried_again(self, cache, monkeypatch):
        def fail(_python, *_names):
            raise EngineError("pip install engine: ERROR: No matching distribution")

        monkeypatch.setattr(engines, "_pip_install", fail)
        for _ in range(2):
            with pytest.raises(EngineError, match="No matching"):
                interpreter(absent(requirements=("engine",)), installs_large=False)
            monkeypatch.setattr("venv.create", lambda folder, with_pip: None)

    def test_torch_is_large_and_shared(self):
        assert PEERS["torch"].large
        assert PEERS["torch"].folder == PEERS["torch.compile"].folder
        folders = [peer.folder for name, peer in PEERS.items() if name != "torch.compile"]
        assert len(set(folders)) == len(folders)


class TestWorker:
    def worker(self, engine, folder, **feeds):
        return Worker(engine, sys.executable, folder, feeds, [], 1, folder)

    def test_turns_and_memory(self, tmp_path):
        square = np.ones((8, 8), np.float32)
        with self.worker("peak", tmp_path, left=square, right=square) as worker:
            np.testing.assert_array_equal(worker.outputs[0], np.full((8, 8), 8.0))
            assert min(worker.turn(0.0, 1e-6)) > 0
            assert worker.close() > 0
        assert worker.process.poll() == 0

    def test_copy(self, tmp_path):
        with copy_worker(1, tmp_path) as worker:
            assert worker.outputs == []
            (seconds,) = worker.turn(0.0, 1e-9)
        assert engines.copy_gb_per_second([seconds, 2 * seconds]) > 0

    def test_that_does_not_load_ends(self, tmp_path, monkeypatch):
        ended = []
        end = Worker._end
        monkeypatch.setattr(Worker, "_end", lambda self: (end(self), ended.append(self)))
        with pytest.raises(EngineError, match="KeyError: 'left'"):
            self.worker("peak", tmp_path)
        assert ended[0].process.poll() is not None

    def test_ends_with_its_context(self, tmp_path):
        square = np.ones((8, 8), np.float32)
        with (
            pytest.raises(RuntimeError, match="of another"),
            self.worker("peak", tmp_path, left=square, right=square) as worker,
        ):
            raise RuntimeError("of another")
        assert worker.process.poll() is not None

    def test_whose_process_is_killed_is_named(self, tmp_path):
        square = np.ones((8, 8), np.float32)
        with self.worker("peak", tmp_path, left=square, right=square) as worker:
            worker.process.kill()
            with pytest.raises(EngineError, match="process of peak ended with status -9"):
                worker.turn(0.0, 1e-6)


def test_engines_take_turns(monkeypatch):
    monkeypatch.setattr(engines, "_PAUSE_SECONDS", 0.0)
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def turn(self, warm, counted):
            order.append(self.name)
            assert 0 < warm < counted
            return [1.0, 2.0]

    samples = interleave({"a": Fake("a"), "b": Fake("b")}, 1e-9)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [1.0, 2.0] * 3, "b": [1.0, 2.0] * 3}
