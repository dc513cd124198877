"""The artifact file: what is written comes back, and each damage has its own error."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leakyforge import errors
from leakyforge.pins import TVM_PINS
from leakyforge.runtime import Session, artifact, cpu, read_artifact, read_manifest, vm
from leakyforge.runtime import manifest as manifest_module
from leakyforge.runtime.artifact import MANIFEST, pack_weights, place_weights, unpack_weights
from leakyforge.runtime.manifest import FORMAT, WeightSpec
from leakyforge.runtime.tensors import ALIGNMENT

ADVICE = r"compile|give |make it with"
# How the names of members begin.
LIBRARY, WEIGHTS = "library/", "weights/"
MEMBERS = [MANIFEST, LIBRARY, WEIGHTS, "reference/input_0.npy", "reference/output_0.npy"]


@pytest.fixture
def no_code_runs(monkeypatch):
    """Fail where a library is about to be loaded."""

    def load_vm(*_):
        pytest.fail("code was loaded from an artifact that cannot be used here")

    monkeypatch.setattr(vm, "load_vm", load_vm)


def refused(path, kind):
    """The message of the error of exactly that class; it names the file and what to do."""
    with pytest.raises(errors.ArtifactError) as caught:
        Session(path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert str(path) in message
    assert "\n" not in message
    assert re.search(ADVICE, message), message
    return message


def member_named(path, start):
    """The first member whose name begins so."""
    with zipfile.ZipFile(path) as archive:
        return next(name for name in archive.namelist() if name.startswith(start))


def member_span(path, name):
    """First byte of a stored member and the first after it."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30
    start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return start, start + info.file_size


def same(first, second):
    """Whether two artifacts hold the same."""
    return (
        first.manifest == second.manifest
        and first.variant == second.variant
        and first.library == second.library
        and np.array_equal(first.weight_memory, second.weight_memory)
        and np.array_equal(first.reference_inputs["x"], second.reference_inputs["x"])
        and np.array_equal(first.reference_outputs["y"], second.reference_outputs["y"])
    )


def refused_or_same(path, whole):
    """Whether reading gives an error of ours that names the file, or the whole artifact."""
    try:
        return same(read_artifact(path), whole)
    except errors.ArtifactError as error:
        return str(path) in str(error) and "\n" not in str(error)


def test_round_trip(conv, rewrite, tmp_path):
    loaded = read_artifact(conv)
    copy = tmp_path / "copy.lfa"
    rewrite(conv, copy)
    again = read_artifact(copy)
    assert again.manifest == loaded.manifest
    assert again.library == loaded.library
    assert again.weight_memory.ctypes.data % ALIGNMENT == 0
    assert again.weight_memory.tobytes() == loaded.weight_memory.tobytes()
    assert again.reference_inputs.keys() == {"image"}
    assert again.reference_outputs.keys() == {"wide", "mean"}
    for name, array in loaded.reference_outputs.items():
        np.testing.assert_array_equal(again.reference_outputs[name], array, strict=True)
    # The same model and compiler give the same bytes.
    assert copy.read_bytes() == conv.read_bytes()


def test_manifest_says_what_was_compiled(conv):
    manifest = read_artifact(str(conv)).manifest
    assert manifest.onnx_path == str(conv.with_suffix(".onnx"))
    assert [spec.name for spec in manifest.outputs] == ["wide", "mean"]
    assert manifest.machine == cpu.machine()
    (variant,) = manifest.variants
    assert set(variant.features) <= cpu.host_features()
    assert variant.library == f"library/{variant.name}.so"
    assert variant.library_size == len(read_artifact(conv).library)
    assert manifest.versions == TVM_PINS
    assert variant.weights
    references = {"reference/input_0.npy", "reference/output_0.npy", "reference/output_1.npy"}
    assert set(manifest.files) == {*variant.members, *references}
    assert json.loads(json.dumps(manifest.to_dict()))["format"] == FORMAT


