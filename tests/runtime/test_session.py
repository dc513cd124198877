"""A session follows ONNX Runtime's calling conventions, whatever memory and threads it is given."""

import concurrent.futures
import gc
import os
import threading
import time

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from leakyforge.errors import InputError
from leakyforge.runtime import Session, read_artifact, tvm_runtime
from leakyforge.runtime.tensors import ALIGNMENT, empty_aligned, numpy_dtype

IMAGE = (1, 2, 7, 5)
CPUS = len(os.sched_getaffinity(0))


def reference(artifact):
    return onnxruntime.InferenceSession(
        artifact.with_suffix(".onnx"), providers=["CPUExecutionProvider"]
    )


def image(seed=0, shape=IMAGE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(actual, desired):
    """Same shape and dtype; a sum of 18 products in another order."""
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5, strict=True)


class TestCallingConventions:
    @pytest.mark.parametrize("name", ["conv", "symbolic_conv", "digits", "leaky"])
    def test_descriptions_are_those_of_onnxruntime(self, request, name):
        artifact = request.getfixturevalue(name)
        ours, theirs = Session(artifact), reference(artifact)
        for specs, values in (
            (ours.get_inputs(), theirs.get_inputs()),
            (ours.get_outputs(), theirs.get_outputs()),
        ):
            assert [(spec.name, list(spec.shape), spec.type) for spec in specs] == [
                (value.name, value.shape, value.type) for value in values
            ]

    @pytest.mark.parametrize(
        "names", [None, [], ["wide", "mean"], ["mean", "wide"], ["mean"], ("wide",), ["mean"] * 2]
    )
    def test_outputs_in_the_order_asked_for(self, conv, names):
        feeds = {"image": image()}
        actual, desired = Session(conv).run(names, feeds), reference(conv).run(names, feeds)
        assert isinstance(actual, list)
        for ours, theirs in zip(actual, desired, strict=True):
            assert_close(ours, theirs)

    def test_several_inputs_in_any_order(self, build):
        artifact = build(
            "two (float[N,3] a, float[3] b, float[N,3] c) => (float[N,3] y)"
            "{ d = Sub(a, b) e = LeakyRelu(d) y = Mul(e, c) }"
        )
        a, b, c = (image(seed, shape) for seed, shape in enumerate([(4, 3), (3,), (4, 3)]))
        (actual,) = Session(artifact).run(None, {"c": c, "a": a, "b": b})
        assert_close(actual, reference(artifact).run(None, {"a": a, "b": b, "c": c})[0])

    def test_symbolic_batch(self, symbolic_conv):
        session, expected = Session(symbolic_conv), reference(symbolic_conv)
        for batch in (1, 5, 2, 5):
            feeds = {"image": image(batch, (batch, *IMAGE[1:]))}
            for ours, theirs in zip(
                session.run(None, feeds), expected.run(None, feeds), strict=True
            ):
                assert_close(ours, theirs)

    def test_a_list_is_as_good_as_an_array(self, build):
        artifact = build("count (int64[2] x) => (int64[2] y) { y = Neg(x) }")
        (actual,) = Session(artifact).run(None, {"x": [3, -4]})
        np.testing.assert_array_equal(actual, np.array([-3, 4]), strict=True)

    def test_an_artifact_that_was_read_before(self, leaky):
        loaded = read_artifact(leaky)
        for _ in range(2):
            (actual,) = Session(loaded).run(["y"], loaded.reference_inputs)
            np.testing.assert_array_equal(actual, loaded.reference_outputs["y"], strict=True)


