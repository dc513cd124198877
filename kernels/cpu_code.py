"""The code of a CPU: an imported model lowered to the Relax VM, and linked into a library."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.errors import CompileError, LeakyforgeError
from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.kernels.explain import LayerReport, report_layers
from leakyforge.kernels.flops import kernel_record
from leakyforge.kernels.link import export_library
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.pipeline import (
    Decision,
    choose_layout,
    legalize_and_fuse,
    lower_to_vm,
    schedule,
)
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning.records import Find, Winner, no_winner
from leakyforge.kernels.weights import HoistedModule
from leakyforge.runtime.artifact import pack_weights
from leakyforge.runtime.manifest import Kernel, Stage, Variant
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, TensorSpec


@dataclass(frozen=True)
class Options:
    """How to compile, and whom to tell.

    Attributes:
        strict: keep to the sums of the definition.
        unmeasured: why algorithms are not measured, None where they are.
        find: finds tuning records.
        on_stage: called with the name of each stage of `compile.STAGES` that begins.
        on_decision: called for every kernel with the rule that scheduled it.
        on_layer: called for every run of a kernel, in order.
    """

    strict: bool = False
    unmeasured: str | None = "not asked for"
    find: Find = no_winner
    on_stage: Callable[[str], None] = lambda _stage: None
    on_decision: Callable[[Decision], None] = lambda _decision: None
    on_layer: Callable[[LayerReport], None] = lambda _report: None


@dataclass(frozen=True)
class Code:
    """A compiled model.

    Attributes:
        variants: for each kind of processor.
        members: that hold them, by name.
        inputs: of the model.
        outputs: of the model.
    """

    variants: list[Variant]
    members: dict[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Lowered:
    """A module that the VM runs, before code is generated for it.

    Attributes:
        hoisted: the module, whose `main` takes inputs and weights, and the weights.
        fused: before it was scheduled, for its types.
        decisions: about its kernels.
        tuning_records: workloads of the tuning records that were taken.
    """

    hoisted: HoistedModule
    fused: tvm.IRModule
    decisions: list[Decision]
    tuning_records: tuple[str, ...]


def lower(module: tvm.IRModule, target: CpuTarget, options: Options, prefix: str = "") -> Lowered:
    """Fuse, schedule and lower an imported module; `prefix` comes before the kernels' names.

    Raises:
        CompileError: TVM fails.
    """
    used: dict[str, None] = {}

    def lookup(workload: str) -> Winner | None:
        winner = options.find(workload, target)
        if winner is not None:
            used[workload] = None
        return winner

    with tvm_errors(module):
        options.on_stage("fuse")
        fused = legalize_and_fuse(
            choose_layout(module), target, strict=options.strict, unmeasured=options.unmeasured,
            lookup=lookup,
        )  # fmt: skip
        if prefix:
            fused = _rename_kernels(fused, prefix)
        options.on_stage("schedule")
        scheduled, decisions = schedule(
            fused, target, lookup=lambda workload: options.find(workload, target)
        )
        used |= {each.workload: None for each in decisions if each.workload is not None}
        options.on_stage("lower")
        hoisted = lower_to_vm(scheduled, target)
        if prefix:
            # Lowering adds functions that compute sizes.
            hoisted = HoistedModule(_rename_kernels(hoisted.module, prefix), hoisted.weights)
        return Lowered(hoisted, fused, decisions, tuple(used))


def report(
    fused: tvm.IRModule, decisions: Sequence[Decision], options: Options
) -> tuple[Kernel, ...]:
    """Tell of what was decided, and return the record of each call of a kernel.

    Args:
        fused: before it was scheduled.
        decisions: about its kernels.
        options: whom to tell.
    """
    for decision in decisions:
        options.on_decision(decision)
    layers = report_layers(fused, decisions)
    for layer in layers:
        options.on_layer(layer)
    return tuple(kernel_record(fused, layer) for layer in layers)


def link(module: tvm.IRModule, target: CpuTarget, options: Options, source: tvm.IRModule) -> bytes:
    """Generate the code of a lowered module, and link it.

    Args:
        module: after lowering, which adds symbols of its own.
        target: the processor.
        options: whom to tell.
        source: before lowering, whose symbols an error names.

    Raises:
        CompileError: TVM or the linker fails.
    """
    with tvm_errors(source):
        options.on_stage("build")
        with target.tvm, our_elementary_functions():
            executable = relax.build(module, target.tvm, relax_pipeline=None, tir_pipeline=PIPELINE)
        options.on_stage("link")
        with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
            path = Path(folder) / "library.so"
            export_library(executable, path, str(target.tvm.attrs["mtriple"]))
            return path.read_bytes()


def merge(parts: Mapping[str, Lowered]) -> tvm.IRModule:
    """One module of several, whose kernels have different names; each `main` is called anew."""
    functions = {}
    for name, part in parts.items():
        for variable, function in part.hoisted.module.functions.items():
            if variable.name_hint == "main":
                functions[tvm.ir.GlobalVar(name)] = function.with_attr("global_symbol", name)
            else:
                functions[variable] = function
    return tvm.IRModule(functions)


def cpu_variant(
    target: CpuTarget,
    library: bytes,
    weights: Sequence[Array],
    kernels: tuple[Kernel, ...],
    tuning_records: tuple[str, ...],
    stages: tuple[Stage, ...] = (),
) -> tuple[Variant, dict[str, bytes]]:
    """Description of a target's code, and the members that hold it."""
    specs, members = pack_weights(weights)
    name = f"library/{target.name}.so" if library else ""
    variant = Variant(
        name=target.name,
        features=tuple(sorted(target.features)),
        target=str(target.tvm),
        thread_hint=target.num_cores,
        tuning_records=tuning_records,
        library=name,
        library_size=len(library),
        weights=specs,
        kernels=kernels,
        stages=stages,
    )
    return variant, ({name: library} if library else {}) | members


@contextlib.contextmanager
def tvm_errors(module: tvm.IRModule) -> Iterator[None]:
    """Turn whatever TVM raises into one named error."""
    try:
        yield
    except LeakyforgeError:
        raise
    except Exception as error:
        message = f"TVM cannot compile the model: {one_line(error)}"
        symbols = {
            str(symbol)
            for function in module.functions.values()
            if isinstance(function, relax.Function)
            for symbol in relax.analysis.defined_symbolic_vars(function)
        }
        if symbols:
            names = ", ".join(sorted(symbols))
            message += f"; give the symbolic dimensions a size with --shape: {names}"
        raise CompileError(message) from error


@mutator
class _Renamer(PyExprMutator):  # type: ignore[misc]
    """Puts other global variables in the place of those of some names.

    Attributes:
        variables: by the name that they replace.
    """

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[str, tvm.ir.GlobalVar] = {}

    def visit_global_var_(self, op: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.variables.get(op.name_hint, op)


def _rename_kernels(module: tvm.IRModule, prefix: str) -> tvm.IRModule:
    """The module with a prefix before the name of every function that has none yet but `main`."""
    renamer = _Renamer()
    builder = renamer.builder_
    kept = {}
    for variable, function in module.functions.items():
        name = str(variable.name_hint)
        if name == "main" or name.startswith(prefix):
            kept[variable] = function
        else:
            renamed = function.with_attr("global_symbol", prefix + name)
            renamer.variables[name] = builder.add_func(renamed, prefix + name)
    kept[module.get_global_var("main")] = renamer.visit_expr(module["main"])
    return tvm.IRModule({**builder.get().functions, **kept}, attrs=module.attrs)
