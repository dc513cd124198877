"""Long chains of elementwise operators compile: their expressions do not grow without bound."""

import numpy as np
import onnx
import pytest

from leakyforge.kernels import compile
from leakyforge.runtime import Session, check


# Three reads of the operand for each operator, and two.
@pytest.mark.parametrize("operator", ["LeakyRelu <alpha = 0.9> ({0})", "Add ({0}, {0})"])
def test_chain_of_operators_that_read_their_operand_again(parse, tmp_path, operator):
    names = ["x", *(f"t{index}" for index in range(29)), "y"]
    steps = "\n".join(
        f"{names[index + 1]} = {operator.format(names[index])}" for index in range(30)
    )
    path = tmp_path / "chain.onnx"
    onnx.save(parse(f"chain (float[5,7] x) => (float[5,7] y) {{ {steps} }}"), path)
    artifact = compile(path, measure=False)
    assert check(artifact)
    # Less than one kernel for each operator: the bound does not end fusion.
    assert len(Session(artifact).manifest.variants[0].kernels) < 25
    (y,) = Session(artifact).run(None, {"x": np.ones((5, 7), np.float32)})
    assert np.isfinite(y).all()