def test_weights_are_packed_on_boundaries_and_come_back():
    import ml_dtypes

    weights = [
        np.arange(7, dtype=np.float32),
        np.array(3, np.int64),
        np.zeros((0, 4), np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.array([True, False]),
        np.array([1.5, -2], ml_dtypes.bfloat16),
    ]
    weights += [weights[0].copy(), np.array(3, np.uint64)]
    specs, members = pack_weights(weights)
    assert specs[0] == WeightSpec((7,), "float32", specs[6].member)
    assert specs[1].member == specs[7].member
    assert len(members) == len(weights) - 2
    memory = place_weights(specs, members)
    for array, weight in zip(unpack_weights(memory, specs), weights, strict=True):
        np.testing.assert_array_equal(array, weight, strict=True)
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.size == 0 or np.may_share_memory(array, memory)


def test_mode_follows_the_umask(leaky, rewrite, tmp_path):
    path = tmp_path / "copy.lfa"
    old = os.umask(0o027)
    try:
        rewrite(leaky, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


class TestAtomicWriting:
    @pytest.fixture
    def write(self, rewrite):
        return rewrite

    def interrupted(self, write, leaky, tmp_path, expected):
        path = tmp_path / "model.lfa"
        path.write_bytes(b"the old file")
        with pytest.raises(expected) as caught:
            write(leaky, path)
        assert path.read_bytes() == b"the old file"
        assert [file.name for file in tmp_path.iterdir()] == ["model.lfa"]
        return str(caught.value)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), errors.ArtifactError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_failure_in_the_middle(self, write, leaky, tmp_path, monkeypatch, error, expected):
        original = zipfile.ZipFile.writestr
        written = []

        def writestr(archive, info, data):
            if len(written) == 2:
                assert len(list(tmp_path.iterdir())) == 2, "not written beside the old file"
                raise error
            written.append(info.filename)
            original(archive, info, data)

        monkeypatch.setattr(zipfile.ZipFile, "writestr", writestr)
        message = self.interrupted(write, leaky, tmp_path, expected)
        assert len(written) == 2
        if expected is errors.ArtifactError:
            assert message == f"cannot write {tmp_path / 'model.lfa'}: No space left on device"

    @pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
    def test_failure_of_a_step_at_the_end(self, write, leaky, tmp_path, monkeypatch, owner, step):
        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(owner, step, fail)
        message = self.interrupted(write, leaky, tmp_path, errors.ArtifactError)
        assert "Input/output error" in message

    def test_folder_is_missing(self, write, leaky, tmp_path):
        path = tmp_path / "absent" / "model.lfa"
        with pytest.raises(errors.ArtifactError, match=f"{path.parent} is not a folder"):
            write(leaky, path)

    def test_path_is_a_directory(self, write, leaky, tmp_path):
        with pytest.raises(errors.ArtifactIsDirectoryError, match="give the path of a file"):
            write(leaky, tmp_path)
        assert not list(tmp_path.iterdir())


class TestDamage:
    """No damaged file gets as far as loading code."""

    @pytest.fixture(autouse=True)
    def _no_code_runs(self, no_code_runs):
        pass

    def test_missing_file(self, tmp_path):
        assert "leakyforge compile" in refused(
            tmp_path / "absent.lfa", errors.ArtifactNotFoundError
        )

    def test_directory(self, tmp_path):
        refused(tmp_path, errors.ArtifactIsDirectoryError)

    @pytest.mark.parametrize("share", [0, 1e-5, 0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, leaky, tmp_path, share):
        path = tmp_path / "model.lfa"
        whole = leaky.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, errors.ArtifactFormatError)

    @pytest.mark.parametrize("lost", [1, 2, 22, 82, 83, 104, 105, 200])
    def test_truncated_at_the_end(self, leaky, tmp_path, lost):
        path = tmp_path / "model.lfa"
        path.write_bytes(leaky.read_bytes()[:-lost])
        refused(path, errors.ArtifactFormatError)

    @pytest.mark.parametrize("name", MEMBERS)
    @pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
    def test_flipped_bit(self, conv, tmp_path, name, place):
        path = tmp_path / "model.lfa"
        name = member_named(conv, name)
        data = bytearray(conv.read_bytes())
        start, end = member_span(conv, name)
        data[start + int((end - 1 - start) * place)] ^= 4
        path.write_bytes(data)
        message = refused(path, errors.ArtifactHashError)
        assert name in message

    @pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
    def test_damage_between_the_members(self, leaky, tmp_path, mask):
        """Zip's own records: an error of ours, or nothing that matters is changed."""
        whole = leaky.read_bytes()
        loaded = read_artifact(leaky)
        inside = set()
        for name in (MANIFEST, *loaded.manifest.files):
            inside |= set(range(*member_span(leaky, name)))
        outside = [place for place in range(len(whole)) if place not in inside]
        assert 500 < len(outside) < 2000
        path = tmp_path / "model.lfa"
        for place in outside:
            data = bytearray(whole)
            data[place] ^= mask
            path.write_bytes(data)
            assert refused_or_same(path, loaded), f"byte {place} of {len(whole)}"

    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_any_damage(self, leaky, tmp_path, data):
        """A few bytes anywhere replaced, removed or inserted."""
        whole = leaky.read_bytes()
        start = data.draw(st.integers(0, len(whole) - 1), "start")
        removed = data.draw(st.integers(0, 8), "removed")
        inserted = data.draw(st.binary(max_size=8), "inserted")
        path = tmp_path / "model.lfa"
        path.write_bytes(whole[:start] + inserted + whole[start + removed :])
        assert refused_or_same(path, read_artifact(leaky))

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK", b"\x00" * 1000, b"PK\x05\x06" + bytes(18), b"text\n" * 50],
        ids=["empty", "two bytes", "zeros", "empty zip", "text"],
    )
    def test_other_files(self, tmp_path, content):
        path = tmp_path / "model.lfa"
        path.write_bytes(content)
        refused(path, errors.ArtifactFormatError)

    def test_plain_zip(self, tmp_path):
        path = tmp_path / "model.lfa"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(MANIFEST, "{}")
        assert "zip file but no leakyforge artifact" in refused(path, errors.ArtifactFormatError)

    def test_onnx_file(self, leaky):
        assert "artifact" in refused(leaky.with_suffix(".onnx"), errors.ArtifactFormatError)

    def resealed(self, source, path, edit, *, seal, name=MANIFEST):
        """The artifact zipped again with an edited member; `seal` also hashes the manifest."""
        with zipfile.ZipFile(source) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
            comment = archive.comment
        members[name] = edit(members[name])
        if seal:
            comment = artifact._COMMENT + hashlib.sha256(members[MANIFEST]).hexdigest().encode()
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = comment
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    def test_edited_manifest(self, leaky, tmp_path):
        def edit(text):
            return text.replace(b'"reference"', b'"preference"')

        path = self.resealed(leaky, tmp_path / "edited.lfa", edit, seal=False)
        assert "manifest.json" in refused(path, errors.ArtifactHashError)
        path = self.resealed(leaky, tmp_path / "sealed.lfa", edit, seal=True)
        refused(path, errors.ArtifactFormatError)

    @pytest.mark.parametrize("name", MEMBERS[1:])
    def test_edited_member(self, conv, tmp_path, name):
        """Zip's own checksum is right, only the hash in the manifest tells."""
        path = tmp_path / "edited.lfa"
        name = member_named(conv, name)
        self.resealed(conv, path, lambda data: data[:-1] + b"?", seal=True, name=name)
        assert name in refused(path, errors.ArtifactHashError)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"null",
            b"{",
            b'{"format": 2}',
            b'{"format": 2, "inputs": 3}',
            b"\xff",
            b'{"format": 2, "variants": []}',
            b'{"format": 2, "variants": [3], "inputs": []}',
        ],
    )
    def test_manifest_of_another_kind(self, leaky, tmp_path, text):
        path = self.resealed(leaky, tmp_path / "other.lfa", lambda _: text, seal=True)
        refused(path, errors.ArtifactFormatError)

    def test_missing_member(self, leaky, tmp_path):
        path = tmp_path / "short.lfa"
        with zipfile.ZipFile(leaky) as old, zipfile.ZipFile(path, "w") as new:
            new.comment = old.comment
            for name in old.namelist():
                if not name.startswith(LIBRARY):
                    new.writestr(name, old.read(name))
        assert LIBRARY in refused(path, errors.ArtifactFormatError)


