"""The README is true: its commands and its Python run in order, and print what it says."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BORDERS = re.compile(r"^[┏┡┗├└┌][━─┳╇┻┴┼┬┓┩┛┘┤┐]*$")
# A measured figure, or a version: whatever has a point or an exponent.
_FIGURE = re.compile(r"-?\b\d+(\.\d+)+(e[+-]\d+)?")
_WHOLE_NUMBER = re.compile(r"-?\d+")


def steps():
    """Every command with the output below it, and every Python block, in the README's order."""
    found = []
    for kind, text in _BLOCK.findall(README):
        if kind == "python":
            found.append((["python", "-"], text, None))
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), "", []))
            else:
                found[-1][2].append(line)
    return found


def rows(lines):
    """Output without borders; a table's row on one line, however its cells were folded."""
    joined = []
    last = ""
    for line in map(str.rstrip, lines):
        if not line or _BORDERS.match(line):
            continue
        if line[0] not in "│┃":
            joined.append([line])
            continue
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        # Headings stand at the bottom of their row, other cells at the top.
        is_folded = last == "┃" if line[0] == "┃" else not cells[0]
        last = line[0]
        if is_folded and joined and len(joined[-1]) == len(cells):
            joined[-1] = [f"{a} {b}".strip() for a, b in zip(joined[-1], cells, strict=True)]
        else:
            joined.append(cells)
    return ["|".join(masked(cell) for cell in row) for row in joined]


def masked(cell):
    """A cell or line with the figures that differ from machine to machine taken out."""
    return "#" if _WHOLE_NUMBER.fullmatch(cell) else _FIGURE.sub("#", cell)


def pattern(lines):
    """The expected output as a regular expression; `...` is anything, alone on a line any lines."""
    parts = []
    for row in rows(lines):
        if row == "...":
            parts.append(r"(?:.*\n)*")
        else:
            parts.append(".*".join(re.escape(part) for part in row.split("...")) + r"\n")
    return "".join(parts)


def run(command, text, folder):
    """Run one step; `python` is this interpreter, `leakyforge` the one beside it."""
    program = {
        "python": [sys.executable],
        "leakyforge": [sys.executable, "-m", "leakyforge"],
        "openssl": ["openssl"],
    }
    return subprocess.run(
        [*program[command[0]], *command[1:]],
        input=text,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README is followed from the top to the bottom."""
    return tmp_path_factory.mktemp("readme")


# In order: each step needs what those above it wrote.
@pytest.mark.parametrize("step", steps(), ids=[" ".join(command[:3]) for command, _, _ in steps()])
def test_step(step, folder):
    command, text, expected = step
    done = run(command, text, folder)
    assert done.returncode == 0, done.stderr
    if expected:
        printed = rows(io.StringIO(done.stdout))
        assert re.fullmatch(pattern(expected), "".join(f"{row}\n" for row in printed)), (
            "the README shows\n" + "\n".join(rows(expected)) + "\nand the command prints\n"
            + "\n".join(printed)
        )  # fmt: skip


def test_every_command_is_shown():
    from leakyforge.cli import cli

    shown = {command[1] for command, _, _ in steps() if command[0] == "leakyforge"}
    # The demo is in the first set-up command, which tests/packaging follows; a study and a search
    # take minutes.
    named = {"demo", "study", "tune", "records"}
    assert shown == set(cli.commands) - named
    assert all(f"leakyforge {command}" in README for command in named)


def test_links_within_the_checkout():
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    ("readme", "printed"),
    [
        ("parity: pass", "parity: FAIL"),
        ("wrote a.lfa", "wrote a.lfa\nwarning"),
        ("│ logits │ 8 │ pass │", "│ logits │ 9 │ FAIL │"),
        ("│ input │ image: float 1x1x8x8 │", "│ input │ image: float 4x1x8x8 │"),
        ("...\nparity: pass", "parity: pass\nmore"),
    ],
    ids=["word", "more lines", "cell", "shape", "after the end"],
)
def test_a_difference_that_matters_is_found(readme, printed):
    text = "".join(f"{row}\n" for row in rows(printed.splitlines()))
    assert not re.fullmatch(pattern(readme.splitlines()), text)


@pytest.mark.parametrize(
    ("readme", "printed"),
    [
        ("│ logits │   8 │ 1.67e-06 │ pass │", "│ logits │ 1024 │ 2.00e-05 │ pass │"),
        ("│ a │ onnxruntime 1.32.0, not │", "│ a │ onnxruntime │\n│   │ 1.23.2, not │"),
        ("│ CPU │ ... │", "│ CPU │ znver4: adx │\n│     │ aes │"),
        ("...\nparity: pass", "table\nmore of it\nparity: pass"),
        ("least 44.3%, most 52.5%", "least 44.1%, most 52.0%"),
    ],
    ids=["figures", "folded cells", "cell left out", "lines left out", "shares"],
)
def test_a_difference_between_machines_is_none(readme, printed):
    text = "".join(f"{row}\n" for row in rows(printed.splitlines()))
    assert re.fullmatch(pattern(readme.splitlines()), text)
