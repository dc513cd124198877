"""ONNX files that nobody means well with: each case writes one into a folder and gives its path.

`python tests/hostile/worker.py onnx` compiles all of them in processes with limits.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
CASES: dict[str, Callable[[Path], Path]] = {}
# These are legal: they may compile, if they end in time.
LEGAL: set[str] = set()


def case(function=None, *, legal=False):
    """Enter a function that writes a file into a folder."""

    def enter(function):
        name = function.__name__
        assert name not in CASES
        CASES[name] = function
        if legal:
            LEGAL.add(name)
        return function

    return enter if function is None else enter(function)


def model_case(name, *, legal=False):
    """Enter a function that makes a model."""

    def enter(function):
        def write(folder):
            return written(folder, function())

        write.__name__ = name
        case(write, legal=legal)
        return function

    return enter


def add(name, make, *arguments, legal=False, **keywords):
    """Enter a model made by a call."""
    model_case(name, legal=legal)(lambda: make(*arguments, **keywords))


def written(folder, model):
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def info(name, shape=(2, 3), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator, inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, inputs, outputs, **attributes)


def tensor(name, values, dtype="float32"):
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(nodes=None, inputs=None, outputs=None, initializers=(), opset=18, ir=10, **fields):
    """A model that nothing has checked; one LeakyRelu by default."""
    graph = helper.make_graph(
        [node("LeakyRelu", ["x"])] if nodes is None else nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y")] if outputs is None else outputs,
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **fields
    )


# Not a file of ours at all.


@case
def empty(folder):
    return written(folder, b"")


@case
def directory(folder):
    path = folder / "model.onnx"
    path.mkdir()
    return path


@case
def absent(folder):
    return folder / "model.onnx"


@case
def pipe(folder):
    """Opening it would wait for a writer for ever."""
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@case
def device(folder):
    """Endless zeros."""
    (folder / "model.onnx").symlink_to("/dev/zero")
    return folder / "model.onnx"


@case
def link_to_itself(folder):
    (folder / "model.onnx").symlink_to(folder / "model.onnx")
    return folder / "model.onnx"


@case
def name_too_long(folder):
    return folder / ("m" * 5000 + ".onnx")


@case
def name_with_nul(folder):
    return folder / "m\0.onnx"


@case
def noise(folder):
    return written(folder, np.random.default_rng(0).bytes(100_000))


@case
def one_length_that_lies(folder):
    """Field 7, the graph, of 2**31 - 1 bytes that do not come."""
    return written(folder, b"\x08\x0a\x3a\xff\xff\xff\xff\x07")


@case
def groups_in_groups(folder):
    """Protobuf's unknown groups, each in the one before."""
    return written(folder, b"\x7b" * 1_000_000)


# External data.


def external(folder, location, **entries):
    """A weight `w` of 256 floats whose values lie in another file."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[256], data_location=TensorProto.EXTERNAL)
    if location is not None:
        weight.external_data.add(key="location", value=location)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=str(value))
    return written(
        folder,
        model([node("Add", ["x", "w"])], [info("x", [256])], [info("y", [256])], [weight]),
    )


def secret(folder):
    """A file of the right size that is none of the model's business."""
    path = folder.parent / f"{folder.name}-secret"
    path.write_bytes(bytes(1024))
    return path


@case
def external_absolute(folder):
    return external(folder, str(secret(folder)))


@case
def external_parent(folder):
    return external(folder, f"../{secret(folder).name}")


@case
def external_parent_of_a_folder(folder):
    (folder / "a").mkdir()
    return external(folder, f"a/../../{secret(folder).name}")


@case
def external_link(folder):
    (folder / "w.bin").symlink_to(secret(folder))
    return external(folder, "w.bin")


@case
def external_link_to_a_folder(folder):
    (folder / "a").symlink_to(folder.parent)
    return external(folder, f"a/{secret(folder).name}")


@case
def external_hard_link(folder):
    os.link(secret(folder), folder / "w.bin")
    return external(folder, "w.bin")


@case
def external_pipe(folder):
    os.mkfifo(folder / "w.bin")
    return external(folder, "w.bin")


