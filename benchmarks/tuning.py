"""What tuning brings: writes docs/tuning.md, and the records that come with the package.

python -m benchmarks.tuning                             every model, ten minutes of search each
python -m benchmarks.tuning --only yolo --minutes 10 --minutes 60
python -m benchmarks.tuning --ship                      put the winners into the package too
python -m benchmarks.tuning --retime --records FOLDER --minutes 10 --minutes 60
                                                        take the times again, on a quieter machine

For each model: compiled by the rules alone, and with what searches of so many minutes found, each
going on where the one before it ended; then all of them and ONNX Runtime in turns, in processes of
their own, begun anew several times: where the system puts a process's memory makes a tenth of
difference. The folder has a database for each of these times, `10.sqlite` and `60.sqlite`.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.__main__ import DOCS, models
from leakyforge import compile
from leakyforge.kernels import parse_target
from leakyforge.kernels.tuning.layers import tunable_layers
from leakyforge.kernels.tuning.records import Records, Winner, class_name, key_for, to_json
from leakyforge.kernels.tuning.tunable import Tunable
from leakyforge.kernels.tuning.tune import tune
from leakyforge.runtime import cpu, read_manifest
from leakyforge.runtime.benchmark import OURS, smallest
from leakyforge.runtime.engines import REFERENCE, Worker, interleave
from leakyforge.runtime.peers import checked_error
from leakyforge.runtime.reference import random_feeds
from leakyforge.runtime.threads import usable_cores

STORE, REPORT = DOCS / "tuning.json", DOCS / "tuning.md"
SHIPPED = DOCS.parent / "kernels" / "tuning" / "shipped.jsonl"
RULES = "rules"
# Times that the processes are begun anew.
_ROUNDS = 5
# Seconds without a trial that are no part of a search.
_PAUSE = 60.0


@click.command()
@click.option("--only", multiple=True, help="Models whose name contains this.")
@click.option("--minutes", type=float, multiple=True, default=[10.0], show_default=True,
              help="Of search until a measurement; may be repeated, rising.")  # fmt: skip
@click.option("--seconds", type=float, default=20.0, show_default=True, help="To time each model.")
@click.option("--records", type=click.Path(path_type=Path), help="Folder of databases to go on.")
@click.option("--retime", is_flag=True, help="Search nothing: times of the winners in --records.")
@click.option("--ship", is_flag=True, help="Put the winners of the longest into the package.")
def main(
    only: tuple[str, ...],
    minutes: tuple[float, ...],
    seconds: float,
    records: Path | None,
    retime: bool,
    ship: bool,
) -> None:
    """Tune the benchmark's models, time them, and write docs/tuning.md."""
    rows: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as name:
        folder = Path(name)
        databases = {limit: (records or folder) / f"{limit:g}.sqlite" for limit in minutes}
        for title, model, _ in models(folder):
            if only and not any(part.lower() in title.lower() for part in only):
                continue
            click.echo(title, err=True)
            if not retime:
                _search(model, databases)
            rows[title] = _measure(model, folder, databases, seconds)
            STORE.write_text(json.dumps(rows, indent=1) + "\n")
            REPORT.write_text(markdown(rows))
        if ship:
            _ship(databases[minutes[-1]])
    click.echo(f"wrote {REPORT}")


def _search(model: Path, databases: dict[float, Path]) -> None:
    """Search for so many minutes in all until each database has what was found."""
    spent, before = 0.0, None
    for limit, database in databases.items():
        if before is not None:
            with Records(before, create=False) as shorter, Records(database) as longer:
                longer.add_all(shorter.all())
        tune(model, seconds=60 * (limit - spent), records=database)
        spent, before = limit, database


def _measure(
    model: Path, folder: Path, databases: dict[float, Path], seconds: float
) -> dict[str, Any]:
    """Ratios of ONNX Runtime's time to that of each way to compile, and what the searches found.

    A longer search that made no more trials than the shorter one had ended by itself.
    """
    artifacts = {RULES: folder / "rules.lfa"}
    compile(model, output=artifacts[RULES], tuned=False, measure=False)
    layers = tunable_layers(str(model), parse_target("cpu"), {}, strict=False)
    searches: dict[str, Any] = {}
    trials = 0
    for limit, database in databases.items():
        way, found = f"{limit:g} minutes", _found(layers, database)
        if found["trials"] > trials:
            artifacts[way] = compile(model, output=folder / f"{limit:g}.lfa", records=database)
            searches[way], trials = found, found["trials"]
    if not searches or not all(found["ratios"] for found in searches.values()):
        raise click.ClickException(
            f"{', '.join(map(str, databases.values()))} have no winners of {model} against the "
            "present rules; search first, without --retime"
        )
    rounds = [_times(model, artifacts, folder, seconds / _ROUNDS) for _ in range(_ROUNDS)]
    return {
        "cpu": cpu.model_name(),
        "threads": usable_cores(),
        "date": datetime.date.today().isoformat(),
        "ratios": {
            way: statistics.median(times[REFERENCE] / times[way] for times in rounds)
            for way in artifacts
        },
        "searches": searches,
    }


