"""What the schedules become: vector multiply-adds, and sums that stay in registers.

A reduction loop is read off the assembly: an innermost loop (from a label to a branch back to it,
with no such pair inside) whose multiply-adds write as many registers as its tile has accumulators.
"""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import numpy_helper
from tvm import ir, relax, s_tir

from leakyforge.exporter.simplify import simplify
from leakyforge.kernels import conv2d, conv2d_dot, parse_target, winograd
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse, lower_to_vm, schedule
from leakyforge.kernels.schedules import block_names, read_config

CONV = (
    "g (float[1,{k},28,28] x) => (float[1,{c},28,28] y)"
    "{{ s = Conv <pads = [1,1,1,1]> (x, w, b) y = LeakyRelu <alpha = 0.1> (s) }}"
)
MATMUL = (
    "g (float[64,{k}] x) => (float[64,{c}] y)"
    "{{ p = MatMul (x, w) s = Add (p, b) y = LeakyRelu <alpha = 0.1> (s) }}"
)
# Text, shape of the weights, whether Winograd is ruled out, and module of the expected definition.
CASES = {
    "conv2d": (CONV, (128, 64, 3, 3), True, conv2d),
    "winograd": (CONV, (128, 64, 3, 3), False, winograd),
    "matmul": (MATMUL, (512, 256), True, conv2d),
    "conv2d_dot": (CONV, (3, 64, 3, 3), True, conv2d_dot),
}
CONFIGS = {
    conv2d: conv2d.Conv2dConfig,
    winograd: winograd.WinogradConfig,
    conv2d_dot: conv2d_dot.DotConfig,
}


@dataclass(frozen=True)
class Words:
    """How an instruction set writes things; `register` finds what a multiply-add writes."""

    multiply_add: str
    register: str
    stack: str
    multiply: str


NEON = Words(r"fmla\t(v\d+)\.4s,", r"fmla\t(v\d+)\.4s", r"\[sp", r"fmul\tv\d+\.4s")


def _avx(kind):
    return Words(
        rf"vfmadd\d+ps\t.*%{kind}mm\d+$",
        rf"vfmadd\d+ps\t.*(%{kind}mm\d+)$",
        r"\(%rsp",
        rf"vmulps\t.*%{kind}mm\d+$",
    )


TARGETS = {
    "x86-64-v3": _avx("y"),
    "x86-64-v4": _avx("z"),
    "cortex-a53": NEON,
    "cortex-a72": NEON,
    "neoverse-n1": NEON,
    "apple-m1": NEON,
}


def model(parse, text, size):
    """A model of the text with random weights and bias."""
    generator = np.random.default_rng(0)
    product = len(size) == 2
    k, c = (size[0], size[1]) if product else (size[1], size[0])
    proto = parse(text.format(k=k, c=c))
    for name, shape in (("w", size), ("b", (c,))):
        values = generator.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def compiled(proto, target, strict=True):
    """The lowered functions, and the assembly of all of them."""
    fused = legalize_and_fuse(choose_layout(import_onnx(simplify(proto))), target, strict=strict)
    scheduled, _ = schedule(fused, target)
    with target.tvm:
        executable = relax.build(
            lower_to_vm(scheduled, target).module, target.tvm, relax_pipeline=None
        )
    modules = [executable.mod, *executable.mod.imports]
    (text,) = [module.inspect_source("asm") for module in modules if module.kind == "llvm"]
    return fused, text


def accumulators(fused, definition):
    """Registers that the configuration of the only definition gives to its sums."""
    for function in fused.functions.values():
        if isinstance(function, relax.Function):
            continue
        attempt = s_tir.Schedule(ir.IRModule({"main": function}))
        if definition.BLOCK in block_names(attempt):
            config = read_config(attempt, definition.BLOCK, definition.CONFIG, CONFIGS[definition])
            if definition is conv2d_dot:
                return config.columns * config.channels
            return config.rows * config.columns * config.vectors
    raise AssertionError(f"no function holds {definition.BLOCK}")