@case
def external_directory(folder):
    (folder / "w.bin").mkdir()
    return external(folder, "w.bin")


@case
def external_itself(folder):
    """The model's own file as its weights: short, so it is refused by its length."""
    return external(folder, "model.onnx")


for _name, _location in {
    "absent": "absent.bin",
    "device": "/dev/zero",
    "dot": ".",
    "empty": "",
    "none": None,
    "nul": "w\0.bin",
    "long": "w" * 5000,
    "windows": "C:\\w.bin",
    "backslash": "..\\w.bin",
    "address": "http://localhost:1/w.bin",
}.items():
    case(
        type(
            "",
            (),
            {
                "__name__": f"external_location_{_name}",
                "__call__": lambda self, folder, location=_location: external(folder, location),
            },
        )()
    )


def _with_file(**entries):
    def write(folder):
        (folder / "w.bin").write_bytes(bytes(2048))
        return external(folder, "w.bin", **entries)

    return write


for _name, _entries in {
    "offset_negative": {"offset": -4},
    "offset_beyond": {"offset": 4096, "length": 1024},
    "offset_huge": {"offset": 2**63},
    "offset_text": {"offset": "many"},
    "length_text": {"length": "1e3"},
    "length_negative": {"length": -1},
    "length_huge": {"length": 2**62},
    "length_short": {"length": 16},
    "length_absent_and_too_much": {},
    "key_unknown": {"offset": 0, "basepath": "/etc"},
}.items():
    _write = _with_file(**_entries)
    _write.__name__ = f"external_{_name}"
    case(_write)


