"""The pytest plugin: a test for each target, readable failures, and nothing loaded before."""

import dataclasses
import json
import re

import numpy as np
import pytest

from leakyforge import snapshots
from leakyforge.errors import InputError
from leakyforge.exporter import export
from leakyforge.runtime import ParityReport
from leakyforge.runtime.parity import compare
from leakyforge.snapshots import Snapshot
from leakyforge.tolerance import tolerance

pytest_plugins = ["pytester"]

MARKED = """
    import pytest

    @pytest.mark.parity(model="model.onnx"{arguments})
    def test_model(leakyforge_parity):
        assert leakyforge_parity.samples == 2
"""


@pytest.fixture
def suite(pytester):
    """A folder with a model, whose tests are run in a process of their own."""

    def suite(text, *options):
        export("digits", pytester.path / "model.onnx")
        pytester.makepyfile(text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return suite


def test_each_target_is_a_test(suite):
    arguments = ', samples=2, targets=["cpu", "cpu:x86-64"], family="classifier"'
    result = suite(MARKED.format(arguments=arguments), "-v", "--strict-markers")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_model?cpu? PASSED*", "*test_model?cpu:x86-64? PASSED*"])


def test_failure_is_readable(suite):
    result = suite(
        """
        import dataclasses
        import pytest
        import leakyforge
        from leakyforge.runtime import parity

        check = parity.check

        def wrong(*arguments, **options):
            report = check(*arguments, **options)
            rows = tuple(
                dataclasses.replace(row, passed=False, max_abs=0.25) for row in report.outputs
            )
            return dataclasses.replace(report, outputs=rows)

        leakyforge.check = wrong

        @pytest.mark.parity(model="model.onnx")
        def test_model(leakyforge_parity):
            raise AssertionError("not reached")
        """
    )
    result.assert_outcomes(errors=1)
    text = result.stdout.str()
    assert "model.onnx for cpu differs from ONNX Runtime:" in text
    assert re.search(r"output logits of variant \S+: 2\.50e-01 at \[0, \d\], allowed \d", text)
    assert "Traceback" not in text
    assert "not reached" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (', targets=["cpu:pentium9"]', "model.onnx for cpu:pentium9: *"),
        (', samples=0', "*samples=0, but a check needs at least 1*"),
    ],
)  # fmt: skip
def test_errors_are_one_line(suite, arguments, words):
    result = suite(MARKED.format(arguments=arguments))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MARKED.format(arguments=", trials=3"), "mark parity got an unexpected * 'trials'"),
        (
            "import pytest\n@pytest.mark.parity(model='model.onnx')\ndef test_model(): pass",
            "a test with the mark parity takes the fixture leakyforge_parity",
        ),
        ("def test_model(leakyforge_parity): pass", "and only such a test"),
    ],
    ids=["argument", "no fixture", "no mark"],
)
def test_wrong_use(suite, text, words):
    result = suite(text)
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert re.search(re.escape(words).replace(r"\*", ".*"), text)


class TestSnapshots:
    UPDATE = "--leakyforge-update-snapshots"
    # Stands in for compiling and running: reports of an output with the given figures.
    STUB = """
        import dataclasses
        import numpy as np
        import pytest
        import leakyforge
        from leakyforge.runtime.parity import ParityReport, compare
        from leakyforge.tolerance import tolerance

        Y = np.ones(3, np.float32)
        ROW = compare("y", Y, Y, tolerance("float32", 100), "reference")
        ERRORS = iter({errors})
        leakyforge.compile = lambda model, *_, **__: model
        leakyforge.check = lambda *_, **__: ParityReport(
            "a.lfa", 1, 0, (dataclasses.replace(ROW, max_abs=next(ERRORS)),), ()
        )

        @pytest.mark.parity(model="model.onnx")
        def test_first(leakyforge_parity): pass

        @pytest.mark.parity(model="model.onnx")
        def test_second(leakyforge_parity): pass
    """

    @pytest.fixture
    def run(self, pytester):
        """Run a suite of two tests whose models have these errors."""

        def run(errors, *options):
            pytester.makepyfile(self.STUB.format(errors=errors))
            return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

        return run

    def test_taken_compared_and_taken_again(self, run, pytester):
        path = pytester.path / snapshots.NAME
        run([1e-6, 2e-6]).assert_outcomes(passed=2)
        assert not path.exists(), "written without being asked"
        run([2e-6, 1e-6], self.UPDATE).assert_outcomes(passed=2)
        # Both tests have to pass, so the larger error of the two is kept.
        kept = {"model.onnx": {"cpu": {"y": {"error": 2e-6, "tolerance": 3.58e-6}}}}
        assert json.loads(path.read_text()) == kept
        result = run([16e-6, 17e-6])
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(
            [
                f"model.onnx for cpu is less exact than {snapshots.NAME} says; to *: {self.UPDATE}",
                "  output y: error 1.70e-05 of its range, more than 8 times the 2.00e-06 of *",
            ]
        )
        assert "Traceback" not in result.stdout.str()
        run([1e-6, 1e-6], self.UPDATE).assert_outcomes(passed=2)
        assert json.loads(path.read_text())["model.onnx"]["cpu"]["y"]["error"] == 1e-6

    def test_damaged_file(self, run, pytester):
        path = pytester.path / snapshots.NAME
        path.write_text("{")
        result = run([0, 0])
        result.assert_outcomes(errors=2)
        result.stdout.fnmatch_lines([f"{path} cannot be read: *{self.UPDATE}*"])
        assert "Traceback" not in result.stdout.str()

    def test_several_processes(self, run):
        result = run([0, 0], self.UPDATE, "-n", "2")
        assert "writes one file; leave out -n" in result.stderr.str()