class TestErrors:
    @pytest.mark.parametrize(
        ("feeds", "words"),
        [
            ({}, ["'image' is missing", "takes: image"]),
            ({"image": image(), "imag": 0}, ["unknown input 'imag'", "takes: image"]),
            ({"image": image().astype(float)}, ["'image'", "float64", "float32"]),
            ({"image": image().astype(">f4")}, ["'image'", ">f4", "float32"]),
            ({"image": None}, ["'image'", "object", "float32"]),
            ({"image": image(shape=(1, 2, 7, 6))}, ["'image'", "1x2x7x6", "1x2x7x5"]),
            ({"image": image(shape=(2, 7, 5))}, ["'image'", "2x7x5", "1x2x7x5"]),
            ({"image": np.float32(0)}, ["'image'", "scalar", "1x2x7x5"]),
        ],
    )
    def test_wrong_input(self, conv, feeds, words):
        session = Session(conv)
        with pytest.raises(InputError) as caught:
            session.run(None, feeds)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        # A refused call leaves the session as it was.
        assert len(session.run(None, {"image": image()})) == 2

    def test_wrong_shape_where_it_is_symbolic(self, symbolic_conv):
        with pytest.raises(InputError, match="has shape 3x3x7x5, the model takes Nx2x7x5"):
            Session(symbolic_conv).run(None, {"image": image(shape=(3, 3, 7, 5))})

    def test_one_symbol_with_two_sizes(self, build):
        artifact = build("add (float[N,2] a, float[N,2] b) => (float[N,2] y) { y = Add(a, b) }")
        feeds = {"a": image(shape=(3, 2)), "b": image(shape=(4, 2))}
        with pytest.raises(InputError, match=r"'b' has shape 4x2, .* Nx2 .*input has N = 3"):
            Session(artifact).run(None, feeds)

    def test_unknown_output(self, conv):
        with pytest.raises(InputError, match="no output 'men'; its outputs: wide, mean"):
            Session(conv).run(["wide", "men"], {"image": image()})

    @pytest.mark.parametrize("threads", [0, -1, CPUS + 1, 10**6])
    def test_threads(self, leaky, threads):
        with pytest.raises(InputError, match=rf"threads={threads}, .* 1 to {CPUS} CPUs"):
            Session(leaky, threads=threads)


def placed(array, offset):
    """A copy whose data begin `offset` bytes after a boundary."""
    raw = empty_aligned((array.nbytes + offset,), np.dtype(np.uint8))
    copy = raw[offset:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array):
    array.flags.writeable = False
    return array


def strided(array):
    """Every other element of a larger array, whose beginning is aligned."""
    sizes = tuple(2 * size for size in array.shape)
    wide = empty_aligned(sizes, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in sizes)]
    view[...] = array
    return view


def odd_stride(array):
    """Contiguous, but the stride of the dimension of size 1 is not the compact one."""
    wide = empty_aligned((array.shape[0] * 3, *array.shape[1:]), array.dtype)
    view = wide[::3]
    view[...] = array
    assert view.flags.c_contiguous
    assert view.strides != array.strides
    return view


LAYOUTS = {
    "aligned": lambda array: placed(array, 0),
    "off by one element": lambda array: placed(array, 4),
    "off by one byte": lambda array: placed(array, 1),
    "read-only aligned": lambda array: read_only(placed(array, 0)),
    "read-only unaligned": lambda array: read_only(placed(array, 4)),
    "Fortran order": np.asfortranarray,
    "strided": strided,
    "odd stride": odd_stride,
    "negative strides": lambda array: np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1],
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "broadcast": lambda array: np.broadcast_to(array[:, :, :1], array.shape),
    "subclass": np.ma.masked_array,
}


# Graphs whose outputs could be the memory of an input, of a weight, or of one another.
ALIASES = {
    "identity": "g (float[4,16] x) => (float[4,16] y) { y = Identity(x) }",
    "reshape": "g (float[4,16] x) => (float[16,4] y) <int64[2] s = {16, 4}>{ y = Reshape(x, s) }",
    "weight": "g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}>"
    "{ y = Add(x, w) z = Identity(w) }",
    "twice": "g (float[4,16] x) => (float[4,16] y, float[4,16] z)"
    "{ y = LeakyRelu(x) z = Identity(y) }",
    "reshaped twice": "g (float[4,16] x) => (float[4,16] y, float[64] z) <int64[1] s = {64}>"
    "{ y = LeakyRelu(x) z = Reshape(y, s) }",
    "input twice": "g (float[4,16] x) => (float[4,16] y, float[4,16] z)"
    "{ y = Identity(x) z = Identity(x) }",
    "input as output": "g (float[4,16] x) => (float[4,16] x, float[4,16] y){ y = LeakyRelu(x) }",
}


