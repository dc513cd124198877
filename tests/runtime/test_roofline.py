"""The least time of kernels by a GPU's data sheet."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from onnx import parser

from leakyforge.cli import cli
from leakyforge.errors import InputError
from leakyforge.kernels import compile
from leakyforge.runtime import read_manifest
from leakyforge.runtime.manifest import Kernel, Resources
from leakyforge.runtime.roofline import GPUS, roofline

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[64,512] x, float[512,256] w, float[5,7] z) => (float[64,256] y, float[5,7] l)
{ m = MatMul (x, w) y = LeakyRelu (m) l = LeakyRelu (z) }"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roofline")
    return compile(parser.parse_model(TEXT), "opencl", output=folder / "m.lfa")


@pytest.fixture(scope="module")
def manifest(path):
    return read_manifest(path)


def with_kernels(manifest, *kernels):
    variant = dataclasses.replace(manifest.variants[0], kernels=kernels)
    return dataclasses.replace(manifest, variants=(variant,))


@pytest.mark.parametrize("gpu", GPUS)
def test_by_hand(manifest, gpu):
    report = roofline(manifest, gpu)
    peak, bandwidth = GPUS[gpu].flops_per_second, GPUS[gpu].bytes_per_second
    product, elementwise = sorted(report.kernels, key=lambda row: -row.flops)
    flops, size = 2 * 64 * 512 * 256, 4 * (64 * 512 + 512 * 256 + 64 * 256)
    assert (product.flops, product.computed, product.bytes_moved) == (flops, flops, size)
    assert product.intensity == flops / size
    assert product.bound == ("compute" if flops / peak > size / bandwidth else "memory")
    assert product.least_us == pytest.approx(1e6 * max(flops / peak, size / bandwidth))
    assert (elementwise.flops, elementwise.bytes_moved) == (0, 2 * 4 * 5 * 7)
    assert elementwise.bound == "memory"
    assert report.least_us == pytest.approx(product.least_us + elementwise.least_us)


def test_calls_of_a_kernel_are_one_row(manifest):
    use = Resources(64, 0, 0, 0, 6912, 384, 128, 1024, 0.5, "registers")
    conv = Kernel("conv", None, None, 1000, 39_000_000, 100, use)
    pool = Kernel("pool", None, None, 0, 0, 8)
    report = roofline(with_kernels(manifest, conv, pool, conv), "a100")
    assert [(row.kernel, row.calls, row.occupancy) for row in report.kernels] == [
        ("conv", 2, 0.5),
        ("pool", 1, None),
    ]
    assert report.kernels[0].least_us == pytest.approx(2)
    assert report.least_us == pytest.approx(4, rel=1e-3)


def test_a_kernel_of_no_bytes(manifest):
    (row,) = roofline(with_kernels(manifest, Kernel("k", None, None, 0, 0, 0)), "h100").kernels
    assert (row.intensity, row.least_us) == (0, 0)


def test_an_unknown_gpu(manifest):
    with pytest.raises(InputError, match="GPU 'a1000' is known; give one of: a10, a100, "):
        roofline(manifest, "a1000")


def test_an_artifact_for_a_cpu(tmp_path):
    model = parser.parse_model(TEXT)
    manifest = read_manifest(compile(model, "cpu", output=tmp_path / "m.lfa"))
    with pytest.raises(InputError, match="is code for a CPU"):
        roofline(manifest, "a100")


class TestCommand:
    def test_table_says_that_it_is_a_bound(self, path):
        done = CliRunner().invoke(cli, ["inspect", str(path), "--roofline", "h100"])
        assert done.exit_code == 0, done.output
        assert "H100 SXM: 67 TFLOP/s in float32, 3350 GB/s" in done.output
        assert "A bound for each call, not a measurement" in done.output

    def test_json(self, path, manifest):
        done = CliRunner().invoke(cli, ["inspect", str(path), "--roofline", "l4", "--json"])
        assert json.loads(done.stdout) == json.loads(json.dumps(roofline(manifest, "l4").to_dict()))

    def test_help_names_every_gpu(self):
        text = " ".join(CliRunner().invoke(cli, ["inspect", "--help"]).output.split())
        assert all(gpu in text for gpu in GPUS)
