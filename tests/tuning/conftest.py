"""A small model to tune, and its layers."""

import pytest

from leakyforge.exporter import export
from leakyforge.kernels import parse_target
from leakyforge.kernels.tuning import tune
from leakyforge.kernels.tuning.layers import tunable_layers


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The classifier of digits, not compiled."""
    return export("digits", tmp_path_factory.mktemp("tuning") / "digits.onnx")


@pytest.fixture(scope="session")
def layers(model):
    """Its layers for this machine."""
    return tunable_layers(str(model), parse_target("cpu"), {}, strict=False)


class FakeWorkers:
    """Says the times that a test wants, by a candidate's sizes."""

    count, pending = 1, 0

    def __init__(self, seconds):
        self.seconds, self.waiting = seconds, []

    def submit(self, task):
        self.waiting.append(task)
        self.pending = 1

    def finished(self):
        self.pending = 0
        task = self.waiting.pop()
        return [(task, [self.seconds(task, config) for config in task.configs])]

    def close(self):
        pass


@pytest.fixture
def search(model, tmp_path, monkeypatch):
    """A search whose times are a function of task and sizes; gives its report."""
    monkeypatch.setattr(tune, "machine_peak", lambda _target: 1e9)

    def search(seconds, source=model, **options):
        workers = FakeWorkers(seconds)
        monkeypatch.setattr(tune, "Workers", lambda *_args, **_kwargs: workers)
        options = {"layers": ["16 -> 32"], "records": tmp_path / "records.sqlite", **options}
        return tune.tune(source, **options)

    return search


@pytest.fixture
def lf(monkeypatch, capsys):
    """Run a command; gives its exit status and what it printed."""
    from leakyforge.cli import main

    def lf(*arguments):
        status = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as request:
            status = request.code or 0
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return lf
