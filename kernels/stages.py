"""At which stage of the compiler a small model goes wrong."""

from collections.abc import Callable, Mapping

import onnx
import tvm
from tvm import relax

from leakyforge.errors import CompileError
from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse, lower_to_vm, schedule
from leakyforge.kernels.target import CpuTarget
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array

# What every stage does beside those before it: layouts, algorithms and a function for each
# operator; operators in one function; vectors, tiles and threads.
STAGES = ("unfused", "fused", "scheduled")


def first_wrong_stage(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    is_right: Callable[[Array], bool],
    target: CpuTarget,
) -> str | None:
    """Compile a model up to each stage, and give the first whose output is wrong.

    Args:
        model: folded, of one output.
        feeds: an array for each input.
        is_right: whether this is its output.
        target: this machine, or one whose code runs on it.

    Returns:
        One of `STAGES`; None where all are right.

    Raises:
        CompileError: TVM fails at one of them.
    """
    module = import_onnx(model)
    names = [value.name for value in model.graph.input]
    arguments = [tvm.runtime.tensor(feeds[name]) for name in names]
    for stage in STAGES:
        try:
            output = _run(_lowered(module, target, stage), arguments, target)
        except Exception as error:
            raise CompileError(f"TVM fails on stage {stage!r}: {one_line(error)}") from error
        if not is_right(output):
            return stage
    return None


def _lowered(module: tvm.IRModule, target: CpuTarget, stage: str) -> tvm.IRModule:
    """The module after a stage."""
    # The depth of a fused function; 1 leaves every operator alone.
    alone = {"relax.FuseOps.max_depth": 1} if stage == "unfused" else {}
    with tvm.transform.PassContext(config=alone):
        fused = legalize_and_fuse(choose_layout(module), target)
    return schedule(fused, target)[0] if stage == "scheduled" else fused


def _run(module: tvm.IRModule, arguments: list[tvm.runtime.Tensor], target: CpuTarget) -> Array:
    """Output of a module on the CPU."""
    hoisted = lower_to_vm(module, target)
    with target.tvm, our_elementary_functions():
        executable = relax.build(
            hoisted.module, target.tvm, relax_pipeline=None, tir_pipeline=PIPELINE
        )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    weights = [tvm.runtime.tensor(weight) for weight in hoisted.weights]
    output: Array = machine["main"](*arguments, *weights).numpy()
    return output
