"""The direction of imports, the list of packages, and the public names."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
# Which rooms a room may import, itself aside.
ALLOWED = {
    "models": set(),
    "exporter": {"models"},
    "runtime": set(),
    "kernels": {"runtime", "exporter"},
    "leakyforge": {"models", "exporter", "runtime", "kernels"},
}
# Modules of the package itself that every room may import: they import no room.
COMMON = {
    "leakyforge.errors",
    "leakyforge.files",
    "leakyforge.intervals",
    "leakyforge.lazy",
    "leakyforge.pins",
    "leakyforge.tolerance",
    "leakyforge.onnx_graph",
    "leakyforge.opsets",
}
ROOM_NAMES = {"models", "exporter", "runtime", "kernels"}
# Packages that a machine which only runs artifacts need not have.
COMPILING = {"onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch", "tvm", "sklearn", "openvino"}
# The modules of runtime that are about ONNX models; nothing in it imports them at its top.
ABOUT_ONNX = {"runtime/source.py", "runtime/float64.py"}
# Runs in a process of its own and is imported by nothing.
SCRIPT = "runtime/startup_probe.py"
# Runs other engines in processes of their own.
WORKER = "runtime/engine_worker.py"


def files():
    for room in ALLOWED:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield room, path.relative_to(ROOT).as_posix()


FILES = list(files())


def imports(tree, *, top_level_only=False):
    """Names of the modules that a file imports; `from a import b` counts as `a.b` too.

    What stands under `if TYPE_CHECKING` is never imported; functions are, unless left out.
    """
    names = set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif top_level_only and isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        ):
            continue
        else:
            pending += ast.iter_child_nodes(node)
    return names


def parse(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def forbidden(room, tree):
    """Imports of a file that its room may not have."""
    wrong = set()
    for name in imports(tree):
        parts = name.split(".")
        if name.startswith(".") or parts[0] in ROOM_NAMES:
            wrong.add(name)
        elif parts[0] == "leakyforge" and room != "leakyforge" and len(parts) > 1:
            inside = parts[1] in ALLOWED[room] | {room}
            if not inside and ".".join(parts[:2]) not in COMMON:
                wrong.add(name)
    return wrong


def starts_with(names, packages):
    return {name for name in names if name.split(".")[0] in packages}


@pytest.mark.parametrize(("room", "path"), FILES, ids=[path for _, path in FILES])
def test_direction(room, path):
    assert forbidden(room, parse(path)) == set()


def test_common_modules_import_no_room():
    for name in COMMON:
        path = name.replace(".", "/") + ".py"
        own = {part for part in imports(parse(path)) if part.startswith("leakyforge.")}
        assert {".".join(part.split(".")[:2]) for part in own} <= COMMON, path


@pytest.mark.parametrize("path", [path for room, path in FILES if room == "runtime"])
def test_runtime_loads_no_compiler(path):
    names = imports(parse(path), top_level_only=True)
    assert "leakyforge.runtime.startup_probe" not in imports(parse(path))
    if path in ABOUT_ONNX:
        assert starts_with(names, COMPILING - {"onnx"}) == set()
    elif path != SCRIPT:
        assert starts_with(names, COMPILING) == set()
        assert names.isdisjoint({"leakyforge.runtime.source", "leakyforge.runtime.float64"})
    allowed = {"torch"} if path == WORKER else set()
    assert starts_with(imports(parse(path)), {"tvm", "torch", "onnxscript"} - allowed) == set()


@pytest.mark.parametrize("path", [path for room, path in FILES if room == "leakyforge"])
def test_command_line_starts_without_any_room(path):
    """`leakyforge --help` takes a tenth of a second because every room is imported when used."""
    names = imports(parse(path), top_level_only=True)
    rooms = {name for name in names if name.split(".")[1:2] and name.split(".")[1] in ROOM_NAMES}
    assert rooms == set()
    assert starts_with(names, COMPILING | {"numpy"}) == set()


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("runtime", "from leakyforge.kernels import compile"),
        ("runtime", "def f():\n    import leakyforge.exporter.api"),
        ("runtime", "from leakyforge import kernels"),
        ("exporter", "from leakyforge.kernels import compile"),
        ("kernels", "from leakyforge import Session"),
        ("exporter", "from leakyforge.runtime.tensors import Array"),
        ("models", "from leakyforge.exporter import export"),
        ("models", "try:\n    from leakyforge.cli import main\nexcept ImportError:\n    pass"),
        ("kernels", "from .compile import compile"),
        ("leakyforge", "from kernels import compile"),
        ("leakyforge", "import runtime.session"),
    ],
)
def test_the_walk_sees_what_is_forbidden(room, text):
    assert forbidden(room, ast.parse(text))


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("runtime", "from leakyforge.errors import InputError"),
        ("runtime", "from leakyforge.runtime import cpu"),
        ("kernels", "from leakyforge.runtime import cpu, threads"),
        ("leakyforge", "from leakyforge.kernels import compile"),
        ("models", "import numpy as np"),
        ("runtime", "if TYPE_CHECKING:\n    from leakyforge.kernels import CpuTarget"),
    ],
)
def test_the_walk_lets_pass_what_is_allowed(room, text):
    assert forbidden(room, ast.parse(text)) == set()


class TestPackages:
    @pytest.fixture(scope="class")
    def setuptools(self):
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
            "setuptools"
        ]

    def test_list_equals_the_tree(self, setuptools):
        found = set()
        for room in ALLOWED:
            for path in (ROOT / room).rglob("*.py"):
                parts = path.parent.relative_to(ROOT).parts
                found.add(".".join(parts if room == "leakyforge" else ("leakyforge", *parts)))
        assert sorted(setuptools["packages"]) == sorted(found)

    def test_folders_are_mapped(self, setuptools):
        assert setuptools["package-dir"].keys() == set(setuptools["packages"])
        for package, folder in setuptools["package-dir"].items():
            assert (ROOT / folder / "__init__.py").is_file(), folder
            assert package.removeprefix("leakyforge.").replace(".", "/") == folder

    def test_data_files_are_shipped(self, setuptools):
        shipped = {
            path
            for package, patterns in setuptools["package-data"].items()
            for pattern in patterns
            for path in (ROOT / setuptools["package-dir"][package]).glob(pattern)
        }
        for room in ALLOWED:
            others = {
                path
                for path in (ROOT / room).rglob("*")
                if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
            }
            assert others <= shipped


@pytest.mark.parametrize(
    "name", ["leakyforge", *(f"leakyforge.{room}" for room in sorted(ROOM_NAMES))]
)
def test_public_names_import(name):
    module = importlib.import_module(name)
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_unknown_public_name():
    import leakyforge

    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        leakyforge.nonesuch  # noqa: B018


def test_every_error_is_one_of_ours():
    from leakyforge import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    assert all(issubclass(kind, errors.LeakyforgeError) and kind.__doc__ for kind in kinds)
