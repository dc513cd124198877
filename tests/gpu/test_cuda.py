"""CUDA artifacts: compiled by nvcc everywhere, run where there is an NVIDIA GPU.

Without one, a driver of the test's own stands in for NVIDIA's: it keeps memory in numpy arrays and
computes LeakyRelu where the launcher launches it in a graph.
"""

# ruff: noqa: N802 - the driver's functions have NVIDIA's names.

import base64
import ctypes
import dataclasses
import gc
import json
import shutil
import subprocess

import numpy as np
import pytest
from onnx import numpy_helper, parser

from leakyforge.errors import (
    ArtifactFormatError,
    CompileError,
    DeviceError,
    ExecutionError,
    InputError,
    MissingDependencyError,
    TargetError,
)
from leakyforge.kernels import compile
from leakyforge.kernels.gpu import convolutions, nvcc, parse_gpu_target
from leakyforge.kernels.gpu.occupancy import occupancy
from leakyforge.models import build
from leakyforge.runtime import Session, bench, check, read_artifact, read_manifest, verify
from leakyforge.runtime import cuda as launcher
from leakyforge.runtime.artifact import unpack_weights
from leakyforge.runtime.doctor import examine
from leakyforge.runtime.manifest import parse_manifest
from leakyforge.runtime.plan import read_plan

driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc of NVIDIA's CUDA toolkit is not on the PATH"
)
try:
    DEVICE, LACKS = launcher.find_cuda_devices()[0], ""
except DeviceError as error:
    DEVICE, LACKS = None, str(error)
# Then cuda-bindings converts arguments and stops before anything is called.
NO_DRIVER = "no CUDA driver" in LACKS
needs_device = pytest.mark.skipif(DEVICE is None, reason=f"needs an NVIDIA GPU: {LACKS}")
without_device = pytest.mark.skipif(DEVICE is not None, reason="this machine has an NVIDIA GPU")

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
SHAPE, ALPHA = (5, 7), 0.2
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
EXPECTED = np.where(X < 0, X * np.float32(ALPHA), X)


def model(text):
    return parser.parse_model(HEADER + text)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc of NVIDIA's CUDA toolkit is not on the PATH")
    proto = model("g (float[5,7] x) => (float[5,7] y) { y = LeakyRelu <alpha = 0.2> (x) }")
    return compile(proto, "cuda:sm_80", output=tmp_path_factory.mktemp("cuda") / "leaky.lfa")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc of NVIDIA's CUDA toolkit is not on the PATH")
    return compile(
        build("digits"), "cuda:sm_90", output=tmp_path_factory.mktemp("cuda") / "digits.lfa"
    )


