"""One engine in a process of its own.

    python engine_worker.py ENGINE MODEL INPUTS OUTPUTS THREADS

Runs in the peer's environment, so it needs the standard library and numpy alone. MODEL is an ONNX
file, for leakyforge an artifact; INPUTS and OUTPUTS are .npz files. Answers are JSON, one line
each: what was loaded, then for each line `[warm, counted]` on standard input the seconds of the
calls that were made in the counted seconds, and after the end of the input the memory.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, Any]
# A call that runs the model once, and the engine's version.
Engine = tuple[Callable[[], list[Any]], str]

# What `copy` copies in a call: more than caches hold.
COPY_BYTES = 128 << 20


def leakyforge(model: str, feeds: Feeds, threads: int) -> Engine:
    """The artifact in a session of ours."""
    from importlib.metadata import version

    from leakyforge.runtime import Session

    # The file may have been changed since the parent looked at it.
    key = os.environ["LEAKYFORGE_VERIFY_KEY"] or None
    session = Session(model, threads=threads, verify_key=key)
    return lambda: session.run(None, feeds), version("leakyforge")


def onnxruntime(model: str | bytes, feeds: Feeds, threads: int) -> Engine:
    """ONNX Runtime's CPU provider with all its optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds), ort.__version__


def openvino(model: str, feeds: Feeds, threads: int) -> Engine:
    """OpenVINO's CPU plugin, float32, for latency."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    network.reshape({name: list(array.shape) for name, array in feeds.items()})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()

    def run() -> list[Any]:
        request.infer(feeds)
        return [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

    return run, ov.__version__


def mnn(model: str, feeds: Feeds, threads: int) -> Engine:
    """MNN's CPU backend, float32, after its own converter."""
    import MNN
    import MNN.expr as expr
    import MNN.nn as nn

    # The command mnnconvert tells its makers of every use, and has pip install what it wants for
    # that, in whichever environment is active.
    converter = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.mnn")
        arguments = ["-f", "ONNX", "--modelFile", model, "--MNNModel", path, "--bizCode", "MNN"]
        command = [sys.executable, "-c", converter, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if not Path(path).is_file():
            raise RuntimeError(f"mnnconvert: {(done.stdout + done.stderr).strip()[-200:]}")
        settings = {"precision": "high", "backend": "CPU", "numThread": threads}
        manager = nn.create_runtime_manager((settings,))
        names = json.loads(os.environ["LEAKYFORGE_OUTPUTS"])
        module = nn.load_module_from_file(path, list(feeds), names, runtime_manager=manager)
    inputs = []
    for array in feeds.values():
        layout = expr.NCHW
        variable = expr.placeholder(list(array.shape), layout, expr.float)
        variable.write(array)
        inputs.append(variable)

    def run() -> list[Any]:
        return [expr.convert(output, expr.NCHW).read() for output in module.onForward(inputs)]

    return run, MNN.version()


def ncnn(model: str, feeds: Feeds, threads: int) -> Engine:
    """Tencent's ncnn on the CPU, float32, after its own converter pnnx."""
    import ncnn as engine

    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:
        script = _pnnx(model, feeds, folder)
        if net.load_param(f"{folder}/model.ncnn.param") or net.load_model(
            f"{folder}/model.ncnn.bin"
        ):
            raise RuntimeError("ncnn lacks a layer for an operator of the model")
    # pnnx's example of use says which axis of each input and output ncnn takes as the batch.
    axes = [int(axis) for axis in re.findall(r"batch_index=(\d+)", script)]
    inputs = [
        engine.Mat(np.ascontiguousarray(array), batch_index=axis).clone()
        for array, axis in zip(feeds.values(), axes, strict=False)
    ]

    def run() -> list[Any]:
        extractor = net.create_extractor()
        for index, matrix in enumerate(inputs):
            extractor.input(f"in{index}", matrix)
        outputs = []
        for index, axis in enumerate(axes[len(inputs) :]):
            status, matrix = extractor.extract(f"out{index}")
            if status != 0:
                raise RuntimeError(f"ncnn does not compute output {index}: status {status}")
            outputs.append(np.array(matrix.numpy(batch_index=axis)))
        return outputs

    return run, engine.__version__


def _pnnx(model: str, feeds: Feeds, folder: str) -> str:
    """Convert a model to ncnn's files in a folder; the text of the example that comes with them."""
    package = importlib.util.find_spec("pnnx")
    assert package is not None
    assert package.origin is not None
    # Writes beside the model, and float16 weights unless told otherwise. The Python package around
    # the program imports torch.
    shutil.copy(model, f"{folder}/model.onnx")
    shapes = [
        f"[{','.join(map(str, array.shape))}]{array.dtype.kind}{8 * array.dtype.itemsize}"
        for array in feeds.values()
    ]
    command = [str(Path(package.origin).with_name("pnnx")), "model.onnx", "fp16=0"]
    command.append(f"inputshape={','.join(shapes)}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    script = Path(folder) / "model_ncnn.py"
    if not script.is_file():
        raise RuntimeError(f"pnnx: {(done.stdout + done.stderr).strip()[-200:]}")
    return script.read_text()


def _torch(model: str, feeds: Feeds, threads: int, compiles: bool) -> Engine:
    import onnx2torch
    import torch

    torch.set_num_threads(threads)
    module: Any = onnx2torch.convert(model).eval()
    inputs = [torch.from_numpy(array) for array in feeds.values()]
    if compiles:
        module = torch.compile(module)

    def run() -> list[Any]:
        with torch.inference_mode():
            outputs = module(*inputs)
        return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]

    return run, str(torch.__version__)


def torch_eager(model: str, feeds: Feeds, threads: int) -> Engine:
    """PyTorch as it comes, by way of onnx2torch."""
    return _torch(model, feeds, threads, compiles=False)


def torch_compile(model: str, feeds: Feeds, threads: int) -> Engine:
    """PyTorch behind torch.compile."""
    return _torch(model, feeds, threads, compiles=True)


def peak(_model: str, feeds: Feeds, threads: int) -> Engine:
    """Not an engine: a product of matrices, whose speed is the machine's peak.

    By ONNX Runtime: on Zen 5 its convolutions were 1.7 times as fast as numpy's OpenBLAS.
    """
    from onnx import TensorProto, helper, numpy_helper

    shape = feeds["left"].shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        # A constant is packed once.
        [numpy_helper.from_array(feeds["right"], "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnxruntime(model.SerializeToString(), {"left": feeds["left"]}, threads)


def copy(_model: str, _feeds: Feeds, threads: int) -> Engine:
    """Not an engine: a copy of memory, whose speed is the machine's bandwidth."""
    source = np.ones((threads, COPY_BYTES // 8 // threads))
    target = np.zeros_like(source)
    pool = ThreadPoolExecutor(threads)

    def run() -> list[Any]:
        # numpy copies without holding the interpreter's lock.
        list(pool.map(np.copyto, target, source))
        return []

    return run, np.__version__


ENGINES = {
    "leakyforge": leakyforge,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "mnn": mnn,
    "ncnn": ncnn,
    "torch": torch_eager,
    "torch.compile": torch_compile,
    "peak": peak,
    "copy": copy,
}


def memory_kib(field: str) -> int:
    """Resident memory of this process now (VmRSS) or at its peak (VmHWM), as in proc(5)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def turn(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each of the calls that fit into a time, at least one."""
    times: list[float] = []
    while sum(times) < seconds or not times:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def main(arguments: list[str]) -> None:
    """Load, answer, and take turns until the input ends."""
    # Engines print to file descriptor 1: keep it for the answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine, model, inputs, outputs, threads = arguments
    with np.load(inputs, allow_pickle=False) as archive:
        feeds = dict(archive)
    before = memory_kib("VmRSS")
    start = time.perf_counter()
    try:
        run, version = ENGINES[engine](model, feeds, int(threads))
        results = [np.asarray(result) for result in run()]
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is what the table says
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), file=answers)
        return
    loaded = time.perf_counter() - start
    arrays: Any = {str(index): result for index, result in enumerate(results)}
    np.savez(outputs, **arrays)
    print(json.dumps({"version": version, "load_seconds": loaded}), file=answers)
    for line in sys.stdin:
        warm, counted = json.loads(line)
        turn(run, warm)
        print(json.dumps(turn(run, counted)), file=answers)
    after = memory_kib("VmHWM")
    print(json.dumps({"added_kib": after - before}), file=answers)


if __name__ == "__main__":
    # The folder of this script holds modules of ours, which no engine means.
    del sys.path[0]
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
