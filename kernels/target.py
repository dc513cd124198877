"""Targets: from what the user writes to what the compiler needs.

`cpu` is this machine by name and features, `cpu:NAME` an LLVM processor name such as `znver3`,
`x86-64-v3` or `cortex-a72`, `cpu:fat` the processors of `FAT` together, and a text that starts with
`{` a TVM target in JSON.
"""

import json
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi

from leakyforge.errors import TargetError
from leakyforge.runtime import cpu, threads

# What `cpu:fat` holds: AVX-512, AVX2, and what every x86-64 has; the best comes first.
FAT = ("x86-64-v4", "x86-64-v3", "x86-64")
# LLVM's description of each instruction set, and its least processor.
_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
_LEAST = {"x86_64": "x86-64", "aarch64": "generic"}
_SYNONYMS = {"amd64": "x86_64", "arm64": "aarch64"}
_HELP = (
    "use cpu, cpu:NAME (LLVM's name, as in cpu:x86-64-v3), cpu:fat, opencl, webgpu, cuda:sm_80 (or "
    "another architecture that nvcc knows), or a JSON target of kind llvm"
)


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to compile for.

    Attributes:
        name: LLVM's processor name.
        machine: instruction set, `x86_64` or `aarch64`.
        features: the LLVM features that generated code may use, out of `cpu.FEATURES`.
        num_cores: cores that schedules assume.
        tvm: TVM's own target.
    """

    name: str
    machine: str
    features: frozenset[str]
    num_cores: int
    tvm: tvm.target.Target

    @property
    def vector_bits(self) -> int:
        """Width of the widest vector register, in bits; of NEON where there is SVE too."""
        if "avx512f" in self.features:
            return 512
        return 256 if "avx" in self.features else 128

    @property
    def vector_registers(self) -> int:
        """Vector registers that the instruction set names."""
        return 32 if self.machine == "aarch64" or "avx512vl" in self.features else 16

    @property
    def load_registers(self) -> int:
        """Vector registers that a tile leaves to input values on their way from memory.

        NEON's multiply-adds take no operand from memory, and LLVM loads several values ahead: with
        one or two left, the loop for a Neoverse N1 moves its sums about; with four, that for a
        Cortex-A53, which LLVM unrolls, spills them.
        """
        return 5 if self.machine == "aarch64" else 1

    @property
    def multiply_add_bits(self) -> int:
        """Width of the multiply-adds that a core starts in a cycle, in bits.

        Two vectors everywhere; before Zen 5, AMD runs one of 512 bits as two halves. ARM's smaller
        cores, such as Cortex-A72, start one and one load: the same proportions.
        """
        return 2 * min(self.vector_bits, 256 if self.name == "znver4" else 512)

    def lane_choices(self, itemsize: int) -> tuple[int, ...]:
        """Elements of `itemsize` bytes in a vector, widest first, down to 128 bits."""
        widths = (bits for bits in (512, 256, 128) if bits <= self.vector_bits)
        return tuple(bits // 8 // itemsize for bits in widths)


def parse_targets(text: str) -> tuple[CpuTarget, ...]:
    """Read what to compile for: several targets for `cpu:fat`, the best first, else one.

    Raises:
        TargetError: see `parse_target`.
    """
    names = [f"cpu:{name}" for name in FAT] if text == "cpu:fat" else [text]
    return tuple(parse_target(name) for name in names)


def parse_target(text: str) -> CpuTarget:
    """Read one target from the command line or the Python API.

    Raises:
        TargetError: the text is no target, or LLVM does not know the processor.
    """
    if text == "cpu":
        return host_target()
    if text.startswith("cpu:"):
        return _cpu_target({"kind": "llvm", "mcpu": text.removeprefix("cpu:")}, text)
    if text.lstrip().startswith("{"):
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise TargetError(f"target {text!r} is not valid JSON ({error}); {_HELP}") from error
        return _cpu_target(config, text)
    raise TargetError(f"unknown target {text!r}; {_HELP}")


def host_target() -> CpuTarget:
    """This machine, by LLVM's name for its processor and by the features that it really has."""
    machine = cpu.machine()
    _require_supported(machine)
    name = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
    has = cpu.host_features()
    config: dict[str, Any] = {"kind": "llvm", "mcpu": name, "mtriple": _TRIPLES[machine]}
    implied = _llvm_features(tvm.target.Target(config)) & cpu.FEATURES[machine].keys()
    # A virtual machine may hide features that LLVM takes for granted by the name.
    mattr = [f"+{feature}" for feature in sorted(has - implied)]
    mattr += [f"-{feature}" for feature in sorted(implied - has)]
    if mattr:
        config["mattr"] = mattr
    return _cpu_target(config, "cpu")


def _cpu_target(config: dict[str, Any], text: str) -> CpuTarget:
    """Check a target's parts and complete them."""
    kind = config.get("kind")
    if kind != "llvm":
        raise TargetError(
            f"target {text!r} is of kind {kind!r}, which is not supported yet; {_HELP}"
        )
    machine = _machine(config)
    _require_supported(machine)
    config = {
        "num-cores": threads.usable_cores(),
        "mcpu": _LEAST[machine],
        "mtriple": _TRIPLES[machine],
        **config,
    }
    triple, name = str(config["mtriple"]), config["mcpu"]
    if "linux" not in triple.split("-"):
        raise TargetError(f"target {text!r} has mtriple {triple!r}, which is not Linux; {_HELP}")
    # LLVM falls back to a generic processor on a name it does not know, so ask first.
    if not _is_processor(name, machine):
        raise TargetError(f"LLVM knows no processor {name!r} (target {text!r}); {_HELP}")
    try:
        target = tvm.target.Target(config)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(f"TVM does not take target {text!r}: {reason}") from error
    if config["num-cores"] < 1:
        raise TargetError(f"target {text!r} has num-cores {config['num-cores']}; give 1 or more")
    features = _llvm_features(target)
    for entry in config.get("mattr", ()):
        # LLVM passes over what it does not know.
        if entry[:1] not in ("+", "-") or (entry[0] == "+") != (entry[1:] in features):
            raise TargetError(
                f"mattr {entry!r} of target {text!r} is not +FEATURE or -FEATURE in LLVM's words, "
                "or contradicts another"
            )
    known = frozenset(features & cpu.FEATURES[machine].keys())
    return CpuTarget(name, machine, known, int(config["num-cores"]), target)


def _machine(config: dict[str, Any]) -> str:
    """Instruction set of a target: of its triple, of its processor's name, else this machine's."""
    if "mtriple" in config:
        machine = str(config["mtriple"]).split("-")[0]
        return _SYNONYMS.get(machine, machine)
    here = cpu.machine()
    # Both know a processor `generic`: this machine's.
    for machine in sorted(_TRIPLES, key=lambda each: each != here):
        if _is_processor(config.get("mcpu"), machine):
            return machine
    return here


def _is_processor(name: object, machine: str) -> bool:
    """Whether LLVM knows a processor of this name."""
    is_valid = tvm_ffi.get_global_func("target.llvm_is_valid_cpu")
    return isinstance(name, str) and bool(is_valid(name, _TRIPLES[machine]))


def _require_supported(machine: str) -> None:
    if machine not in _TRIPLES:
        raise TargetError(
            f"compiling for {machine} is not supported yet; leakyforge takes Linux on "
            f"{' and '.join(_TRIPLES)}"
        )


def _llvm_features(target: tvm.target.Target) -> set[str]:
    """LLVM's features of a target, hints for tuning among them."""
    features = tvm_ffi.get_global_func("target.llvm_get_cpu_features")(target)
    return {str(feature) for feature in features}
