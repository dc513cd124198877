"""From an imported module to a launch plan.

TVM generates the source; what its virtual machine and its host code would do at run time is read
off them here: both are static. The calls of `main` give the order, the host function of each kernel
gives grid, groups and arguments, and which launches need a tensor gives its place in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from leakyforge.errors import CompileError
from leakyforge.kernels.expressions import operator_name
from leakyforge.kernels.gpu.constants import PIPELINE
from leakyforge.kernels.gpu.memory import Lifetime, place
from leakyforge.kernels.gpu.target import GpuTarget
from leakyforge.kernels.gpu.wgsl import check_tensors
from leakyforge.kernels.pipeline import call_kernels
from leakyforge.runtime.manifest import WEBGPU
from leakyforge.runtime.plan import ALIGNMENT, Buffer, Launch, LaunchPlan, Sizes
from leakyforge.runtime.tensors import Array, numpy_dtype

_NO_SIZE = "its sizes are not known at compile time; fix the inputs with --shape"


@dataclass(frozen=True)
class Origin:
    """Where a launch is from.

    Attributes:
        function: the scheduled function.
        position: of the kernel among those of the function.
        bytes_moved: bytes of the tensors that the kernel is given, each once.
    """

    function: str
    position: int
    bytes_moved: int


def build_plan(
    module: tvm.IRModule, target: GpuTarget
) -> tuple[LaunchPlan, list[Array], list[Origin]]:
    """The plan of a scheduled module with its source, its weights, and where the launches are from.

    Raises:
        CompileError: a size is symbolic, or `main` does what no kernel does.
    """
    hoisted = call_kernels(module, target.tvm)
    lowered = hoisted.module
    source, hosts = _generate(lowered, target)
    planner = _Planner(hosts)
    main = lowered["main"]
    parameters = [planner.parameter(variable) for variable in main.params]
    for block in main.body.blocks:
        for binding in block.bindings:
            planner.bind(binding)
    outputs = planner.outputs(main.body.body)
    first_weight = len(parameters) - len(hoisted.weights)
    inputs, weights = parameters[:first_weight], parameters[first_weight:]
    arena, buffers = _place(planner, inputs, weights, outputs)
    plan = LaunchPlan(
        (source,) if planner.launches else (),
        b"",
        arena,
        buffers,
        tuple(inputs),
        tuple(weights),
        tuple(outputs),
        tuple(planner.launches),
    )
    return plan, hoisted.weights, planner.origins


def _place(
    planner: "_Planner", inputs: list[int], weights: list[int], outputs: list[int]
) -> tuple[int, tuple[Buffer, ...]]:
    """Bytes of the arena, and the buffers: all but those of the weights lie in it.

    Inputs are there before the first launch, outputs until the last one has run.
    """
    times: dict[int, list[int]] = {index: [] for index in range(len(planner.sizes))}
    for position, launch in enumerate(planner.launches):
        for index in launch.buffers:
            times[index].append(position)
    for index in inputs:
        times[index].append(-1)
    for index in outputs:
        times[index].append(len(planner.launches))
    activations = [index for index in times if times[index] and index not in weights]
    lifetimes = [
        Lifetime(planner.sizes[index], min(times[index]), max(times[index]))
        for index in activations
    ]
    offsets = dict(zip(activations, place(lifetimes, ALIGNMENT), strict=True))
    arena = max((offset + planner.sizes[index] for index, offset in offsets.items()), default=0)
    return arena, tuple(
        Buffer(size, offsets.get(index)) for index, size in enumerate(planner.sizes)
    )


def _generate(module: tvm.IRModule, target: GpuTarget) -> tuple[str, dict[str, tirx.PrimFunc]]:
    """Source of all kernels, and the host function of each scheduled function."""
    functions = {
        variable: function.with_attr("global_symbol", variable.name_hint)
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    if not functions:
        return "", {}
    if target.machine == WEBGPU:
        check_tensors(functions)
    capture = _HostFunctions()
    with tvm.transform.PassContext(opt_level=3, instruments=[capture]):
        built = tirx.build(tvm.IRModule(functions), target=target.tvm, pipeline=PIPELINE)
    (device,) = built.mod.imports if hasattr(built, "mod") else built.imports
    return str(device.inspect_source()), capture.functions


@tvm.instrument.pass_instrument
class _HostFunctions:
    """Keeps the host functions as they are when the kernels have been cut out of them."""

    def __init__(self) -> None:
        self.functions: dict[str, tirx.PrimFunc] = {}

    def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
        """Called by TVM."""
        if str(info.name) == "tirx.SplitHostDevice":
            for variable, function in module.functions_items():
                if "tirx.kernel_launch_params" not in function.attrs:
                    self.functions[str(variable.name_hint)] = function


class _Planner:
    """Reads the calls of `main`, and numbers the buffers that they use."""

    def __init__(self, hosts: dict[str, tirx.PrimFunc]) -> None:
        self.sizes: list[int] = []
        self.launches: list[Launch] = []
        self.origins: list[Origin] = []
        self._hosts = hosts
        # Buffer of each variable of `main` that holds memory, those of a tuple in order.
        self._buffers: dict[Any, list[int]] = {}

    def parameter(self, variable: relax.Var) -> int:
        """A buffer for what `main` is given."""
        self._buffers[variable] = [self._allocate(_bytes(variable.ty))]
        return self._buffers[variable][0]

    def bind(self, binding: relax.VarBinding) -> None:
        """Do what a binding says."""
        value = binding.value
        read = self._call if isinstance(value, relax.Call) else self._lookup
        self._buffers[binding.var] = read(value)

    def outputs(self, result: relax.Expr) -> list[int]:
        """The buffers of what `main` returns."""
        return self._lookup(result)

    def _call(self, call: relax.Call) -> list[int]:
        if isinstance(call.op, tvm.ir.GlobalVar):
            self._launch(str(call.op.name_hint), [self._lookup(each)[0] for each in call.args])
            return []
        if isinstance(call.op, relax.ExternFunc):
            raise CompileError(
                f"{call.op.global_symbol} cannot be run on this target: its result is as large as "
                "there are such values; take a CPU target"
            )
        name = str(call.op.name)
        if name == "relax.builtin.alloc_tensor":
            return [self._allocate(_bytes(call.ty))]
        if name in ("relax.reshape", "relax.memory.view"):
            return self._lookup(call.args[0])
        raise CompileError(f"{name.removeprefix('relax.')} cannot be run on this target")

    def _lookup(self, value: relax.Expr) -> list[int]:
        """Buffers of a variable, or of a tuple's members."""
        if isinstance(value, relax.Tuple):
            return [index for field in value.fields for index in self._lookup(field)]
        if isinstance(value, relax.TupleGetItem):
            return [self._lookup(value.tuple_value)[int(value.index)]]
        if isinstance(value, relax.Var) and value in self._buffers:
            return self._buffers[value]
        raise CompileError(f"a {type(value).__name__} cannot be run on this target: {_NO_SIZE}")

    def _allocate(self, size: int) -> int:
        # No device has a buffer of no bytes, and WebGPU's are whole words.
        self.sizes.append(max(size + -size % 4, 4))
        return len(self.sizes) - 1

    def _launch(self, name: str, arguments: list[int]) -> None:
        """The kernels of one function, with a buffer for each tensor that it keeps to itself."""
        host, position = self._hosts[name], 0
        buffers = dict(zip(host.params, arguments, strict=True))
        for statement in _statements(host.body):
            if isinstance(statement, tirx.DeclBuffer):
                buffers[statement.buffer] = _buffer_of(name, statement.data, buffers)
            elif isinstance(statement, tirx.AllocBuffer):
                kind = statement.buffer.ty
                buffers[statement.buffer] = self._allocate(_bytes(kind))
            elif isinstance(statement, tirx.Evaluate):
                launch, size = _read_launch(name, statement.value, buffers)
                self.launches.append(launch)
                self.origins.append(Origin(name, position, size))
                position += 1
            else:
                what = type(statement).__name__
                raise CompileError(f"the host code of {name} holds a {what}, no plain launch")