class TestMemory:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_of_an_input(self, conv, layout):
        session = Session(conv)
        for seed in (0, 1):
            array = LAYOUTS[layout](image(seed))
            before = array.copy()
            outputs = session.run(None, {"image": array})
            desired = reference(conv).run(None, {"image": np.ascontiguousarray(array)})
            for ours, theirs in zip(outputs, desired, strict=True):
                assert_close(ours, theirs)
            np.testing.assert_array_equal(array, before)

    def test_inputs_are_read_where_they_lie(self, build):
        text = "g (float[4,5000] x) => (float[4,5000] y) { y = LeakyRelu <alpha = 0.5> (x) }"
        session = Session(build(text))
        raw = np.random.default_rng(0).standard_normal(20001).astype(np.float32)
        for array in (raw[:-1].reshape(4, 5000), raw[1:].reshape(4, 5000)):
            (actual,) = session.run(None, {"x": array})
            np.testing.assert_array_equal(actual, np.where(array >= 0, array, array * 0.5))
        # Nothing was copied.
        assert not session._engine._copies

    def test_memory_mapped_input(self, conv, tmp_path):
        np.save(tmp_path / "image.npy", image())
        array = np.load(tmp_path / "image.npy", mmap_mode="r")
        actual = Session(conv).run(["mean"], {"image": array})[0]
        assert_close(actual, reference(conv).run(["mean"], {"image": image()})[0])

    @pytest.mark.parametrize("name", ALIASES)
    @pytest.mark.parametrize("offset", [0, 4])
    def test_outputs_belong_to_the_caller(self, build, name, offset):
        artifact = build(ALIASES[name])
        session = Session(artifact)
        shape = tuple(session.get_inputs()[0].shape)
        first = placed(image(1, shape), offset)
        # ONNX Runtime 1.23, which Python 3.10 gets, gives the very memory of an input back.
        desired = [array.copy() for array in reference(artifact).run(None, {"x": first})]
        kept = session.run(None, {"x": first})
        before = first.copy()
        for index, output in enumerate(kept):
            np.testing.assert_array_equal(output, desired[index], strict=True)
            assert output.flags.writeable
            assert not np.may_share_memory(output, first)
            for other in kept[:index]:
                assert not np.shares_memory(output, other)
        # Another run, and a change of the caller's own input, leave them alone.
        session.run(None, {"x": image(2, shape)})
        first[...] = 7
        for output, expected in zip(kept, desired, strict=True):
            np.testing.assert_array_equal(output, expected)
        # Writing to them changes neither the input nor the session.
        first[...] = before
        for output in kept:
            output[...] = -1
        np.testing.assert_array_equal(first, before)
        for output, expected in zip(session.run(None, {"x": first}), desired, strict=True):
            np.testing.assert_array_equal(output, expected)

    def test_outputs_of_many_runs_are_distinct(self, conv):
        session = Session(conv)
        runs = [session.run(["wide"], {"image": image(seed)})[0] for seed in range(20)]
        expected = reference(conv)
        for seed, output in enumerate(runs):
            assert_close(output, expected.run(["wide"], {"image": image(seed)})[0])

    def test_outputs_outlive_the_session(self, conv):
        session = Session(conv)
        (wide, mean) = session.run(None, {"image": image()})
        copies = wide.copy(), mean.copy()
        del session
        gc.collect()
        [Session(conv).run(None, {"image": image(seed)}) for seed in range(3)]
        np.testing.assert_array_equal(wide, copies[0])
        np.testing.assert_array_equal(mean, copies[1])
        wide += 1


