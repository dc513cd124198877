"""Tuning records: every trial of a search and each layer's winner, in one SQLite database.

A record is valid for its key: the workload, the target (processor, features, threads), TVM's
version, and `SCHEDULES`. MetaSchedule's own database leaves the target out (apache/tvm#15549), so
that records of one machine are taken on another. Each record is a transaction of its own: what was
measured before a process dies is kept. Files to share hold a record in JSON on each line.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from leakyforge.errors import TuningError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.kernels.target import CpuTarget
from leakyforge.pins import TVM_PINS

# To be raised when a schedule makes other code of the same sizes: older records are then not taken.
SCHEDULES = 1
# How a trial ended.
MEASURED, WRONG, FAILED, CRASHED, TIMED_OUT = "measured", "wrong", "failed", "crashed", "timed out"
STATUSES = (MEASURED, WRONG, FAILED, CRASHED, TIMED_OUT)
_ENVIRONMENT = "LEAKYFORGE_RECORDS"
_SHIPPED = "shipped.jsonl"


@dataclass(frozen=True)
class Key:
    """What a record is valid for.

    Attributes:
        workload: hash of the layer's sizes (`workload.workload_key`), or of a fused kernel's
            function (`metaschedule.workload_of`).
        target: processor and features, or the name of a whole class of processors.
        threads: that run the kernel.
        tvm: TVM's version.
        schedules: `SCHEDULES` when it was measured.
    """

    workload: str
    target: str
    threads: int
    tvm: str
    schedules: int


@dataclass(frozen=True)
class Trial:
    """One measurement of a candidate, in turns with what the rules choose.

    Attributes:
        key: what it is valid for.
        layer: the layer in words.
        config: the candidate's sizes, in JSON.
        status: one of `STATUSES`.
        ratio: its time as a multiple of that of the rules' choice, the median over turns; None
            where it was not measured.
        milliseconds: its median time.
        error: why it was not measured, else empty.
        seed: of the search.
        place: machine that measured: `local`, or the key of an RPC server.
        at: when, ISO 8601.
        rules: the sizes that the rules chose then, in JSON; empty in records that do not have them.
    """

    key: Key
    layer: str
    config: str
    status: str
    ratio: float | None
    milliseconds: float | None
    error: str
    seed: int
    place: str
    at: str
    rules: str = ""


@dataclass(frozen=True)
class Winner:
    """The sizes that a layer is compiled with.

    Attributes:
        key: what it is valid for.
        layer: the layer in words.
        config: the sizes, in JSON.
        ratio: its time as a multiple of that of the rules' choice: the mean over turns.
        low: lower end of the ratio's confidence interval.
        high: upper end, below 1 unless the rules' choice won.
        milliseconds: its median time.
        at: when, ISO 8601.
        rules: the sizes that the rules chose then, in JSON; empty in records that do not have them.
    """

    key: Key
    layer: str
    config: str
    ratio: float
    low: float
    high: float
    milliseconds: float
    at: str
    rules: str = ""

    @property
    def words(self) -> str:
        """What was found, and when."""
        return (
            f"tuned on {self.at[:10]}: {self.ratio:.2f} x ({self.low:.2f} to {self.high:.2f}) of "
            "the time of the rules' choice"
        )


Record = Trial | Winner


def target_name(target: CpuTarget) -> str:
    """Processor and features, as a record's key has them."""
    return f"{target.name}:{','.join(sorted(target.features))}"


def class_name(target: CpuTarget) -> str:
    """The class of processors that shipped records are for."""
    if target.machine == "aarch64":
        return "neon"
    return {512: "x86-64-v4", 256: "x86-64-v3"}.get(target.vector_bits, "x86-64")


def key_for(workload: str, target: CpuTarget) -> Key:
    """The key of a workload on a target, with what is installed."""
    return Key(workload, target_name(target), target.num_cores, TVM_PINS["apache-tvm"], SCHEDULES)


def default_path() -> Path:
    """Where the user's records lie: $LEAKYFORGE_RECORDS, else in the XDG data folder."""
    if given := os.environ.get(_ENVIRONMENT):
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "leakyforge" / "records.sqlite"


