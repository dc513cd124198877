"""The command line: parses, calls one typed function, prints its result.

Exit status: 0 done or passed, 1 parity failed, 2 wrong usage or input, 3 a bug of ours.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, TextIO

import click

from leakyforge.errors import LeakyforgeError, ParityError
from leakyforge.options import (
    FAMILIES,
    FILE,
    NamedValue,
    Shape,
    common_options,
    device_option,
    json_option,
    onnx_option,
    shape_option,
    show,
    target_option,
    threads_option,
    variant_option,
    variants_option,
    verify_key_option,
)
from leakyforge.tune_cli import records as records_command
from leakyforge.tune_cli import records_option, tune

_FAILED, _USAGE, _BUG = 1, 2, 3


class _Group(click.Group):
    """Lists commands in the order of the pipeline."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of definition."""
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="leakyforge")
def cli() -> None:
    """From a model with LeakyRelu to a compiled artifact, checked against ONNX Runtime.

    \b
    Example:
      leakyforge export digits -o digits.onnx
      leakyforge compile digits.onnx
      leakyforge check digits.lfa
    """


def _list_zoo(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Print the zoo's models and leave: `--list` needs no other argument."""
    if value:
        from leakyforge.models import ZOO
        from leakyforge.render import print_zoo

        print_zoo(ZOO)
        ctx.exit()


@cli.command()
@click.argument("source")
@click.option("--output", "-o", type=FILE, required=True, help="ONNX file to write.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_zoo,
              help="Show the zoo's models and their options, and exit.")  # fmt: skip
@click.option("--zoo", metavar="NAME", help="Zoo model that a file of weights is for.")
@click.option("--weights", type=FILE, help="File of weights of a darknet .cfg.")
@click.option(
    "--input-shape", "shapes", type=Shape(), multiple=True,
    help="Shape of an input of TorchScript, or of a Keras model with open sizes; may be repeated.",
)  # fmt: skip
@click.option("--opset", type=int, help="ONNX operator set, 13 to 23.  [default: 18]")
@click.option("--batch", help="Batch size, or a name to leave it symbolic.  [default: 1]")
@click.option(
    "--set", "settings", type=NamedValue("NAME=VALUE"), multiple=True,
    help="An option of the zoo model, such as size=320; may be repeated.",
)  # fmt: skip
@click.option("--simplify", is_flag=True,
              help="Fold constants and BatchNormalization, write LeakyRelu as such.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16", "int8"]), default="float32",
              show_default=True, help="Convert a float32 model; int8 is QDQ.")  # fmt: skip
@common_options
def export(
    source: str,
    output: Path,
    zoo: str | None,
    weights: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    opset: int | None,
    batch: str | None,
    settings: tuple[tuple[str, str], ...],
    simplify: bool,
    dtype: str,
    quiet: bool,
) -> None:
    """Export a trained model to a checked ONNX file that computes the same.

    SOURCE is a zoo model (see --list) or a file: .onnx, TorchScript (.pt), torch.export (.pt2),
    weights of a zoo model (.pt, .pth, .safetensors), darknet (.cfg), Keras (.keras, .h5), or the
    folder of a TensorFlow SavedModel.

    Outputs are compared with those of the framework first. Pickled Python objects are refused;
    TorchScript runs no Python; take .pt2, Keras and SavedModel files only from those you trust.

    \b
    Example:
      leakyforge export yolov3-tiny -o yolo.onnx --set size=320
      leakyforge export weights.pth -o digits.onnx --zoo digits
      leakyforge export script.pt -o net.onnx --input-shape x=1x3x64x64
      leakyforge export yolo.cfg -o yolo.onnx --weights yolo.weights
    """
    from leakyforge.exporter import export as export_model

    options: dict[str, Any] = {name: _number(value) for name, value in settings}
    explicit = set(signature(export_model).parameters) - {"options"}
    for name in options.keys() & explicit:
        raise click.UsageError(f"--set {name}=... sets no option of a model")
    size = int(batch) if batch is not None and batch.isdecimal() else batch
    path = export_model(
        source,
        output,
        opset=opset,
        batch=size,
        zoo=zoo,
        weights=weights,
        input_shapes=dict(shapes) or None,
        simplify=simplify,
        dtype=dtype,
        **options,
    )
    _say(quiet, f"wrote {path}")


@cli.command(name="compile")
@click.argument("model", type=FILE)
@click.option("--output", "-o", type=FILE, help="Artifact to write.  [default: MODEL.lfa]")
@target_option
@shape_option
@click.option("--precision", type=click.Choice(["default", "strict"]), default="default",
              show_default=True, help="strict: the definition's sums.")  # fmt: skip