class TestOtherMachine:
    """A whole file that is not for here, refused before any of its code is loaded."""

    @pytest.fixture(autouse=True)
    def _no_code_runs(self, no_code_runs):
        pass

    @pytest.mark.parametrize("version", [0, 1, 2, FORMAT + 1, str(FORMAT), None])
    def test_format_version(self, leaky, tmp_path, rewrite, version):
        path = rewrite(leaky, tmp_path / "m.lfa", format=version)
        message = refused(path, errors.ArtifactFormatError)
        assert f"format {version}" in message
        assert f"reads {FORMAT}" in message

    @pytest.mark.parametrize("package", list(TVM_PINS))
    def test_tvm_versions(self, leaky, tmp_path, rewrite, package):
        path = rewrite(leaky, tmp_path / "m.lfa", versions=TVM_PINS | {package: "0.1"})
        message = refused(path, errors.ArtifactVersionError)
        assert f"{package} 0.1" in message
        assert f"{package} {TVM_PINS[package]}" in message

    def test_instruction_set(self, leaky, tmp_path, rewrite):
        path = rewrite(leaky, tmp_path / "m.lfa", machine="riscv64")
        message = refused(path, errors.ArtifactCpuError)
        assert "riscv64" in message
        assert cpu.machine() in message

    def test_cpu_features_in_the_artifact(self, leaky, tmp_path, rewrite):
        features = (*read_artifact(leaky).variant.features, "avx9000", "mystery")
        variant = {"features": features, "name": "future"}
        path = rewrite(leaky, tmp_path / "m.lfa", variant=variant)
        message = refused(path, errors.ArtifactCpuError)
        assert "future" in message
        assert "lacks: avx9000, mystery;" in message

    def test_cpu_features_of_the_machine(self, leaky, monkeypatch):
        lacking = read_artifact(leaky).variant.features[0]
        monkeypatch.setattr(cpu, "host_features", lambda: cpu.X86_FEATURES.keys() - {lacking})
        assert f"lacks: {lacking};" in refused(leaky, errors.ArtifactCpuError)

    def test_reading_alone_is_no_question_of_the_machine(self, leaky, tmp_path, rewrite):
        path = rewrite(leaky, tmp_path / "m.lfa", machine="riscv64")
        assert read_manifest(path, whole=True).machine == "riscv64"