class FakeDriver:
    """NVIDIA's driver with devices of the test's own; it runs any kernel as LeakyRelu of X's shape.

    Attributes:
        memory: contents of each allocation, by its address, in the order of the allocations; the
            first is the arena.
        held: addresses of what was created and not yet freed.
        uploads: how many copies to the device there were.
        launched: kernel, grid and block of each launch.
        graphs: the kernels of each graph, by its handle; None is the one that is captured.
    """

    CUdevice_attribute = driver.CUdevice_attribute
    CUfunction_attribute = driver.CUfunction_attribute
    CUstreamCaptureMode = driver.CUstreamCaptureMode

    def __init__(self, *capabilities, room=1 << 30, most_threads=1024, **fails):
        self.capabilities, self.room, self.most_threads = capabilities, room, most_threads
        self.fails = fails
        self.memory, self.held, self.launched, self.uploads = {}, [], [], 0
        self.kernels, self.graphs = {}, {}

    def __getattribute__(self, name):
        if not name.startswith("cu"):
            return super().__getattribute__(name)
        real = getattr(driver, name)
        status = self.fails.get(name)
        if status is not None:
            error = getattr(driver.CUresult, f"CUDA_ERROR_{status}")
            return lambda *_: (error, None)
        call = super().__getattribute__(name)

        def succeed(*arguments):
            if NO_DRIVER:
                with pytest.raises(RuntimeError):
                    real(*arguments)
            result = call(*arguments)
            return (driver.CUresult.CUDA_SUCCESS, *([] if result is None else result))

        return succeed

    def create(self, kind):
        self.held.append(max(self.held, default=0) + 1)
        return [kind(self.held[-1])]

    def free(self, handle):
        self.held.remove(int(handle))

    def cuInit(self, flags):
        assert flags == 0

    def cuDeviceGetCount(self):
        return [len(self.capabilities)]

    def cuDeviceGet(self, index):
        return [driver.CUdevice(index)]

    def cuDeviceGetName(self, length, device):
        return [f"GPU {int(device)}".encode().ljust(length, b"\0")]

    def cuDeviceGetAttribute(self, attribute, device):
        return [self.capabilities[int(device)]["MINOR" in attribute.name]]

    def cuDevicePrimaryCtxRetain(self, device):
        return self.create(driver.CUcontext)

    def cuDevicePrimaryCtxRelease(self, device):
        # The context is the first that is created, and the last that is freed.
        self.free(self.held[0])

    def cuCtxSetCurrent(self, context):
        assert int(context) == self.held[0]

    def cuMemGetInfo(self):
        return self.room, 1 << 31

    def cuModuleLoadData(self, image):
        assert image.startswith(b"\x7fELF")
        return self.create(driver.CUmodule)

    def cuModuleUnload(self, module):
        self.free(module)

    def cuModuleGetFunction(self, module, name):
        assert int(module) in self.held
        self.kernels[len(self.kernels) + 1] = name.decode()
        return [driver.CUfunction(len(self.kernels))]

    def cuFuncGetAttribute(self, attribute, kernel):
        return [self.most_threads]

    def cuStreamCreate(self, flags):
        return self.create(driver.CUstream)

    def cuStreamDestroy(self, stream):
        self.free(stream)

    def cuStreamSynchronize(self, stream):
        assert int(stream) in self.held

    def cuMemAlloc(self, size):
        array = np.full(size, 0xFF, np.uint8)
        self.memory[array.ctypes.data] = array
        return [driver.CUdeviceptr(array.ctypes.data)]

    def cuMemFree(self, pointer):
        del self.memory[int(pointer)]

    def at(self, pointer, size):
        """The bytes from an address on, which must lie in one allocation."""
        for start, array in self.memory.items():
            if start <= pointer <= start + len(array) - size:
                return array[pointer - start : pointer - start + size]
        raise AssertionError(f"{size} bytes at {pointer} are not the device's")

    def cuMemcpyHtoD(self, target, source, size):
        self.uploads += 1
        ctypes.memmove(self.at(int(target), size).ctypes.data, source, size)

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        assert int(stream) in self.held
        self.cuMemcpyHtoD(target, source, size)

    def cuMemcpyDtoHAsync(self, target, source, size, stream):
        ctypes.memmove(target, self.at(int(source), size).ctypes.data, size)

    def cuLaunchKernel(self, kernel, *rest):
        *sizes, shared, stream, parameters, extra = rest
        assert (shared, extra) == (0, 0)
        assert int(stream) in self.held
        # An array of the addresses of the arguments, each of which is a pointer.
        places = (ctypes.c_void_p * 2).from_address(parameters)
        output, source = (ctypes.c_uint64.from_address(place).value for place in places)
        self.graphs[None].append((self.kernels[int(kernel)], tuple(sizes), source, output))

    def cuStreamBeginCapture(self, stream, mode):
        assert int(stream) in self.held
        self.graphs[None] = []

    def cuStreamEndCapture(self, stream):
        (graph,) = self.create(driver.CUgraph)
        self.graphs[int(graph)] = self.graphs.pop(None)
        return [graph]

    def cuGraphInstantiate(self, graph, flags):
        (executable,) = self.create(driver.CUgraphExec)
        self.graphs[int(executable)] = self.graphs[int(graph)]
        return [executable]

    def cuGraphDestroy(self, graph):
        self.free(graph)

    def cuGraphExecDestroy(self, executable):
        self.free(executable)

    def cuGraphLaunch(self, executable, stream):
        assert {int(executable), int(stream)} <= set(self.held)
        for kernel, sizes, source, output in self.graphs[int(executable)]:
            self.launched.append((kernel, sizes))
            x, y = (
                self.at(each, X.nbytes).view(np.float32).reshape(SHAPE) for each in (source, output)
            )
            y[...] = np.where(x < 0, x * np.float32(ALPHA), x)


