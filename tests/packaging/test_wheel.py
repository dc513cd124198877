"""What is shipped: the wheel's content, the wheel and the editable install in empty environments.

These tests download the dependencies from the package index (about 300 MB, less with pip's cache).
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from leakyforge import pins
from leakyforge.errors import VersionError

ROOT = Path(__file__).parents[2]
ROOMS = {
    "leakyforge": "leakyforge",
    "exporter": "leakyforge/exporter",
    "kernels": "leakyforge/kernels",
    "models": "leakyforge/models",
    "runtime": "leakyforge/runtime",
}
RIGHT_PAIR = " ".join(f"{name}=={version}" for name, version in pins.TVM_PINS.items())


def call(*command, cwd, status=0, **environment):
    """Run a command; gives what it printed, with standard error if it is to fail."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is shipped, so that a build leaves the checkout as it is."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ROOMS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, built as tests/run builds it, over the leavings of an older build."""
    stale = source / "build" / "lib" / "leakyforge" / "kernels" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("raise ImportError('left by an older build')\n")
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--outdir", folder, source, cwd=folder)
    shutil.rmtree(source / "build")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Python of an empty environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    yield python
    # Over a gigabyte, and pytest keeps the folders of its last runs.
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["default", "strict"])
def editable(request, installed, source, tmp_path_factory):
    """Python of an environment with an editable install of the copy.

    The environment is `installed` over again, file by file hard-linked: that spares a download of
    the dependencies. pip then takes the wheel out of it and puts the editable install in.
    """
    folder = tmp_path_factory.mktemp("editable") / "environment"
    shutil.copytree(installed.parents[1], folder, symlinks=True, copy_function=os.link)
    python = folder / "bin" / "python"
    settings = [] if request.param == "default" else ["--config-settings", "editable_mode=strict"]
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", *settings, "-e", source]
    call(*command, cwd=folder)
    yield python
    shutil.rmtree(folder)


class TestContent:
    @pytest.fixture(scope="class")
    def names(self, wheel):
        return zipfile.ZipFile(wheel).namelist()

    @pytest.fixture(scope="class")
    def metadata(self, wheel, names):
        (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())

    def test_nothing_beside_the_package(self, names):
        """Not `kernels`, above all: a live package of that name would be overwritten."""
        version = pins.installed_version("leakyforge")
        tops = {name.partition("/")[0] for name in names}
        assert tops == {"leakyforge", f"leakyforge-{version}.dist-info"}

    def test_every_module_and_no_other(self, names):
        """Also fails on a new sub-package that is not listed in pyproject.toml."""
        expected = {
            f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
            for folder, place in ROOMS.items()
            for path in (ROOT / folder).rglob("*.py")
        }
        assert {name for name in names if name.endswith(".py")} == expected

    def test_data_files(self, wheel, names):
        others = {
            name for name in names if name.startswith("leakyforge/") and not name.endswith(".py")
        }
        assert others == {
            "leakyforge/py.typed",
            "leakyforge/kernels/tuning/shipped.jsonl",
            "leakyforge/report.html.jinja",
            "leakyforge/models/digits.npz",
        }
        weights = zipfile.ZipFile(wheel).read("leakyforge/models/digits.npz")
        assert weights == (ROOT / "models" / "digits.npz").read_bytes()

    def test_license(self, wheel, names, metadata):
        (name,) = (name for name in names if name.endswith("licenses/LICENSE"))
        assert zipfile.ZipFile(wheel).read(name) == (ROOT / "LICENSE").read_bytes()
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_command(self, wheel, names):
        (name,) = (name for name in names if name.endswith("entry_points.txt"))
        text = zipfile.ZipFile(wheel).read(name).decode()
        assert "[console_scripts]" in text
        assert "leakyforge = leakyforge.cli:main" in text
        assert "[pytest11]" in text
        assert "leakyforge = leakyforge.pytest_plugin" in text

    def test_the_pair_is_pinned_as_the_code_wants_it(self, metadata):
        required = metadata.get_all("Requires-Dist")
        assert {f"{name}=={version}" for name, version in pins.TVM_PINS.items()} <= set(required)

    def test_extras(self, metadata):
        extras = {
            "torch",
            "tune",
            "opencl",
            "cuda",
            "webgpu",
            "report",
            "sign",
            "fuzz",
            "peers",
            "dev",
        }
        assert set(metadata.get_all("Provides-Extra")) == extras
        needed = [entry for entry in metadata.get_all("Requires-Dist") if "extra ==" not in entry]
        assert not [entry for entry in needed if entry.startswith("torch")]


class TestInstalledWheel:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("elsewhere")

    def test_whole_chain_from_another_folder(self, installed, folder):
        command = installed.with_name("leakyforge")
        assert call(command, "export", "digits", "-o", "m.onnx", cwd=folder) == "wrote m.onnx\n"
        assert call(command, "compile", "m.onnx", cwd=folder) == "wrote m.lfa\n"
        assert "parity: pass" in call(command, "check", "m.lfa", cwd=folder)
        assert "parity: pass" in call(command, "verify", "m.lfa", cwd=folder)

    def test_demo(self, installed, tmp_path):
        """The last word of the README's first command; here without time for the figures."""
        command = installed.with_name("leakyforge")
        output = call(command, "demo", "--seconds", "0.1", cwd=tmp_path)
        assert output.count("parity: pass") == 2
        assert "Latency of yolov3-tiny" in output
        written = {path.name for path in tmp_path.iterdir()}
        assert written == {f"{name}.{end}" for name in ("yolov3-tiny", "digits")
                           for end in ("onnx", "lfa")}  # fmt: skip

    def test_it_is_the_wheel_that_runs(self, installed, folder):
        script = "import leakyforge.kernels as k; print(k.__file__)"
        path = Path(call(installed, "-c", script, cwd=folder).strip())
        assert path.is_relative_to(installed.parents[1])

    def test_dependencies_agree_and_torch_is_not_among_them(self, installed, folder):
        assert "No broken requirements" in call(installed, "-m", "pip", "check", cwd=folder)
        call(installed, "-c", "import torch", cwd=folder, status=1)

    def test_doctor(self, installed, folder):
        call(installed.with_name("leakyforge"), "doctor", cwd=folder)


