"""Option types and decorators that several commands share."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
# Those of `runtime.acceptance`, which `--help` does not load.
FAMILIES = ("yolo", "super-resolution", "vocoder", "classifier")


class NamedValue(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`, split at the last `=`: a tensor's name may hold one, a file's seldom does."""

    def __init__(self, metavar: str) -> None:
        self.name = metavar

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        """Split the text."""
        name, equals, rest = str(value).rpartition("=")
        if not (equals and name and rest):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return name, rest


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`NAME=1x3x416x416`."""

    name = "NAME=1x3x416x416"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        """Split the text and its sizes."""
        name, _, sizes = str(value).rpartition("=")
        if not name or not re.fullmatch(r"\d+(x\d+)*", sizes):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return name, tuple(int(size) for size in sizes.split("x"))


def common_options(command: Command) -> Command:
    """`--quiet` and `--debug`, which every command has."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks."
    )(command)
    return click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")(command)


def _remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Keep `--debug` where `main` finds it after a failure."""
    if value:
        ctx.find_root().meta["leakyforge.debug"] = True


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
onnx_option = click.option(
    "--onnx", type=FILE, help="ONNX file that the artifact was compiled from, if it has moved."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads; by default the usable physical cores."
)
target_option = click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="cpu (this machine), cpu:NAME as LLVM calls it, cpu:fat (several variants in one file), "
    "opencl, webgpu, cuda:sm_80 or another architecture that nvcc knows, or a TVM target in JSON.",
)
variant_option = click.option(
    "--variant", help="Variant of the artifact to run; by default the best for this CPU."
)
verify_key_option = click.option(
    "--verify-key",
    type=FILE,
    help="Ed25519 public key (PEM) that the artifact has to be signed by; else it is refused.",
)
device_option = click.option(
    "--device",
    help="OpenCL, CUDA or WebGPU device to run on, a part of its name; by default the first GPU.",
)
variants_option = click.option(
    "--variant",
    help="Variant of the artifact to run, or all; by default the best for this CPU.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Size of an input whose dimensions are symbolic; may be repeated.",
)


def show(report: Any, table: Callable[[Any], None], as_json: bool, quiet: bool) -> None:
    """Print a report as JSON, as a table, or not at all."""
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    elif not quiet:
        table(report)
