"""Darknet's .cfg and .weights files: what is read from them, and what is refused."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from leakyforge.errors import ExportError
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.models import build, read_darknet
from leakyforge.runtime import check

CFG = Path(__file__).with_name("cfg")
YOLO = {"size": 64, "features": 4, "classes": 2}
NAMES = ("yolov2-tiny", "yolov3-tiny", "yolov3")
HEADER = struct.pack("<3iq", 0, 2, 0, 123)
NET = "[net]\nwidth=8\nheight=6\nchannels=2\n"
CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=leaky\n"


def written_weights(model, header=HEADER):
    """The .weights file of a model with darknet's layers."""
    values = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    parts = [header]
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        norm = node.name.replace("_conv", "_norm")
        if f"{norm}.scale" in values:
            names = [f"{norm}.{part}" for part in ("bias", "scale", "mean", "var")]
        else:
            names = [f"{node.name}.bias"]
        parts += [values[name].astype("<f4").tobytes() for name in (*names, f"{node.name}.weight")]
    return b"".join(parts)


def run(model, *inputs):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {value.name: x for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.fixture
def read(tmp_path):
    """Read a network from text, and from that many random floats or from bytes."""

    def call(text, weights=0, **options):
        if isinstance(weights, int):
            weights = HEADER + random(weights).tobytes()
        (tmp_path / "net.cfg").write_text(text, encoding="utf-8")
        (tmp_path / "net.weights").write_bytes(weights)
        return read_darknet(tmp_path / "net.cfg", tmp_path / "net.weights", **options)

    return call


class TestYolo:
    @pytest.mark.parametrize("name", NAMES)
    def test_file_gives_the_outputs_of_the_zoo_model(self, read, name):
        model = build(name, batch=2, **YOLO)
        text = (CFG / f"{name}.cfg").read_text(encoding="utf-8")
        again = read(text, written_weights(model), batch=2)
        onnx.checker.check_model(again, full_check=True)
        image = random(2, 3, 64, 64)
        outputs = run(model, image)
        for actual, desired in zip(run(again, image), outputs, strict=True):
            assert actual.std() > 0.1
            np.testing.assert_array_equal(actual, desired)

    @pytest.mark.parametrize("name", NAMES)
    def test_file_gives_the_graph_of_the_zoo_model(self, read, name):
        model = build(name, batch="N", opset=13, **YOLO)
        text = (CFG / f"{name}.cfg").read_text(encoding="utf-8")
        again = read(text, written_weights(model), batch="N", opset=13)
        # Only the heads have other names.
        names = dict(
            zip(
                (value.name for value in model.graph.output),
                (value.name for value in again.graph.output),
                strict=True,
            )
        )
        renamed = onnx.ModelProto()
        renamed.CopyFrom(model)
        renamed.graph.name = "net"
        for head, name_in_file in names.items():
            for value in renamed.graph.output:
                value.name = value.name.replace(head, name_in_file)
            for weight in renamed.graph.initializer:
                weight.name = weight.name.replace(f"{head}.", f"{name_in_file}.")
            for node in renamed.graph.node:
                if node.name == head:
                    node.name = node.output[0] = name_in_file
                    node.input[1:] = [each.replace(head, name_in_file) for each in node.input[1:]]
        assert renamed == again

    # The sizes of the files at https://pjreddie.com/media/files/.
    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("yolov2-tiny", 44_948_600),
            ("yolov3-tiny", 35_434_956),
            ("yolov3", 248_007_048),
        ],
    )
    def test_published_weights_have_the_size_of_the_zoo_model(self, name, count):
        parameters = {"weight", "bias", "scale", "mean", "var"}
        sizes = [
            math.prod(weight.dims)
            for weight in build(name).graph.initializer
            if weight.name.rpartition(".")[2] in parameters
        ]
        assert len(HEADER) + 4 * sum(sizes) == count


