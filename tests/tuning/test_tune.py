"""The search on this machine: budget, resuming, winners, and what `compile` makes of them."""

import dataclasses
import json
import math
import sqlite3

import onnx
import pytest

from leakyforge.errors import MissingDependencyError, TargetError, TuningError
from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.tuning import explain, tune
from leakyforge.kernels.tuning.records import Records, key_for
from leakyforge.kernels.tuning.space import candidates
from leakyforge.kernels.tuning.worker import Result
from leakyforge.kernels.tuning.workload import config_to_json
from leakyforge.runtime import check, read_manifest

HOST = parse_target("cpu")
LAYER = "16 -> 32"


def measured(seconds):
    return Result("measured", "", seconds)


def jitter(turns, size=0.01):
    return [1 + size * math.sin(7 * turn) for turn in range(turns)]


@dataclasses.dataclass
class _Rules:
    """A layer for which the rules choose other sizes."""

    rules_config: str
    words: str


class TestSearch:
    def test_the_fastest_wins(self, search, layers, tmp_path):
        (layer,) = (each for each in layers if LAYER in each.words)
        fast = config_to_json(
            candidates(layer.layer.shape, HOST, layer.granule, strict=False)[9].config
        )

        def seconds(task, config):
            base = jitter(task.turns)
            return measured(tuple((0.6 if config == fast else 1.0) * each for each in base))

        report = search(seconds, trials=20)
        (state,) = report.layers
        assert state.trials == 20
        assert state.winner.config == fast
        assert state.winner.ratio == pytest.approx(0.6)
        assert report.rules_share == pytest.approx(0.6)
        with Records(tmp_path / "records.sqlite", create=False) as records:
            assert len(records.trials(state.key)) == 20
            assert records.winner(state.key) == state.winner

    def test_what_is_not_surely_faster_does_not_win(self, search):
        def seconds(task, config):
            if config == task.configs[0]:
                return measured((1.0,) * task.turns)
            # Faster in its first turns, as by luck, and about the same in the last comparison.
            first = task.turns < 10
            return measured(tuple(0.9 if first else each for each in jitter(task.turns, 0.2)))

        (state,) = search(seconds, trials=6).layers
        assert state.best[1] == pytest.approx(0.9)
        assert state.winner.config == state.rules
        assert state.winner.ratio == 1

    def test_a_candidate_that_fails_is_recorded_and_not_chosen(self, search, tmp_path):
        def seconds(task, config):
            if config == task.configs[0]:
                return measured((1.0,) * task.turns)
            return Result("wrong", "differs")

        (state,) = search(seconds, trials=5).layers
        assert state.winner.config == state.rules
        with Records(tmp_path / "records.sqlite", create=False) as records:
            trials = records.trials(state.key)
        assert [trial.status for trial in trials] == ["wrong"] * 5
        assert {trial.error for trial in trials} == {"differs"}

    def test_a_second_search_goes_on(self, search, tmp_path):
        tried = []

        def seconds(task, config):
            tried.append(config)
            return measured((1.0,) * task.turns)

        (first,) = search(seconds, trials=4).layers
        (second,) = search(seconds, trials=4).layers
        tried = [config for config in tried if config != first.rules]
        assert len(tried) == len(set(tried)) == 8
        assert len(second.ratios) == 8

    def test_after_the_rules_changed_trials_count_by_their_share_of_the_present_choice(
        self, search, layers, tmp_path
    ):
        def seconds(task, config):
            return measured((1.0,) * task.turns)

        (first,) = search(seconds, trials=4).layers
        present, other = list(first.ratios)[:2]
        (layer,) = (each for each in layers if LAYER in each.words)
        state = dataclasses.replace(first, tunable=_Rules(present, layer.words), winner=None)
        path = tmp_path / "records.sqlite"
        with sqlite3.connect(path) as database:
            database.execute("update trials set ratio = 0.5 where config = ?", (present,))
            database.execute("update trials set ratio = 0.4 where config = ?", (other,))
        with Records(path) as records:
            state.ratios.clear()
            tune._resume(state, records)
            assert state.ratios[present] == 1.0
            assert state.ratios[other] == pytest.approx(0.8)
            # Compared with what is not compared with the present choice: it may be tried again.
            state = dataclasses.replace(state, tunable=_Rules("absent", layer.words), ratios={})
            tune._resume(state, records)
            assert state.ratios == {}

    def test_after_the_rules_changed_the_winner_is_compared_again(self, search, tmp_path):
        compared = []

        def seconds(task, config):
            compared.append(config)
            return measured(
                tuple((1.0 if config == task.configs[0] else 0.8) * t for t in jitter(task.turns))
            )

        (first,) = search(seconds, trials=2).layers
        assert first.winner.config != first.rules
        compared.clear()
        search(seconds, trials=0)
        assert compared == []
        with sqlite3.connect(tmp_path / "records.sqlite") as database:
            database.execute("update winners set rules = 'another'")
            database.execute("update trials set rules = 'another'")
        (again,) = search(seconds, trials=0).layers
        assert compared == [first.rules, first.winner.config]
        assert again.winner.rules == first.rules
        assert again.winner.config == first.winner.config

    def test_ctrl_c_keeps_what_was_measured(self, search, tmp_path):
        calls = []

        def seconds(task, config):
            calls.append(config)
            if len(calls) > 6:
                raise KeyboardInterrupt
            return measured((1.0,) * task.turns)

        report = search(seconds, trials=50)
        assert report.interrupted
        with Records(tmp_path / "records.sqlite", create=False) as records:
            assert len(records.trials(report.layers[0].key)) == 3

    def test_the_same_seed_tries_the_same(self, search, tmp_path):
        def orders(seed, name):
            tried = []

            def seconds(task, config):
                tried.append(config)
                return measured((1.0,) * task.turns)

            search(seconds, trials=12, seed=seed, records=tmp_path / name)
            return tried

        assert orders(1, "a") == orders(1, "b") != orders(2, "c")

    def test_the_layer_that_takes_longest_gets_most_trials(self, search, layers):
        def seconds(task, config):
            return measured((10.0 if task.workload == slow else 0.1,) * task.turns)

        slow = layers[1].workload
        report = search(seconds, trials=40, layers=[])
        most = max(report.layers, key=lambda state: state.trials)
        assert most.key.workload == slow
        assert min(state.trials for state in report.layers) > 0


