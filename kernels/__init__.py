"""Everything that needs the compiler: operators, schedules, passes, and writing the artifact."""

from leakyforge.pins import check_tvm_pins

# Before TVM is loaded: a wrong pair of packages ends in a segmentation fault, not in an error.
check_tvm_pins()

from leakyforge.kernels.activation_kernel import ActivationKernel  # noqa: E402
from leakyforge.kernels.compile import STAGES, compile  # noqa: E402
from leakyforge.kernels.explain import LayerReport  # noqa: E402
from leakyforge.kernels.leaky_relu_kernel import LeakyReluKernel  # noqa: E402
from leakyforge.kernels.pipeline import Decision  # noqa: E402
from leakyforge.kernels.prelu_kernel import PReluKernel, RReluKernel  # noqa: E402
from leakyforge.kernels.target import CpuTarget, parse_target  # noqa: E402

__all__ = [
    "STAGES",
    "ActivationKernel",
    "CpuTarget",
    "Decision",
    "LayerReport",
    "LeakyReluKernel",
    "PReluKernel",
    "RReluKernel",
    "compile",
    "parse_target",
]