def _statements(body: Any) -> Iterator[Any]:
    """Statements of a host function, in order."""
    if isinstance(body, tirx.SeqStmt):
        for statement in body:
            yield from _statements(statement)
    else:
        yield body


def _read_launch(name: str, call: Any, buffers: dict[Any, int]) -> tuple[Launch, int]:
    """What a host function's call of a kernel says, and the bytes of its tensors."""
    if str(getattr(call.op, "name", "")) != "tirx.call_ffi_kernel":
        raise CompileError(f"the host code of {name} calls {call.op}, no kernel")
    kernel, *values = call.args
    tags = [str(tag) for tag in call.attrs.launch_params]
    arguments, extents = values[: -len(tags)], values[-len(tags) :]
    sizes = {}
    for tag, extent in zip(tags, extents, strict=True):
        if not tag.startswith(("blockIdx.", "threadIdx.")):
            raise CompileError(f"{name} asks for {tag}, which a plan cannot say")
        if not isinstance(extent, tirx.IntImm):
            raise CompileError(f"{name}: {_NO_SIZE}")
        sizes[tag] = int(extent)

    def along(tag: str) -> Sizes:
        x, y, z = (sizes.get(f"{tag}.{axis}", 1) for axis in "xyz")
        return x, y, z

    used = tuple(_buffer_of(name, each, buffers) for each in arguments)
    size = sum(_bytes(each.args[0].ty) for each in arguments)
    return Launch(0, str(kernel.value), used, along("blockIdx"), along("threadIdx")), size


def _buffer_of(name: str, data: Any, buffers: dict[Any, int]) -> int:
    """The buffer whose data an expression is."""
    if operator_name(data) == "tirx.buffer_data":
        return buffers[data.args[0]]
    raise CompileError(f"{name}: argument {data} is no tensor; {_NO_SIZE}")


def _bytes(kind: Any) -> int:
    """Bytes of a tensor or buffer of known sizes."""
    count = numpy_dtype(str(kind.dtype)).itemsize
    for size in kind.shape or ():
        if not isinstance(size, tirx.IntImm):
            raise CompileError(f"a tensor of shape {kind.shape}: {_NO_SIZE}")
        count *= int(size)
    return count
