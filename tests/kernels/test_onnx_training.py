"""BatchNormalization with the batch's own statistics, against ONNX's reference evaluator."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from leakyforge.kernels.compile import compile_in_memory
from leakyforge.kernels.onnx_training import define_batch_statistics
from leakyforge.runtime import Session
from leakyforge.tolerance import tolerance

MODEL = """<ir_version: 8, opset_import: ["" : OPSET]>
m (float[SHAPE] x, float[3] scale, float[3] bias, float[3] mean, float[3] var)
=> (float[SHAPE] y, float[3] new_mean, float[3] new_var)
{ n, new_mean, new_var = BatchNormalization <training_mode = 1, momentum = 0.75, epsilon = 0.01>
  (x, scale, bias, mean, var)
  y = LeakyRelu <alpha = 0.1> (n) }"""


@pytest.mark.parametrize("opset", [14, 17, 21])
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 5, 4)])
def test_equal_to_the_definition(opset, shape):
    text = MODEL.replace("OPSET", str(opset)).replace("SHAPE", ", ".join(map(str, shape)))
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    feeds = {
        value.name: generator.uniform(
            0.5, 2, [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in proto.graph.input
    }
    actual = Session(compile_in_memory(proto)).run(None, feeds)
    desired = ReferenceEvaluator(proto).run(None, feeds)
    limits = tolerance("float32", 4 * np.prod(shape) // 3)
    for result, expected in zip(actual, desired, strict=True):
        np.testing.assert_allclose(
            result, expected, rtol=0, atol=limits.range_share * np.abs(expected).max()
        )


def test_a_model_in_evaluation_mode_is_itself():
    proto = onnx.parser.parse_model(
        MODEL.replace("OPSET", "17").replace("SHAPE", "8, 3").replace("training_mode = 1, ", "")
    )
    assert define_batch_statistics(proto) is proto
