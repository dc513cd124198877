"""The registry: names, options, sizes, and what it refuses."""

import math

import onnx
import pytest

from leakyforge.errors import ExportError
from leakyforge.models import ZOO, build

SMALL = {
    "rrdbnet": {"blocks": 1},
    "yolov3": {"features": 4},
    "pix2pix-unet": {"features": 8},
    "vits": {"hidden": 16, "layers": 1},
}
# Of inputs that are no pictures or sounds.
RANGES = {"input": (0, 256), "input_lengths": (1, 4)}
# Parameters at full size, running means and variances of batch normalization aside.
PARAMETERS = {
    "yolov2-tiny": 11_232_057,
    "yolov3-tiny": 8_852_366,
    "yolov3": 61_949_149,
    "melgan": 4_260_257,
    "pix2pix-unet": 54_413_955,
    "patchgan": 2_768_705,
    "speech-embedding": 328_128,
    "resnet18": 11_689_512,
}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_builds_and_is_described_on_one_line(name):
    model = build(name, **SMALL.get(name, {}))
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "leakyforge"
    assert ZOO[name].description
    assert "\n" not in ZOO[name].description


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_input_states_its_range(name):
    model = build(name, **SMALL.get(name, {}))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for value in model.graph.input:
        low, high = map(float, metadata[f"leakyforge.input_range.{value.name}"].split(","))
        expected = RANGES.get(value.name, (0, 1)) if name == "vits" else (0, 1)
        assert (low, high) == expected


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_at_full_size(name, count):
    model = build(name)
    learned = {"weight", "bias", "scale"}
    sizes = [
        math.prod(weight.dims)
        for weight in model.graph.initializer
        if weight.name.rpartition(".")[2] in learned
    ]
    assert sum(sizes) == count


def test_unknown_name_lists_the_zoo():
    with pytest.raises(ExportError, match=r"'yolo'.*digits, .*, yolov3-tiny"):
        build("yolo")


def test_unknown_option_is_named_with_those_that_exist():
    with pytest.raises(ExportError, match=r"digits has no option alpha, width.*batch, opset"):
        build("digits", width=2, alpha=0.2)


def test_options_reach_the_builder():
    model = build("digits", batch="N", opset=13)
    assert model.opset_import[0].version == 13
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch", 0),
        ("batch", True),
        ("batch", 1.0),
        ("batch", ""),
        ("batch", "4"),
        ("opset", 12),
        ("opset", 24),
        ("opset", "18"),
    ],
)
def test_invalid_value_of_a_common_option(name, option, value):
    with pytest.raises(ExportError, match=f"^{option}="):
        build(name, **SMALL.get(name, {}), **{option: value})


@pytest.mark.parametrize("opset", range(13, 24))
def test_ir_version_is_the_lowest_for_the_opset(opset):
    model = build("digits", opset=opset)
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)


def test_a_dimension_of_hifigan_may_be_symbolic():
    model = build("hifigan", frames="T")
    (mel,), (sound,) = model.graph.input, model.graph.output
    assert mel.type.tensor_type.shape.dim[2].dim_param == "T"
    assert sound.type.tensor_type.shape.dim[2].dim_param == "samples"
    with pytest.raises(ExportError, match="frames='2'"):
        build("hifigan", frames="2")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"hidden": 10, "heads": 4}, "hidden=10"), ({"channels": 12}, "channels=12")],
)
def test_options_of_the_voice(options, words):
    with pytest.raises(ExportError, match=words):
        build("vits", **options)
