"""Targets: each form that is accepted, each that is refused, and what this machine can run."""

import json

import pytest

from leakyforge.errors import TargetError
from leakyforge.kernels import parse_target
from leakyforge.kernels import target as target_module
from leakyforge.kernels.target import parse_targets
from leakyforge.runtime import cpu, threads


def features_written_out(target):
    """The `mattr` of TVM's own target."""
    return [str(text) for text in target.tvm.attrs.get("mattr", [])]


def test_host_is_named_and_has_the_features_that_linux_reports():
    target = parse_target("cpu")
    assert target.features == cpu.host_features()
    assert target.name == str(target.tvm.attrs["mcpu"])
    assert target.name not in ("", "generic", "native")
    assert target.num_cores == threads.usable_cores()


def test_name_gives_the_features_that_llvm_takes_it_for():
    v3 = parse_target("cpu:x86-64-v3")
    assert v3.name == "x86-64-v3"
    assert {"avx2", "fma", "bmi2", "f16c", "movbe"} <= v3.features
    assert not any(feature.startswith("avx512") for feature in v3.features)
    v4 = parse_target("cpu:x86-64-v4")
    assert v4.features - v3.features >= {"avx512f", "avx512bw", "avx512vl"}
    assert v3.features < v4.features
    assert {"sse4a", "clzero", "sha"} & parse_target("cpu:znver3").features == {"sse4a", "sha"}


@pytest.mark.parametrize(
    ("name", "bits", "registers"),
    [
        ("x86-64", 128, 16),
        ("x86-64-v2", 128, 16),
        ("x86-64-v3", 256, 16),
        ("x86-64-v4", 512, 32),
        ("cortex-a72", 128, 32),
        ("neoverse-v1", 128, 32),
    ],
)
def test_vectors(name, bits, registers):
    target = parse_target(f"cpu:{name}")
    assert (target.vector_bits, target.vector_registers) == (bits, registers)
    assert target.multiply_add_bits == 2 * bits
    assert target.lane_choices(4)[0] == bits // 32


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("cortex-a53", {"neon", "fp-armv8", "crc"}),
        ("cortex-a72", {"neon", "fp-armv8", "crc"}),
        ("neoverse-n1", {"neon", "lse", "dotprod", "fullfp16"}),
        ("neoverse-v1", {"sve", "bf16", "i8mm"}),
        ("apple-m1", {"lse", "dotprod", "fullfp16", "sha3"}),
    ],
)
def test_arm_processors(name, features):
    target = parse_target(f"cpu:{name}")
    assert (target.name, target.machine) == (name, "aarch64")
    assert features <= target.features <= cpu.ARM_FEATURES.keys()
    assert str(target.tvm.attrs["mtriple"]) == "aarch64-linux-gnu"


def test_arm_features_leave_out_what_cores_of_one_name_have_or_lack():
    """A Raspberry Pi 4 has Cortex-A72 cores without them, though LLVM takes them for granted."""
    assert not {"aes", "sha2"} & parse_target("cpu:cortex-a72").features


@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "arm64-unknown-linux-gnu"])
def test_arm_in_json(triple):
    least = parse_target(json.dumps({"kind": "llvm", "mtriple": triple}))
    assert (least.name, least.machine, least.features) == (
        "generic", "aarch64", {"neon", "fp-armv8"},
    )  # fmt: skip
    config = {"kind": "llvm", "mtriple": triple, "mcpu": "neoverse-n1", "mattr": ["-lse"]}
    target = parse_target(json.dumps(config))
    assert "dotprod" in target.features
    assert "lse" not in target.features


def test_name_that_both_instruction_sets_have_is_this_machines(monkeypatch):
    for machine in ("aarch64", "x86_64"):
        monkeypatch.setattr(cpu, "machine", lambda machine=machine: machine)
        assert parse_target("cpu:generic").machine == machine
        assert parse_target('{"kind": "llvm"}').machine == machine


def test_fat_is_several_targets_and_the_best_comes_first():
    best, middle, least = parse_targets("cpu:fat")
    assert (best.name, middle.name, least.name) == target_module.FAT
    assert best.features > middle.features > least.features
    assert (best.vector_bits, middle.vector_bits, least.vector_bits) == (512, 256, 128)


@pytest.mark.parametrize("text", ["cpu", "cpu:x86-64-v3", '{"kind": "llvm"}'])
def test_other_targets_are_one(text):
    assert [target.name for target in parse_targets(text)] == [parse_target(text).name]


