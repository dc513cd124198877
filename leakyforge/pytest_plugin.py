"""Parity in a test suite: the mark `parity` and the fixture `leakyforge_parity` of pytest.

    @pytest.mark.parity(model="model.onnx", targets=["cpu", "cpu:x86-64-v3"])
    def test_model(leakyforge_parity):
        assert leakyforge_parity.samples == 4

Each target is a test of its own. The fixture compiles the model, compares it with ONNX Runtime as
`leakyforge check` does, fails where they differ, and gives the report. Nothing of this is loaded
before such a test runs.

With `--leakyforge-update-snapshots` the tests that run write down how exact each output was, in
`leakyforge-snapshots.json` beside them; from then on they also fail where it is less exact (see
`snapshots`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leakyforge.errors import LeakyforgeError

if TYPE_CHECKING:
    from leakyforge.runtime import ParityReport

_MARK = "parity"
_FIXTURE = "leakyforge_parity"
_UPDATE = "--leakyforge-update-snapshots"
# Folder, model and target of the snapshots that this session has written.
_WRITTEN = pytest.StashKey[set[tuple[Path, str, str]]]()


@dataclass(frozen=True)
class _Settings:
    """Arguments of the mark.

    Attributes:
        model: ONNX file, from the folder of the test's file.
        targets: to compile for (see `leakyforge compile --target`).
        shapes: of inputs with symbolic sizes.
        samples: random inputs to compare.
        seed: of these.
        float64: bound what is lost to rounding by ONNX Runtime's own loss.
        family: what the model is for (see `leakyforge check --family`).
    """

    model: str | Path
    targets: Sequence[str] = ("cpu",)
    shapes: Mapping[str, tuple[int, ...]] | None = None
    samples: int = 4
    seed: int = 0
    float64: bool = False
    family: str | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that takes snapshots."""
    parser.getgroup("leakyforge").addoption(
        _UPDATE,
        action="store_true",
        help="write down how exact the models of parity tests are, for later runs to compare with",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark.

    Raises:
        UsageError: snapshots are to be written by several processes (pytest-xdist).
    """
    if config.getoption(_UPDATE) and config.getoption("numprocesses", None):
        raise pytest.UsageError(f"{_UPDATE} writes one file; leave out -n")
    config.stash[_WRITTEN] = set()
    config.addinivalue_line(
        "markers",
        f"{_MARK}(model, targets=['cpu'], shapes=None, samples=4, seed=0, float64=False, "
        f"family=None): compile an ONNX file for each target and compare it with ONNX Runtime; the "
        f"fixture {_FIXTURE} is the report",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each target."""
    mark = metafunc.definition.get_closest_marker(_MARK)
    marked, used = mark is not None, _FIXTURE in metafunc.fixturenames
    if marked != used:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: a test with the mark {_MARK} takes the fixture "
            f"{_FIXTURE}, and only such a test"
        )
    if mark is not None:
        targets = _settings(mark, metafunc.definition.nodeid).targets
        metafunc.parametrize(_FIXTURE, targets, indirect=True)


@pytest.fixture
def leakyforge_parity(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "ParityReport":
    """The report of a test with the mark `parity`; where it fails, so does the test."""
    from leakyforge import check, compile

    mark = request.node.get_closest_marker(_MARK)
    settings = _settings(mark, request.node.nodeid)
    model = request.path.parent / settings.model
    try:
        artifact = compile(
            model,
            request.param,
            output=tmp_path_factory.mktemp("parity") / f"{model.stem}.lfa",
            shapes=settings.shapes,
        )
        report = check(
            artifact,
            samples=settings.samples,
            seed=settings.seed,
            variant="all",
            float64=settings.float64,
            family=settings.family,
        )
    except LeakyforgeError as error:
        pytest.fail(f"{model.name} for {request.param}: {error}", pytrace=False)
    if not report:
        lines = [f"{model.name} for {request.param} differs from ONNX Runtime:", *failures(report)]
        pytest.fail("\n  ".join(lines), pytrace=False)
    _compare_with_snapshot(request, report, str(settings.model))
    return report


def _compare_with_snapshot(
    request: pytest.FixtureRequest, report: "ParityReport", model: str
) -> None:
    """Fail where an output is less exact than its snapshot, or take a new one."""
    from leakyforge import snapshots

    folder, target = request.path.parent, str(request.param)
    seen = snapshots.observe(report)
    try:
        kept = snapshots.read(folder, model, target)
        if request.config.getoption(_UPDATE):
            written = request.config.stash[_WRITTEN]
            if (folder, model, target) in written:
                # Another test has other inputs or shapes, and both have to pass.
                seen = {name: each | kept.get(name, each) for name, each in seen.items()}
            snapshots.write(folder, model, target, seen)
            written.add((folder, model, target))
            return
    except LeakyforgeError as error:
        pytest.fail(str(error), pytrace=False)
    lines = snapshots.less_exact(seen, kept)
    if lines:
        head = f"{model} for {target} is less exact than {snapshots.NAME} says"
        pytest.fail("\n  ".join([f"{head}; to accept it: {_UPDATE}", *lines]), pytrace=False)


def failures(report: "ParityReport") -> list[str]:
    """What is wrong in a report, a line each."""
    lines = [
        f"output {row.output} of variant {row.variant}: "
        + (row.problem or f"{row.max_abs:.2e} at {list(row.worst_index)}, allowed {row.atol:.2e}")
        + f" ({row.origin}), against {row.reference}"
        for row in report.outputs
        if not row.passed
    ]
    lines += [
        f"output {loss.output} of variant {loss.variant}: {loss.ratio:.1f} times the rounding of "
        f"{loss.reference}, allowed {loss.bound:g}"
        for loss in report.roundings
        if not loss.passed
    ]
    lines += [
        f"{measure.measure} of variant {measure.variant}: {measure.value:.6g}, at "
        f"{'least' if measure.at_least else 'most'} {measure.bound:.6g}, against "
        f"{measure.reference}"
        for measure in report.acceptance
        if not measure.passed
    ]
    return lines


def _settings(mark: pytest.Mark, test: str) -> _Settings:
    """Arguments of a test's mark.

    Raises:
        UsageError: it has other arguments.
    """
    try:
        return _Settings(*mark.args, **mark.kwargs)
    except TypeError as error:
        text = str(error).replace("_Settings.__init__()", f"mark {_MARK}")
        raise pytest.UsageError(f"{test}: {text}") from error
