"""Running one scheduled definition by itself."""

import numpy as np
import pytest
import tvm
from tvm import s_tir, te

from leakyforge.kernels import parse_target
from leakyforge.kernels.lowering import PIPELINE


@pytest.fixture
def run_kernel():
    """A call that schedules a definition, compiles it for this machine and runs it on arrays."""

    def run(definition, schedule, arrays):
        inputs = [
            te.placeholder(array.shape, str(array.dtype), name=f"input{index}")
            for index, array in enumerate(arrays)
        ]
        output = definition(*inputs)
        attempt = s_tir.Schedule(te.create_prim_func([*inputs, output]))
        schedule(attempt)
        kernel = tvm.compile(attempt.mod, target=parse_target("cpu").tvm, tir_pipeline=PIPELINE)[
            "main"
        ]
        shape = tuple(int(size) for size in output.shape)
        result = tvm.runtime.tensor(np.full(shape, np.nan, arrays[0].dtype))
        kernel(*map(tvm.runtime.tensor, arrays), result)
        return result.numpy()

    return run