_KEY_COLUMNS = ("workload", "target", "threads", "tvm", "schedules")
_TABLES: dict[str, type[Trial] | type[Winner]] = {"trials": Trial, "winners": Winner}
_SCHEMA = """
create table if not exists trials (
    workload text not null, target text not null, threads integer not null, tvm text not null,
    schedules integer not null, layer text not null, config text not null, status text not null,
    ratio real, milliseconds real, error text not null, seed integer not null, place text not null,
    at text not null, rules text not null default '',
    unique (workload, target, threads, tvm, schedules, config, at));
create table if not exists winners (
    workload text not null, target text not null, threads integer not null, tvm text not null,
    schedules integer not null, layer text not null, config text not null, ratio real not null,
    low real not null, high real not null, milliseconds real not null, at text not null,
    rules text not null default '', unique (workload, target, threads, tvm, schedules));
"""


class Records:
    """A database of records.

    Args:
        path: the file; it is created, with its folder, unless `create` is false.
        create: whether a file that is not there is created; without, it is only read.

    Raises:
        TuningError: the file is no database of records, or the system refuses.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and not path.is_file():
            raise TuningError(f"{path} does not exist; `leakyforge tune` writes it")
        with self._named("opened"):
            # Other processes may write at the same time: wait for them.
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(path, timeout=60.0)
                self._database.executescript(_SCHEMA)
                self._add_rules()
            else:
                address = f"{path.absolute().as_uri()}?mode=ro"
                self._database = sqlite3.connect(address, timeout=60.0, uri=True)

    def _add_rules(self) -> None:
        """Give the tables of an older database the column that they lack."""
        for table in _TABLES:
            if "rules" not in self._columns(table):
                self._database.execute(
                    f"alter table {table} add column rules text not null default ''"
                )

    def _columns(self, table: str) -> list[str]:
        return [row[1] for row in self._database.execute(f"pragma table_info({table})")]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "Records":
        """Itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        self.close()

    def add(self, record: Record) -> None:
        """Keep a record; a winner takes the place of an earlier one of its key.

        Raises:
            TuningError: the system refuses, as where the disk is full.
        """
        self.add_all([record])

    def add_all(self, records: Iterable[Record]) -> int:
        """Keep all records or none; returns how many were new or newer than what was there."""
        before = self._database.total_changes
        with self._named("written"), self._database:
            for record in records:
                self._insert(record)
        return self._database.total_changes - before

    def _insert(self, record: Record) -> None:
        table = "trials" if isinstance(record, Trial) else "winners"
        row = _row(record)
        names, marks = ", ".join(row), ", ".join("?" for _ in row)
        # Of two winners the later one stays; a trial that is there already is left as it is.
        update = ", ".join(f"{name} = excluded.{name}" for name in row if name not in _KEY_COLUMNS)
        on_conflict = (
            "do nothing"
            if table == "trials"
            else f"do update set {update} where excluded.at > winners.at"
        )
        self._database.execute(
            f"insert into {table} ({names}) values ({marks}) on conflict {on_conflict}",
            tuple(row.values()),
        )

    def winner(self, key: Key) -> Winner | None:
        """The winner of a key."""
        found = [record for record in self._select("winners", key) if isinstance(record, Winner)]
        return found[0] if found else None

    def trials(self, key: Key) -> list[Trial]:
        """The trials of a key, in the order in which they were made."""
        return [record for record in self._select("trials", key) if isinstance(record, Trial)]

    def all(self) -> Iterator[Record]:
        """Every record: winners, then trials."""
        for table in reversed(_TABLES):
            yield from self._select(table, None)

    def _select(self, table: str, key: Key | None) -> list[Record]:
        columns = [*_KEY_COLUMNS, *(field.name for field in dataclasses.fields(_TABLES[table])[1:])]
        with self._named("read"):
            # An older database, where it is only read.
            if "rules" not in self._columns(table):
                columns.remove("rules")
            query, values = f"select {', '.join(columns)} from {table}", tuple[object, ...]()
            if key is not None:
                query += " where " + " and ".join(f"{name} = ?" for name in _KEY_COLUMNS)
                values = dataclasses.astuple(key)
            rows = self._database.execute(f"{query} order by at, rowid", values).fetchall()
        return [_record(_TABLES[table], dict(zip(columns, row, strict=True))) for row in rows]

    def prune(self) -> int:
        """Drop what other versions of TVM or of the schedules made; returns the number."""
        current = (TVM_PINS["apache-tvm"], SCHEDULES)
        before = self._database.total_changes
        with self._named("written"), self._database:
            for table in _TABLES:
                self._database.execute(
                    f"delete from {table} where tvm != ? or schedules != ?", current
                )
        return self._database.total_changes - before

    def export(self, path: Path) -> int:
        """Write all records to a file, one in JSON on each line; returns their number.

        Raises:
            TuningError: the file cannot be written; one that was there is as it was.
        """
        if problem := destination_problem(path):
            raise TuningError(problem)
        records = list(self.all())
        try:
            with atomic_file(path) as stream:
                for record in records:
                    stream.write(to_json(record).encode() + b"\n")
        except OSError as error:
            raise TuningError(f"{path} cannot be written: {error.strerror}") from error
        return len(records)

    @contextlib.contextmanager
    def _named(self, verb: str) -> Iterator[None]:
        """Turn errors of the database and of the system into one that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise TuningError(
                f"records {self.path} cannot be {verb}: {error}; check the disk, or give another "
                f"file with --records or ${_ENVIRONMENT}"
            ) from error


def _row(record: Record) -> dict[str, Any]:
    """Columns of a record."""
    values = dataclasses.asdict(record)
    return {**values.pop("key"), **values}


def _record(kind: type[Record], row: dict[str, Any]) -> Record:
    """The record of its columns."""
    return kind(Key(**{name: row.pop(name) for name in _KEY_COLUMNS}), **row)


def to_json(record: Record) -> str:
    """A record on one line."""
    return json.dumps(_row(record), sort_keys=True)


def read_records(path: Path) -> list[Record]:
    """Records of a file that `Records.export` wrote, or of a database.

    Raises:
        TuningError: the file is neither.
    """
    if not path.is_file():
        raise TuningError(f"{path} is not a file; give one that `leakyforge records` wrote")
    with path.open("rb") as stream:
        is_database = stream.read(16).startswith(b"SQLite format 3")
    if is_database:
        with Records(path, create=False) as records:
            return list(records.all())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"{path} cannot be read as records: {error}") from error
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, path: Path, number: int) -> Record:
    """The record of one line."""
    try:
        values = json.loads(line)
        record = _record(Trial if "status" in values else Winner, values)
        json.loads(record.config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuningError(f"{path}, line {number}, is no tuning record: {error}") from error
    return record


@functools.cache
def shipped() -> dict[Key, Winner]:
    """The winners that come with the package; their targets are classes of processors."""
    file = resources.files("leakyforge.kernels.tuning") / _SHIPPED
    with resources.as_file(file) as path:
        records = read_records(path) if path.is_file() else []
    return {record.key: record for record in records if isinstance(record, Winner)}


@dataclass(frozen=True)
class Summary:
    """The records of one key.

    Attributes:
        layer: the layer in words.
        target: processor and features.
        threads: that ran it.
        trials: their number.
        best_ms: the least time of a trial, None where none has one.
        worst_ms: the largest.
        winner_ratio: the winner's time as a multiple of that of the rules' choice, None without.
    """

    layer: str
    target: str
    threads: int
    trials: int
    best_ms: float | None
    worst_ms: float | None
    winner_ratio: float | None


@dataclass(frozen=True)
class SummaryList:
    """A summary for each key of a database."""

    rows: tuple[Summary, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def summaries(records: Records) -> SummaryList:
    """A summary for each key, in the order of their first records."""
    by_key: dict[Key, list[Record]] = {}
    for record in records.all():
        by_key.setdefault(record.key, []).append(record)
    found = []
    for key, group in by_key.items():
        trials = [record for record in group if isinstance(record, Trial)]
        times = [trial.milliseconds for trial in trials if trial.milliseconds is not None]
        ratio = next((record.ratio for record in group if isinstance(record, Winner)), None)
        best, worst = (min(times), max(times)) if times else (None, None)
        found.append(
            Summary(group[0].layer, key.target, key.threads, len(trials), best, worst, ratio)
        )
    return SummaryList(tuple(found))


# The winner of a workload on a target.
Find = Callable[[str, CpuTarget], Winner | None]


def no_winner(_workload: str, _target: CpuTarget) -> None:
    """Tuning records are not asked for."""


@contextlib.contextmanager
def winners(path: Path | None) -> Iterator[Find]:
    """Finds winners: the user's, else those that come with the package.

    Args:
        path: the database; the user's by default, if there is one.

    Raises:
        TuningError: the database cannot be read.
    """
    with contextlib.ExitStack() as stack:
        own = None
        if path is not None or default_path().is_file():
            own = stack.enter_context(Records(path or default_path(), create=False))

        def find(workload: str, target: CpuTarget) -> Winner | None:
            key = key_for(workload, target)
            found = None if own is None else own.winner(key)
            return found or shipped().get(dataclasses.replace(key, target=class_name(target)))

        yield find