@case
def external_in_a_subgraph(folder):
    """Not only the graph's own weights can name files."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=f"../{secret(folder).name}")
    branch = helper.make_graph([node("Add", ["x", "w"], ["z"])], "b", [], [info("z")], [weight])
    return written(
        folder,
        model([node("If", ["c"], then_branch=branch, else_branch=branch)],
              [info("x"), info("c", [], TensorProto.BOOL)]),
    )  # fmt: skip


@case
def external_in_a_constant(folder):
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=f"../{secret(folder).name}")
    return written(
        folder, model([node("Constant", [], ["w"], value=weight), node("Add", ["x", "w"])])
    )


@case
def external_in_a_function(folder):
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=f"../{secret(folder).name}")
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    nodes = [node("Constant", [], ["w"], value=weight), node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], nodes, opset[:1])
    graph = helper.make_graph([node("F", ["x"], domain="own")], "g", [info("x")], [info("y")])
    return written(
        folder,
        helper.make_model(graph, opset_imports=opset, functions=[function], ir_version=10),
    )


@case
def external_in_a_sparse_weight(folder):
    values = TensorProto(name="w", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    values.external_data.add(key="location", value=f"../{secret(folder).name}")
    proto = model([node("Add", ["x", "w"])])
    sparse = proto.graph.sparse_initializer.add(dims=[3])
    sparse.values.CopyFrom(values)
    sparse.indices.CopyFrom(tensor("i", [0], "int64"))
    return written(folder, proto)


# Shapes.

for _name, _shape in {
    "huge": [2**62],
    "overflow": [2**40, 2**40],
    "overflow_to_zero": [2**32, 2**32],
    "overflow_to_one": [2**63 - 1, 2**63 - 1],
    "tebibytes": [2**20, 2**20],
    "of_all_memory": [2**32, 2**5],
    "negative": [-1, 3],
    "very_negative": [-(2**63), 3],
    "rank_1000": [1] * 1000,
    "rank_100_of_2": [2] * 100,
}.items():
    add(f"input_{_name}", model, inputs=[info("x", _shape)], outputs=[info("y", _shape)])
    _weight = TensorProto(name="w", data_type=FLOAT, dims=_shape)
    add(f"weight_{_name}_without_data", model, [node("ReduceMax", ["w"], keepdims=0)],
        outputs=[info("y", [])], initializers=[_weight])  # fmt: skip
    _weight = TensorProto(name="w", data_type=FLOAT, dims=_shape, raw_data=bytes(4))
    add(f"weight_{_name}_of_4_bytes", model, [node("ReduceMax", ["w"], keepdims=0)],
        outputs=[info("y", [])], initializers=[_weight])  # fmt: skip
    add(
        f"value_{_name}",
        model,
        [node("ConstantOfShape", ["s"], ["t"]), node("ReduceSum", ["t"], keepdims=0)],
        [info("x")],
        [info("y", [])],
        [tensor("s", _shape, "int64")],
    )
    add(
        f"expand_{_name}",
        model,
        [node("Expand", ["x", "s"], ["t"]), node("ReduceMax", ["t"], keepdims=0)],
        [info("x", [])],
        [info("y", [])],
        [tensor("s", _shape, "int64")],
    )


def after_x(operator, *extra, x=(1, 1, 8, 8), initializers=(), rank=4, **attributes):
    """One operator on `x`, the sizes of its output left open."""
    return model(
        [node(operator, ["x", *extra], **attributes)],
        [info("x", x)],
        [info("y", [None] * rank)],
        initializers,
    )


_kernel = tensor("w", np.ones((1, 1, 3, 3)))
for _name, _attributes in {
    "pads_huge": {"pads": [2**40] * 4},
    "pads_of_memory": {"pads": [2**17] * 4},
    "pads_negative": {"pads": [-(2**40)] * 4},
    "pads_too_few": {"pads": [1]},
    "strides_zero": {"strides": [0, 0]},
    "strides_negative": {"strides": [-1, -1]},
    "strides_huge": {"strides": [2**62, 2**62]},
    "dilations_zero": {"dilations": [0, 0]},
    "dilations_huge": {"dilations": [2**40, 2**40]},
    "group_zero": {"group": 0},
    "group_negative": {"group": -1},
    "group_huge": {"group": 2**62},
    "kernel_shape_zero": {"kernel_shape": [0, 0]},
    "kernel_shape_huge": {"kernel_shape": [2**40, 2**40]},
    "auto_pad_unknown": {"auto_pad": "NONSENSE"},
}.items():
    for _operator in ("Conv", "ConvTranspose"):
        add(
            f"{_operator.lower()}_{_name}",
            after_x,
            _operator,
            "w",
            initializers=[_kernel],
            legal=_name in ("strides_huge", "auto_pad_unknown"),
            **_attributes,
        )
add("conv_kernel_of_no_elements", after_x, "Conv", "w",
    initializers=[tensor("w", np.ones((1, 1, 0, 3)))])  # fmt: skip
add("conv_channels_do_not_fit", after_x, "Conv", "w",
    initializers=[tensor("w", np.ones((1, 7, 3, 3)))])  # fmt: skip

for _name, _attributes in {
    "kernel_zero": {"kernel_shape": [0, 0]},
    "kernel_negative": {"kernel_shape": [-3, -3]},
    "kernel_huge": {"kernel_shape": [2**40, 2**40]},
    "strides_zero": {"kernel_shape": [2, 2], "strides": [0, 0]},
    "pads_huge": {"kernel_shape": [2, 2], "pads": [2**40] * 4},
    "rank_wrong": {"kernel_shape": [2]},
}.items():
    add(f"maxpool_{_name}", after_x, "MaxPool", **_attributes)
    add(f"averagepool_{_name}", after_x, "AveragePool", **_attributes)

for _name, _arguments in {
    "reshape_two_unknown": ("Reshape", 2, [-1, -1]),
    "reshape_minus_five": ("Reshape", 1, [-5]),
    "reshape_too_large": ("Reshape", 1, [2**62]),
    "reshape_overflow": ("Reshape", 3, [2**32, 2**32, 64]),
    "tile_huge": ("Tile", 4, [2**40, 1, 1, 1]),
    "tile_memory": ("Tile", 4, [2**14, 2**14, 1, 1]),
    "tile_negative": ("Tile", 4, [-1, 1, 1, 1]),
    "pad_huge": ("Pad", 4, [2**40] * 8),
    "pad_memory": ("Pad", 4, [0, 0, 2**16, 2**16, 0, 0, 2**16, 2**16]),
    "pad_negative": ("Pad", 4, [-5] * 8),
    "unsqueeze_far": ("Unsqueeze", 5, [99]),
    "squeeze_far": ("Squeeze", 3, [-99]),
    "gather_outside": ("Gather", 4, [1000]),
    "split_wrong": ("Split", 4, [3, 3]),
    "topk_huge": ("TopK", 4, [2**40]),
    "reduce_axis_far": ("ReduceSum", 4, [17]),
}.items():
    _operator, _rank, _values = _arguments
    add(_name, after_x, _operator, "s", rank=_rank, initializers=[tensor("s", _values, "int64")])
add("slice_step_zero", after_x, "Slice", "a", "b", "c", "d", initializers=[
    tensor("a", [0], "int64"), tensor("b", [1], "int64"),
    tensor("c", [0], "int64"), tensor("d", [0], "int64"),
])  # fmt: skip
add("resize_scale_huge", after_x, "Resize", "", "s", initializers=[tensor("s", [1, 1, 1e9, 1e9])])
add("resize_scale_memory", after_x, "Resize", "", "s", initializers=[tensor("s", [1, 1, 1e5, 1e5])])
add("resize_scale_nan", after_x, "Resize", "", "s",
    initializers=[tensor("s", [1, 1, np.nan, 1])])  # fmt: skip
add("resize_scale_negative", after_x, "Resize", "", "s",
    initializers=[tensor("s", [1, 1, -1, 0])])  # fmt: skip
add("concat_axis_far", after_x, "Concat", axis=99)
add("transpose_twice_the_same", after_x, "Transpose", perm=[0, 0, 0, 0])
add("softmax_axis_far", after_x, "Softmax", axis=2**62, legal=True)
add("flatten_axis_far", after_x, "Flatten", rank=2, axis=-(2**62))
add("cast_to_nothing", after_x, "Cast", to=0)
add("cast_to_999", after_x, "Cast", to=999)
add("range_endless", model, [node("Range", ["a", "b", "c"], ["t"]), node("ReduceSum", ["t"])],
    [info("x")], [info("y", [None], TensorProto.INT64)],
    [tensor("a", 0, "int64"), tensor("b", 2**60, "int64"), tensor("c", 1, "int64")])  # fmt: skip
add("range_step_zero", model, [node("Range", ["a", "b", "c"], ["t"]), node("ReduceSum", ["t"])],
    [info("x")], [info("y", [None], TensorProto.INT64)],
    [tensor("a", 0, "int64"), tensor("b", 5, "int64"), tensor("c", 0, "int64")])  # fmt: skip
add("one_hot_huge", model, [node("OneHot", ["i", "d", "v"])], [info("i", [4], TensorProto.INT64)],
    [info("y", [None, None])], [tensor("d", 2**50, "int64"), tensor("v", [0, 1])])  # fmt: skip
add("matmul_does_not_fit", after_x, "MatMul", "w", initializers=[tensor("w", np.ones((5, 5)))])
add("matmul_outer_product_of_memory", model, [node("MatMul", ["a", "b"])],
    [info("a", [2**20, 1]), info("b", [1, 2**20])], [info("y", [None, None])])  # fmt: skip
add("broadcast_of_memory", model, [node("Add", ["a", "b"])],
    [info("a", [2**20, 1]), info("b", [1, 2**20])], [info("y", [None, None])])  # fmt: skip

# Graphs.

add("cycle_of_one", model, [node("LeakyRelu", ["y"])])
add("cycle_of_two", model, [node("LeakyRelu", ["b"], ["a"]), node("LeakyRelu", ["a"], ["b"]),
                            node("Add", ["a", "x"])])  # fmt: skip
add("not_in_order", model, [node("LeakyRelu", ["a"]), node("LeakyRelu", ["x"], ["a"])])
add("weight_missing", model, [node("Add", ["x", "w"])])
add("output_missing", model, outputs=[info("z")])
add("no_output", model, outputs=[])
add("no_node", model, [])
add("output_is_an_input", model, [], outputs=[info("x")], legal=True)
add("output_twice", model, outputs=[info("y"), info("y")])
add("output_made_twice", model, [node("LeakyRelu", ["x"]), node("Relu", ["x"])])
add("output_is_a_weight_and_made", model, initializers=[tensor("y", np.ones((2, 3)))])
add("input_twice", model, inputs=[info("x"), info("x")])
add("weight_twice", model, [node("Add", ["x", "w"])],
    initializers=[tensor("w", [1, 2, 3]), tensor("w", [4, 5, 6])])  # fmt: skip
add("weight_without_a_name", model, initializers=[tensor("", [1.0])])
add("input_without_a_name", model, inputs=[info("x"), info("")])
add("output_without_a_name", model, [node("LeakyRelu", ["x"], [""])], outputs=[info("")])
add("node_names_twice", model, [node("LeakyRelu", ["x"], ["a"], name="n"),
                                node("LeakyRelu", ["a"], name="n")], legal=True)  # fmt: skip
add("too_many_inputs", model, [node("LeakyRelu", ["x", "x", "x"])])
add("no_inputs", model, [node("LeakyRelu", [])])
add("no_outputs", model, [node("LeakyRelu", ["x"], [])])
add("operator_without_a_name", model, [node("", ["x"])])
add("operator_unknown", model, [node("EvilOp", ["x"])])
add("domain_unknown", model, [node("LeakyRelu", ["x"], domain="evil")])
add("attribute_twice", lambda: twice_alpha())
add("attribute_of_another_type", model, [node("LeakyRelu", ["x"], alpha="one")])
add("attribute_reference_outside_a_function", lambda: reference_attribute())
add("long_name", model, [node("LeakyRelu", ["x"], name="n" * 1_000_000)], legal=True)
add("long_value_names", model,
    [node("LeakyRelu", ["x"], ["n" * 100_000]), node("Relu", ["n" * 100_000])],
    legal=True)  # fmt: skip
for _name, _text in {
    "newline": "a\nb", "quote": "a\"'b", "percent": "%s{x}", "nul": "a\0b", "slash": "../../a",
    "tvm": "main", "unicode": "é\u202e🙂",
}.items():  # fmt: skip
    add(f"input_called_{_name}", model, [node("LeakyRelu", [_text])], [info(_text)], legal=True)
    add(f"symbol_called_{_name}", model, inputs=[info("x", [_text, 3])],
        outputs=[info("y", [None, 3])], legal=True)  # fmt: skip
for _name, _text in {
    "expression": "N+1", "division": "1//0", "power": "9**9**9**9", "call": "__import__('os')",
    "number": "-7", "space": " ", "keyword": "lambda",
}.items():  # fmt: skip
    add(f"symbol_is_{_name}", model, inputs=[info("x", [_text, 3])],
        outputs=[info("y", [None, 3])], legal=True)  # fmt: skip


def twice_alpha():
    proto = model([node("LeakyRelu", ["x"], alpha=0.1)])
    proto.graph.node[0].attribute.add().CopyFrom(helper.make_attribute("alpha", 0.2))
    return proto


def reference_attribute():
    proto = model([node("LeakyRelu", ["x"])])
    proto.graph.node[0].attribute.add(
        name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT
    )
    return proto


@case
def name_that_is_not_utf8(folder):
    whole = model([node("LeakyRelu", ["x"], name="QQQQ")]).SerializeToString()
    return written(folder, whole.replace(b"QQQQ", b"\xff\xfe\xc0\x80"))


def opsets(*versions):
    proto = model()
    del proto.opset_import[:]
    for domain, version in versions:
        proto.opset_import.add(domain=domain, version=version)
    return proto


add("opset_0", model, opset=0)
add("opset_999", model, opset=999)
add("opset_negative", model, opset=-1)
add("opset_huge", model, opset=2**62)
add("opset_none", opsets)
add("opset_two", opsets, ("", 13), ("", 18))
add("opset_foreign_only", opsets, ("com.microsoft", 1))
add("ir_version_0", model, ir=0)
add("ir_version_999", model, ir=999)
add("ir_version_negative", model, ir=-1)


def nested(depth, width=1):
    """Conditions in conditions; with `width` 2 both branches go on."""
    graph = helper.make_graph([node("LeakyRelu", ["x"], ["t0"])], "b0", [], [info("t0")])
    for level in range(1, depth):
        plain = helper.make_graph(
            [node("Relu", ["x"], [f"e{level}"])], f"e{level}", [], [info(f"e{level}")]
        )
        deeper = node("If", ["c"], [f"t{level}"], then_branch=graph,
                      else_branch=graph if width == 2 else plain)  # fmt: skip
        graph = helper.make_graph([deeper], f"b{level}", [], [info(f"t{level}")])
    proto = model([], [info("x"), info("c", [], TensorProto.BOOL)])
    top = proto.graph.node.add(op_type="If", input=["c"], output=["y"])
    for name in ("then_branch", "else_branch"):
        attribute = top.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(graph)
    return proto


def deep_bytes(depth):
    """Subgraphs deeper than protobuf's Python package serialises, put together by hand."""

    def field(number, content):
        size, length = len(content), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = model([node("LeakyRelu", ["x"], ["t"])], outputs=[info("t")]).graph.SerializeToString()
    for _ in range(depth):
        # AttributeProto: name 1, g 6, type 20 = GRAPH; NodeProto: output 2, op_type 4, attribute 5.
        attribute = field(1, b"body") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(2, b"t") + field(4, b"If") + field(5, attribute))
    whole = model()
    whole.ClearField("graph")
    return whole.SerializeToString() + field(7, graph)