class TestEditableInstall:
    def test_modules_are_those_of_the_source(self, editable, source, tmp_path):
        script = "from leakyforge import cli, kernels; print(cli.__file__, kernels.__file__)"
        for path in call(editable, "-c", script, cwd=tmp_path).split():
            assert Path(path).is_relative_to(source)

    def test_an_edit_is_seen(self, editable, source, tmp_path):
        path = source / "runtime" / "threads.py"
        before = path.read_bytes()
        try:
            with path.open("a") as stream:
                stream.write("EDITED = True\n")
            script = "from leakyforge.runtime import threads; print(threads.EDITED)"
            assert call(editable, "-c", script, cwd=tmp_path) == "True\n"
        finally:
            path.write_bytes(before)

    def test_doctor(self, editable, tmp_path):
        output = call(editable.with_name("leakyforge"), "doctor", cwd=tmp_path)
        assert "loads without the compiler" in output


class TestVersionPair:
    """Another apache-tvm-ffi: here by a folder in front that says it is installed."""

    @pytest.fixture
    def wrong_pair(self, tmp_path):
        folder = tmp_path / "front" / "apache_tvm_ffi-0.1.15.post2.dist-info"
        folder.mkdir(parents=True)
        text = "Metadata-Version: 2.1\nName: apache-tvm-ffi\nVersion: 0.1.15.post2\n"
        (folder / "METADATA").write_text(text)
        return {"PYTHONPATH": str(folder.parent)}

    @staticmethod
    def assert_clear(message):
        assert "found apache-tvm 0.27.0.post1, apache-tvm-ffi 0.1.15.post2" in message
        assert f"pip install {RIGHT_PAIR}" in message

    def test_import_of_the_compiler(self, wrong_pair, tmp_path):
        script = """
import sys
try:
    import leakyforge.kernels
except Exception as error:
    assert type(error).__name__ == "VersionError", error
    assert not {"tvm", "tvm_ffi"} & sys.modules.keys(), "loaded before the check"
    sys.exit(str(error))
"""
        self.assert_clear(call(sys.executable, "-c", script, cwd=tmp_path, status=1, **wrong_pair))

    def test_session(self, leaky, wrong_pair, tmp_path):
        script = """
import sys
from leakyforge.runtime import Session
try:
    Session(sys.argv[1])
except Exception as error:
    assert type(error).__name__ == "VersionError", error
    assert "tvm_ffi" not in sys.modules, "loaded before the check"
    sys.exit(str(error))
"""
        command = [sys.executable, "-c", script, leaky]
        self.assert_clear(call(*command, cwd=tmp_path, status=1, **wrong_pair))

    def test_command_line(self, wrong_pair, tmp_path):
        script = "import sys; from leakyforge.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", script, "compile", "m.onnx"]
        message = call(*command, cwd=tmp_path, status=2, **wrong_pair)
        self.assert_clear(message)
        assert message.count("\n") == 1

    def test_doctor_says_what_to_install(self, wrong_pair, tmp_path):
        script = "import sys; from leakyforge.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", script, "doctor", "--json"]
        call(*command, cwd=tmp_path)
        output = call(*command, cwd=tmp_path, status=1, **wrong_pair)
        advice = {finding["name"]: finding["advice"] for finding in json.loads(output)}
        assert advice["apache-tvm-ffi"] == f"pip install {RIGHT_PAIR.split()[1]}"

    def test_absent_package(self, monkeypatch):
        found = {"apache-tvm": pins.TVM_PINS["apache-tvm"]}
        monkeypatch.setattr(pins, "installed_version", found.get)
        with pytest.raises(VersionError, match="apache-tvm-ffi absent; run: pip install "):
            pins.check_tvm_pins.__wrapped__()

    def test_right_pair(self):
        pins.check_tvm_pins.__wrapped__()
