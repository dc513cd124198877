"""Cutting graphs into stages, without compiling any."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leakyforge.kernels import partition
from leakyforge.kernels.partition import Graph, key, reads


def stages(parts):
    """Whether each stage is compiled, and the outputs of its nodes."""
    return [(part.compiled, [key(node) for node in part.nodes]) for part in parts]


def names(values):
    return {value.name for value in values}


@pytest.fixture
def any_size(monkeypatch):
    """Islands of any size pay."""
    monkeypatch.setattr(partition, "LEAST_FLOPS", 0)


@pytest.mark.usefixtures("any_size")
class TestStages:
    def test_a_refused_node_in_the_middle_makes_three(self, parse):
        graph = Graph(parse(
            "middle (float[2,3] x) => (float[2,3] y)"
            " { a = Relu (x) b = Abs (a) c = Neg (b) y = Add (c, a) }"
        ))  # fmt: skip
        parts = graph.cut({"b": "why"})
        assert stages(parts) == [(True, ["a"]), (False, ["b"]), (True, ["c", "y"])]
        assert [names(part.model.graph.input) for part in parts] == [{"x"}, {"a"}, {"b", "a"}]
        assert [names(part.model.graph.output) for part in parts] == [{"a"}, {"b"}, {"y"}]
        for part in parts:
            onnx.checker.check_model(part.model, full_check=True)

    def test_branches_share_stages(self, parse):
        graph = Graph(parse(
            "branches (float[2] x) => (float[2] y)"
            " { a = Relu (x) b = Abs (a) c = Neg (x) d = Exp (c) y = Add (b, d) }"
        ))  # fmt: skip
        assert stages(graph.cut({"b": "", "d": ""})) == [
            (True, ["a", "c"]), (False, ["b", "d"]), (True, ["y"]),
        ]  # fmt: skip

    def test_the_first_turn_is_whosever_gives_fewer_stages(self, parse):
        graph = Graph(parse(
            "first (float[2] x) => (float[2] y) { a = Abs (x) b = Relu (x) y = Add (a, b) }"
        ))  # fmt: skip
        # Compiled first, `y` would have to wait for a third stage.
        assert stages(graph.cut({"a": ""})) == [(False, ["a"]), (True, ["b", "y"])]

    @pytest.mark.parametrize("seed", range(20))
    def test_no_cycles_and_no_stage_too_many(self, seed):
        generator = np.random.default_rng(seed)
        count = 14
        nodes, refused = [], {}
        for index in range(count):
            sources = ["x", *(f"v{each}" for each in range(index))]
            chosen = generator.choice(sources, size=2)
            nodes.append(onnx.helper.make_node("Add", list(chosen), [f"v{index}"]))
            if generator.random() < 0.4:
                refused[f"v{index}"] = "drawn"
        used = {name for node in nodes for name in node.input}
        ends = [f"v{index}" for index in range(count) if f"v{index}" not in used]
        info = onnx.helper.make_tensor_value_info
        graph = Graph(onnx.helper.make_model(
            onnx.helper.make_graph(
                nodes, "random", [info("x", 1, [2])], [info(name, 1, [2]) for name in ends]
            )
        ))  # fmt: skip
        parts = graph.cut(refused)
        there, seen = {"x"}, []
        for part in parts:
            assert all((key(node) in refused) != part.compiled for node in part.nodes)
            assert names(part.model.graph.input) <= there
            there |= names(part.model.graph.output)
            seen += [key(node) for node in part.nodes]
        assert sorted(seen) == sorted(f"v{index}" for index in range(count))
        assert there >= set(ends)
        # Changes of kind on the way to each value bound the number of stages from below.
        changes = {}
        for node in nodes:
            kind = node.output[0] in refused
            changes[node.output[0]] = (
                kind,
                max(
                    (changes[name][1] + (changes[name][0] != kind))
                    for name in node.input
                    if name != "x"
                )
                if set(node.input) != {"x"}
                else 0,
            )
        least = 1 + max(depth for _, depth in changes.values())
        assert least <= len(parts) <= least + 1

    def test_each_stage_has_the_constants_that_it_reads(self, parse):
        graph = Graph(parse(
            "shared (float[2] x) => (float[2] y)"
            " { two = Constant <value = float {2}> () a = Mul (x, two) b = Abs (a)"
            " y = Mul (b, two) }"
        ))  # fmt: skip
        parts = graph.cut({"b": ""})
        assert [names(part.model.graph.initializer) for part in parts] == [{"two"}, set(), {"two"}]


def test_a_subgraph_reads_what_is_around_it(parse):
    model = parse(
        "outer (float[2] x, bool c, int64 trip) => (float[2] y) {"
        " a = Relu (x)"
        " y = If (c) <then_branch = yes () => (float[2] t) { t = Add (a, x) },"
        " else_branch = no () => (float[2] e) {"
        "   e = Loop (trip, c, x) <body = loop (int64 i, bool k, float[2] s)"
        "     => (bool k1, float[2] s1) { k1 = Identity (k) s1 = Add (s, a) }> }>"
        " }"
    )
    assert reads(model.graph.node[1]) == ["c", "a", "x", "trip"]
    graph = Graph(model)
    # By the inner operator.
    assert graph.refusals() == {"y": "operator Loop is not supported by the compiler"}
    (part,) = graph.cut({"a": "", "y": ""})
    assert names(part.model.graph.input) == {"x", "c", "trip"}


@pytest.mark.parametrize(
    ("size", "kept"), [("24", True), ("8", False), ("rows", True)], ids=["large", "small", "any"]
)
def test_an_island_stays_compiled_where_it_does_enough(parse, size, kept):
    model = parse(
        f"island (float[1,16,{size},24] x) => (float[1,16,{size},24] y)"
        " { a = Abs (x) b = Conv <pads = [1,1,1,1]> (a, kernel) c = Relu (b) y = Abs (c) }"
    )
    weight = np.zeros((16, 16, 3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "kernel"))
    refused = {"a": "drawn", "y": "drawn"}
    parts = Graph(model).cut(refused)
    assert [part.compiled for part in parts] == ([False, True, False] if kept else [False])
    assert ("b" in refused) != kept


def test_types_that_the_compiler_lacks_are_refused(parse):
    graph = Graph(parse(
        "types (float[2] x) => (float[2] y) { a = Cast <to = 22> (x) b = Cast <to = 8> (x)"
        " c = Cast <to = 1> (b) d = Cast <to = 1> (a) y = Add (c, d) }"
    ))  # fmt: skip
    assert graph.refusals() == {
        "a": "type INT4 is not supported", "d": "type INT4 is not supported",
        "b": "type STRING is not supported", "c": "type STRING is not supported",
    }  # fmt: skip


def test_equal_sizes_have_one_name(parse):
    graph = Graph(parse(
        "sizes (float[1,n] x) => (float[1,m] y) {"
        " s = Shape (x) i = Constant <value = int64 {1}> () n = Gather (s, i)"
        " zero = Constant <value = int64 {0}> () r = Range (zero, n, i)"
        " f = Cast <to = 1> (r) y = Add (x, f) }"
    ))  # fmt: skip
    (size,) = graph.types["f"].type.tensor_type.shape.dim
    assert size.dim_param == "n"