@pytest.fixture
def use(monkeypatch):
    """Puts a driver in the place of NVIDIA's."""

    def use(fake):
        monkeypatch.setattr(launcher, "_driver", lambda: fake)
        return fake

    return use


class TestTarget:
    @needs_nvcc
    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
    def test_architectures(self, architecture):
        target = parse_gpu_target(f"cuda:{architecture}")
        assert (target.name, target.machine) == (architecture, "cuda")
        assert str(target.tvm.attrs["arch"]) == architecture
        assert int(target.tvm.attrs["max_shared_memory_per_block"]) == 48 << 10

    @needs_nvcc
    @pytest.mark.parametrize(
        "text", ["cuda", "cuda:", "cuda:80", "cuda:sm_99", "cuda:sm_80 ", "cuda:sm_90a"]
    )
    def test_unknown_architectures(self, text):
        with pytest.raises(TargetError) as caught:
            parse_gpu_target(text)
        assert f"{text!r}; use one of: cuda:sm_" in str(caught.value)
        assert "cuda:sm_90" in str(caught.value)

    @pytest.mark.parametrize("text", ["cpu", "cudas:sm_80", "CUDA:sm_80", ""])
    def test_others_are_not_looked_at(self, text, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert parse_gpu_target(text) is None

    def test_without_nvcc(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        proto = model("g (float[2] x) => (float[2] y) { y = LeakyRelu (x) }")
        with pytest.raises(MissingDependencyError, match=r"nvcc.* install NVIDIA's CUDA toolkit"):
            compile(proto, "cuda:sm_80", output=tmp_path / "m.lfa")
        assert not list(tmp_path.iterdir())

    def test_an_nvcc_that_does_not_run(self, monkeypatch, tmp_path):
        broken = tmp_path / "nvcc"
        broken.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match="does not run: no licence; install"):
            parse_gpu_target("cuda:sm_80")


class TestNvcc:
    PTXAS = """ptxas info    : 24 bytes gmem, 256 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'd' for 'sm_80'
ptxas info    : Function properties for d
    32 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 640 bytes smem, 360 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Function properties for called_by_d
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'e' for 'sm_90'
ptxas info    : Function properties for e
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""  # noqa: E501

    def test_figures(self):
        assert nvcc.parse_figures(self.PTXAS) == {
            "d": nvcc.Figures(18, 12, 16, 32, 640, 368),
            "e": nvcc.Figures(8, 0, 0, 0, 0, None),
        }

    @needs_nvcc
    def test_figures_of_a_kernel(self):
        """Its registers are limited so that its array does not fit in them."""
        source = """extern "C" __global__ void __launch_bounds__(1024, 2) hungry(float* x) {
            __shared__ float tile[256];
            float kept[96];
            #pragma unroll
            for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];
            tile[threadIdx.x % 256] = x[threadIdx.x];
            __syncthreads();
            #pragma unroll
            for (int i = 0; i < 96; ++i) x[i] = kept[95 - i] * kept[i] + tile[i];
        }"""
        cubin, figures = nvcc.compile_cubin(source, "sm_80")
        assert cubin.startswith(b"\x7fELF")
        hungry = figures["hungry"]
        assert (hungry.registers, hungry.shared) == (32, 1024)
        assert hungry.spill_stores > 0
        assert hungry.stack > 0

    @needs_nvcc
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("broken(", "nvcc fails for sm_80: .*error"),
            (
                'extern "C" __global__ void f(float* x) { __shared__ float t[15000];'
                "t[threadIdx.x] = x[0]; __syncthreads(); x[threadIdx.x] = t[threadIdx.x ^ 1]; }",
                "too much shared data",
            ),
        ],
    )
    def test_what_it_refuses(self, source, message):
        with pytest.raises(CompileError, match=message):
            nvcc.compile_cubin(source, "sm_80")


class TestOccupancy:
    @pytest.mark.parametrize(
        ("architecture", "threads", "registers", "shared", "expected"),
        [
            # By hand, from the table of the programming guide.
            ("sm_80", 1024, 16, 0, (2048, "threads")),
            ("sm_80", 128, 64, 6912, (1024, "registers")),
            ("sm_80", 256, 32, 40 << 10, (256 * 4, "shared memory")),
            ("sm_80", 32, 16, 0, (1024, "blocks")),
            ("sm_86", 1024, 16, 0, (1024, "threads")),
            ("sm_90", 128, 72, 6912, (896, "registers")),
            ("sm_75", 256, 32, 24 << 10, (512, "shared memory")),
        ],
    )
    def test_by_hand(self, architecture, threads, registers, shared, expected):
        found = occupancy(architecture, threads, registers, shared)
        assert (found.resident, found.limit) == expected

    def test_unknown_architecture(self):
        assert occupancy("sm_999", 128, 32, 0) is None

    @needs_nvcc
    def test_equals_nvidias_own(self, tmp_path):
        """cuda_occupancy.h of the toolkit, for every architecture of the table."""
        properties = {
            "sm_75": (7, 5, 1024, 64, 0),
            "sm_80": (8, 0, 2048, 164, 1),
            "sm_86": (8, 6, 1536, 100, 1),
            "sm_87": (8, 7, 1536, 164, 1),
            "sm_89": (8, 9, 1536, 100, 1),
            "sm_90": (9, 0, 2048, 228, 1),
            "sm_100": (10, 0, 2048, 228, 1),
            "sm_103": (10, 3, 2048, 228, 1),
            "sm_120": (12, 0, 1536, 100, 1),
            "sm_121": (12, 1, 1536, 100, 1),
        }
        program = tmp_path / "occupancy.cpp"
        program.write_text(
            """#include <cstdio>
            #include <cuda_occupancy.h>
            int main() {
                int major, minor, sm_threads, sm_shared, reserved, threads, registers, shared;
                while (scanf("%d%d%d%d%d%d%d%d", &major, &minor, &sm_threads, &sm_shared,
                             &reserved, &threads, &registers, &shared) == 8) {
                    cudaOccDeviceProp device;
                    device.computeMajor = major;
                    device.computeMinor = minor;
                    device.maxThreadsPerBlock = 1024;
                    device.maxThreadsPerMultiprocessor = sm_threads;
                    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
                    device.warpSize = 32;
                    device.sharedMemPerBlock = 48 << 10;
                    device.sharedMemPerMultiprocessor = sm_shared << 10;
                    device.numSms = 100;
                    device.sharedMemPerBlockOptin = (sm_shared - reserved) << 10;
                    device.reservedSharedMemPerBlock = reserved << 10;
                    cudaOccFuncAttributes kernel;
                    kernel.maxThreadsPerBlock = 1024;
                    kernel.numRegs = registers;
                    kernel.sharedSizeBytes = shared;
                    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
                    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_DEFAULT;
                    kernel.maxDynamicSharedSizeBytes = 0;
                    kernel.numBlockBarriers = 1;
                    cudaOccDeviceState state;
                    cudaOccResult result;
                    if (cudaOccMaxActiveBlocksPerMultiprocessor(
                            &result, &device, &kernel, &state, threads, 0)) return 1;
                    printf("%d\\n", result.activeBlocksPerMultiprocessor);
                }
            }"""
        )
        binary = tmp_path / "occupancy"
        built = subprocess.run(
            ["nvcc", "-cudart", "none", "-o", binary, program],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode != 0:
            pytest.skip(f"nvcc builds no program for this machine: {built.stderr[-200:]}")
        cases = [
            (architecture, threads, registers, shared)
            for architecture in properties
            for threads in (1, 32, 33, 128, 160, 256, 384, 1024)
            for registers in (8, 24, 25, 32, 33, 64, 72, 96, 128, 255)
            for shared in (0, 1, 640, 6912, 20000, 33000, 48 << 10)
            # Not one block fits: such a launch is refused, with more or with fewer registers free.
            if threads * registers <= 48 << 10
        ]
        lines = [
            " ".join(map(str, (*properties[architecture], threads, registers, shared)))
            for architecture, threads, registers, shared in cases
        ]
        done = subprocess.run(
            [binary], input="\n".join(lines), capture_output=True, text=True, check=True
        )
        theirs = [int(line) for line in done.stdout.split()]
        ours = [occupancy(*case).resident // (-(-case[1] // 32) * 32) for case in cases]
        assert len(theirs) == len(cases)
        assert [case for case, a, b in zip(cases, ours, theirs, strict=True) if a != b] == []


class TestArtifact:
    def test_records_of_every_launch(self, digits):
        artifact = read_artifact(digits)
        plan, kernels = read_plan(artifact), artifact.variant.kernels
        assert [kernel.name for kernel in kernels] == [launch.kernel for launch in plan.launches]
        for kernel, launch in zip(kernels, plan.launches, strict=True):
            use = kernel.resources
            assert use.threads == np.prod(launch.group)
            assert 0 < use.resident <= 2048
            assert use.occupancy == use.resident / 2048
            assert (use.spill_stores, use.spill_loads, use.stack) == (0, 0, 0)
        flops = [kernel.flops for kernel in kernels]
        # Convolutions and the product by hand: 2 * outputs * products of an output.
        convolutions = [2 * 64 * 16 * 9, 2 * 64 * 32 * 144, 2 * 16 * 32 * 288]
        assert [count for count in flops if count] == [*convolutions, 2 * 128 * 10]
        assert all(kernel.computed >= kernel.flops for kernel in kernels)
        # Image, kernel, bias and output of the first convolution.
        assert kernels[0].bytes_moved == 4 * (64 + 16 * 9 + 16 + 16 * 64)

    def test_kernels_are_symbols_of_the_cubin(self, digits):
        plan = read_plan(read_artifact(digits))
        assert plan.programs == ()
        for launch in plan.launches:
            assert b"\0.text." + launch.kernel.encode() + b"\0" in plan.cubin

    def test_manifest_is_read_back(self, digits):
        manifest = read_manifest(digits)
        assert (manifest.machine, manifest.variants[0].name) == ("cuda", "sm_90")
        assert parse_manifest(json.loads(manifest.to_json())) == manifest

    @needs_nvcc
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("mlp", {"hidden": 24, "batch": 2}),
            ("hifigan", {"version": 3, "frames": 2}),
            ("rrdbnet", {"blocks": 1, "features": 16, "growth": 8, "height": 6, "width": 10}),
        ],
    )
    def test_convolutions_and_products_spill_nothing(self, name, options, tmp_path):
        path = compile(build(name, **options), "cuda:sm_80", output=tmp_path / "m.lfa")
        kernels = [each for each in read_manifest(path).variants[0].kernels if each.flops]
        spills = {each.name: each.resources.spill_stores for each in kernels}
        assert spills
        assert not any(spills.values()), spills

    @needs_nvcc
    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
    def test_largest_tiles_spill_nothing(self, architecture, tmp_path):
        """64 sums, the operands that they wait for, and 8 elements held for the next step."""
        proto = model(
            "g (float[1,16,72,72] x, float[256,16,3,3] w) => (float[1,256,72,72] y)"
            " { c = Conv <pads = [1,1,1,1]> (x, w) y = LeakyRelu <alpha = 0.1> (c) }"
        )
        path = compile(proto, f"cuda:{architecture}", output=tmp_path / "m.lfa")
        (kernel,) = read_manifest(path).variants[0].kernels
        use = kernel.resources
        assert kernel.algorithm == "gemm"
        assert (use.threads, use.spill_stores, use.spill_loads, use.stack) == (256, 0, 0, 0)
        # Two work-groups fit a multiprocessor of 64 Ki registers.
        assert use.resident == 2 * 256

    @needs_nvcc
    @pytest.mark.parametrize("outputs", [2, 4])
    @pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
    def test_winograd_spills_nothing(self, architecture, outputs, tmp_path, monkeypatch):
        monkeypatch.setattr(convolutions, "_OUTPUTS", (outputs,))
        weight = np.random.default_rng(0).standard_normal((256, 256, 3, 3)).astype(np.float32)
        proto = model(
            "g (float[1,256,55,56] x, float[256] b, float[1,256,55,56] r)"
            " => (float[1,256,55,56] y)"
            "{ c = Conv <pads = [1,1,1,1]> (x, w, b) l = LeakyRelu(c) y = Add(l, r) }"
        )
        proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        path = compile(proto, f"cuda:{architecture}", output=tmp_path / "m.lfa")
        kernels = read_manifest(path).variants[0].kernels
        assert [each.algorithm for each in kernels] == ["winograd", "gemm", "winograd"]
        for kernel in kernels:
            use = kernel.resources
            assert (use.spill_stores, use.spill_loads, use.stack) == (0, 0, 0), kernel
        # A tile is in registers: several groups of the transforms are on a multiprocessor.
        assert min(kernels[index].resources.occupancy for index in (0, 2)) >= 0.5

    @needs_nvcc
    def test_a_model_without_kernels(self, tmp_path):
        proto = model("g (float[3] x) => (float[3] y) { y = Identity(x) }")
        path = compile(proto, "cuda:sm_80", output=tmp_path / "m.lfa")
        assert read_manifest(path).variants[0].kernels == ()

    def test_symbolic_shape(self, tmp_path, leaky):
        proto = model("g (float[N,7] x) => (float[N,7] y) { y = LeakyRelu (x) }")
        with pytest.raises(CompileError, match="--shape"):
            compile(proto, "cuda:sm_80", output=tmp_path / "m.lfa")
        assert not (tmp_path / "m.lfa").exists()

    @without_device
    def test_parity_is_not_run_without_a_device(self, leaky):
        (variant,) = read_manifest(leaky).variants
        assert (variant.parity.result, variant.parity.lacks) == ("not run", ("CUDA device",))

    def test_bench_would_say_nothing(self, leaky):
        with pytest.raises(InputError, match="for CUDA devices"):
            bench(leaky)


class TestLauncher:
    def test_runs_the_plan(self, leaky, use):
        fake = use(FakeDriver((8, 0)))
        session = Session(leaky)
        for _ in range(2):
            np.testing.assert_array_equal(session.run(None, {"x": X})[0], EXPECTED)
        (launch,) = read_plan(read_artifact(leaky)).launches
        assert fake.launched == 2 * [(launch.kernel, (*launch.grid, *launch.group))]
        assert fake.uploads == 2

    def test_inputs_of_any_layout(self, leaky, use):
        use(FakeDriver((8, 0)))
        (y,) = Session(leaky).run(["y"], {"x": np.asfortranarray(X)})
        np.testing.assert_array_equal(y, EXPECTED)

    def test_weights_are_uploaded_once(self, digits, use):
        fake = use(FakeDriver((9, 0)))
        session = Session(digits)
        artifact = read_artifact(digits)
        plan = read_plan(artifact)
        arena, *buffers = fake.memory.values()
        assert len(arena) == plan.arena
        assert sum(map(len, buffers)) + len(arena) == plan.memory
        weights = unpack_weights(artifact.weight_memory, artifact.variant.weights)
        for buffer, weight in zip(buffers, weights, strict=True):
            assert buffer.tobytes() == weight.tobytes()
        assert fake.uploads == len(weights) > 0
        assert session.variant == "sm_90"

    def test_everything_is_freed_with_the_session(self, leaky, use):
        fake = use(FakeDriver((8, 0)))
        session = Session(leaky)
        assert fake.held
        assert fake.memory
        del session
        gc.collect()
        assert (fake.held, fake.memory) == ([], {})

    def test_stored_outputs_are_replayed(self, leaky, use):
        use(FakeDriver((8, 0)))
        assert verify(leaky)

    def test_record_names_the_device(self, leaky, use, tmp_path):
        use(FakeDriver((8, 0)))
        proto = model("g (float[5,7] x) => (float[5,7] y) { y = LeakyRelu <alpha = 0.2> (x) }")
        path = compile(proto, "cuda:sm_80", output=tmp_path / "m.lfa")
        parity = read_manifest(path).variants[0].parity
        assert (parity.result, parity.cpu) == ("pass", "GPU 0")

    def test_needs_no_tvm(self, leaky, run_python):
        script = """
