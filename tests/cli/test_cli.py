"""The command line: help, exit statuses, one line for an error, and what --json and -o give."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import onnx
import pytest

from leakyforge import cli
from leakyforge.errors import LeakyforgeError
from leakyforge.runtime import cpu, read_artifact

COMMANDS = list(cli.cli.commands)
# Those of a group stand in its place.
LEAVES = [
    leaf
    for name, command in cli.cli.commands.items()
    for leaf in [f"{name} {each}" for each in getattr(command, "commands", ())] or [name]
]
IMAGE = (1, 2, 7, 5)


@pytest.fixture
def invoke(capfd):
    """Run the command line in this process; gives exit status, standard output and error.

    File descriptors are captured, so what C++ prints is seen; so is what Python would warn of.
    """

    def invoke(*arguments):
        capfd.readouterr()
        status = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default", RuntimeWarning)
            warnings.simplefilter("default", UserWarning)
            try:
                cli.main([str(argument) for argument in arguments])
            except SystemExit as exit_request:
                status = 0 if exit_request.code is None else exit_request.code
        out, err = capfd.readouterr()
        assert [str(entry.message) for entry in caught] == []
        return status, out, err

    return invoke


@pytest.fixture
def fails(invoke):
    """Run a command that must fail on its input; gives the one line that it prints."""

    def fails(*arguments):
        status, out, err = invoke(*arguments)
        assert status == 2, out + err
        assert out == ""
        assert err.startswith("leakyforge: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        return err.strip()

    return fails


@pytest.fixture
def image(tmp_path):
    """An .npy file for the input of the convolution."""
    path = tmp_path / "image.npy"
    np.save(path, np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32))
    return path


class TestHelp:
    @pytest.mark.parametrize("command", LEAVES)
    def test_shows_an_example_on_a_line_of_its_own(self, invoke, command):
        status, out, err = invoke(*command.split(), "--help")
        assert (status, err) == (0, "")
        assert re.search(rf"\n  Example:\n    leakyforge {command}\b.*\n", out), out
        assert "--quiet" in out
        assert "--debug" in out
        assert invoke(*command.split(), "-h") == (status, out, err)

    def test_of_the_whole(self, invoke):
        status, out, _ = invoke("--help")
        assert status == 0
        assert "\n    leakyforge export digits -o digits.onnx\n" in out
        for command in COMMANDS:
            assert re.search(rf"\n  {command} ", out)
        assert "\\b" not in out

    def test_examples_use_options_that_exist(self):
        for name, command in cli.cli.commands.items():
            options = {flag for parameter in command.params for flag in parameter.opts}
            example = command.help.partition("Example:")[2]
            used = set(re.findall(r"(?<=\s)--?[a-z-]+", example))
            assert used <= options, name

    def test_issue_2s_commands_are_there(self):
        assert set("export compile check run bench inspect doctor verify".split()) <= set(COMMANDS)  # noqa: SIM905

    @pytest.mark.parametrize("command", ["check", "verify", "bench", "inspect", "doctor"])
    def test_json_is_offered(self, command):
        assert "--json" in {
            flag for option in cli.cli.commands[command].params for flag in option.opts
        }

    def test_version(self, invoke):
        status, out, _ = invoke("--version")
        assert status == 0
        assert re.fullmatch(r"leakyforge, version \d+\.\d+\.\d+\n", out)

    def test_without_arguments(self, invoke):
        status, out, err = invoke()
        assert status == 2
        assert "Commands:" in out + err


class TestPipeline:
    def test_export_compile_check_verify_run(self, invoke, tmp_path):
        model, artifact = tmp_path / "digits.onnx", tmp_path / "digits.lfa"
        assert invoke("export", "digits", "-o", model) == (0, f"wrote {model}\n", "")
        assert invoke("compile", model) == (0, f"wrote {artifact}\n", "")
        status, out, err = invoke("check", artifact, "--samples", "2")
        assert (status, err) == (0, "")
        assert "2 inputs, seed 0" in out
        assert "3 LeakyRelu" in out
        assert out.endswith("parity: pass\n")
        status, out, err = invoke("verify", artifact)
        assert (status, err) == (0, "")
        assert "1 input)" in out
        assert out.endswith("parity: pass\n")

    def test_export_list(self, invoke):
        from leakyforge.models import ZOO

        status, out, err = invoke("export", "--list")
        assert (status, err) == (0, "")
        assert set(re.findall(r"^│ ([\w-]+) ", out, re.MULTILINE)) == set(ZOO)
        assert re.search(r"mlp +│ perceptron .* │ hidden=512 alpha=0.1 seed=0 ", out)

    def test_export_of_an_onnx_file(self, invoke, tmp_path):
        first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
        assert invoke("export", "mlp", "-o", first, "--set", "hidden=8")[0] == 0
        assert invoke("export", first, "-o", second) == (0, f"wrote {second}\n", "")

    def test_export_of_weights_for_a_zoo_model(self, invoke, fails, tmp_path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        weights = {
            "dense1.weight": torch.zeros(8, 784), "dense1.bias": torch.zeros(8),
            "dense2.weight": torch.zeros(8, 8), "dense2.bias": torch.zeros(8),
            "logits.weight": torch.zeros(10, 8), "logits.bias": torch.zeros(10),
        }  # fmt: skip
        file, output = tmp_path / "w.pth", tmp_path / "m.onnx"
        torch.save(weights, file)
        arguments = ["export", file, "-o", output, "--zoo", "mlp", "--batch", "2"]
        assert invoke(*arguments, "--set", "hidden=8") == (0, f"wrote {output}\n", "")
        assert "dense1.bias is 8 and should be 512" in fails(*arguments)
        assert "--zoo NAME" in fails("export", file, "-o", output)

    def test_export_of_torchscript(self, invoke, fails, tmp_path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        file, output = tmp_path / "m.pt", tmp_path / "m.onnx"
        torch.jit.save(torch.jit.script(torch.nn.LeakyReLU(0.1)), file)
        arguments = ["export", file, "-o", output]
        assert "--input-shape input=1x3" in fails(*arguments)
        status, out, err = invoke(*arguments, "--input-shape", "input=2x3")
        assert (status, out, err) == (0, f"wrote {output}\n", "")

    def test_shape(self, invoke, symbolic_conv, tmp_path):
        model, artifact = symbolic_conv.with_suffix(".onnx"), tmp_path / "fixed.lfa"
        status, _, err = invoke("compile", model, "-o", artifact, "--shape", "image=3x2x7x5")
        assert (status, err) == (0, "")
        assert read_artifact(artifact).manifest.inputs[0].shape == (3, 2, 7, 5)
        assert invoke("check", artifact, "-q") == (0, "", "")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["check", "ARTIFACT", "--samples", "1"],
            ["verify", "ARTIFACT"],
            ["run", "ARTIFACT", "--input", "image=IMAGE"],
            ["inspect", "ARTIFACT"],
            ["inspect", "MODEL"],
            ["doctor"],
            ["compile", "MODEL", "-o", "OUTPUT"],
            ["export", "digits", "-o", "OUTPUT"],
            ["bench", "ARTIFACT", "--seconds", "0.1"],
        ],
        ids=lambda arguments: " ".join(arguments[:2]),
    )
    def test_quiet_prints_nothing(self, invoke, conv, image, tmp_path, arguments):
        places = {
            "ARTIFACT": conv,
            "MODEL": conv.with_suffix(".onnx"),
            "image=IMAGE": f"image={image}",
            "OUTPUT": tmp_path / "output",
        }
        arguments = [places.get(word, word) for word in arguments]
        assert invoke(*arguments, "--quiet") == (0, "", "")

    def test_failed_check_is_status_1(self, invoke, build, rewrite, tmp_path):
        text = "f (float[9] x) => (float[9] y) {{ y = LeakyRelu <alpha = {}> (x) }}"
        manifest = read_artifact(build(text.format(0.2))).manifest
        fields = {"onnx_sha256": manifest.onnx_sha256, "onnx_path": manifest.onnx_path}
        path = rewrite(build(text.format(0.3)), tmp_path / "wrong.lfa", **fields)
        status, out, err = invoke("check", path)
        assert (status, err) == (1, "")
        assert "FAIL at [" in out
        assert out.endswith("parity: FAIL\n")
        status, out, _ = invoke("check", path, "--json")
        assert status == 1
        report = json.loads(out)
        assert report["passed"] is False
        assert [row["output"] for row in report["outputs"] if not row["passed"]] == ["y"] * 2
        assert invoke("check", path, "--quiet") == (1, "", "")

    def test_failed_verify_is_status_1(self, invoke, leaky, rewrite, tmp_path):
        outputs = {"y": np.zeros((2, 3), np.float32)}
        path = rewrite(leaky, tmp_path / "wrong.lfa", reference_outputs=outputs)
        status, out, err = invoke("verify", path)
        assert (status, err) == (1, "")
        assert out.endswith("parity: FAIL\n")

    def test_untested_alpha_is_reported(self, invoke, build):
        artifact = build(
            "f (float[4] x) => (float[4] y) { a = Abs(x) y = LeakyRelu <alpha = 0.3> (a) }"
        )
        status, out, _ = invoke("check", artifact)
        assert status == 0
        assert "alpha 0.3 of LeakyRelu 'y' was not tested" in out


class TestVariants:
    """`cpu:fat` and `--variant`."""

    @pytest.fixture
    def old_cpu(self, monkeypatch):
        """This machine as one that has nothing but the least x86-64."""
        monkeypatch.setattr(cpu, "host_features", lambda: frozenset({"cmov", "sse", "sse2"}))

    def test_compile_and_explain(self, invoke, conv, tmp_path):
        output = tmp_path / "fat.lfa"
        model = conv.with_suffix(".onnx")
        status, out, err = invoke(
            "compile", model, "--target", "cpu:fat", "-o", output, "--explain"
        )
        assert (status, err) == (0, "")
        titles = [line.strip() for line in out.splitlines() if line.startswith("Layers")]
        assert titles == [f"Layers for {name}" for name in ("x86-64-v4", "x86-64-v3", "x86-64")]
        assert out.endswith(f"wrote {output}\n")

    def test_compile_on_an_old_cpu_says_what_was_not_run(self, invoke, conv, tmp_path, old_cpu):
        output = tmp_path / "fat.lfa"
        model = conv.with_suffix(".onnx")
        assert invoke("compile", model, "--target", "cpu:fat", "-o", output, "-q")[0] == 0
        fields = json.loads(invoke("inspect", output, "--json")[1])
        assert [each["parity"]["result"] for each in fields["variants"]] == [
            "not run", "not run", "pass",
        ]  # fmt: skip
        out = invoke("inspect", output)[1]
        assert re.search(rf"not run: {re.escape(cpu.model_name())} lacks .*avx512f", out)
        assert re.search(r"pass on .*: wide .* of its range \(tolerance ", out)

    def test_inspect(self, invoke, fat):
        out = invoke("inspect", fat)[1]
        for name in ("x86-64-v4", "x86-64-v3", "x86-64"):
            assert re.search(rf"│ variant +│ {name} ", out)
        fields = json.loads(invoke("inspect", fat, "--json")[1])
        assert len(fields["variants"]) == 3
        for variant in fields["variants"]:
            assert variant["library_size"] > 1000
            assert variant["parity"]["result"] in ("pass", "not run")

    @pytest.mark.parametrize("command", ["check", "verify"])
    def test_all(self, invoke, fat, old_cpu, command):
        status, out, err = invoke(command, fat, "--variant", "all")
        assert (status, err) == (0, "")
        assert f"Parity of {fat}, variant x86-64 (" in out
        assert re.search(r"variant x86-64-v4 was not run: .* lacks .*avx512f", out)
        assert out.endswith("parity: pass; not run: x86-64-v4, x86-64-v3\n")
        report = json.loads(invoke(command, fat, "--variant", "all", "--json")[1])
        assert report["not_run"].keys() == {"x86-64-v4", "x86-64-v3"}
        assert {row["variant"] for row in report["outputs"]} == {"x86-64"}

    @pytest.mark.parametrize("command", ["check", "verify"])
    def test_one(self, invoke, fat, command):
        status, out, _ = invoke(command, fat, "--variant", "x86-64", "--json")
        report = json.loads(out)
        assert (status, report["passed"], report["not_run"]) == (0, True, {})
        assert {row["variant"] for row in report["outputs"]} == {"x86-64"}

    def test_run(self, invoke, fat, image, tmp_path):
        output = tmp_path / "y.npz"
        arguments = ["run", fat, "--input", f"image={image}", "-o", output, "-q"]
        assert invoke(*arguments, "--variant", "x86-64") == (0, "", "")
        from leakyforge import Session

        desired = Session(fat, variant="x86-64").run(["wide"], {"image": np.load(image)})
        with np.load(output) as stored:
            np.testing.assert_array_equal(stored["wide"], desired[0])

    def test_bench(self, invoke, fat):
        status, out, err = invoke("bench", fat, "--seconds", "0.1", "--variant", "x86-64", "--json")
        assert (status, err) == (0, "")
        assert json.loads(out)["variant"] == "x86-64"

    @pytest.mark.parametrize("command", ["check", "verify", "run", "bench"])
    def test_that_cannot_run_or_does_not_exist(self, fails, fat, old_cpu, command):
        line = fails(command, fat, "--variant", "x86-64-v3")
        assert f"variant x86-64-v3 of artifact {fat} needs" in line
        assert "lacks: avx, avx2, " in line
        assert "has no variant 'znver9'" in fails(command, fat, "--variant", "znver9")

    def test_failed_parity_of_compile_is_status_1(self, invoke, conv, tmp_path, monkeypatch):
        from leakyforge.runtime import record

        right = record.replay
        monkeypatch.setattr(
            record,
            "replay",
            lambda loaded: [dataclasses.replace(row, passed=False) for row in right(loaded)],
        )
        output = tmp_path / "m.lfa"
        status, out, err = invoke("compile", conv.with_suffix(".onnx"), "-o", output)
        assert (status, out) == (1, "")
        assert err.startswith(f"leakyforge: error: {output} is not written: output 'wide'")
        assert err.count("\n") == 1
        assert not output.exists()


class TestJson:
    @pytest.mark.parametrize("command", ["check", "verify"])
    def test_parity(self, invoke, digits, command):
        status, out, err = invoke(command, digits, "--json")
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert report["passed"] is True
        assert report["artifact"] == str(digits)
        assert {"max_abs", "max_rel", "max_ulp", "cosine", "snr_db", "atol", "origin"} <= report[
            "outputs"
        ][0].keys()

    def test_inspect_artifact(self, invoke, conv):
        _, out, _ = invoke("inspect", conv, "--json")
        fields = json.loads(out)
        assert fields["inputs"][0]["shape"] == list(IMAGE)
        assert [spec["name"] for spec in fields["outputs"]] == ["wide", "mean"]

    def test_inspect_onnx(self, invoke, conv):
        _, out, _ = invoke("inspect", conv.with_suffix(".onnx"), "--json")
        fields = json.loads(out)
        assert fields["inputs"] == {"image": "float 1x2x7x5"}
        assert fields["operators"] == {"Conv": 1, "LeakyRelu": 1, "ReduceMean": 1}
        assert fields["alphas"] == {"wide": pytest.approx(0.2)}
        assert fields["parameters"] == 3 * 2 * 9 + 3 + 2
        assert fields["weight_bytes"] == (3 * 2 * 9 + 3) * 4 + 2 * 8
        assert fields["flops"] == 2 * 3 * 7 * 5 * 2 * 9
        assert fields["activation_bytes"] == (2 * 3 * 7 * 5 + 3) * 4
        assert fields["largest_activation"] in ("features", "wide")
        assert fields["largest_activation_bytes"] == 3 * 7 * 5 * 4
        assert fields["unsupported"] == []

    def test_inspect_says_what_is_not_compiled(self, invoke, tmp_path):
        model = onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1, "ours": 1]>
            g (float[2] x) => (float[2] y) {
            a = ours.Twice (x) b = RandomNormalLike (a) y = com.microsoft.BiasGelu (b, x) }
            <domain: "ours", opset_import: ["": 18]> Twice (a) => (c) { c = Add (a, a) }"""
        )
        path = tmp_path / "foreign.onnx"
        onnx.save(model, path)
        fields = json.loads(invoke("inspect", path, "--json")[1])
        assert fields["operators"] == {"Add": 1, "RandomNormalLike": 1, "com.microsoft.BiasGelu": 1}
        assert fields["unsupported"] == ["RandomNormalLike", "com.microsoft.BiasGelu"]
        assert "RandomNormalLike, com.microsoft.BiasGelu" in invoke("inspect", path)[1]

    def test_doctor(self, invoke):
        status, out, _ = invoke("doctor", "--json")
        findings = {entry["name"]: entry for entry in json.loads(out)}
        assert {"python", "cpu", "threads", "apache-tvm", "apache-tvm-ffi"} <= findings.keys()
        assert status == 0
        assert all(entry["ok"] for entry in findings.values())

    def test_bench(self, invoke, conv):
        status, out, err = invoke("bench", conv, "--seconds", "0.2", "--threads", "1", "--json")
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert report["threads"] == 1
        engines = [row["engine"].split()[0] for row in report["latencies"]]
        assert engines[:2] == ["leakyforge", "onnxruntime"]
        assert all(
            0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in report["latencies"]
        )
        assert report["latencies"][0]["speedup"] == 1
        assert {row["engine"] for row in report["startups"]} == {"leakyforge", "onnxruntime"}

    def test_bench_beside_peers(self, invoke, fails, conv, monkeypatch):
        from leakyforge.runtime import engines

        absent = engines.Peer(("no_such_module",))
        known = {"onnxruntime": engines.PEERS["onnxruntime"], "absent": absent}
        monkeypatch.setattr(engines, "PEERS", known)
        arguments = ("bench", conv, "--peers", "--seconds", "0.1", "--threads", "1")
        status, out, err = invoke(*arguments, "--json")
        assert (status, err) == (0, "")
        engines = [row["engine"] for row in json.loads(out)["results"]]
        assert engines == ["leakyforge", "onnxruntime", "absent"]
        out = invoke(*arguments)[1]
        assert "not timed: no_such_module" in out
        assert "1.00 x" in out
        assert "compiled in" not in out
        assert "leave out --variant" in fails(*arguments, "--variant", "x86-64")
        assert "threads=4096" in fails("bench", conv, "--peers", "--threads", "4096")
        # Named engines alone, and an ONNX file, which is compiled first.
        onnx_file = conv.with_suffix(".onnx")
        named = ("--peer", "onnxruntime", "--seconds", "0.1", "--threads", "1")
        status, out, err = invoke("bench", onnx_file, *named, "--json")
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert [row["engine"] for row in report["results"]] == ["leakyforge", "onnxruntime"]
        assert report["compile_seconds"] > 0
        assert "unknown engine 'x'" in fails("bench", conv, "--peer", "x")

    def test_profile(self, invoke, fails, conv):
        arguments = ("bench", conv, "--profile", "--seconds", "0.1", "--threads", "1")
        status, out, err = invoke(*arguments, "--json")
        assert (status, err) == (0, "")
        report = json.loads(out)
        names = [row["kernel"] for row in report["kernels"]]
        assert any("conv2d" in name for name in names)
        # One convolution of 2 to 3 channels.
        assert report["flops"] == 2 * 3 * 7 * 5 * 2 * 9
        out = invoke(*arguments)[1]
        assert all(word in out for word in ("all kernels", "between them", "GB/s", "of peak"))
        assert "leave out --peers" in fails(*arguments, "--peer", "mnn")