@click.option("--measure/--no-measure", default=True, show_default=True,
              help="With --target cpu, time the algorithms of large layers; without, equal inputs "
              "give equal bytes.")  # fmt: skip
@click.option("--tuned/--no-tuned", default=True, show_default=True,
              help="Take what `tune` found for a layer.")  # fmt: skip
@records_option
@click.option("--fallback", type=click.Choice(["onnxruntime"]),
              help="Have ONNX Runtime run what cannot be compiled; inspect shows it.")  # fmt: skip
@click.option("--inputs", type=FILE,
              help="An .npz file with an array for each input, to compare the code on and to keep; "
              "by default random ones.")  # fmt: skip
@click.option("--explain", is_flag=True, help="Show each layer's algorithm, and why it was taken.")
@common_options
def compile_command(
    model: Path,
    output: Path | None,
    target: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    precision: str,
    measure: bool,
    tuned: bool,
    records: Path | None,
    fallback: str | None,
    inputs: Path | None,
    explain: bool,
    quiet: bool,
) -> None:
    """Compile an ONNX file into an artifact.

    \b
    Example:
      leakyforge compile model.onnx --target cpu:x86-64-v3 --shape input=1x3x416x416
      leakyforge compile voice.onnx --fallback onnxruntime
    """
    from leakyforge.render import print_layers

    layers: list[Any] = []
    path = _compile(
        model,
        output,
        target,
        dict(shapes),
        quiet,
        precision=precision,
        measure=measure,
        tuned=tuned,
        records=records,
        fallback=fallback,
        inputs=None if inputs is None else _load_npz(inputs),
        on_layer=layers.append,
    )
    if explain:
        print_layers(layers)
    _say(quiet, f"wrote {path}")


cli.add_command(tune)
cli.add_command(records_command, "records")


@cli.command()
@click.argument("artifact", type=FILE)
@onnx_option
@click.option("--inputs", type=FILE, help="An .npz file with an array for each input.")
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True,
              help="Random inputs to compare.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the random inputs.")  # fmt: skip
@click.option("--float64", is_flag=True,
              help="Evaluate the model in float64 too, and bound what is lost to rounding by "
              "ONNX Runtime's own loss.")  # fmt: skip
@click.option("--family", type=click.Choice(FAMILIES),
              help="What it is for: judge boxes, pictures, sound or classes too.")  # fmt: skip
@click.option("--bisect", "bisects", is_flag=True,
              help="Judge each kernel on exact inputs, the first random ones.")  # fmt: skip
@click.option("--reproducer", type=FILE,
              help="With --bisect, .onnx file to write for a kernel at fault, its inputs as .npz "
              "beside it.  [default: ARTIFACT-fault.onnx]")  # fmt: skip
@click.option("--html", type=FILE,
              help="HTML file to write too: errors of outputs and kernels, and LeakyRelu's "
              "inputs.")  # fmt: skip
