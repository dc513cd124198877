"""The order of the passes, from an imported model to a module that the VM can run."""

import tvm
from tvm import relax

from leakyforge.kernels.leaky_relu import legalize_leaky_relu
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.weights import HoistedModule, hoist_weights

LEGALIZE = {"relax.nn.leakyrelu": legalize_leaky_relu}


def legalize_and_fuse(module: tvm.IRModule, target: CpuTarget) -> tvm.IRModule:
    """Lower operators to TensorIR and fuse convolution or product, bias and LeakyRelu."""
    with target.tvm:
        return tvm.transform.Sequential(
            [
                relax.backend.DispatchSampling(),
                relax.backend.DispatchSortScan(),
                relax.transform.LegalizeOps(LEGALIZE),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)


def lower_to_vm(module: tvm.IRModule, target: CpuTarget) -> HoistedModule:
    """Take the weights out of `main`, plan memory, and lower `main` to the Relax VM's builtins."""
    hoisted = hoist_weights(module)
    with target.tvm:
        lowered = tvm.transform.Sequential(
            [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
                relax.transform.StaticPlanBlockMemory(),
                relax.transform.LowerAllocTensor(),
                relax.transform.KillAfterLastUse(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.ComputePrimValue(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(hoisted.module)
    return HoistedModule(lowered, hoisted.weights)