class TestDtypes:
    @pytest.mark.parametrize(
        "dtype",
        ["float16", "bfloat16", "double", "int8", "uint8", "int16", "int32", "int64", "bool"],
    )
    @pytest.mark.parametrize("offset", [0, 1])
    def test_moves_through_unchanged(self, build, dtype, offset):
        artifact = build(
            f"move ({dtype}[3,5] x) => ({dtype}[5,3] y) {{ y = Transpose <perm = [1, 0]> (x) }}"
        )
        session = Session(artifact)
        (spec,) = session.get_inputs()
        assert spec.type == session.get_outputs()[0].type == f"tensor({dtype})"
        array = (np.arange(15).reshape(3, 5) % 7 - 2).astype(numpy_dtype(spec.dtype))
        (actual,) = session.run(None, {"x": placed(array, offset)})
        np.testing.assert_array_equal(actual, array.T, strict=True)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_computes(self, build, dtype):
        artifact = build(
            f"f ({dtype}[N,3] x) => ({dtype}[N,3] y) {{ y = LeakyRelu <alpha = 0.5> (x) }}"
        )
        array = np.array([[1, -2, 0.5], [-0.25, 4, -3]]).astype(numpy_dtype(dtype))
        (actual,) = Session(artifact).run(None, {"x": array})
        desired = np.array([[1, -1, 0.5], [-0.125, 4, -1.5]]).astype(numpy_dtype(dtype))
        np.testing.assert_array_equal(actual, desired, strict=True)
        actual[...] = 0

    def test_bfloat16_and_uint16_are_not_confused(self, build):
        artifact = build("f (bfloat16[2] x) => (bfloat16[2] y) { y = Neg(x) }")
        with pytest.raises(InputError, match="dtype uint16, the model takes bfloat16"):
            Session(artifact).run(None, {"x": np.zeros(2, np.uint16)})
        (actual,) = Session(artifact).run(None, {"x": np.ones(2, ml_dtypes.bfloat16)})
        assert actual.dtype == ml_dtypes.bfloat16
        assert actual.tolist() == [-1, -1]

    def test_int64_and_bool_together(self, build):
        artifact = build(
            "f (int64[3] i, bool[3] b) => (bool[3] less, int64[3] chosen)"
            "<int64[3] limit = {2, 2, 2}> { less = Less(i, limit) chosen = Where(b, i, limit) }"
        )
        big = 2**53 + 1
        feeds = {"i": np.array([1, 2, big]), "b": np.array([False, True, True])}
        less, chosen = Session(artifact).run(None, feeds)
        np.testing.assert_array_equal(less, [True, False, False])
        assert less.dtype == np.bool_
        assert chosen.tolist() == [2, 2, big]

    def test_rank_0(self, build):
        artifact = build("f (float x) => (float y) { y = LeakyRelu <alpha = 0.5> (x) }")
        (actual,) = Session(artifact).run(None, {"x": np.float32(-3)})
        np.testing.assert_array_equal(actual, np.array(-1.5, np.float32), strict=True)