add("subgraphs_10_deep", nested, 10, legal=True)
add("subgraphs_30_deep", nested, 30, legal=True)
add("subgraphs_2_to_the_12", nested, 12, 2)
add("subgraphs_2_to_the_6", nested, 6, 2, legal=True)
add("subgraphs_1000_deep", deep_bytes, 1000)
add("subgraphs_100000_deep", deep_bytes, 20_000)


def functions(calls, *, last=None):
    """Functions f0, f1, ...; each calls others by their numbers, one after the other."""
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = []
    for index, called in enumerate(calls):
        names = ["a", *(f"t{step}" for step in range(len(called) - 1)), "b"]
        nodes = [
            node(f"F{other}", [names[step]], [names[step + 1]], domain="own")
            for step, other in enumerate(called)
        ] or [node("LeakyRelu", ["a"], ["b"])]
        made.append(helper.make_function("own", f"F{index}", ["a"], ["b"], nodes, opset))
    graph = helper.make_graph([node("F0", ["x"], domain="own")], "g", [info("x")], [info("y")])
    return helper.make_model(graph, opset_imports=opset, functions=made, ir_version=10)


add("function_calls_itself", functions, [[0]])
add("functions_call_one_another", functions, [[1], [0]])
add("functions_2_to_the_40", functions, [*([i + 1, i + 1] for i in range(40)), []])
add("functions_1000_deep", functions, [*([i + 1] for i in range(1000)), []], legal=True)
add("function_absent", functions, [[7]])

