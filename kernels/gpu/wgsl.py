"""From a launch plan with TVM's WGSL to one that WebGPU takes as it is.

TVM writes for its own launcher. Here

- each kernel is a program of its own: their declarations have the same names;
- the length of the grid is a number in the source, where TVM reads it from a uniform buffer; along
  x WebGPU has at most 65535 groups, and TVM's kernels take the rest along z;
- all tensors may be written: a dispatch may not read and write one buffer by bindings of both
  kinds, and tensors are parts of one arena;
- a tensor that is given twice is one binding, since bindings that may be written must not overlap;
- where there are more tensors than the 8 storage buffers that WebGPU grants, those in the arena are
  one binding, from the first of them to the last.

Source: W3C, "WebGPU", 3.6.2 (limits), 3.4.4 (usage scopes) and 14.1 (aliasing); W3C, "WebGPU
Shading Language"; TVM's codegen_webgpu.cc.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import ir, s_tir, tirx

from leakyforge.errors import CompileError
from leakyforge.runtime.plan import Buffer, Launch, LaunchPlan, Sizes

# WebGPU's default limits.
MOST_BINDINGS = 8
_MOST_GROUPS = 65535

_KERNEL = re.compile(r"// Function: (\w+)\n//-+\n(.*?)(?=// Function: |\Z)", re.DOTALL)
_TENSOR = re.compile(r"@group\(0\) @binding\(\d+\) var<storage, \w+> (\w+) : array<([\w<>]+)>;\n")
_GRID = re.compile(
    r"\nstruct (\w+) \{\n  (\w+): u32\n\}\n"
    r"@group\(0\) @binding\(\d+\) var<uniform> (\w+) : \1;\n"
)
_ITEMSIZE = {"f32": 4, "i32": 4, "u32": 4, "f16": 2}
# What these are called in TensorIR.
_DTYPES = ("float32", "int32", "uint32", "float16")


@dataclass(frozen=True)
class _Binding:
    """What one binding gives a kernel.

    Attributes:
        buffer: index of the buffer in the plan.
        element: WGSL's type of its elements.
        tensors: name of each tensor that lies in it, and its first element there.
    """

    buffer: int
    element: str
    tensors: dict[str, int]


def check_tensors(functions: Mapping[ir.GlobalVar, tirx.PrimFunc]) -> None:
    """Refuse tensors in memory whose elements WGSL has no type for.

    Args:
        functions: scheduled, by name.

    Raises:
        CompileError: names the function and the type.
    """
    for variable, function in functions.items():
        blocks: list[s_tir.SBlock] = []
        tvm_ffi.structural_walk(function.body, (s_tir.SBlock, blocks.append))
        kept = [buffer for block in blocks for buffer in block.alloc_buffers]
        dtypes = {str(parameter.ty.dtype) for parameter in function.params}
        dtypes |= {str(buffer.dtype) for buffer in kept if buffer.scope() == "global"}
        for dtype in sorted(dtypes.difference(_DTYPES)):
            raise CompileError(
                f"{variable.name_hint} has a tensor of {dtype}, and WebGPU has only "
                f"{', '.join(_DTYPES)}; cast it in the model, or take another --target"
            )


def build_wgsl(plan: LaunchPlan) -> LaunchPlan:
    """The plan with a program for each kernel.

    Args:
        plan: with TVM's WGSL as its only program.

    Raises:
        CompileError: a kernel has more tensors than WebGPU has bindings, or a grid too long for it.
    """
    sources = {name: text for source in plan.programs for name, text in _KERNEL.findall(source)}
    programs: dict[str, int] = {}
    buffers, launches = list(plan.buffers), []
    for launch in plan.launches:
        bindings = _bindings(launch, sources[launch.kernel], buffers)
        grid = _dispatch(launch)
        text = _program(launch, sources[launch.kernel], bindings, grid)
        launches.append(
            dataclasses.replace(
                launch,
                program=programs.setdefault(text, len(programs)),
                buffers=tuple(binding.buffer for binding in bindings),
                grid=grid,
            )
        )
    return dataclasses.replace(
        plan, programs=tuple(programs), buffers=tuple(buffers), launches=tuple(launches)
    )


def _dispatch(launch: Launch) -> Sizes:
    """Groups along each axis, of which the last takes what x has no room for."""
    x, y, z = launch.grid
    layers = math.ceil(x / _MOST_GROUPS)
    if z > 1 or max(y, layers) > _MOST_GROUPS:
        raise CompileError(
            f"kernel {launch.kernel} needs a grid of {launch.grid} groups, more than WebGPU has; "
            "take a smaller batch or image"
        )
    return math.ceil(x / layers), y, layers


def _bindings(launch: Launch, source: str, buffers: list[Buffer]) -> list[_Binding]:
    """The bindings of a launch; a buffer that spans several tensors is put behind the others."""
    bindings: dict[int, _Binding] = {}
    for (name, element), index in zip(_TENSOR.findall(source), launch.buffers, strict=True):
        binding = bindings.setdefault(index, _Binding(index, element, {}))
        binding.tensors[name] = 0
    if len(bindings) <= MOST_BINDINGS:
        return list(bindings.values())
    own = [each for each in bindings.values() if buffers[each.buffer].offset is None]
    shared = [each for each in bindings.values() if buffers[each.buffer].offset is not None]
    for element in dict.fromkeys(each.element for each in shared):
        together = [each for each in shared if each.element == element]
        own.append(_span(together, buffers))
    if len(own) > MOST_BINDINGS:
        raise CompileError(
            f"kernel {launch.kernel} has {len(launch.buffers)} tensors, {len(own) - 1} of them "
            f"weights; WebGPU has {MOST_BINDINGS} bindings; take another --target"
        )
    return own


def _span(bindings: Sequence[_Binding], buffers: list[Buffer]) -> _Binding:
    """One binding, and a buffer for it, from the first tensor in the arena to the last."""
    places = [buffers[each.buffer] for each in bindings]
    first = min(place.offset or 0 for place in places)
    end = max((place.offset or 0) + place.size for place in places)
    buffers.append(Buffer(end - first, first))
    element = bindings[0].element
    tensors = {
        name: ((place.offset or 0) - first) // _ITEMSIZE[element]
        for each, place in zip(bindings, places, strict=True)
        for name in each.tensors
    }
    return _Binding(len(buffers) - 1, element, tensors)


def _program(launch: Launch, source: str, bindings: Sequence[_Binding], grid: Sizes) -> str:
    """A kernel with its bindings, and its grid's length in place of the uniform buffer.

    TVM compares with the length itself, one group too far: a grid that is no multiple of its layers
    would write behind the tensors.
    """
    found = _GRID.search(source)
    if found is None:
        raise CompileError(f"TVM's WGSL of kernel {launch.kernel} has changed; report the model")
    _, field, variable = found.groups()
    text = _TENSOR.sub("", source.replace(found[0], ""))
    text = text.replace(f"> {variable}.{field})", f">= {launch.grid[0]}u)")
    head, declarations = "", []
    if text.startswith("enable "):
        # Before all declarations.
        head, text = text.split("\n", 1)
        head += "\n"
    for position, binding in enumerate(bindings):
        name = next(iter(binding.tensors))
        declarations.append(
            f"@group(0) @binding({position}) var<storage, read_write> {name} : "
            f"array<{binding.element}>;\n"
        )
        for tensor, offset in binding.tensors.items():
            start = f"{offset}i + " if offset else ""
            text = re.sub(rf"\b{tensor}\[", f"{name}[{start}", text)
    return f"{head}{''.join(declarations)}{text.rstrip()}\n"