class TestRun:
    def test_input_and_output(self, invoke, conv, image, tmp_path):
        output = tmp_path / "outputs.npz"
        status, out, err = invoke("run", conv, "--input", f"image={image}", "-o", output)
        assert (status, err) == (0, "")
        assert "1x3x7x5" in out
        from leakyforge import Session

        desired = Session(conv).run(None, {"image": np.load(image)})
        with np.load(output) as stored:
            assert stored.files == ["wide", "mean"]
            for name, array in zip(stored.files, desired, strict=True):
                np.testing.assert_array_equal(stored[name], array, strict=True)

    def test_inputs(self, invoke, conv, image, tmp_path):
        first, second = tmp_path / "a.npz", tmp_path / "b.npz"
        np.savez(tmp_path / "inputs.npz", image=np.load(image))
        assert invoke("run", conv, "--inputs", tmp_path / "inputs.npz", "-o", first, "-q")[0] == 0
        assert invoke("run", conv, "--input", f"image={image}", "-o", second, "-q")[0] == 0
        assert first.read_bytes() == second.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a.npz", "b.npz", "image.npy", "inputs.npz",
        ]  # fmt: skip

    def test_bfloat16_survives_files(self, invoke, build, tmp_path):
        artifact = build("f (bfloat16[3] x) => (bfloat16[3] y) { y = LeakyRelu <alpha = 0.5> (x) }")
        np.save(tmp_path / "x.npy", np.array([1, -2, 3], ml_dtypes.bfloat16))
        out = tmp_path / "y.npz"
        assert (
            invoke("run", artifact, "--input", f"x={tmp_path / 'x.npy'}", "-o", out, "-q")[0] == 0
        )
        from leakyforge.runtime.arrays import load_npz

        np.testing.assert_array_equal(
            load_npz(out)["y"], np.array([1, -1, 3], ml_dtypes.bfloat16), strict=True
        )

    def test_names_that_are_special_elsewhere(self, invoke, build, tmp_path):
        """`file` is a parameter of numpy's savez, `[red]` a colour and `:x:` a picture in rich."""
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]>'
            "f (float[2] a) => (float[2] file, float[2] b) { file = Neg(a) b = LeakyRelu(a) }"
        )
        special = {"a": "a=b/c", "b": "[red]:x:"}
        for value in (*model.graph.input, *model.graph.output):
            value.name = special.get(value.name, value.name)
        for node in model.graph.node:
            node.input[0] = special["a"]
            node.output[0] = special.get(node.output[0], node.output[0])
        artifact = build(model)
        np.save(tmp_path / "x.npy", np.array([1, -2], np.float32))
        out_file = tmp_path / "y.npz"
        status, out, err = invoke(
            "run", artifact, "--input", f"a=b/c={tmp_path / 'x.npy'}", "-o", out_file
        )
        assert (status, err) == (0, "")
        assert "[red]:x:" in out
        with np.load(out_file) as stored:
            assert stored.files == ["file", "[red]:x:"]
        assert "[red]:x:" in invoke("check", artifact)[1]
        assert "[red]:x:" in invoke("inspect", artifact)[1]

    def test_an_output_file_stays_when_the_run_fails(self, fails, conv, tmp_path):
        output = tmp_path / "outputs.npz"
        output.write_bytes(b"old")
        fails("run", conv, "-o", output)
        assert output.read_bytes() == b"old"


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["compil"], ["No such command 'compil'", "leakyforge --help"]),
            (["check"], ["Missing argument 'ARTIFACT'", "leakyforge check --help"]),
            (["verify", "m.lfa", "--fast"], ["No such option", "--fast"]),
            (["export", "digits"], ["--output", "leakyforge export --help"]),
            (["check", "m.lfa", "--samples", "0"], ["--samples", "0"]),
            (["check", "m.lfa", "--samples", "many"], ["--samples", "many"]),
            (["run", "m.lfa", "--input", "image"], ["'image' is not NAME=FILE.npy"]),
            (["run", "m.lfa", "--threads", "0"], ["--threads"]),
            (["compile", "m.onnx", "--shape", "image=1x"], ["'image=1x' is not NAME=1x3x416x416"]),
            (["compile", "m.onnx", "--shape", "1x3"], ["'1x3' is not NAME="]),
            (["export", "digits", "-o", "m.onnx", "--opset", "x"], ["--opset"]),
            (["export", "digits", "-o", "m.onnx", "--set", "size"], ["'size' is not NAME=VALUE"]),
            (["export", "digits", "-o", "m.onnx", "--set", "batch=2"], ["--set batch=..."]),
            (["export", "digits", "-o", "m.onnx", "--set", "path=2"], ["--set path=..."]),
            (["export", "digits", "-o", "m.onnx", "--set", "zoo=mlp"], ["--set zoo=..."]),
            (["export", "m.pt", "-o", "m.onnx", "--input-shape", "x"], ["'x' is not NAME=1x3"]),
        ],
    )
    def test_wrong_usage(self, fails, arguments, words):
        line = fails(*arguments)
        for word in words:
            assert word in line