def row(output="y", **fields):
    return dataclasses.replace(
        compare(output, Y, Y, tolerance("float32", 100), "reference"), **fields
    )


Y = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_abs": 3e-6, "range": 2.0}, 1.5e-6),
        # Luck is no bound: one rounding of the dtype, or of 8 bits.
        ({"max_abs": 0.0}, 5.96e-8),
        ({"max_abs": 0.0, "rtol": 0.0}, 0.00391),
        ({"max_abs": 0.0, "rtol": 0.0, "atol": 0.0}, 0.0),
        ({"max_abs": 1e-9, "range": 0.0}, 5.96e-8),
    ],
)
def test_the_error_of_a_snapshot(fields, error):
    report = ParityReport("a.lfa", 1, 0, (row(**fields),), ())
    assert snapshots.observe(report)["y"].error == error


def test_the_least_exact_variant_counts():
    rows = (row(max_abs=1e-6), row(max_abs=3e-6), row(max_abs=2e-6), row("z", max_abs=9e-6))
    seen = snapshots.observe(ParityReport("a.lfa", 1, 0, rows, ()))
    assert seen == {"y": Snapshot(3e-6, 3.58e-6), "z": Snapshot(9e-6, 3.58e-6)}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Snapshot(8e-6, 1e-5), []),
        (Snapshot(8.01e-6, 1e-5), ["error 8.01e-06"]),
        (Snapshot(1e-6, 1.01e-5), ["tolerance 1.01e-05"]),
        (Snapshot(9e-6, 2e-5), ["error 9.00e-06", "tolerance 2.00e-05"]),
    ],
)
def test_what_is_less_exact(seen, words):
    lines = snapshots.less_exact({"y": seen, "new": seen}, {"y": Snapshot(1e-6, 1e-5)})
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * len(words)


@pytest.mark.parametrize(
    "text", ["{", "[]", "\xff", '{"a": {"b": {"y": {"error": 1}}}}', '{"a": 3}']
)
def test_a_damaged_file_is_left(tmp_path, text):
    path = tmp_path / snapshots.NAME
    path.write_bytes(text.encode("latin-1"))
    for call in (snapshots.read, lambda *where: snapshots.write(*where, {})):
        with pytest.raises(InputError, match=f"{path} cannot be read"):
            call(tmp_path, "a", "b")
    assert path.read_bytes() == text.encode("latin-1")


def test_models_and_targets_are_kept_apart(tmp_path):
    first, second = {"y": Snapshot(1e-6, 1e-5)}, {"y": Snapshot(2e-6, 1e-5)}
    snapshots.write(tmp_path, "a.onnx", "cpu", first)
    snapshots.write(tmp_path, "a.onnx", "cpu:x86-64", second)
    snapshots.write(tmp_path, "b.onnx", "cpu", second)
    assert snapshots.read(tmp_path, "a.onnx", "cpu") == first
    assert snapshots.read(tmp_path, "a.onnx", "cpu:x86-64") == second
    snapshots.write(tmp_path, "a.onnx", "cpu", second)
    assert snapshots.read(tmp_path, "a.onnx", "cpu") == second
    assert snapshots.read(tmp_path, "b.onnx", "cpu") == second
    assert snapshots.read(tmp_path, "b.onnx", "opencl") == {}


def test_other_suites_load_nothing(suite):
    result = suite(
        """
        import sys

        def test_plain():
            heavy = {"numpy", "onnx", "onnxruntime", "tvm", "tvm_ffi", "leakyforge.runtime"}
            assert heavy.isdisjoint(sys.modules)
        """
    )
    result.assert_outcomes(passed=1)