import sys
from leakyforge.errors import DeviceError
from leakyforge.runtime import Session
try:
    Session(sys.argv[1])
except DeviceError:
    pass
print(sorted(name for name in sys.modules if name in ("tvm", "tvm_ffi")))
"""
        assert run_python(script, leaky) == "[]\n"


class TestDevices:
    def test_the_first_that_runs_the_code(self, use):
        use(FakeDriver((9, 0), (8, 6), (8, 0)))
        assert launcher.choose_cuda_device("sm_80").index == 1
        assert launcher.choose_cuda_device("sm_80", "gpu 2").index == 2

    @pytest.mark.parametrize(
        ("architecture", "capability", "runs"),
        [("sm_80", (8, 0), True), ("sm_80", (8, 9), True), ("sm_86", (8, 0), False),
         ("sm_80", (9, 0), False), ("sm_100", (10, 3), True), ("sm_120", (10, 0), False)],
    )  # fmt: skip
    def test_which_code_runs(self, architecture, capability, runs):
        assert launcher.CudaDevice(0, "", capability).runs(architecture) == runs

    def test_another_architecture(self, leaky, use):
        use(FakeDriver((9, 0), (12, 0)))
        message = r"for sm_80, and GPU 0 is sm_90, GPU 1 is sm_120; .* --target cuda:sm_90"
        with pytest.raises(DeviceError, match=message):
            Session(leaky)

    def test_no_such_device(self, leaky, use):
        use(FakeDriver((8, 0)))
        with pytest.raises(DeviceError, match="no CUDA device is called 'warp'; there is 'GPU 0'"):
            Session(leaky, device="warp")

    def test_no_device(self, use):
        use(FakeDriver())
        with pytest.raises(DeviceError, match="there is no CUDA device; install"):
            launcher.find_cuda_devices()

    def test_the_driver_finds_none(self, use):
        use(FakeDriver(cuInit="NO_DEVICE"))
        with pytest.raises(DeviceError, match="finds no device: CUDA_ERROR_NO_DEVICE; install"):
            launcher.find_cuda_devices()

    @without_device
    def test_no_driver(self, leaky):
        with pytest.raises(DeviceError, match=r"no CUDA|finds no device"):
            Session(leaky)

    def test_no_bindings(self, leaky, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'leakyforge\[cuda\]'"):
            Session(leaky)

    def test_the_doctor_lists_devices_and_nvcc(self, use):
        use(FakeDriver((8, 0), (9, 0)))
        found = {finding.name: finding for finding in examine()}
        assert found["cuda"].found == "GPU 0 (sm_80), GPU 1 (sm_90)"
        assert found["nvcc"].ok

    def test_the_doctor_without_either(self, use, monkeypatch):
        use(FakeDriver())
        monkeypatch.setenv("PATH", "")
        found = {finding.name: finding for finding in examine()}
        assert (found["cuda"].found, found["cuda"].ok) == ("absent", True)
        assert (found["nvcc"].found, found["nvcc"].ok) == ("absent", True)
        assert "CUDA toolkit" in found["nvcc"].advice


class TestErrors:
    @pytest.mark.parametrize(
        ("fake", "message"),
        [
            ({"room": 100}, "out of device memory: the model needs 0 MiB, GPU 0 has"),
            ({"cuMemAlloc": "OUT_OF_MEMORY"}, "prepared on CUDA device GPU 0: out of device mem"),
            ({"cuModuleLoadData": "NO_BINARY_FOR_GPU"}, "GPU 0: CUDA_ERROR_NO_BINARY_FOR_GPU"),
            ({"cuModuleGetFunction": "NOT_FOUND"}, "GPU 0: CUDA_ERROR_NOT_FOUND"),
            ({"cuLaunchKernel": "INVALID_VALUE"}, "GPU 0: CUDA_ERROR_INVALID_VALUE"),
            ({"cuStreamEndCapture": "STREAM_CAPTURE_INVALIDATED"}, "STREAM_CAPTURE_INVALIDATED"),
            ({"cuGraphInstantiate": "OUT_OF_MEMORY"}, "GPU 0: out of device memory"),
            ({"most_threads": 1}, "needs blocks of .* threads, GPU 0 runs it with at most 1;"),
        ],
    )
    def test_what_the_device_refuses(self, leaky, use, fake, message):
        fake = use(FakeDriver((8, 0), **fake))
        with pytest.raises(DeviceError, match=message):
            Session(leaky)
        assert (fake.held, fake.memory) == ([], {})

    def test_a_grid_that_no_device_takes(self, leaky, use):
        use(FakeDriver((8, 0)))
        artifact = read_artifact(leaky)
        fields = json.loads(artifact.library)
        fields["launches"][0]["grid"] = [1, 70000, 1]
        changed = dataclasses.replace(artifact, library=json.dumps(fields).encode())
        with pytest.raises(DeviceError, match="needs a grid of"):
            Session(changed)

    @pytest.mark.parametrize(
        "call", ["cuGraphLaunch", "cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"]
    )
    def test_a_device_that_fails(self, leaky, use, call):
        fake = use(FakeDriver((8, 0)))
        session = Session(leaky)
        fake.fails[call] = "ILLEGAL_ADDRESS"
        with pytest.raises(ExecutionError, match=r"failed on CUDA device GPU 0: .*ILLEGAL_ADDRESS"):
            session.run(None, {"x": X})

    @pytest.mark.parametrize("cubin", [3, "no base64!", None])
    def test_no_cubin(self, leaky, use, cubin):
        use(FakeDriver((8, 0)))
        artifact = read_artifact(leaky)
        fields = json.loads(artifact.library) | {"cubin": cubin}
        changed = dataclasses.replace(artifact, library=json.dumps(fields).encode())
        with pytest.raises(ArtifactFormatError, match="holds no launch plan"):
            Session(changed)

    def test_cubin_survives_json(self, leaky):
        artifact = read_artifact(leaky)
        plan = read_plan(artifact)
        assert base64.b64decode(json.loads(artifact.library)["cubin"]) == plan.cubin
        assert plan.to_json() == artifact.library


@needs_device
@needs_nvcc
class TestOnADevice:
    @pytest.fixture(scope="class")
    def target(self):
        return f"cuda:{DEVICE.architecture}"

    def test_exact(self, target, tmp_path):
        proto = model("g (float[5,7] x) => (float[5,7] y) { y = LeakyRelu <alpha = 0.2> (x) }")
        session = Session(compile(proto, target, output=tmp_path / "m.lfa"))
        np.testing.assert_array_equal(session.run(None, {"x": X})[0], EXPECTED)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("digits", {"batch": 3}),
            ("mlp", {"hidden": 24, "batch": 2}),
            ("hifigan", {"version": 3, "frames": 2}),
            ("pix2pix-unet", {"size": 16, "depth": 3, "features": 8}),
            ("rrdbnet", {"blocks": 1, "features": 16, "growth": 8, "height": 6, "width": 10}),
            ("yolov3-tiny", {"size": 64}),
        ],
    )
    def test_equals_onnx_runtime(self, target, name, options, tmp_path):
        import onnx

        path = tmp_path / "model.onnx"
        onnx.save(build(name, **options), path)
        artifact = compile(path, target)
        assert read_manifest(artifact).variants[0].parity.result == "pass"
        report = check(artifact, samples=2)
        assert report, report