class TestLayers:
    def test_convolution_without_and_with_normalization(self, read):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        functional = torch.nn.functional
        plain = [random(3), random(3, 2, 3, 3)]
        scale, mean = np.float32([1, 2]), np.float32([0.5, -1])
        bias, variance = np.float32([0.1, -0.2]), np.float32([0.25, 4])
        norm = [bias, scale, mean, variance, random(2, 3, 1, 1)]
        text = (
            NET + "[convolutional]\nfilters=3\nsize=3\nstride=2\npadding=1\nactivation=relu\n"
            "[convolutional]\nbatch_normalize=1\nfilters=2\n"
        )
        weights = HEADER + b"".join(value.tobytes() for value in plain + norm)
        image = random(1, 2, 6, 8)
        (actual,) = run(read(text, weights), image)
        plain, norm = ([torch.from_numpy(value) for value in part] for part in (plain, norm))
        x = functional.conv2d(torch.from_numpy(image), plain[1], plain[0], stride=2, padding=1)
        x = functional.conv2d(torch.relu(x), norm[4])
        x = functional.batch_norm(x, norm[2], norm[3], norm[1], norm[0], eps=1e-5)
        np.testing.assert_allclose(actual, torch.sigmoid(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("activation", "function"),
        [
            ("leaky", lambda x: np.where(x > 0, x, np.float32(0.1) * x)),
            ("linear", lambda x: x),
            ("relu", lambda x: np.maximum(x, 0)),
            ("logistic", lambda x: 1 / (1 + np.exp(-x))),
        ],
    )
    def test_activations(self, read, activation, function):
        weights = np.float32([0, 0, 1, 0, 0, 1])  # two biases, and the identity
        text = NET + f"[convolutional]\nfilters=2\nactivation={activation}\n"
        image = random(1, 2, 6, 8)
        (actual,) = run(read(text, HEADER + weights.tobytes()), image)
        np.testing.assert_allclose(actual, function(image), rtol=1e-6)

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_max_pooling_is_that_of_darknet(self, tmp_path_factory, data):
        height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
        size, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
        padding = data.draw(st.none() | st.integers(0, 2 * size))
        text = f"[net]\nwidth={width}\nheight={height}\nchannels=1\n[maxpool]\nsize={size}\n"
        text += f"stride={stride}\n" + ("" if padding is None else f"padding={padding}\n")
        folder = tmp_path_factory.mktemp("pool")
        (folder / "net.cfg").write_text(text)
        (folder / "net.weights").write_bytes(HEADER)
        image = random(1, 1, height, width)
        desired = darknet_max_pool(image[0, 0], size, stride, padding)
        if desired is None:
            with pytest.raises(ExportError, match="layer 0"):
                read_darknet(folder / "net.cfg", folder / "net.weights")
            return
        (actual,) = run(read_darknet(folder / "net.cfg", folder / "net.weights"), image)
        np.testing.assert_array_equal(actual[0, 0], desired)

    def test_route_takes_a_group_of_the_channels_of_every_layer(self, read):
        text = (
            NET + "[maxpool]\nsize=1\n[maxpool]\nsize=3\n"
            "[route]\nlayers=-1, 0\n[route]\nlayers=2,-1\ngroups=2\ngroup_id=1\n"
        )
        image = random(1, 2, 6, 8)
        (actual,) = run(read(text), image)
        # Both parts are layer 2, whose second half is layer 0.
        np.testing.assert_array_equal(actual, np.concatenate([image, image], 1))

    def test_shortcut_and_upsample(self, read):
        text = NET + (
            "[maxpool]\nsize=2\nstride=2\n[upsample]\nstride=2\n[maxpool]\nsize=1\n"
            "[shortcut]\nfrom=-2\nactivation=leaky\n"
        )
        image = -np.abs(random(1, 2, 6, 8))
        (actual,) = run(read(text), image)
        pooled = image.reshape(1, 2, 3, 2, 4, 2).max((3, 5)).repeat(2, 2).repeat(2, 3)
        np.testing.assert_array_equal(actual, np.float32(0.1) * (pooled + pooled))

    def test_heads_are_outputs_in_order_and_called_after_their_layers(self, read):
        text = NET + CONV + "[yolo]\n[route]\nlayers=0\n[maxpool]\nstride=2\n[region]\nnum=5\n"
        model = read(text, 4 + 4 * 2 * 9, batch="N")
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.output
        }
        assert shapes == {"layer0_leaky": ["N", 4, 6, 8], "layer3_pool": ["N", 4, 3, 4]}
        assert model.graph.name == "net"

    @pytest.mark.parametrize(
        "header",
        [
            struct.pack("<3ii", 0, 1, 0, 7),
            struct.pack("<3iq", 0, 2, 5, 2**40),
            struct.pack("<3iq", 1, 0, 0, 7),
            struct.pack("<3ii", 1001, 0, 0, 7),
        ],
        ids=["0.1", "0.2", "1.0", "transposed"],
    )
    def test_headers(self, read, header):
        weights = random(4 + 4 * 2 * 9)
        model = read(NET + CONV, header + weights.tobytes())
        bias, kernel = sorted(map(numpy_helper.to_array, model.graph.initializer), key=np.size)
        np.testing.assert_array_equal(bias, weights[:4])
        np.testing.assert_array_equal(kernel.ravel(), weights[4:])

    def test_text_is_read_as_darknet_reads_it(self, read):
        text = (
            "\ufeff# comment\r\n[network]\r\n width = 8\r\nheight=6\nchannels=2\nwidth=99\n\n"
            "; another\n[conv]\nfilters = 1 2\nfilters=3\nlearning_rate=.1\nflipped=0\n"
            "groups=1\n[max]\nstride=2\n"
        )
        model = read(text, 12 + 12 * 2)
        shape = model.graph.output[0].type.tensor_type.shape
        assert [dim.dim_value for dim in shape.dim] == [1, 12, 3, 4]

    def test_compiled_network_agrees(self, read, tmp_path):
        # The beginning of cfg/yolov4-tiny.cfg, narrower.
        conv = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\npad=1\nactivation=leaky\n"
        text = (
            "[net]\nwidth=24\nheight=24\nchannels=3\n" + conv.format(8, 3)
            + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv.format(4, 3) + conv.format(4, 3)
            + "[route]\nlayers=-1,-2\n" + conv.format(8, 1) + "[route]\nlayers=-6,-1\n"
            + "[maxpool]\nsize=2\nstride=2\n[maxpool]\nsize=5\nstride=1\n"
        )  # fmt: skip
        weights = np.abs(random(4 * 24 + 8 * 27 + 2 * 4 * 36 + 64)) / 4
        model = read(text, HEADER + weights.tobytes())
        path = export(model, tmp_path / "net.onnx")
        report = check(compile(path, measure=False))
        assert report, report