def broken_files(tmp_path, model):
    """Paths by kind, none of which is a whole ONNX file."""
    whole = model.read_bytes()
    contents = {
        "empty": b"",
        "text": b"This is no model.\n",
        "truncated": whole[: len(whole) // 2],
        "noise": bytes(range(256)) * 4,
        "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text.json": b"{]",
        "text.textproto": b"graph {",
        "text.onnxtxt": b"f (float x",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return [*(tmp_path / name for name in contents), tmp_path / "folder", tmp_path / "absent.onnx"]


class TestBadInput:
    KINDS = ("empty", "text", "truncated", "noise", "image", "text.json", "text.textproto",
             "text.onnxtxt", "folder", "absent.onnx")  # fmt: skip

    @pytest.fixture
    def broken(self, tmp_path, conv):
        broken_files(tmp_path, conv.with_suffix(".onnx"))
        return tmp_path

    @pytest.mark.parametrize("kind", KINDS)
    def test_compile(self, fails, broken, kind):
        output = broken / "old.lfa"
        output.write_bytes(b"old")
        assert str(broken / kind) in fails("compile", broken / kind, "-o", output)
        assert output.read_bytes() == b"old"

    @pytest.mark.parametrize("kind", KINDS)
    def test_check_with_onnx(self, fails, broken, conv, kind):
        assert str(broken / kind) in fails("check", conv, "--onnx", broken / kind)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "absent.onnx"])
    @pytest.mark.parametrize("command", ["check", "verify", "run"])
    def test_as_artifact(self, fails, broken, command, kind):
        assert str(broken / kind) in fails(command, broken / kind)

    @pytest.mark.parametrize("command", ["check", "verify", "run", "inspect", "bench"])
    def test_absent_artifact(self, fails, tmp_path, command):
        path = tmp_path / "absent.lfa"
        assert f"{path} does not exist" in fails(command, path)

    @pytest.mark.parametrize("kind", ["folder", "absent.onnx", "empty", "text", "image"])
    @pytest.mark.parametrize("command", ["inspect", "bench"])
    def test_either_kind_of_file(self, fails, broken, command, kind):
        assert str(broken / kind) in fails(command, broken / kind)

    def test_onnx_file_as_artifact(self, fails, conv):
        assert "no artifact" in fails("verify", conv.with_suffix(".onnx"))

    def test_artifact_as_onnx_file(self, fails, conv, tmp_path):
        assert str(conv) in fails("compile", conv, "-o", tmp_path / "m.lfa")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                "f (float[2] x) => (float[2] y) { y = com.acme.Foo(x) }",
                ["com.acme.Foo", "not supported"],
            ),
            ("f (float[2] x) => (float[2] y) { [n] y = Gone(x) }", ["Gone"]),
            ("f (float[2] x) => (float[2] y) { y = LeakyRelu <beta = 1.0> (x) }", ["beta"]),
            ("f (float[2] x) => (float[2] y) { y = LeakyRelu(z) }", ["z"]),
            ("f (float[2] x) => (float[3] y) { y = LeakyRelu(x) }", ["y"]),
            ("f (int64[2] x) => (int64[2] y) { y = LeakyRelu(x) }", ["LeakyRelu"]),
        ],
    )
    def test_graph_that_cannot_be_compiled(self, fails, parse, tmp_path, text, words):
        path = tmp_path / "m.onnx"
        model = parse(text)
        if "acme" in text:
            model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
        onnx.save(model, path)
        output = tmp_path / "m.lfa"
        output.write_bytes(b"old")
        line = fails("compile", path)
        for word in words:
            assert word in line
        assert output.read_bytes() == b"old"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["m.lfa", "m.onnx"]

    def test_loop(self, fails, tmp_path):
        helper = onnx.helper
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("LeakyRelu", ["a"], ["b"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2]),
            ],
            [
                helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [2]),
            ],
        )
        graph = helper.make_graph(
            [helper.make_node("Loop", ["n", "", "x"], ["y"], "around", body=body)],
            "looping",
            [
                helper.make_tensor_value_info("n", onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        )
        path = tmp_path / "loop.onnx"
        opsets = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        line = fails("compile", path)
        assert "operator Loop (node 'around') is not supported" in line

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ("image=1x2x7x6", ["1x2x7x6", "'image'", "Nx2x7x5"]),
            ("image=1x2x7", ["1x2x7", "'image'", "Nx2x7x5"]),
            ("picture=1x2x7x5", ["'picture'", "image"]),
        ],
    )
    def test_wrong_shape(self, fails, symbolic_conv, tmp_path, shape, words):
        model = symbolic_conv.with_suffix(".onnx")
        line = fails("compile", model, "-o", tmp_path / "m.lfa", "--shape", shape)
        for word in words:
            assert word in line

    def test_symbolic_height_and_width(self, fails, parse, tmp_path):
        path = tmp_path / "free.onnx"
        proto = parse(
            "free (float[1,1,H,W] x) => (float[1,2,P,Q] y) {"
            "half = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)"
            'whole = Resize <mode = "nearest"> (half, , scales)'
            "y = Concat <axis = 1> (whole, x) }"
        )
        scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
        proto.graph.initializer.append(scales)
        onnx.save(proto, path)
        line = fails("compile", path, "-o", tmp_path / "m.lfa")
        assert line.endswith("give the symbolic dimensions a size with --shape: H, W")

    @pytest.mark.parametrize(
        ("target", "word"),
        [
            ("tpu", "'tpu'"),
            ("cpu:pentium99", "'pentium99'"),
            ("cpu:", "cpu:"),
            ("{", "JSON"),
            ('{"kind": "cuda"}', "'cuda'"),
            ('{"kind": "llvm", "mcpu": "znver3", "nonsense": 1}', "nonsense"),
        ],
    )
    def test_unknown_target(self, fails, leaky, tmp_path, target, word):
        output = tmp_path / "m.lfa"
        line = fails("compile", leaky.with_suffix(".onnx"), "-o", output, "--target", target)
        assert word in line
        assert not output.exists()

    def test_output_folder_is_missing(self, fails, leaky, tmp_path):
        output = tmp_path / "absent" / "m.lfa"
        assert str(output.parent) in fails("compile", leaky.with_suffix(".onnx"), "-o", output)
        assert str(output.parent) in fails("export", "digits", "-o", output)

    def test_output_is_a_directory(self, fails, leaky, tmp_path):
        assert "directory" in fails("compile", leaky.with_suffix(".onnx"), "-o", tmp_path)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (np.zeros(IMAGE), ["'image'", "float64", "float32"]),
            (np.zeros((1, 2, 7, 6), np.float32), ["'image'", "1x2x7x6", "1x2x7x5"]),
            (np.array(["text"]), ["'image'"]),
            (np.array([None]), ["x.npy"]),
            (b"", ["x.npy"]),
            (b"no array", ["x.npy"]),
            (b"\x93NUMPY\x01\x00", ["x.npy"]),
            (b"\x93NUMPY\x01\x00\x08\x00{broken\n" + bytes(9), ["x.npy"]),
            (b"PK\x03\x04" + bytes(50), ["x.npy"]),
        ],
        ids=["float64", "shape", "text", "objects", "empty", "noise", "header", "syntax", "zip"],
    )
    @pytest.mark.parametrize("option", ["--input", "--inputs"])
    def test_array_file(self, fails, conv, tmp_path, option, content, words):
        path = tmp_path / "x.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif option == "--input":
            np.save(path, content)
        else:
            with path.open("wb") as stream:
                np.savez(stream, image=content)
        line = fails("run", conv, option, f"image={path}" if option == "--input" else path)
        for word in words:
            assert word in line

    def test_damaged_npz(self, fails, conv, tmp_path):
        path = tmp_path / "x.npz"
        np.savez_compressed(path, image=np.random.default_rng(0).random(IMAGE))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        assert str(path) in fails("run", conv, "--inputs", path)
        assert str(path) in fails("check", conv, "--inputs", path)

    def test_one_kind_of_array_file_given_as_the_other(self, fails, conv, image, tmp_path):
        np.savez(tmp_path / "x.npz", image=np.load(image))
        assert "--inputs" in fails("run", conv, "--input", f"image={tmp_path / 'x.npz'}")
        assert "--input NAME=" in fails("run", conv, "--inputs", image)

    @pytest.mark.parametrize("name", ["absent.npy", "."])
    def test_absent_array_file(self, fails, conv, tmp_path, name):
        path = tmp_path / name
        assert str(path) in fails("run", conv, "--input", f"image={path}")
        assert str(path) in fails("run", conv, "--inputs", path)

    def test_missing_and_unknown_input(self, fails, conv, image):
        assert "'image' is missing" in fails("run", conv)
        assert "unknown input 'picture'" in fails("run", conv, "--input", f"picture={image}")

    def test_output_of_run(self, fails, conv, image, tmp_path):
        arguments = ["run", conv, "--input", f"image={image}", "-o"]
        assert "absent" in fails(*arguments, tmp_path / "absent" / "y.npz")
        assert str(tmp_path) in fails(*arguments, tmp_path)

    def test_too_many_threads(self, fails, leaky):
        assert "threads=100000" in fails("run", leaky, "--threads", "100000")

    @pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
    def test_bench_without_time(self, fails, leaky, seconds):
        assert "seconds=" in fails("bench", leaky, "--seconds", seconds)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["export", "resnet", "-o", "m.onnx"],
            ["export", "digits", "-o", "absent/m.onnx"],
            ["export", "digits", "-o", "m.onnx", "--opset", "12"],
            ["export", "digits", "-o", "m.onnx", "--batch", "0"],
            ["export", "digits", "-o", "m.onnx", "--set", "size=3"],
            ["export", "digits", "-o", "m.onnx", "--input-shape", "image=1x1x8x8"],
            ["export", "digits", "-o", "m.onnx", "--weights", "digits.pth"],
            ["export", "digits", "-o", "m.onnx", "--zoo", "mlp"],
            ["export", "absent.pt", "-o", "m.onnx"],
            ["export", "yolov3-tiny", "-o", "m.onnx", "--set", "size=large"],
        ],
    )
    def test_export(self, fails, tmp_path, monkeypatch, arguments):
        monkeypatch.chdir(tmp_path)
        fails(*arguments)
        assert not list(tmp_path.iterdir())