def test_on_this_machine(model, tmp_path, monkeypatch):
    """Real processes and times; what wins is compiled in and right."""
    # A peak that was measured while the machine was busy would end the search before its trials.
    monkeypatch.setattr(tune, "machine_peak", lambda _target: 1e9)
    records = tmp_path / "records.sqlite"
    report = tune.tune(model, trials=4, layers=[LAYER], records=records)
    (state,) = report.layers
    assert state.trials == 4
    assert state.winner is not None
    assert state.rules_ms > 0
    found = explain.explain(model, "cpu", LAYER, shapes={}, precision="default", records=records)
    assert found.trials == 4
    assert found.winner == state.winner
    json.dumps([report.to_dict(), found.to_dict()])


def test_compile_takes_the_winner(model, layers, tmp_path):
    (layer,) = (each for each in layers if LAYER in each.words)
    space = candidates(layer.layer.shape, HOST, layer.granule, strict=False)
    config = config_to_json(space[-1].config)
    path = tmp_path / "records.sqlite"
    winner = tune.Winner(
        key_for(layer.workload, HOST), layer.words, config, 0.5, 0.4, 0.6, 1.0, "2026-01-01"
    )
    with Records(path) as records:
        records.add(winner)
    reports = []
    artifact = compile(
        model, output=tmp_path / "tuned.lfa", records=path, measure=False, on_layer=reports.append
    )
    (report,) = (each for each in reports if LAYER in each.layer)
    assert report.choice.algorithm == str(space[-1])
    assert "tuned on 2026-01-01: 0.50 x (0.40 to 0.60)" in report.reasons
    assert read_manifest(artifact).variants[0].tuning_records == (layer.workload,)
    assert check(artifact)
    plain = compile(model, output=tmp_path / "plain.lfa", records=path, measure=False, tuned=False)
    assert read_manifest(plain).variants[0].tuning_records == ()