def test_json_target():
    target = parse_target(
        ' {"kind": "llvm", "mcpu": "x86-64-v2", "mattr": ["+avx2", "-popcnt"], "num-cores": 3}'
    )
    assert target.name == "x86-64-v2"
    assert "avx2" in target.features
    assert "popcnt" not in target.features
    assert target.num_cores == 3
    assert features_written_out(target) == ["+avx2", "-popcnt"]


def test_json_target_without_a_processor_is_the_least_x86():
    target = parse_target('{"kind": "llvm"}')
    assert target.name == "x86-64"
    assert target.features == parse_target("cpu:x86-64").features
    assert target.num_cores == threads.usable_cores()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown target ''"),
        ("gpu", "unknown target 'gpu'"),
        ("CPU", "unknown target 'CPU'"),
        ("llvm -mcpu=znver3", "unknown target"),
        ("cpu:", "LLVM knows no processor ''"),
        ("cpu:znver", "LLVM knows no processor 'znver'"),
        ("cpu:native", "LLVM knows no processor 'native'"),
        ("{", "is not valid JSON"),
        ('{"kind": "llvm"} {}', "is not valid JSON"),
        ('{"mcpu": "znver3"}', "is of kind None"),
        ('{"kind": "cuda", "arch": "sm_80"}', "is of kind 'cuda', which is not supported yet"),
        ('{"kind": "llvm", "mtriple": "riscv64-linux-gnu"}', "compiling for riscv64 is not"),
        ('{"kind": "llvm", "mtriple": "arm64-apple-darwin"}', "which is not Linux"),
        (
            '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "znver3"}',
            "LLVM knows no processor 'znver3'",
        ),
        (
            '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cortex-a72"}',
            "LLVM knows no processor 'cortex-a72'",
        ),
        ('{"kind": "llvm", "no-such-key": 1}', "TVM does not take target"),
        ('{"kind": "llvm", "num-cores": "two"}', "TVM does not take target"),
        ('{"kind": "llvm", "num-cores": 0}', "has num-cores 0; give 1 or more"),
        ('{"kind": "llvm", "mattr": ["+avx99"]}', "mattr '+avx99' of target"),
        ('{"kind": "llvm", "mattr": ["avx2"]}', "mattr 'avx2' of target"),
        ('{"kind": "llvm", "mattr": ["+avx2", "-avx"]}', "mattr '+avx2' of target"),
        ('{"kind": "llvm", "mcpu": ["znver3"]}', "LLVM knows no processor ['znver3']"),
    ],
)
def test_refused_in_one_line_that_repeats_the_target(text, message):
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["gpu", "cpu:znver", "{", '{"kind": "cuda"}'])
def test_refusal_says_what_is_accepted(text):
    with pytest.raises(TargetError, match=r"use cpu, cpu:NAME .*cpu:x86-64-v3.* or a JSON target"):
        parse_target(text)


def test_another_instruction_set_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "machine", lambda: "riscv64")
    for text in ("cpu", '{"kind": "llvm"}'):
        with pytest.raises(TargetError, match="compiling for riscv64 is not supported"):
            parse_target(text)


@pytest.fixture
def host_is(monkeypatch):
    """Make this machine another one: its instruction set, LLVM's name for it, its features."""
    usual = target_module.tvm_ffi.get_global_func

    def host_is(machine, name, features):
        answers = {"tvm.codegen.llvm.GetHostCPUName": lambda: name}
        monkeypatch.setattr(
            target_module.tvm_ffi, "get_global_func", lambda name: answers.get(name) or usual(name)
        )
        monkeypatch.setattr(cpu, "machine", lambda: machine)
        monkeypatch.setattr(cpu, "host_features", lambda: frozenset(features))

    return host_is


def test_features_that_a_virtual_machine_hides_or_adds_are_written_out(host_is):
    """LLVM goes by the processor's name, and would use what the name promises."""
    features = parse_target("cpu:x86-64-v3").features - {"fma"} | {"sha"}
    host_is("x86_64", "x86-64-v3", features)
    target = target_module.host_target()
    assert features_written_out(target) == ["+sha", "-fma"]
    assert target.features == features


def test_host_that_is_an_arm_processor(host_is):
    features = parse_target("cpu:cortex-a76").features
    host_is("aarch64", "cortex-a76", features - {"dotprod"})
    target = parse_target("cpu")
    assert (target.name, target.machine) == ("cortex-a76", "aarch64")
    assert features_written_out(target) == ["-dotprod"]
    assert target.features == features - {"dotprod"}


@pytest.mark.parametrize("name", ["x86-64-v3", "cortex-a72"])
def test_target_survives_the_manifest_as_json(name):
    target = parse_target(f"cpu:{name}")
    again = parse_target(str(target.tvm))
    assert json.loads(str(again.tvm)) == json.loads(str(target.tvm))
    assert again.features == target.features