# Sizes.


def chain(operator, count, **attributes):
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    return model([node(operator, [names[i]], [names[i + 1]], **attributes) for i in range(count)])


def doubled(count):
    """Each value is the sum of the one before and itself: 2**count paths."""
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    return model([node("Add", [names[i], names[i]], [names[i + 1]]) for i in range(count)])


def wide(operator, count, **attributes):
    leaves = [f"t{index}" for index in range(count)]
    nodes = [node("LeakyRelu", ["x"], [leaf], alpha=0.01) for leaf in leaves]
    return model([*nodes, node(operator, leaves, **attributes)], outputs=[info("y", [None, 3])])


add("chain_of_10000", chain, "LeakyRelu", 10_000)
add("chain_of_500", chain, "LeakyRelu", 500, legal=True)
add("doubled_60_times", doubled, 60, legal=True)
add("sum_of_4000", wide, "Sum", 4_000)
add("max_of_4000", wide, "Max", 4_000)
add("concat_of_4000", wide, "Concat", 4_000, axis=0)
add("outputs_300", lambda: model(
    [node("LeakyRelu", ["x"], [f"y{i}"]) for i in range(300)],
    outputs=[info(f"y{i}") for i in range(300)]), legal=True)  # fmt: skip
add("weights_200", lambda: model(
    [node("Add", ["x" if i == 0 else f"t{i}", f"w{i}"],
          ["y" if i == 199 else f"t{i + 1}"]) for i in range(200)],
    initializers=[tensor(f"w{i}", [i, 1, 2]) for i in range(200)]), legal=True)  # fmt: skip