def test_a_record_of_sizes_that_do_not_exist_is_not_taken(model, layers, tmp_path):
    (layer,) = (each for each in layers if LAYER in each.words)
    bad = dataclasses.replace(layer.rules.config, lanes=1024)
    path = tmp_path / "records.sqlite"
    with Records(path) as records:
        records.add(
            tune.Winner(
                key_for(layer.workload, HOST), "x", config_to_json(bad), 0.5, 0.4, 0.6, 1.0, "2026"
            )
        )
    artifact = compile(model, output=tmp_path / "x.lfa", records=path, measure=False)
    assert check(artifact)


class TestErrors:
    def test_no_layer(self, model, tmp_path):
        with pytest.raises(TuningError, match=r"no layer to tune among those named; .* 16 -> 32"):
            tune.tune(model, layers=["nothing"], records=tmp_path / "r")
        empty = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]>g (float[2] x) => (float[2] y) { y = Relu(x) }'
        )
        onnx.save(empty, tmp_path / "relu.onnx")
        with pytest.raises(TuningError, match=r"relu\.onnx has no layer to tune; .* none"):
            tune.tune(tmp_path / "relu.onnx", records=tmp_path / "r")

    def test_another_machine(self, model):
        with pytest.raises(TargetError, match=r"'cpu:x86-64' is not measured on this machine"):
            tune.tune(model, "cpu:x86-64")

    def test_without_the_extra(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pebble", None)
        with pytest.raises(MissingDependencyError, match=r"pip install leakyforge\[tune\]"):
            tune.tune(model, records=tmp_path / "r")

    def test_explain_names_the_layers(self, model, tmp_path):
        options = {"shapes": {}, "precision": "default", "records": tmp_path / "r"}
        with pytest.raises(TuningError, match=r"'conv' names [2-9] layers of .*; take one of"):
            explain.explain(model, "cpu", "conv", **options)
        Records(tmp_path / "r").close()
        with pytest.raises(TuningError, match="has no trials for this target; run"):
            explain.explain(model, "cpu", LAYER, **options)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    search = explain.Search("conv", 3, 1, (), (3.0, None, 1.0), None, 0.0, None)
    explain.plot(search, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TuningError, match="is a directory"):
        explain.plot(search, tmp_path)


class TestCommands:
    def test_tune_then_records(self, lf, model, tmp_path):
        path = tmp_path / "records.sqlite"
        base = ("tune", model, "--records", path, "--layers", LAYER)
        status, text = lf(*base, "--trials", 2, "--json")
        assert status == 0
        (layer,) = json.loads(text)["layers"]
        assert layer["trials"] == 2
        status, text = lf("tune", model, "--records", path, "--explain", LAYER)
        assert status == 0
        assert "2 trials" in text
        assert "winner: " in text
        status, text = lf("records", "list", "--records", path, "--json")
        assert json.loads(text)["rows"][0]["trials"] == 2
        shared = tmp_path / "shared.jsonl"
        assert lf("records", "export", shared, "--records", path) == (
            0, f"wrote 3 records to {shared}\n",
        )  # fmt: skip
        other = tmp_path / "other.sqlite"
        assert lf("records", "import", shared, "--records", other)[1] == "3 of 3 records are new\n"
        assert lf("records", "prune", "--records", other)[1] == "dropped 0 records\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--budget", "ten"], "'ten' is no time such as 90s, 10m or 2h"),
            (["--tracker", "farm"], "'farm' is not HOST:PORT"),
            (["--plot", "x.png"], "name it with --explain"),
            (["--target", "cpu:nosuch"], "LLVM knows no processor 'nosuch'"),
        ],
    )
    def test_wrong_use(self, lf, model, arguments, message):
        status, text = lf("tune", model, *arguments)
        assert status == 2
        assert message in text
        assert "Traceback" not in text

    def test_no_records(self, lf, tmp_path):
        status, text = lf("records", "list", "--records", tmp_path / "absent")
        assert status == 2
        assert "absent does not exist; `leakyforge tune` writes it" in text
        assert not (tmp_path / "absent").exists()
