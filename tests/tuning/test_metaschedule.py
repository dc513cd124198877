"""MetaSchedule's space: which kernels it is for, its candidates, and what `compile` takes of it."""

import json
import random

import numpy as np
import onnx
import pytest
import tvm

from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse
from leakyforge.kernels.tuning.fused import fused_kernels
from leakyforge.kernels.tuning.machine import Local
from leakyforge.kernels.tuning.metaschedule import RULES, Sketches
from leakyforge.kernels.tuning.records import Records, Winner, key_for
from leakyforge.kernels.tuning.worker import Result, _Bench
from leakyforge.runtime import check, read_manifest

HOST = parse_target("cpu")
HEAD = '<ir_version: 10, opset_import: ["": 18]> g '
ATTENTION = (
    HEAD
    + """
    (float[1,4,128,32] q, float[1,4,32,128] k, float[1,4,128,32] v) => (float[1,4,128,32] y)
    { s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""
)
HALF = (
    HEAD
    + """
    (float16[1,16,20,20] x, float16[16,16,3,3] w) => (float16[1,16,18,18] y)
    { c = Conv(x, w) y = LeakyRelu<alpha = 0.1>(c) }"""
)
LOGARITHMS = (
    HEAD
    + """
    (float[64,2048] x) => (float[64,1] y)
    { one = Constant<value = int64[1]{1}>() l = Log(x) y = ReduceSum(l, one) }"""
)
SOFTMAX = "softmax"


def kernels(text):
    """The kernels of a model that MetaSchedule may schedule."""
    module = choose_layout(import_onnx(onnx.parser.parse_model(text)))
    return fused_kernels(legalize_and_fuse(module, HOST))


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """A model without a product of constant weights."""
    path = tmp_path_factory.mktemp("metaschedule") / "attention.onnx"
    onnx.save(onnx.parser.parse_model(ATTENTION), path)
    return path


@pytest.fixture(scope="module")
def softmax():
    """Its softmax."""
    (kernel,) = (each for each in kernels(ATTENTION) if SOFTMAX in each.words)
    return kernel


def drawn(kernel, count, seed=0, ratios=None):
    """The first candidates of a search."""
    space = kernel.space(HOST, seed)
    return [space.next(ratios or {}) for _ in range(count)]


def test_kernels_of_a_model():
    found = kernels(ATTENTION)
    assert [each.words for each in found] == [
        "matmul, 1x4x128x32 -> 1x4x128x128", "softmax, 1x4x128x128 -> 1x4x128x128",
        "matmul, 1x4x128x128 -> 1x4x128x32",
    ]  # fmt: skip
    again = {each.workload for each in kernels(ATTENTION.replace("Softmax", "LogSoftmax"))}
    assert again & {each.workload for each in found} == {found[0].workload, found[2].workload}


@pytest.mark.parametrize(
    "text",
    [
        "(float[64,2048] x) => (float[64,2048] y) { y = Tanh(x) }",
        "(float[N,2048] x) => (float[N,2048] y) { y = Softmax(x) }",
        "(float[64,2048] x) => (int64[64,1] y) { y = ArgMax<axis = 1>(x) }",
        "(float[8,8] x) => (float[8,8] y) { y = Softmax(x) }",
    ],
    ids=["elementwise", "symbolic", "integers", "small"],
)
def test_kernels_that_it_is_not_for(text):
    assert kernels(HEAD + text) == []


def test_convolutions_of_ours_are_not_among_them(layers):
    assert {type(layer).__name__ for layer in layers} == {"Convolution"}


@pytest.mark.parametrize("text", [ATTENTION, HALF, LOGARITHMS], ids=["float32", "float16", "nan"])
def test_candidates_are_right(text):
    """Compared with the loops as they are written; logarithms of negative numbers are NaN."""
    for kernel in kernels(text):
        bench = _Bench(kernel, HOST, Local(HOST))
        assert bench.desired.shape == kernel.output[0]
        for config in (RULES, *drawn(kernel, 3)):
            built = bench.kernel(config)
            assert not isinstance(built, Result), f"{config}: {built}"


def test_a_wrong_candidate_is_found(softmax):
    bench = _Bench(softmax, HOST, Local(HOST))
    bench.desired = np.roll(bench.desired, 1)
    assert bench.kernel(drawn(softmax, 1)[0]).status == "wrong"
    bench.desired[0, 0, 0, 0] = np.nan
    assert bench.kernel(RULES).error == "has other infinities and NaNs"
    assert bench.kernel("{}").status == "failed"


def test_a_candidate_is_one_schedule(softmax):
    for config in drawn(softmax, 4):
        once, again = (Sketches(softmax.function, HOST).schedule(config) for _ in range(2))
        tvm.ir.assert_structural_equal(once, again)


def test_a_seed_draws_the_same(softmax):
    first = drawn(softmax, 6, seed=1)
    assert first == drawn(softmax, 6, seed=1) != drawn(softmax, 6, seed=2)
    assert len(set(first)) == 6
    # As after an earlier search that measured some.
    later = drawn(softmax, 4, seed=1, ratios=dict.fromkeys(first[:2], 2.0))
    assert later == first[2:]


def test_a_change_is_in_one_decision(softmax):
    sketches, source = Sketches(softmax.function, HOST), random.Random(1)
    parent = drawn(softmax, 1)[0]
    children = set()
    for _ in range(10):
        try:
            children.add(sketches.vary(parent, source))
        except ValueError:
            continue
    old = json.loads(parent)
    for child in children:
        new = json.loads(child)
        assert new["sketch"] == old["sketch"]
        pairs = zip(new["decisions"], old["decisions"], strict=True)
        assert sum(one != other for one, other in pairs) <= 1
    assert len(children) > 1


def test_a_small_space_ends():
    pool = "(float[1,16,64,64] x) => (float[1,16,62,62] y) { y = MaxPool<kernel_shape = [3,3]>(x) }"
    (kernel,) = kernels(HEAD + pool)
    found = drawn(kernel, 12)
    assert found[0] is not None
    assert found[-1] is None


def broken():
    """What is no candidate of the softmax, by what is wrong with it."""
    good = {"type": "MetaSchedule", "sketch": 0}
    return {
        "no JSON": "{",
        "no object": "[1]",
        "of another kind": json.dumps({"type": "Conv2dConfig", "lanes": 8}),
        "a sketch that is not there": json.dumps({**good, "sketch": 99, "decisions": []}),
        "a negative sketch": json.dumps({**good, "sketch": -1, "decisions": []}),
        "too many decisions": json.dumps({**good, "decisions": [1] * 20}),
        "words": json.dumps({**good, "decisions": ["1"]}),
        "a truth value": json.dumps({**good, "sketch": True, "decisions": []}),
        "no list": json.dumps({**good, "decisions": 3}),
    }


@pytest.mark.parametrize("what", broken())
def test_what_is_no_candidate(softmax, what):
    with pytest.raises(ValueError, match=r"candidate of MetaSchedule|decisions"):
        Sketches(softmax.function, HOST).schedule(broken()[what])


def test_decisions_that_do_not_fit(softmax):
    sketches = Sketches(softmax.function, HOST)
    config = next(each for each in drawn(softmax, 20) if "[[" in each)
    good = json.loads(config)
    for index, decision in enumerate(good["decisions"]):
        for bad in [[0, 128], [3, 7], [-1, -128], [128]] if isinstance(decision, list) else [99]:
            decisions = [*good["decisions"][:index], bad, *good["decisions"][index + 1 :]]
            with pytest.raises(ValueError, match="do not fit"):
                sketches.schedule(json.dumps({**good, "decisions": decisions}))


def plant(path, kernel, config):
    """A database with one winner."""
    key = key_for(kernel.workload, HOST)
    with Records(path) as records:
        records.add(Winner(key, kernel.words, config, 0.5, 0.4, 0.6, 1.0, "2026-01-01"))


def compiled(attention, tmp_path):
    """The artifact of the attention by the planted record, and the softmax's report."""
    reports = []
    artifact = compile(
        attention, output=tmp_path / "a.lfa", records=tmp_path / "r", on_layer=reports.append
    )
    (report,) = (each for each in reports if SOFTMAX in each.layer)
    return artifact, report


def test_compile_takes_the_winner(attention, softmax, tmp_path):
    plant(tmp_path / "r", softmax, drawn(softmax, 1)[0])
    artifact, report = compiled(attention, tmp_path)
    assert report.rule == "metaschedule"
    assert "tuned on 2026-01-01: 0.50 x (0.40 to 0.60)" in report.reasons
    assert read_manifest(artifact).variants[0].tuning_records == (softmax.workload,)
    assert check(artifact)


@pytest.mark.parametrize("config", [RULES, broken()["too many decisions"]], ids=["rules", "broken"])
def test_compile_keeps_the_rule(attention, softmax, tmp_path, config):
    plant(tmp_path / "r", softmax, config)
    artifact, report = compiled(attention, tmp_path)
    assert report.rule == "reduction"
    taken = read_manifest(artifact).variants[0].tuning_records
    if config == RULES:
        assert taken == (softmax.workload,)
        assert report.reasons.startswith("tuned on")
    else:
        assert taken == ()
        assert report.reasons.startswith("its tuning record is not taken: it has more or fewer")
    assert check(artifact)


def test_search_and_resume(search, attention, softmax, tmp_path):
    """Times by the candidates' names; half of what follows the first ones varies the best."""
    tried = []

    def seconds(task, config):
        tried.append(config)
        return Result("measured", "", (1.0 if config == RULES else 0.5,) * task.turns)

    options = {"source": attention, "layers": [SOFTMAX], "trials": 6}
    (first,) = search(seconds, **options).layers
    assert first.key.workload == softmax.workload
    assert first.winner.ratio == pytest.approx(0.5)
    (second,) = search(seconds, **options).layers
    candidates = [config for config in tried if config != RULES]
    # Those of the last comparisons come again.
    assert len(set(candidates)) == len(second.ratios) == 12
    with Records(tmp_path / "records.sqlite", create=False) as records:
        trials = records.trials(first.key)
    assert len({trial.config for trial in trials}) == len(trials) == 12


def test_on_this_machine(attention, tmp_path, lf):
    """Real processes and times, by the command line."""
    base = ("tune", attention, "--records", tmp_path / "r")
    status, text = lf(*base, "--layers", SOFTMAX, "--trials", 2, "--json")
    assert status == 0
    (layer,) = json.loads(text)["layers"]
    assert layer["trials"] == 2
    assert json.loads(layer["winner"]["config"])["type"] in ("Rules", "MetaSchedule")
    status, text = lf(*base, "--explain", SOFTMAX)
    assert status == 0
    assert "MetaSchedule decisions=[" in text
    assert "GFLOP/s" not in text
    status, text = lf("records", "list", "--records", tmp_path / "r", "--json")
    assert json.loads(text)["rows"][0]["layer"] == layer["layer"]