class TestErrors:
    def test_debug_shows_the_traceback(self, invoke, tmp_path):
        status, out, err = invoke("verify", tmp_path / "absent.lfa", "--debug")
        assert (status, out) == (2, "")
        assert err.startswith("Traceback (most recent call last)")
        assert "ArtifactNotFoundError" in err
        assert err.splitlines()[-1].startswith("leakyforge: error: artifact ")

    @pytest.mark.parametrize("debug", [False, True])
    def test_bug_of_ours(self, invoke, leaky, monkeypatch, debug):
        from leakyforge import runtime

        def verify(*_):
            raise ZeroDivisionError("a\nbug")

        monkeypatch.setattr(runtime, "verify", verify)
        status, out, err = invoke("verify", leaky, *(["--debug"] if debug else []))
        assert (status, out) == (3, "")
        assert err.splitlines()[-1] == (
            "leakyforge: error: internal error: ZeroDivisionError: a bug; run with --debug"
        )
        assert ("Traceback" in err) is debug
        assert debug or err.count("\n") == 1

    def test_interrupt(self, invoke, leaky, monkeypatch):
        from leakyforge import runtime

        def verify(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(runtime, "verify", verify)
        assert invoke("verify", leaky) == (130, "", "leakyforge: error: interrupted\n")

    def test_message_of_several_lines(self, invoke, leaky, monkeypatch):
        from leakyforge import runtime

        def verify(*_):
            raise LeakyforgeError("first\n  second")

        monkeypatch.setattr(runtime, "verify", verify)
        assert invoke("verify", leaky) == (2, "", "leakyforge: error: first second\n")

    def test_doctor_is_status_1_where_something_is_wrong(self, invoke, monkeypatch):
        from leakyforge.runtime import doctor

        pins = {"apache-tvm": "9.9", "leakyforge-nonesuch": "1"}
        monkeypatch.setattr(doctor, "TVM_PINS", pins)
        status, out, _ = invoke("doctor")
        assert status == 1
        assert "pip install apache-tvm==9.9" in out
        assert "pip install leakyforge-nonesuch==1" in out

    def test_doctor_names_the_extras(self, invoke, monkeypatch):
        from leakyforge.runtime import doctor

        monkeypatch.setattr(doctor, "_OPTIONAL", {"nonesuch": ("x", "pip install 'leakyforge[y]'")})
        assert "pip install 'leakyforge[y]'" in invoke("doctor")[1]


class TestProcess:
    """What only a real process shows."""

    def run(self, *arguments, cwd=None):
        return subprocess.run(
            [sys.executable, "-m", "leakyforge", *map(str, arguments)],
            capture_output=True, text=True, timeout=120, check=False, cwd=cwd,
        )  # fmt: skip

    def test_entry_point_is_installed(self):
        found = shutil.which("leakyforge", path=str(sys.prefix) + "/bin")
        assert found is not None
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("leakyforge, version ")

    def test_compile_prints_nothing_but_its_result(self, leaky, tmp_path):
        shutil.copy(leaky.with_suffix(".onnx"), tmp_path / "m.onnx")
        done = self.run("compile", "m.onnx", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "wrote m.lfa\n", "")
        done = self.run("check", "m.lfa", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")

    def test_errors(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"noise")
        done = self.run("compile", "m.onnx", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"leakyforge: error: m\.onnx is not an ONNX file .*\n", done.stderr)
        done = self.run("verify")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