def test_library_that_the_loader_refuses(leaky, tmp_path, rewrite):
    library = {read_artifact(leaky).variant.library: b"\x7fELF but no more"}
    path = rewrite(leaky, tmp_path / "m.lfa", parts=library)
    with pytest.raises(errors.ArtifactError, match="cannot be loaded") as caught:
        Session(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cpuinfo(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: fast\nflags\t\t: fpu sse2 pni avx2 bmi1\n"
        "\nprocessor\t: 1\nflags\t\t: fpu\n"
    )
    assert cpu.host_features(file) == {"sse2", "sse3", "avx2", "bmi"}
    assert cpu.model_name(file) == "Some CPU @ 2 GHz: fast"
    file = tmp_path / "cpuinfo_arm"
    file.write_text(
        "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd aes crc32 atomics asimdhp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n"
    )
    assert cpu.host_features(file) == {"fp-armv8", "neon", "crc", "lse", "fullfp16"}
    assert cpu.model_name(file) == "ARM CPU 0x41 0xd0c"
    assert cpu.host_features(tmp_path / "absent") == frozenset()
    assert cpu.model_name(tmp_path / "absent") == "unknown CPU"


def test_is_artifact(leaky, tmp_path):
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(leaky.read_bytes())
    assert artifact.is_artifact(renamed)
    assert artifact.is_artifact(tmp_path / "absent.lfa")
    assert not artifact.is_artifact(leaky.with_suffix(".onnx"))
    assert not artifact.is_artifact(tmp_path / "absent.onnx")


def test_manifest_fields_are_all_in_the_file(leaky):
    with zipfile.ZipFile(leaky) as archive:
        stored = json.loads(archive.read(MANIFEST))
    assert stored.keys() == {item.name for item in dataclasses.fields(manifest_module.Manifest)}
