"""What instructions this machine has, asked without a compiler.

An artifact names the CPU features that its code may use in LLVM's words; Linux names the same
features in `/proc/cpuinfo` in its own (Linux kernel, arch/x86/include/asm/cpufeatures.h and
arch/arm64/kernel/cpuinfo.c).
"""

import functools
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Where Linux does not tell, as in some containers.
_USUAL_CACHE = 32 << 20

# LLVM feature -> flag of /proc/cpuinfo; only features that generated code can contain.
X86_FEATURES = {
    "adx": "adx",
    "aes": "aes",
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "amx-tile": "amx_tile",
    "avx": "avx",
    "avx2": "avx2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512fp16": "avx512_fp16",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnni": "avx_vnni",
    "avxvnniint16": "avx_vnni_int16",
    "avxvnniint8": "avx_vnni_int8",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "cmov": "cmov",
    "crc32": "sse4_2",
    "cx16": "cx16",
    "f16c": "f16c",
    "fma": "fma",
    "fma4": "fma4",
    "gfni": "gfni",
    "lzcnt": "abm",
    "movbe": "movbe",
    "pclmul": "pclmulqdq",
    "popcnt": "popcnt",
    "prfchw": "3dnowprefetch",
    "sha": "sha_ni",
    "sse": "sse",
    "sse2": "sse2",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "ssse3": "ssse3",
    "tbm": "tbm",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "xop": "xop",
}

# The same for ARM. Without aes and sha2, which LLVM writes only where they are asked for by name:
# cores of one name have them or not, as a Raspberry Pi 4's Cortex-A72 has not.
ARM_FEATURES = {
    "altnzcv": "flagm2",
    "bf16": "bf16",
    "complxnum": "fcma",
    "crc": "crc32",
    "cssc": "cssc",
    "dotprod": "asimddp",
    "f32mm": "svef32mm",
    "f64mm": "svef64mm",
    "flagm": "flagm",
    "fp-armv8": "fp",
    "fp16fml": "asimdfhm",
    "fptoint": "frint",
    "fullfp16": "asimdhp",
    "hbc": "hbc",
    "i8mm": "i8mm",
    "jsconv": "jscvt",
    "lse": "atomics",
    "lse2": "uscat",
    "mops": "mops",
    "neon": "asimd",
    "rcpc": "lrcpc",
    "rcpc-immo": "ilrcpc",
    "rcpc3": "lrcpc3",
    "rdm": "asimdrdm",
    "sha3": "sha3",
    "sme": "sme",
    "sme2": "sme2",
    "sve": "sve",
    "sve-bitperm": "svebitperm",
    "sve2": "sve2",
    "sve2p1": "sve2p1",
}

# Features of each instruction set, by its name.
FEATURES = {"x86_64": X86_FEATURES, "aarch64": ARM_FEATURES}
# Where /proc/cpuinfo has them.
_FLAGS = {"x86_64": "flags", "aarch64": "Features"}


def machine() -> str:
    """Instruction set of this machine, such as x86_64."""
    return platform.machine()


def model_name(cpuinfo: Path = _CPUINFO) -> str:
    """The CPU's marketing name or, on ARM, its numbers; `unknown CPU` where neither is given."""
    part = _field("CPU part", cpuinfo)
    numbers = f"ARM CPU {_field('CPU implementer', cpuinfo)} {part}" if part else ""
    return _field("model name", cpuinfo) or numbers or "unknown CPU"


@functools.cache
def host_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """LLVM names of the features in `FEATURES` that this machine has."""
    return frozenset(
        llvm
        for name, features in FEATURES.items()
        for llvm, flag in features.items()
        if flag in _field(_FLAGS[name], cpuinfo).split()
    )


def last_level_cache(caches: Path = _CACHES) -> int:
    """Bytes of the largest cache that the first CPU reads through, its shared one if it has one."""
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    # The kernel writes every size in KiB, as in 32768K (drivers/base/cacheinfo.c).
    return max((int(size.removesuffix("K")) << 10 for size in sizes), default=_USUAL_CACHE)


def _field(name: str, cpuinfo: Path) -> str:
    """First value of a field of /proc/cpuinfo, empty where it is absent."""
    if not cpuinfo.is_file():
        return ""
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
