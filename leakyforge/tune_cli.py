"""The commands `tune` and `records`."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leakyforge.options import FILE, common_options, json_option, shape_option, show

if TYPE_CHECKING:
    from leakyforge.kernels.tuning.tune import LayerState

_UNITS = {"s": 1, "m": 60, "h": 3600}

records_option = click.option(
    "--records", type=FILE, help="Database of tuning records.  [default: the user's]"
)


class Duration(click.ParamType[float]):
    """`90s`, `10m` or `2h`, in seconds."""

    name = "10m"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read number and unit."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if match is None:
            self.fail(f"{value!r} is no time such as 90s, 10m or 2h", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Address(click.ParamType[tuple[str, int]]):
    """`HOST:PORT`."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        """Split host and port."""
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host, int(port)


@click.command()
@click.argument("model", type=FILE)
@click.option("--target", default="cpu", show_default=True,
              help="cpu, or with --tracker cpu:NAME, the servers' processor.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), help="End after so many trials.")
@click.option("--budget", type=Duration(),
              help="End after this time.  [default: 10m, unless --trials is given]")  # fmt: skip
@click.option("--layers", multiple=True, metavar="WORDS",
              help="Only layers whose description holds this; may be repeated.")  # fmt: skip
@shape_option
@click.option("--precision", type=click.Choice(["default", "strict"]), default="default",
              show_default=True, help="strict: the definition's sums.")  # fmt: skip
@records_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the order of the candidates.")  # fmt: skip
@click.option("--tracker", type=Address(), help="RPC tracker whose servers measure.")
@click.option("--key", default="leakyforge", show_default=True,
              help="Name under which the servers registered.")  # fmt: skip
@click.option("--servers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Servers to use at a time.")  # fmt: skip
@click.option("--explain", metavar="WORDS",
              help="Search nothing; show the recorded search of the layer whose description holds "
              "this.")  # fmt: skip
@click.option("--plot", type=FILE, help="With --explain, a PNG of time against trials.")
@json_option
@common_options
def tune(
    model: Path,
    target: str,
    trials: int | None,
    budget: float | None,
    layers: tuple[str, ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    precision: str,
    records: Path | None,
    seed: int,
    tracker: tuple[str, int] | None,
    key: str,
    servers: int,
    explain: str | None,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search for faster kernels by measurement, and record them for `compile`.

    Every trial is kept: Ctrl-C loses nothing, and a second call goes on where the first one ended.

    \b
    Example:
      leakyforge tune model.onnx --budget 10m
      leakyforge tune model.onnx --target cpu:cortex-a72 --tracker farm:9190 --key pi --servers 4
      leakyforge tune model.onnx --explain "conv 3x3, 64 -> 128" --plot search.png
    """
    from leakyforge.kernels.tuning import explain as explaining
    from leakyforge.kernels.tuning.machine import Tracker
    from leakyforge.kernels.tuning.tune import tune as tune_model
    from leakyforge.render_tune import print_search, print_tune

    sizes = dict(shapes)
    if explain is not None:
        search = explaining.explain(
            model, target, explain, shapes=sizes, precision=precision, records=records
        )
        if plot is not None:
            explaining.plot(search, plot)
        show(search, print_search, as_json, quiet)
        return
    if plot is not None:
        raise click.UsageError("--plot shows the search of one layer; name it with --explain")
    with _live(quiet) as on_progress:
        report = tune_model(
            model,
            target,
            trials=trials,
            seconds=budget,
            layers=layers,
            shapes=sizes,
            precision=precision,
            records=records,
            seed=seed,
            tracker=None if tracker is None else Tracker(*tracker, key),
            servers=servers,
            on_progress=on_progress,
        )
    show(report, print_tune, as_json, quiet)


@contextlib.contextmanager
def _live(quiet: bool) -> Iterator[Callable[[list["LayerState"], float], None]]:
    """A bar with each layer's best time below it, on a terminal only."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from leakyforge.render_tune import layer_table

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _states, _share: None
        return
    bar = Progress(TextColumn("tune"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
                   TimeRemainingColumn(), console=console)  # fmt: skip
    task = bar.add_task("tune", total=1.0)
    with Live(bar, console=console, transient=True) as live:

        def on_progress(states: list["LayerState"], share: float) -> None:
            bar.update(task, completed=share)
            live.update(Group(bar, layer_table(states)))

        yield on_progress


@click.group()
def records() -> None:
    """List, share, merge and prune what `tune` recorded.

    \b
    Example:
      leakyforge records list
    """


@records.command(name="list")
@records_option
@json_option
@common_options
def list_records(records: Path | None, as_json: bool, quiet: bool) -> None:
    """Show each layer's trials, with the best and the worst, and its winner.

    \b
    Example:
      leakyforge records list
    """
    from leakyforge.kernels.tuning.records import Records, default_path, summaries
    from leakyforge.render_tune import print_records

    with Records(records or default_path(), create=False) as database:
        show(summaries(database), print_records, as_json, quiet)


@records.command(name="export")
@click.argument("file", type=FILE)
@records_option
@common_options
def export_records(file: Path, records: Path | None, quiet: bool) -> None:
    """Write all records to FILE, one in JSON on each line.

    \b
    Example:
      leakyforge records export records.jsonl
    """
    from leakyforge.kernels.tuning.records import Records, default_path

    with Records(records or default_path(), create=False) as database:
        count = database.export(file)
    if not quiet:
        click.echo(f"wrote {count} records to {file}")


@records.command(name="import")
@click.argument("files", type=FILE, nargs=-1, required=True)
@records_option
@common_options
def import_records(files: tuple[Path, ...], records: Path | None, quiet: bool) -> None:
    """Merge FILES, exported or databases, into the records; the later winner of a layer stays.

    \b
    Example:
      leakyforge records import farm.jsonl colleague.sqlite
    """
    from leakyforge.kernels.tuning.records import Records, default_path, read_records

    found = [record for file in files for record in read_records(file)]
    with Records(records or default_path()) as database:
        count = database.add_all(found)
    if not quiet:
        click.echo(f"{count} of {len(found)} records are new")


@records.command()
@records_option
@common_options
def prune(records: Path | None, quiet: bool) -> None:
    """Drop the records of other versions of TVM or of the schedules, which are never taken.

    \b
    Example:
      leakyforge records prune
    """
    from leakyforge.kernels.tuning.records import Records, default_path

    path = records or default_path()
    with Records(path, create=False):
        # A name that is mistyped creates nothing.
        pass
    with Records(path) as database:
        count = database.prune()
    if not quiet:
        click.echo(f"dropped {count} records")
