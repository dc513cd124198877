"""`check --html`: what the page shows, that it loads and runs nothing, and how it is written."""

import errno
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest

from leakyforge import cli
from leakyforge.runtime import check, read_manifest

# Closes whatever it may stand in, is a template itself, and turns the direction of text.
HOSTILE = "</title></style></td>\"'><script>alert(1)</script><img src=x onerror=x>{{ 7 * 7 }}\u202e"
# Elements and attributes by which a page loads or runs something.
ACTIVE = {"script", "img", "link", "iframe", "object", "embed", "audio", "video", "base", "form"}
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "background"}
VOID = {"meta", "rect", "line"}


class Page(HTMLParser):
    """Texts by section, rows of cells, and what could load or run something."""

    def __init__(self, text):
        super().__init__()
        self.active, self.open, self.rows, self.classes = [], [], [], []
        self.texts = {}
        self.section = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = {name for name, _ in attributes}
        if tag in ACTIVE or names & LOADING or any(name.startswith("on") for name in names):
            self.active.append(tag)
        self.classes += [value for name, value in attributes if name == "class"]
        if tag == "tr":
            self.rows.append((self.section, []))
        if tag == "td":
            self.rows[-1][1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "h2" in self.open:
            self.section = data
        if "td" in self.open:
            self.rows[-1][1][-1] += data
        self.texts[self.section] = self.texts.get(self.section, "") + data

    def cells(self, section):
        """Rows of a section's table."""
        return [cells for name, cells in self.rows if name.startswith(section) and cells]


@pytest.fixture
def page(tmp_path):
    """Run `check --html` and read the page."""

    def page(artifact, *options):
        path = tmp_path / "report.html"
        cli.main(["check", str(artifact), "--quiet", "--html", str(path), *options])
        return Page(path.read_text(encoding="utf-8"))

    return page


def test_what_the_check_found(page, digits):
    report = check(digits)
    shown = page(digits)
    assert shown.active == []
    assert "wrong" not in shown.classes
    rows = shown.cells("Outputs")
    assert [row[2] for row in rows] == [row.reference for row in report.outputs]
    assert [row[3] for row in rows] == [f"{row.max_abs:.2e}" for row in report.outputs]
    assert {row[-1] for row in rows} == {"pass"}
    # Four inputs, ten logits each, against either reference.
    assert shown.texts["Errors"].count("40 elements, ") == 2
    assert [row[0] for row in shown.cells("Kernels")] == [
        "leaky1", "pool2", "pool3", "flatten", "logits",
    ]  # fmt: skip
    assert [tuple(row) for row in shown.cells("LeakyRelu")] == [
        (row.node, f"{row.alpha:g}", f"{row.share:.1%}") for row in report.leaky_relus
    ]
    facts = dict(shown.cells("Model") + shown.cells("Environment"))
    assert facts["SHA-256"] == read_manifest(digits).onnx_sha256
    assert facts["input"] == "float32 1x1x8x8 image"
    assert facts["onnx"] == onnx.__version__
    assert "Rounding" not in shown.texts
    assert "Acceptance" not in shown.texts


def test_float64_and_family(page, digits):
    shown = page(digits, "--float64", "--family", "classifier")
    assert [row[-1] for row in shown.cells("Rounding")] == ["pass", "pass"]
    assert [row[0] for row in shown.cells("Acceptance")] == ["top-1 agreement"] * 2


def test_a_wrong_kernel_is_seen(page, digits, rewrite, tmp_path):
    (variant,) = read_manifest(digits).variants
    member = variant.weights[2].member
    with zipfile.ZipFile(digits) as archive:
        weights = np.frombuffer(archive.read(member), np.float32).copy()
    weights[0] += 0.01
    wrong = rewrite(digits, tmp_path / "wrong.lfa", parts={member: weights.tobytes()})
    with pytest.raises(SystemExit, match="1"):
        page(wrong)
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert all(row[-1].startswith("FAIL at [0, ") for row in shown.cells("Outputs"))
    results = {row[0]: row[-1] for row in shown.cells("Kernels")}
    assert {value for value, result in results.items() if result != "pass"} == {"pool2"}
    assert "wrong" in shown.classes


def test_hostile_names_are_text(page, build):
    helper = onnx.helper
    nodes = [
        helper.make_node("LeakyRelu", [HOSTILE], ["inner"], name=HOSTILE + "node", alpha=0.2),
        helper.make_node("Abs", ["inner"], ["positive"]),
        helper.make_node("LeakyRelu", ["positive"], [HOSTILE + "out"], name=HOSTILE + "never"),
    ]
    infos = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3])
        for name in (HOSTILE, HOSTILE + "out")
    ]
    graph = helper.make_graph(nodes, HOSTILE, infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    shown = page(build(model))
    assert shown.active == []
    assert [row[0] for row in shown.cells("LeakyRelu")] == [HOSTILE + "node", HOSTILE + "never"]
    assert f"Alpha 0.01 of {HOSTILE}never was not tested" in shown.texts["LeakyRelu"]
    assert {row[1] for row in shown.cells("Outputs")} == {HOSTILE + "out"}
    facts = dict(shown.cells("Model"))
    assert facts["input"] == f"float32 2x3 {HOSTILE}"


def test_kernels_that_cannot_be_judged(page, leaky, monkeypatch):
    monkeypatch.setitem(sys.modules, "leakyforge.kernels.bisect", None)
    shown = page(leaky)
    (section,) = (name for name in shown.texts if name.startswith("Kernels"))
    assert "Not judged: the compiler is not installed" in shown.texts[section]
    assert shown.cells("Kernels") == []


def test_an_old_report_is_kept(leaky, tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.html"
    path.write_text("the old report")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SystemExit):
        cli.main(["check", str(leaky), "--html", str(path)])
    assert f"cannot write {path}: No space left on device" in capsys.readouterr().err
    assert path.read_text() == "the old report"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "absent/report.html"], "absent is not a folder"),
        (["--html", "report.html", "--bisect"], "leave out --device, --float64, --family and"),
    ],
)
def test_refused_before_the_check(leaky, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("leakyforge.runtime.check", lambda *_, **__: pytest.fail("checked"))
    with pytest.raises(SystemExit) as request:
        cli.main(["check", str(leaky), *arguments])
    assert request.value.code == 2
    assert words in capsys.readouterr().err


def test_without_jinja(leaky, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit):
        cli.main(["check", str(leaky), "--html", str(tmp_path / "report.html")])
    assert "pip install 'leakyforge[report]'" in capsys.readouterr().err