# Types and values.

for _name, _kind in {
    "undefined": 0, "999": 999, "negative": -1, "string": TensorProto.STRING,
    "complex": TensorProto.COMPLEX64, "int4": TensorProto.INT4,
}.items():  # fmt: skip
    add(f"input_of_type_{_name}", model, inputs=[info("x", kind=_kind)],
        outputs=[info("y", kind=_kind)])  # fmt: skip
    add(f"weight_of_type_{_name}", model, [node("Add", ["x", "w"])],
        initializers=[TensorProto(name="w", data_type=_kind, dims=[3],
                                  raw_data=bytes(12))])  # fmt: skip
    add(f"cast_to_type_{_name}", model, [node("Cast", ["x"], to=_kind)],
        outputs=[info("y", kind=_kind)])  # fmt: skip
for _name, _fields in {
    "short": {"raw_data": bytes(8)},
    "long": {"raw_data": bytes(16)},
    "not_a_multiple": {"raw_data": bytes(11)},
    "none": {},
    "float_data_short": {"float_data": [1, 2]},
    "float_data_long": {"float_data": [1, 2, 3, 4]},
    "raw_and_float_data": {"raw_data": bytes(12), "float_data": [1, 2, 3]},
    "int32_data": {"int32_data": [1, 2, 3]},
    "string_data": {"string_data": [b"a", b"b", b"c"]},
    "segment": {"raw_data": bytes(12), "segment": TensorProto.Segment(begin=0, end=2**62)},
}.items():
    _weight = TensorProto(name="w", data_type=FLOAT, dims=[3], **_fields)
    add(f"data_{_name}", model, [node("Add", ["x", "w"])], initializers=[_weight])
    add(f"constant_data_{_name}", model,
        [node("Constant", [], ["w"], value=_weight), node("Add", ["x", "w"])])  # fmt: skip