def _found(layers: Sequence[Tunable], database: Path) -> dict[str, Any]:
    """Winners' times as multiples of the rules', trials, and the minutes that they took."""
    target = parse_target("cpu")
    ratios, moments = [], []
    with Records(database, create=False) as records:
        for layer in layers:
            key = key_for(layer.workload, target)
            winner = records.winner(key)
            # Compared with other rules than these it says nothing of these.
            if winner is not None and winner.rules == layer.rules_config:
                ratios.append(winner.ratio)
            moments += [datetime.datetime.fromisoformat(each.at) for each in records.trials(key)]
    moments.sort()
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(moments)]
    # A longer gap is one between two searches.
    minutes = sum(gap for gap in gaps if gap < _PAUSE) / 60
    return {"ratios": ratios, "trials": len(moments), "minutes": minutes}


def _times(
    model: Path, artifacts: dict[str, Path], folder: Path, seconds: float
) -> dict[str, float]:
    """Median seconds of each artifact and of ONNX Runtime, in turns."""
    manifest = read_manifest(artifacts[RULES])
    feeds = random_feeds(manifest.inputs, 0, smallest(manifest.inputs))
    outputs = [spec.name for spec in manifest.outputs]
    with contextlib.ExitStack() as stack:

        def start(way: str, engine: str, source: Path) -> Worker:
            place = folder / way.replace(" ", "-")
            place.mkdir(exist_ok=True)
            worker = Worker(engine, sys.executable, source, feeds, outputs, usable_cores(), place)
            return stack.enter_context(worker)

        workers = {REFERENCE: start(REFERENCE, REFERENCE, model)}
        for way, artifact in artifacts.items():
            workers[way] = start(way, OURS, artifact)
            checked_error(workers[way].outputs, workers[REFERENCE].outputs)
        samples = interleave(workers, seconds)
    return {way: statistics.median(times) for way, times in samples.items()}


def markdown(rows: dict[str, Any]) -> str:
    """The table, and how near the rules come."""
    ways = list(dict.fromkeys(way for row in rows.values() for way in row["ratios"]))
    lines = [
        "# Tuning",
        "",
        "Written by `python -m benchmarks.tuning`: ONNX Runtime's time divided by ours, in turns "
        f"in one run, the median of {_ROUNDS} rounds of new processes; compiled by the rules and "
        "the cost model alone, and with the winners of `leakyforge tune` after so many minutes of "
        "search for the model. A search ends by itself when every layer is at its roofline or was "
        "given up; a longer one then finds no more (-). Ratios that differ by less than 6 % say "
        "nothing: so much did one artifact differ from itself in two columns (2.15 and 2.28, "
        "speech embedding, 2026-11-26).",
        "",
        "| model | CPU, threads, date | " + " | ".join(ways) + " | layers | trials | minutes of "
        "trials | rules' speed |",
        "|---|---|" + "---|" * (len(ways) + 4),
    ]
    every: list[float] = []
    for title, row in rows.items():
        last = list(row["searches"].values())[-1]
        every += last["ratios"]
        share = statistics.geometric_mean(last["ratios"])
        cells = [f"{row['ratios'][way]:.2f}" if way in row["ratios"] else "-" for way in ways]
        lines.append(
            f"| {title} | {row['cpu']}, {row['threads']}, {row['date']} | {' | '.join(cells)} | "
            f"{len(last['ratios'])} | {last['trials']} | {last['minutes']:.0f} | {share:.3f} |"
        )
    lines += [
        "",
        "The rules' speed is that of their choices as a share of the winners', the geometric mean "
        f"over a model's layers of different sizes; over all {len(every)} layers: "
        f"{statistics.geometric_mean(every):.3f}.",
    ]
    return "\n".join(lines) + "\n"


def _ship(database: Path) -> None:
    """Put the winners into the package, for the class of this processor."""
    target = class_name(parse_target("cpu"))
    with Records(database, create=False) as records:
        found = [record for record in records.all() if isinstance(record, Winner)]
    lines = [
        to_json(dataclasses.replace(each, key=dataclasses.replace(each.key, target=target)))
        for each in found
        # The rules' own choice needs no record, and another processor measures for itself.
        if each.ratio < 1
    ]
    SHIPPED.write_text("\n".join(lines) + "\n")
    click.echo(f"wrote {SHIPPED}: {len(lines)} records")


if __name__ == "__main__":
    main()
