"""The pytest plugin: a test for each target, readable failures, and nothing loaded before."""

import re

import pytest

from leakyforge.exporter import export

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