@variants_option
@device_option
@verify_key_option
@json_option
@common_options
def check(
    artifact: Path,
    onnx: Path | None,
    inputs: Path | None,
    samples: int,
    seed: int,
    float64: bool,
    family: str | None,
    bisects: bool,
    reproducer: Path | None,
    html: Path | None,
    variant: str | None,
    device: str | None,
    verify_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare an artifact with ONNX Runtime; exit status 1 where they differ.

    \b
    Example:
      leakyforge check model.lfa --samples 8 --seed 1
      leakyforge check model.lfa --bisect
      leakyforge check model.lfa --html report.html
    """
    from leakyforge.html_report import check_html, write_html
    from leakyforge.render import print_parity
    from leakyforge.runtime import check as check_parity

    feeds = None if inputs is None else _load_npz(inputs)
    if bisects:
        if device is not None or float64 or family is not None or html is not None:
            raise click.UsageError(
                "--bisect judges kernels of the CPU; leave out --device, --float64, --family and "
                "--html"
            )
        _bisect(artifact, onnx, feeds, seed, variant, reproducer, verify_key, as_json, quiet)
        return
    if reproducer is not None:
        raise click.UsageError("--reproducer is what --bisect writes; add it")
    if html is not None:
        check_html(html)
    with _status(f"check {artifact.name}", quiet):
        report = check_parity(
            artifact,
            onnx,
            inputs=feeds,
            samples=samples,
            seed=seed,
            variant=variant,
            device=device,
            float64=float64,
            family=family,
            verify_key=verify_key,
        )
        if html is not None:
            write_html(html, report, onnx, feeds, verify_key)
    show(report, print_parity, as_json, quiet)
    _exit_with(report)


@cli.command()
@click.argument("artifact", type=FILE)
@variants_option
@device_option
@verify_key_option
@json_option
@common_options
def verify(
    artifact: Path,
    variant: str | None,
    device: str | None,
    verify_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay the inputs an artifact carries; needs neither onnx nor onnxruntime.

    \b
    Example:
      leakyforge verify model.lfa
    """
    from leakyforge.render import print_parity
    from leakyforge.runtime import verify as verify_artifact

    report = verify_artifact(artifact, variant, device, verify_key)
    show(report, print_parity, as_json, quiet)
    _exit_with(report)


@cli.command()
@click.argument("artifact", type=FILE)
@click.option("--key", type=FILE, required=True, help="Ed25519 private key (PEM).")
@common_options
def sign(artifact: Path, key: Path, quiet: bool) -> None:
    """Sign an artifact, in place; with --verify-key, the other commands then refuse any other.

    \b
    Make a pair of keys:
      openssl genpkey -algorithm ed25519 -out private.pem
      openssl pkey -in private.pem -pubout -out public.pem

    \b
    Example:
      leakyforge sign model.lfa --key private.pem
    """
    from leakyforge.runtime import sign_artifact

    sign_artifact(artifact, key)
    _say(quiet, f"signed {artifact}")


@cli.command()
@click.argument("artifact", type=FILE)
@click.option("--input", "arrays", type=NamedValue("NAME=FILE.npy"), multiple=True,
              help="Array for an input; may be repeated.")  # fmt: skip
@click.option("--inputs", type=FILE, help="An .npz file with an array for each input.")
@click.option("--output", "-o", type=FILE, help="An .npz file to write the outputs to.")
@threads_option
@variant_option
@device_option
@verify_key_option
@common_options
def run(
    artifact: Path,
    arrays: tuple[tuple[str, str], ...],
    inputs: Path | None,
    output: Path | None,
    threads: int | None,
    variant: str | None,
    device: str | None,
    verify_key: Path | None,
    quiet: bool,
) -> None:
    """Run an artifact once.

    \b
    Example:
      leakyforge run model.lfa --input image=image.npy -o outputs.npz
    """
    from leakyforge.render import print_outputs
    from leakyforge.runtime import Session
    from leakyforge.runtime.arrays import load_npy, save_npz

    session = Session(
        artifact, threads=threads, variant=variant, device=device, verify_key=verify_key
    )
    feeds = {} if inputs is None else _load_npz(inputs)
    feeds |= {name: load_npy(Path(file)) for name, file in arrays}
    names = [spec.name for spec in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    if output is not None:
        save_npz(output, outputs)
    if not quiet:
        print_outputs(outputs)


@cli.command()
@click.argument("model", type=FILE)
@onnx_option
@target_option
@shape_option
@threads_option
@variant_option
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Time to measure.")
@click.option("--profile", "profiles", is_flag=True, help="Time each kernel of a run instead.")
@click.option("--peers", is_flag=True,
              help="Beside other engines; installs those that are absent and small.")  # fmt: skip
@click.option("--peer", "names", multiple=True,
              help="Beside this engine, installed whatever its size; may be repeated.")  # fmt: skip
@verify_key_option
@json_option
@common_options
def bench(
    model: Path,
    onnx: Path | None,
    target: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    threads: int | None,
    variant: str | None,
    seconds: float,
    profiles: bool,
    peers: bool,
    names: tuple[str, ...],
    verify_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time an ONNX file or an artifact beside ONNX Runtime or more engines, or each kernel.

    \b
    Example:
      leakyforge bench model.onnx --threads 2
    """
    import tempfile

    from leakyforge.render import print_bench, print_peers, print_profile
    from leakyforge.runtime import bench as run_bench
    from leakyforge.runtime import profile
    from leakyforge.runtime.artifact import is_artifact
    from leakyforge.runtime.peers import compare_peers

    peers = peers or bool(names)
    if peers and profiles:
        raise click.UsageError("--profile times no other engine; leave out --peers and --peer")
    if peers and variant is not None:
        raise click.UsageError("--peers times the variant that this CPU loads; leave out --variant")
    _refuse_unsigned(model, verify_key)
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        artifact, compile_seconds = model, None
        if not is_artifact(model):
            start = time.perf_counter()
            artifact = _compile(model, Path(folder) / "model.lfa", target, dict(shapes), quiet)
            compile_seconds = time.perf_counter() - start
            onnx = model if onnx is None else onnx
        with _status(f"time {model.name}", quiet):
            if peers:
                beside = compare_peers(
                    artifact, onnx, threads=threads, seconds=seconds, names=names,
                    compile_seconds=compile_seconds, verify_key=verify_key,
                )  # fmt: skip
                show(beside, print_peers, as_json, quiet)
                return
            if profiles:
                calls = profile(
                    artifact,
                    threads=threads,
                    seconds=seconds,
                    variant=variant,
                    verify_key=verify_key,
                )
                show(calls, print_profile, as_json, quiet)
                return
            report = run_bench(
                artifact,
                onnx,
                threads=threads,
                seconds=seconds,
                variant=variant,
                verify_key=verify_key,
            )
    show(report, print_bench, as_json, quiet)


@cli.command()
@click.argument("file", type=FILE)
@click.option("--roofline", "gpu", metavar="GPU",
              help="Least time of each kernel of a GPU's artifact, by this GPU's data sheet: a100, "
              "h100, h200, a10, l4 or l40s.")  # fmt: skip
@verify_key_option
@json_option
@common_options
def inspect(
    file: Path, gpu: str | None, verify_key: Path | None, as_json: bool, quiet: bool
) -> None:
    """Show what is inside an ONNX file or an artifact.

    \b
    Example:
      leakyforge inspect model.lfa
      leakyforge inspect model.lfa --roofline a100
    """
    from leakyforge import render
    from leakyforge.runtime.artifact import is_artifact, read_manifest

    _refuse_unsigned(file, verify_key)
    if gpu is not None:
        from leakyforge.runtime.roofline import roofline

        report = roofline(read_manifest(file, whole=True, verify_key=verify_key), gpu)
        show(report, render.print_roofline, as_json, quiet)
    elif is_artifact(file):
        manifest = read_manifest(file, whole=True, verify_key=verify_key)
        show(manifest, lambda value: render.print_manifest(str(file), value), as_json, quiet)
        if verify_key is not None and not as_json:
            _say(quiet, f"signature by {verify_key}: valid")
    else:
        import dataclasses

        from leakyforge.exporter.inspect import inspect_onnx
        from leakyforge.kernels.importer import unsupported_operators

        summary = inspect_onnx(file)
        summary = dataclasses.replace(summary, unsupported=unsupported_operators(summary.operators))
        show(summary, render.print_onnx, as_json, quiet)


@cli.command()
@json_option
@common_options
def doctor(as_json: bool, quiet: bool) -> None:
    """Check versions, CPU, threads and optional packages; exit status 1 where one is wrong.

    \b
    Example:
      leakyforge doctor
    """
    from leakyforge.render import print_findings
    from leakyforge.runtime.doctor import examine, to_dicts

    findings = examine()
    if as_json:
        click.echo(json.dumps(to_dicts(findings), indent=1))
    elif not quiet:
        print_findings(findings)
    if not all(finding.ok for finding in findings):
        sys.exit(_FAILED)


@cli.command()
@click.option("--folder", type=FILE, default=Path(), help="Where to write.  [default: here]")
@click.option("--seconds", type=float, default=5.0, show_default=True,
              help="Time to measure each model.")  # fmt: skip
@common_options
def demo(folder: Path, seconds: float, quiet: bool) -> None:
    """Export, compile, check and time two zoo models: the whole job on this machine.

    \b
    Example:
      leakyforge demo --folder /tmp
    """
    from leakyforge.exporter import export as export_model
    from leakyforge.render import print_bench, print_parity
    from leakyforge.runtime import bench as run_bench
    from leakyforge.runtime import check as check_parity

    passed = True
    for name in ("yolov3-tiny", "digits"):
        onnx = export_model(name, folder / f"{name}.onnx")
        _say(quiet, f"wrote {onnx}")
        artifact = _compile(onnx, None, "cpu", {}, quiet)
        _say(quiet, f"wrote {artifact}")
        with _status(f"check {artifact.name}", quiet):
            parity = check_parity(artifact)
        passed = passed and bool(parity)
        with _status(f"time {artifact.name}", quiet):
            latency = run_bench(artifact, seconds=seconds)
        if not quiet:
            print_parity(parity)
            print_bench(latency)
    _exit_with(passed)


@cli.command()
@click.option("--output", "-o", "folder", type=FILE, default=Path(),
              help="Folder to write to.  [default: here]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True,
              help="Networks to train with each activation.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True,
              help="Passes over the training images.")  # fmt: skip
@common_options
def study(folder: Path, seeds: int, epochs: int, quiet: bool) -> None:
    """Train a network with each activation, compile and check it, and report; takes minutes.

    Writes study.md, study.png, activations.png, and the figures behind them, study.json.

    \b
    Example:
      leakyforge study -o docs --seeds 10
    """
    from leakyforge.study import run_study, stages
    from leakyforge.study_files import check_folder, write_study

    check_folder(folder)
    with _progress("study", stages(), quiet) as on_stage:
        result = run_study(seeds=seeds, epochs=epochs, on_stage=on_stage)
    _say(quiet, f"wrote {write_study(result, folder)}")


def _bisect(
    artifact: Path,
    onnx: Path | None,
    feeds: dict[str, Any] | None,
    seed: int,
    variant: str | None,
    reproducer: Path | None,
    verify_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the kernel at fault, and leave with status 1 where there is one."""
    from leakyforge.kernels.bisect import bisect
    from leakyforge.render import print_bisect

    title = f"bisect {artifact.name}"
    with _native_stderr_hidden() as stream, _status(title, quiet, stream):
        report = bisect(
            artifact,
            onnx,
            inputs=feeds,
            seed=seed,
            variant=variant,
            output=reproducer,
            verify_key=verify_key,
        )
    show(report, print_bisect, as_json, quiet)
    _exit_with(report)


def _refuse_unsigned(model: Path, verify_key: Path | None) -> None:
    """Refuse a key for what carries no signature."""
    from leakyforge.runtime.artifact import is_artifact

    if verify_key is not None and not is_artifact(model):
        raise click.UsageError(f"--verify-key is for artifacts, and {model} is none")


def _compile(
    model: Path,
    output: Path | None,
    target: str,
    shapes: dict[str, tuple[int, ...]],
    quiet: bool,
    **options: Any,
) -> Path:
    """Compile with a progress bar on standard error."""
    from leakyforge.kernels import STAGES
    from leakyforge.kernels import compile as compile_model

    with _progress(f"compile {model.name}", STAGES, quiet) as on_stage:
        return compile_model(
            model, target, output=output, shapes=shapes, on_stage=on_stage, **options
        )


@contextlib.contextmanager
def _progress(title: str, stages: Sequence[str], quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar over named stages, some of which may come again, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    hidden = quiet or not sys.stderr.isatty()
    with _native_stderr_hidden() as stream:
        console = Console(file=stream)
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task(title, total=len(stages))
            yield lambda stage: bar.update(
                task, completed=stages.index(stage) + 1, description=f"{title}: {stage}"
            )


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[TextIO]:
    """Yield standard error, and hide what C++ prints to it by itself, unless with `--debug`.

    TVM logs warnings of its own beside the error that it raises; ours is one line.
    """
    if click.get_current_context().find_root().meta.get("leakyforge.debug"):
        yield sys.stderr
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere, open(kept, "w", buffering=1) as stream:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
        try:
            yield stream
        finally:
            os.dup2(kept, 2)


@contextlib.contextmanager
def _status(title: str, quiet: bool, stream: TextIO | None = None) -> Iterator[None]:
    """A moving sign that work goes on whose length is not known, on a terminal only."""
    from rich.console import Console

    console = Console(file=stream or sys.stderr, quiet=quiet)
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        yield


def _load_npz(path: Path) -> dict[str, Any]:
    from leakyforge.runtime.arrays import load_npz

    return dict(load_npz(path))


def _number(text: str) -> int | float | str:
    """An int or a float where the text is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(text)


def _exit_with(passed: Any) -> None:
    if not passed:
        sys.exit(_FAILED)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error."""
    context: dict[str, Any] = {}
    try:
        with cli.make_context(
            "leakyforge", sys.argv[1:] if arguments is None else arguments
        ) as ctx:
            context = ctx.meta
            cli.invoke(ctx)
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except click.exceptions.NoArgsIsHelpError as request:
        request.show()
        sys.exit(_USAGE)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "leakyforge"
        text = error.format_message().rstrip(".")
        _fail(f"{text}; see: {command} --help", _USAGE, context)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130, context)
    except ParityError as error:
        _fail(str(error), _FAILED, context)
    except LeakyforgeError as error:
        _fail(str(error), _USAGE, context)
    except BrokenPipeError:
        sys.stderr.close()
    except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
        name = type(error).__name__
        text = f"internal error: {name}: {str(error)[:300]}; run with --debug"
        _fail(text, _BUG, context)


def _one_line(text: str) -> str:
    """A text with its line breaks and runs of blanks made single blanks."""
    return " ".join(text.split())


def _fail(text: str, status: int, context: dict[str, Any]) -> None:
    """Print one line, after the traceback if that was asked for, and leave."""
    if context.get("leakyforge.debug"):
        traceback.print_exc()
    click.echo(f"leakyforge: error: {_one_line(text)}", err=True)
    sys.exit(status)