def innermost_loops(text):
    """Instructions of each loop that holds no other."""
    lines = [re.split(r"\s(?:#|//)\s", line)[0].strip() for line in text.splitlines()]
    labels, loops = {}, []
    for index, line in enumerate(lines):
        if label := re.fullmatch(r"(\.L\w+):", line):
            labels[label[1]] = index
        # A branch names its label last.
        elif (branch := re.fullmatch(r"(?:b|j|cb|tb)[a-z.]*\t.*?(\.L\w+)", line)) and (
            branch[1] in labels
        ):
            loops.append((labels[branch[1]], index))
    return [
        lines[start + 1 : end + 1]
        for start, end in loops
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops)
    ]


def reduction_loops(text, words, count):
    """Innermost loops whose multiply-adds write `count` registers."""
    found = []
    for body in innermost_loops(text):
        written = {
            match[1] for line in body if (match := re.match(words.register, line)) is not None
        }
        if len(written) == count:
            found.append(body)
    return found


def test_loops_are_found():
    text = (
        ".LBB0_1:\n\tmov\tx0, xzr\n.LBB0_2:\n\tfmla\tv1.4s, v2.4s, v3.s[0]\n\tldr\tq0, [sp, #16]\n"
        "\tb.ne\t.LBB0_2\n\tcbz\tx0, .LBB0_3\n\tb\t.LBB0_1\n.LBB0_3:\n\tret\n"
    )
    (body,) = innermost_loops(text)
    assert body == ["fmla\tv1.4s, v2.4s, v3.s[0]", "ldr\tq0, [sp, #16]", "b.ne\t.LBB0_2"]
    assert reduction_loops(text, NEON, 1) == [body]
    assert reduction_loops(text, NEON, 2) == []
    assert re.search(NEON.stack, body[1])


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("case", ["conv2d", "winograd", "matmul"])
def test_sums_stay_in_registers(parse, case, name):
    """As many accumulators as the tile has, multiply-adds of whole vectors, and no spills."""
    text, size, strict, definition = CASES[case]
    words = TARGETS[name]
    fused, assembly = compiled(model(parse, text, size), parse_target(f"cpu:{name}"), strict)
    count = accumulators(fused, definition)
    loops = reduction_loops(assembly, words, count)
    assert loops, f"no loop with {count} accumulators"
    for body in loops:
        spilled = [line for line in body if re.search(words.stack, line)]
        assert spilled == []
        sums = [line for line in body if re.search(words.multiply_add, line)]
        assert len(sums) % count == 0


@pytest.mark.parametrize("name", ["cortex-a72", "neoverse-n1", "apple-m1"])
@pytest.mark.parametrize("case", ["conv2d", "winograd", "matmul"])
def test_neon_multiplies_by_an_element(parse, case, name):
    """At most one of a loop's input values is spread over a register of its own."""
    text, size, strict, definition = CASES[case]
    fused, assembly = compiled(model(parse, text, size), parse_target(f"cpu:{name}"), strict)
    count = accumulators(fused, definition)
    for body in reduction_loops(assembly, NEON, count):
        assert sum(line.startswith(("dup\t", "ld1r\t", "mov\tv")) for line in body) <= 1
        assert sum(bool(re.search(r"fmla\t.*\.s\[\d\]$", line)) for line in body) > count // 2


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "cortex-a72", "neoverse-n1"])
def test_few_channels_are_summed_in_vectors(parse, name):
    """LLVM unrolls these loops for AVX-512, and there spills one of them once."""
    text, size, strict, definition = CASES["conv2d_dot"]
    words = TARGETS[name]
    fused, assembly = compiled(model(parse, text, size), parse_target(f"cpu:{name}"), strict)
    assert reduction_loops(assembly, words, accumulators(fused, definition))


@pytest.mark.parametrize("name", list(TARGETS))
def test_leaky_relu_is_vectors(parse, name):
    proto = parse("g (float[4096] x) => (float[4096] y) { y = LeakyRelu <alpha = 0.2> (x) }")
    _, assembly = compiled(proto, parse_target(f"cpu:{name}"))
    products = [
        line
        for body in innermost_loops(assembly)
        for line in body
        if re.search(TARGETS[name].multiply, line)
    ]
    assert products
