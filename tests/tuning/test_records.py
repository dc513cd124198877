"""The database of records: keys, winners, sharing, pruning, and files that are none."""

import dataclasses
import json
import sqlite3

import pytest

from leakyforge.errors import TuningError
from leakyforge.kernels import parse_target
from leakyforge.kernels.tuning.records import (
    MEASURED,
    SCHEDULES,
    Records,
    Trial,
    Winner,
    class_name,
    default_path,
    key_for,
    read_records,
    summaries,
    to_json,
    winners,
)

HOST = parse_target("cpu")
KEY = key_for("0123456789abcdef", HOST)
CONFIG = json.dumps({"type": "Conv2dConfig"})


def trial(at="2026-01-01T00:00:00", key=KEY, milliseconds=1.5, ratio=0.5, config=CONFIG):
    return Trial(key, "conv", config, MEASURED, ratio, milliseconds, "", 0, "local", at)


def winner(at="2026-01-01T00:00:00", key=KEY, ratio=0.5, config=CONFIG):
    return Winner(key, "conv", config, ratio, 0.4, 0.6, 1.5, at)


@pytest.fixture
def records(tmp_path):
    with Records(tmp_path / "folder" / "records.sqlite") as records:
        yield records


def test_what_was_added_is_there_again(records):
    records.add(trial())
    records.add(winner())
    with Records(records.path, create=False) as again:
        assert again.trials(KEY) == [trial()]
        assert again.winner(KEY) == winner()


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "other"}, {"target": "znver9:"}, {"threads": 99}, {"tvm": "0.1"},
        {"schedules": SCHEDULES + 1},
    ],
)  # fmt: skip
def test_records_of_another_key_are_not_taken(records, change):
    records.add(winner(key=dataclasses.replace(KEY, **change)))
    assert records.winner(KEY) is None


def test_the_later_winner_stays(records):
    for at in ("2026-01-02", "2026-01-03", "2026-01-01"):
        records.add(winner(at))
    assert records.winner(KEY).at == "2026-01-03"


def test_shared_by_file_and_by_database(records, tmp_path):
    records.add_all([trial("1"), trial("2"), winner()])
    assert records.export(tmp_path / "shared.jsonl") == 3
    with Records(tmp_path / "other.sqlite") as other:
        assert other.add_all(read_records(tmp_path / "shared.jsonl")) == 3
        assert other.add_all(read_records(records.path)) == 0
        assert list(other.all()) == list(records.all())


def test_prune_drops_other_versions(records):
    old = dataclasses.replace(KEY, tvm="0.1")
    records.add_all([trial(), trial("2", key=old), winner(key=old), winner()])
    assert records.prune() == 2
    assert list(records.all()) == [winner(), trial()]


def test_best_and_worst(records):
    records.add_all([trial("1", milliseconds=3.0), trial("2", milliseconds=1.0)])
    records.add(dataclasses.replace(trial("3"), status="wrong", milliseconds=None, ratio=None))
    (row,) = summaries(records).rows
    assert (row.trials, row.best_ms, row.worst_ms, row.winner_ratio) == (3, 1.0, 3.0, None)


def test_a_process_that_dies_loses_only_what_it_was_writing(records, run_python):
    script = """if True:
        import os, sys
        from pathlib import Path
        from leakyforge.kernels.tuning.records import Records, read_records
        records = Records(Path(sys.argv[1]))
        (trial,) = read_records(Path(sys.argv[2]))
        records.add(trial)
        records._database.execute("delete from trials")
        os._exit(0)
    """
    source = records.path.with_name("one.jsonl")
    source.write_text(to_json(trial()))
    run_python(script, records.path, source)
    assert records.trials(KEY) == [trial()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SQLite format 3\0 and no more", "cannot be (opened|read)"),
        (b'{"workload": 1}\n', "line 1, is no tuning record"),
        (b"[]\n", "line 1, is no tuning record"),
        (b"\xff\xfe\n", "cannot be read as records"),
    ],
)
def test_files_that_are_no_records(tmp_path, content, message):
    path = tmp_path / "records"
    path.write_bytes(content)
    with pytest.raises(TuningError, match=message):
        read_records(path)
    assert path.read_bytes() == content


def test_another_database_is_not_taken(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("create table trials (name text)")
    with pytest.raises(TuningError, match=r"other\.sqlite cannot be read: no such table"):
        read_records(path)


def test_a_database_from_before_the_rules_were_recorded(tmp_path):
    path = tmp_path / "older.sqlite"
    with Records(path) as records:
        records.add(trial())
        records.add(winner())
    with sqlite3.connect(path) as database:
        for table in ("trials", "winners"):
            database.execute(f"alter table {table} drop column rules")
    assert read_records(path) == [winner(), trial()]
    later = dataclasses.replace(winner("2026-01-02T00:00:00"), rules=CONFIG)
    with Records(path) as records:
        records.add(later)
        assert records.winner(KEY) == later
        assert records.trials(KEY) == [trial()]


def test_without_a_file(tmp_path, monkeypatch):
    with pytest.raises(TuningError, match=r"does not exist; `leakyforge tune` writes it"):
        Records(tmp_path / "absent.sqlite", create=False)
    monkeypatch.setenv("LEAKYFORGE_RECORDS", str(tmp_path / "absent.sqlite"))
    assert default_path() == tmp_path / "absent.sqlite"
    with winners(None) as find:
        assert find(KEY.workload, HOST) is None
    assert not default_path().exists()


def test_a_full_disk_is_named(records):
    records._database.execute("pragma max_page_count = 4")
    with pytest.raises(TuningError, match=r"records\.sqlite cannot be written: .* is full"):
        records.add_all(trial(str(number), config=CONFIG * 100) for number in range(1000))
    assert records.trials(KEY) == []


def test_own_winner_before_the_shipped_one(records, monkeypatch):
    shipped = winner(key=dataclasses.replace(KEY, target=class_name(HOST)), ratio=0.9)
    monkeypatch.setattr("leakyforge.kernels.tuning.records.shipped", lambda: {shipped.key: shipped})
    with winners(records.path) as find:
        assert find(KEY.workload, HOST) == shipped
        records.add(winner())
        assert find(KEY.workload, HOST) == winner()