for _name, _alpha in {"nan": np.nan, "inf": np.inf, "tiny": 1e-45, "largest": 3.4e38}.items():
    add(f"alpha_{_name}", model, [node("LeakyRelu", ["x"], alpha=_alpha)], legal=True)
add("input_is_a_sequence", model, [node("SequenceLength", ["x"])],
    [helper.make_tensor_sequence_value_info("x", FLOAT, [2, 3])],
    [info("y", [], TensorProto.INT64)])  # fmt: skip
add("input_without_a_type", model, inputs=[onnx.ValueInfoProto(name="x")])
add("input_without_a_shape", model, inputs=[info("x", None)], outputs=[info("y", None)])
add("output_of_another_shape", model, outputs=[info("y", [7, 7, 7])])
add("output_of_another_type", model, outputs=[info("y", kind=TensorProto.INT32)])


def sparse(dims, indices):
    proto = model([node("Add", ["x", "w"])])
    weight = proto.graph.sparse_initializer.add(dims=dims)
    weight.values.CopyFrom(tensor("w", np.ones(len(indices))))
    weight.indices.CopyFrom(tensor("i", indices, "int64"))
    return proto


add("sparse_weight_huge", sparse, [2**40], [0])
add("sparse_weight_index_outside", sparse, [3], [7])
add("sparse_weight_not_in_order", sparse, [3], [2, 1])


def described(**properties):
    proto = model()
    for key, value in properties.items():
        proto.metadata_props.add(key=f"leakyforge.input_range.{key}", value=value)
    return proto


for _name, _text in {
    "text": "low,high", "one": "1", "three": "1,2,3", "nan": "nan,nan", "inf": "-inf,inf",
    "turned": "2,1", "empty": "", "huge": "1e999,1e999",
}.items():  # fmt: skip
    add(f"range_{_name}", described, x=_text)
add("range_of_no_input", described, z="0,1", legal=True)