def darknet_max_pool(image, size, stride, padding):
    """Its loop in src/maxpool_layer.c; None where a window would see no pixel."""
    padding = size - 1 if padding is None else padding
    height, width = ((n + padding - size) // stride + 1 for n in image.shape)
    if min(height, width) < 1:
        return None
    output = np.full((height, width), -np.inf, np.float32)
    for i in range(height):
        for j in range(width):
            for n in range(size):
                for m in range(size):
                    y, x = i * stride + n - padding // 2, j * stride + m - padding // 2
                    if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                        output[i, j] = max(output[i, j], image[y, x])
    return output if np.isfinite(output).all() else None


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no section; is it a .cfg file"),
            ("width=8\n", r"line 1: 'width=8' is neither a section nor an option of one"),
            ("[maxpool]\n", r"line 1: the first section is \[maxpool\], not \[net\]"),
            ("[net]\nwidth=8\n", r"line 1, \[net\]: the option channels is missing"),
            ("[net]\nwidth=8\nheight=8\nchannels=0\n", r"channels=0 \(line 4\) is not an integer"),
            (NET + "[route]\nlayers=0\n", r"line 5, layer 0 \[route\]: there is no layer 0"),
            (NET + "[yolo]\n", r"layer 0 \[yolo\]: a head reads the image itself"),
            (
                NET + "[maxpool]\n[reorg]\nstride=2\n",
                r"line 6: layer 1 is \[reorg\], which is not supported; those .* convolutional, ",
            ),
            (NET + "[net]\n", r"line 5: layer 0 is \[net\], which is not supported"),
            (NET + "[maxpool]\nsize\n", r"line 6: 'size' is neither"),
            (NET + "[maxpool]\nsize=two\n", r"layer 0 \[maxpool\]: size=two \(line 6\) is not an"),
            (NET + "[maxpool]\nsize=2.0\n", r"size=2.0 \(line 6\) is not an integer"),
            (NET + "[maxpool]\nsize=0\n", r"size=0 \(line 6\) is not an integer of 1 or more"),
            (NET + "[maxpool]\nsize=1,2\n", r"size=1,2 \(line 6\) is not an integer of 1"),
            (NET + "[maxpool]\nsize=9999999999\n", r"\(line 6\) is not an integer of at most nine"),
            (NET + "[maxpool]\npadding=7\n", "padding=7 has windows of 1 x 1 without a pixel"),
            (NET + "[maxpool]\nmaxpool_depth=1\n", r"maxpool_depth=1 \(line 6\) is not supported"),
            (NET + "[convolutional]\ngroups=2\n", r"groups=2 \(line 6\) is not supported here"),
            (NET + "[convolutional]\nactivation=mish\n", r"activation=mish is not one of leaky, l"),
            (NET + "[convolutional]\nsize=9\n", "the layer would have 1 x -2 x 0 values"),
            (NET + "[upsample]\nstride=99999\n", "more than darknet can count"),
            (NET + "[shortcut]\nfrom=-1\n", "there is no layer -1 before layer 0"),
            (NET + "[shortcut]\n", "the option from is missing"),
            (NET + "[maxpool]\n[shortcut]\nfrom=0,0\n", "adds more than one layer"),
            (NET + "[maxpool]\n[maxpool]\nstride=2\n[shortcut]\nfrom=0\n", "different shapes: 2 x"),
            (NET + "[maxpool]\n[maxpool]\nstride=2\n[route]\nlayers=0,1\n", "different sizes: 6 x"),
            (NET + "[maxpool]\n[route]\nlayers=0\ngroups=3\n", "2 channels have no group 0 of 3"),
            (NET + "[maxpool]\n[route]\nlayers=0\ngroups=2\ngroup_id=2\n", "no group 2 of 2"),
            (NET + "[maxpool]\n[route]\nlayers=\n", r"layers= \(line 7\) is not an integer"),
            (NET + "[maxpool]\n[yolo]\n[maxpool]\n", r"layer 1 is a head, whose boxes are not"),
        ],
    )
    def test_text(self, read, text, message):
        with pytest.raises(ExportError, match=message) as caught:
            read(text, 999)
        assert "\n" not in str(caught.value)

    def test_network_without_layers(self, read):
        with pytest.raises(ExportError, match="has no layer that computes anything"):
            read(NET)

    def test_sizes_far_beyond_the_file_allocate_nothing(self, read):
        text = NET + "[convolutional]\nfilters=999999999\nsize=999999\npad=1\n"
        with pytest.raises(ExportError, match=r"layer 0 .*net\.weights is too short: 799.* next"):
            read(text, 100)

    def test_every_shorter_file(self, read):
        weights = HEADER + random(4 + 4 * 2 * 9).tobytes()
        for count in range(len(weights)):
            with pytest.raises(ExportError, match=r"net\.weights is too short: .*truncated"):
                read(NET + CONV, weights[:count])

    @pytest.mark.parametrize("rest", [1, 4, 4096])
    def test_longer_file(self, read, rest):
        weights = HEADER + random(4 + 4 * 2 * 9).tobytes() + bytes(rest)
        with pytest.raises(ExportError, match=f"has {rest} bytes more than the layers take"):
            read(NET + CONV, weights)

    def test_larger_file_than_onnx_holds(self, tmp_path):
        (tmp_path / "net.cfg").write_text(NET + CONV)
        with (tmp_path / "net.weights").open("wb") as stream:
            stream.truncate(2**31)  # without its blocks on the disk
        with pytest.raises(ExportError, match="at most 2 GiB"):
            read_darknet(tmp_path / "net.cfg", tmp_path / "net.weights")

    def test_missing_files_and_folders(self, tmp_path):
        cfg = tmp_path / "net.cfg"
        with pytest.raises(ExportError, match=r"cannot read .*net\.cfg: No such file"):
            read_darknet(cfg, tmp_path / "net.weights")
        cfg.write_text(NET + CONV)
        with pytest.raises(ExportError, match=r"cannot read .*net\.weights: No such file"):
            read_darknet(str(cfg), str(tmp_path / "net.weights"))
        with pytest.raises(ExportError, match="is not a regular file"):
            read_darknet(cfg, tmp_path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ExportError, match="is not a regular file"):
            read_darknet(tmp_path / "pipe", cfg)

    def test_weights_in_place_of_a_cfg(self, tmp_path):
        (tmp_path / "net.weights").write_bytes(bytes(2**20 + 1))
        with pytest.raises(ExportError, match=r"larger than 1 MiB; is it a \.cfg file"):
            read_darknet(tmp_path / "net.weights", tmp_path / "net.weights")

    @pytest.mark.parametrize("options", [{"batch": 0}, {"opset": 12}])
    def test_options(self, tmp_path, options):
        with pytest.raises(ExportError, match=f"^{next(iter(options))}="):
            read_darknet(tmp_path / "none", tmp_path / "none", **options)

    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_damaged_text_is_read_or_refused(self, tmp_path_factory, data):
        text = (CFG / "yolov3-tiny.cfg").read_bytes()
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(text)))
            end = start + data.draw(st.integers(0, 12))
            text = text[:start] + data.draw(st.binary(max_size=8)) + text[end:]
        folder = tmp_path_factory.getbasetemp()
        (folder / "damaged.cfg").write_bytes(text)
        (folder / "damaged.weights").write_bytes(HEADER + bytes(4 * 600_000))
        model, refusal = None, ""
        try:
            model = read_darknet(folder / "damaged.cfg", folder / "damaged.weights")
        except ExportError as error:
            refusal = str(error)
        assert "\n" not in refusal
        if model is not None:
            onnx.checker.check_model(model)