class TestThreads:
    RUNS = 60

    def expected(self, artifact, count):
        session = Session(artifact)
        names = [spec.name for spec in session.get_outputs()]
        (spec,) = session.get_inputs()
        feeds = [{spec.name: image(seed, tuple(spec.shape))} for seed in range(count)]
        oracle = reference(artifact)
        return names, feeds, [oracle.run(names, feed) for feed in feeds]

    def hammer(self, jobs):
        """Run all jobs at once, each in a thread of its own."""
        barrier = threading.Barrier(len(jobs))

        def start(job):
            barrier.wait(30)
            job()

        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            for future in [pool.submit(start, job) for job in jobs]:
                future.result(timeout=60)

    def test_one_session_from_several_threads(self, conv):
        names, feeds, desired = self.expected(conv, 6)
        session = Session(conv)

        def job(index):
            for _ in range(self.RUNS):
                outputs = session.run(names, feeds[index])
                time.sleep(0)
                for ours, theirs in zip(outputs, desired[index], strict=True):
                    assert_close(ours, theirs)

        self.hammer([lambda index=index: job(index) for index in range(6)])

    def test_several_sessions_in_several_threads(self, conv, digits, leaky):
        artifacts = [conv, digits, leaky] * 2
        everything = [self.expected(artifact, 3) for artifact in artifacts]

        def job(index):
            # Sessions with other thread counts, made while the others run.
            session = Session(artifacts[index], threads=1 + index % CPUS)
            names, feeds, desired = everything[index]
            for run in range(self.RUNS):
                outputs = session.run(names, feeds[run % 3])
                for ours, theirs in zip(outputs, desired[run % 3], strict=True):
                    assert_close(ours, theirs)

        self.hammer([lambda index=index: job(index) for index in range(len(artifacts))])

    def test_sessions_that_come_and_go(self, leaky, conv):
        names, feeds, desired = self.expected(conv, 2)

        def job(index):
            for run in range(15):
                session = Session(conv if (run + index) % 2 else leaky)
                if (run + index) % 2:
                    for ours, theirs in zip(
                        session.run(names, feeds[index % 2]), desired[index % 2], strict=True
                    ):
                        assert_close(ours, theirs)

        self.hammer([lambda index=index: job(index) for index in range(4)])

    def test_first_use_in_several_threads(self, run_python, conv):
        """Loading TVM's runtime is itself safe in threads."""
        script = """
import sys, threading
sys.setswitchinterval(1e-6)
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.session import Session
artifact = read_artifact(sys.argv[1])
barrier, done = threading.Barrier(8), []
def job():
    barrier.wait()
    outputs = Session(artifact).run(None, artifact.reference_inputs)
    done.append(abs(outputs[0] - artifact.reference_outputs["wide"]).max() < 1e-5)
threads = [threading.Thread(target=job) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(done.count(True), "torch" in sys.modules)
"""
        assert run_python(script, conv).split() == ["8", "False"]

    @pytest.mark.skipif(CPUS < 2, reason="needs two CPUs")
    def test_number_of_threads(self, run_python, build):
        """Processor time of the pool's workers: none where one thread was asked for."""
        artifact = build("big (float[1024,1024] x) => (float[1024,1024] y) { y = LeakyRelu(x) }")
        script = """
import os, sys, threading, time
os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = "1000"
from pathlib import Path
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.session import Session
artifact = read_artifact(sys.argv[1])
def nanoseconds():
    tasks = [task for task in Path("/proc/self/task").iterdir()
             if task.name != str(threading.get_native_id())]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
for count in map(int, sys.argv[2:]):
    session = Session(artifact, threads=count)
    session.run(None, artifact.reference_inputs)
    before = -1
    while before != nanoseconds():  # An idle worker spins before it sleeps.
        before = nanoseconds()
        time.sleep(0.1)
    for _ in range(100):
        session.run(None, artifact.reference_inputs)
    print(session.threads, nanoseconds() - before > 1e6)
"""
        expected = ["1", "False", str(CPUS), "True", "1", "False"]
        assert run_python(script, artifact, 1, CPUS, 1).split() == expected

    def test_sessions_of_several_sizes_in_one_thread(self, conv, monkeypatch):
        """Each run has its own session's count, though the pool belongs to the thread."""
        sizes = []
        original = tvm_runtime.tvm_ffi()

        class Spy:
            def __getattr__(self, name):
                return getattr(original, name)

            def get_global_func(self, name):
                function = original.get_global_func(name)
                if name != "runtime.config_threadpool":
                    return function
                return lambda mode, count, cpus: sizes.append(count) or function(mode, count, cpus)

        one, most = Session(conv, threads=1), Session(conv, threads=CPUS)
        monkeypatch.setattr(tvm_runtime, "tvm_ffi", lambda: Spy())
        tvm_runtime._pool.size = None
        for session in (one, most, most, one):
            session.run(None, {"image": image()})
        assert sizes == ([1, CPUS, 1] if CPUS > 1 else [1])

    @pytest.mark.parametrize("cpus", [CPUS, 1], ids=["all CPUs", "one CPU"])
    @pytest.mark.parametrize("threads", ["default", "1", "all"])
    def test_affinity_of_the_caller_stays(self, run_python, conv, threads, cpus):
        script = """
import os, sys
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.session import Session
artifact = read_artifact(sys.argv[1])
before = set(sorted(os.sched_getaffinity(0))[-int(sys.argv[3]):])
os.sched_setaffinity(0, before)
threads = {"default": None, "1": 1, "all": len(before)}[sys.argv[2]]
session = Session(artifact, threads=threads)
made = os.sched_getaffinity(0)
for _ in range(3):
    session.run(None, artifact.reference_inputs)
print(before == made == os.sched_getaffinity(0))
"""
        assert run_python(script, conv, threads, cpus) == "True\n"

    @pytest.mark.skipif(CPUS < 2, reason="needs two CPUs")
    def test_affinity_limits_the_threads(self, run_python, conv):
        script = """
import os, sys
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
from leakyforge.errors import InputError
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.session import Session
session = Session(sys.argv[1])
session.run(None, read_artifact(sys.argv[1]).reference_inputs)
try:
    Session(sys.argv[1], threads=2)
except InputError as error:
    print(session.threads, error)
"""
        assert run_python(script, conv).startswith("1 threads=2, ")


def test_alignment_is_a_line_of_the_cache():
    assert ALIGNMENT == 64
    for _ in range(20):
        array = empty_aligned((3,), np.dtype(np.float32))
        assert array.ctypes.data % ALIGNMENT == 0
