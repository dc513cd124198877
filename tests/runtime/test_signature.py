"""Signatures: what is not signed by the key is refused before any of its code is loaded."""

import errno
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from leakyforge import cli
from leakyforge.errors import (
    ArtifactError,
    ArtifactHashError,
    ArtifactNotFoundError,
    ArtifactSignatureError,
    EngineError,
    InputError,
    KeyFileError,
    MissingDependencyError,
)
from leakyforge.runtime import Session, artifact, read_artifact, read_manifest, sign_artifact, vm
from leakyforge.runtime.artifact import MANIFEST
from leakyforge.runtime.engines import Worker
from leakyforge.runtime.signature import MEMBER, SIZE

PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()
X = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)


def write_private(path, key, encryption=PLAIN):
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


def write_public(path, key):
    path.write_bytes(
        key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return path


def write_pair(folder, name):
    key = ed25519.Ed25519PrivateKey.generate()
    return (
        write_private(folder / f"{name}-private.pem", key),
        write_public(folder / f"{name}-public.pem", key),
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files of a pair of keys."""
    return write_pair(tmp_path_factory.mktemp("keys"), "our")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Files of another pair."""
    return write_pair(tmp_path_factory.mktemp("keys"), "other")


@pytest.fixture(scope="module")
def signed(leaky, keys, tmp_path_factory):
    path = tmp_path_factory.mktemp("signed") / "signed.lfa"
    shutil.copy(leaky, path)
    shutil.copy(leaky.with_suffix(".onnx"), path.with_suffix(".onnx"))
    sign_artifact(path, keys[0])
    return path


@pytest.fixture
def no_code_runs(monkeypatch):
    """Fail where a library is about to be loaded, in this process or another."""
    for owner, name in ((vm, "load_vm"), (Worker, "__init__")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("code was loaded"))


def resealed(source, path, edits):
    """A copy with other members, in which all that needs no key is right again."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, data in edits.items():
        if name in members and name not in (MANIFEST, MEMBER):
            old, new = (hashlib.sha256(each).hexdigest() for each in (members[name], data))
            members[MANIFEST] = members[MANIFEST].replace(old.encode(), new.encode())
        members[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = artifact._COMMENT + hashlib.sha256(members[MANIFEST]).hexdigest().encode()
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def member(path, start):
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.startswith(start))
        return name, archive.read(name)


class TestSigned:
    def test_is_the_same_artifact(self, leaky, signed, keys):
        for options in ({}, {"verify_key": keys[1]}, {"verify_key": str(keys[1])}):
            session = Session(signed, **options)
            np.testing.assert_array_equal(session.run(None, {"x": X})[0], np.where(X < 0, X / 5, X))
        plain, loaded = read_artifact(leaky), read_artifact(signed, verify_key=keys[1])
        assert loaded.manifest == plain.manifest
        assert loaded.library == plain.library
        with zipfile.ZipFile(leaky) as old, zipfile.ZipFile(signed) as new:
            assert new.comment == old.comment
            assert new.namelist() == [*old.namelist(), MEMBER]
            assert all(new.read(name) == old.read(name) for name in old.namelist())

    def test_again_by_the_same_key_and_by_another(self, signed, keys, others, tmp_path):
        path = tmp_path / "again.lfa"
        shutil.copy(signed, path)
        sign_artifact(path, keys[0])
        assert path.read_bytes() == signed.read_bytes()
        sign_artifact(path, others[0])
        read_manifest(path, whole=True, verify_key=others[1])
        with pytest.raises(ArtifactSignatureError, match="signed by another key"):
            read_manifest(path, verify_key=keys[1])


@pytest.mark.usefixtures("no_code_runs")
class TestRefused:
    def refused(self, path, key, words, kind=ArtifactSignatureError):
        with pytest.raises(ArtifactError, match=words) as caught:
            Session(path, verify_key=key)
        assert type(caught.value) is kind
        assert str(path) in str(caught.value)

    def test_unsigned(self, leaky, keys):
        self.refused(leaky, keys[1], "is not signed")

    def test_by_another_key(self, signed, others):
        self.refused(signed, others[1], "signed by another key")

    @pytest.mark.parametrize("start", ["library/", "reference/input_0", "reference/output_0"])
    def test_another_member(self, signed, keys, tmp_path, start):
        name, data = member(signed, start)
        path = resealed(signed, tmp_path / "changed.lfa", {name: data[:-1] + b"?"})
        read_manifest(path, whole=True)
        self.refused(path, keys[1], "changed after it was signed")

    def test_another_weight(self, conv, keys, tmp_path):
        path = tmp_path / "conv.lfa"
        shutil.copy(conv, path)
        sign_artifact(path, keys[0])
        name, data = member(path, "weights/")
        changed = resealed(path, tmp_path / "changed.lfa", {name: data[:-1] + b"?"})
        read_manifest(changed, whole=True)
        self.refused(changed, keys[1], "changed after it was signed")

    def test_another_manifest(self, signed, keys, tmp_path):
        text = member(signed, MANIFEST)[1]
        edits = {MANIFEST: text.replace(b'"rounding_steps": ', b'"rounding_steps": 9')}
        path = resealed(signed, tmp_path / "changed.lfa", edits)
        read_manifest(path, whole=True)
        self.refused(path, keys[1], "changed after it was signed")

    def test_a_member_that_is_only_replaced(self, signed, keys, tmp_path):
        """Its hash in the manifest is the signed one."""
        name, data = member(signed, "library/")
        edits = {name: data[:-1] + b"?", MANIFEST: member(signed, MANIFEST)[1]}
        path = resealed(signed, tmp_path / "changed.lfa", edits)
        self.refused(path, keys[1], "changed after it was written", ArtifactHashError)

    def test_a_signature_of_another_artifact(self, leaky, conv, keys, tmp_path):
        path = tmp_path / "conv.lfa"
        shutil.copy(conv, path)
        sign_artifact(path, keys[0])
        moved = resealed(leaky, tmp_path / "moved.lfa", {MEMBER: member(path, MEMBER)[1]})
        self.refused(moved, keys[1], "changed after it was signed")

    @pytest.mark.parametrize("place", [32, 63, 64, SIZE - 1])
    def test_a_changed_signature(self, signed, keys, tmp_path, place):
        data = bytearray(member(signed, MEMBER)[1])
        data[place] ^= 1
        path = resealed(signed, tmp_path / "changed.lfa", {MEMBER: bytes(data)})
        self.refused(path, keys[1], "changed after it was signed")

    @pytest.mark.parametrize("size", [0, 31, 32, SIZE - 1])
    def test_a_short_signature(self, signed, keys, tmp_path, size):
        data = member(signed, MEMBER)[1][:size]
        path = resealed(signed, tmp_path / "short.lfa", {MEMBER: data})
        self.refused(path, keys[1], "signed")

    def test_what_was_read_before(self, leaky, keys):
        with pytest.raises(InputError, match="give it to read_artifact"):
            Session(read_artifact(leaky), verify_key=keys[1])

    @pytest.mark.parametrize(
        "command",
        [
            ["run"], ["check"], ["check", "--bisect"], ["check", "--html", "r.html"], ["verify"],
            ["bench"], ["bench", "--profile"], ["bench", "--peers"], ["inspect"],
            ["inspect", "--roofline", "a100"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_every_command(self, leaky, keys, command, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as request:
            cli.main([command[0], str(leaky), *command[1:], "--verify-key", str(keys[1])])
        out, err = capsys.readouterr()
        assert request.value.code == 2
        assert out == ""
        assert f"artifact {leaky} is not signed" in err
        assert list(tmp_path.iterdir()) == []


def test_another_process_looks_again(leaky, keys, tmp_path):
    arguments = ["leakyforge", sys.executable, leaky, {"x": X}, ["y"], 1, tmp_path]
    with pytest.raises(EngineError, match="is not signed"):
        Worker(*arguments, keys[1])


def test_commands_take_what_is_signed(signed, keys, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    key = ["--verify-key", str(keys[1])]
    cli.main(["inspect", str(signed), *key])
    assert f"signature by {keys[1]}: valid" in capsys.readouterr().out
    cli.main(["run", str(signed), *key, "--input", f"x={tmp_path / 'x.npy'}"])
    cli.main(["check", str(signed), *key, "--html", str(tmp_path / "report.html")])
    cli.main(["check", str(signed), *key, "--bisect"])
    cli.main(["bench", str(signed), *key, "--seconds", "0.1"])
    assert "Start in a fresh process" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["bench", "inspect"])
def test_an_onnx_file_has_no_signature(leaky, keys, command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, str(leaky.with_suffix(".onnx")), "--verify-key", str(keys[1])])
    assert "--verify-key is for artifacts" in capsys.readouterr().err


class TestSigning:
    def test_command(self, leaky, keys, tmp_path, capsys):
        path = tmp_path / "model.lfa"
        shutil.copy(leaky, path)
        cli.main(["sign", str(path), "--key", str(keys[0])])
        assert capsys.readouterr().out == f"signed {path}\n"
        read_manifest(path, whole=True, verify_key=keys[1])

    @pytest.mark.parametrize("step", ["open", "replace"])
    def test_an_artifact_is_kept_when_writing_fails(self, leaky, keys, tmp_path, monkeypatch, step):
        path = tmp_path / "model.lfa"
        shutil.copy(leaky, path)
        original = zipfile.ZipFile.open

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def open(archive, info, mode="r", *arguments, **options):
            if mode == "w" and "library/" in str(info):
                fail()
            return original(archive, info, mode, *arguments, **options)

        if step == "open":
            monkeypatch.setattr(zipfile.ZipFile, "open", open)
        else:
            monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(ArtifactError, match=f"cannot write {path}: No space left"):
            sign_artifact(path, keys[0])
        assert path.read_bytes() == leaky.read_bytes()
        assert [file.name for file in tmp_path.iterdir()] == ["model.lfa"]

    @pytest.mark.parametrize("start", ["library/", "reference/output_0"])
    def test_damage_is_not_signed(self, leaky, keys, tmp_path, start):
        name, data = member(leaky, start)
        edits = {name: data[:-1] + b"?", MANIFEST: member(leaky, MANIFEST)[1]}
        path = resealed(leaky, tmp_path / "damaged.lfa", edits)
        before = path.read_bytes()
        with pytest.raises(ArtifactHashError, match=name):
            sign_artifact(path, keys[0])
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["damaged.lfa"]

    def test_no_artifact(self, keys, tmp_path):
        with pytest.raises(ArtifactNotFoundError):
            sign_artifact(tmp_path / "absent.lfa", keys[0])


class TestKeyFiles:
    @pytest.fixture
    def files(self, keys, tmp_path):
        """Files that hold no Ed25519 key of the kind that is asked for, by what they are."""
        curve = ec.generate_private_key(ec.SECP256R1())
        secret = serialization.BestAvailableEncryption(b"secret")
        text = tmp_path / "text.pem"
        text.write_text("no key")
        return {
            "absent": tmp_path / "absent.pem",
            "folder": tmp_path,
            "text": text,
            "private": keys[0],
            "public": keys[1],
            "curve private": write_private(tmp_path / "a.pem", curve),
            "curve public": write_public(tmp_path / "b.pem", curve),
            "encrypted": write_private(
                tmp_path / "c.pem", ed25519.Ed25519PrivateKey.generate(), secret
            ),
        }

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("absent", "No such file.*openssl genpkey"),
            ("folder", "Is a directory"),
            ("text", "no private key.*openssl genpkey"),
            ("public", "no private key"),
            ("curve private", "not for Ed25519"),
            ("encrypted", "is encrypted.*openssl pkey"),
        ],
    )
    def test_private(self, leaky, files, kind, words):
        with pytest.raises(KeyFileError, match=words) as caught:
            sign_artifact(leaky, files[kind])
        assert str(files[kind]) in str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("absent", "No such file.*openssl pkey"),
            ("text", "no public key"),
            ("private", "no public key.*-pubout"),
            ("curve public", "not for Ed25519"),
        ],
    )
    @pytest.mark.usefixtures("no_code_runs")
    def test_public(self, signed, files, kind, words):
        with pytest.raises(KeyFileError, match=words) as caught:
            Session(signed, verify_key=files[kind])
        assert str(files[kind]) in str(caught.value)

    @pytest.mark.usefixtures("no_code_runs")
    def test_without_cryptography(self, signed, keys, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography", None)
        with pytest.raises(MissingDependencyError, match=r"leakyforge\[sign\]"):
            sign_artifact(signed, keys[0])
        with pytest.raises(MissingDependencyError, match=r"leakyforge\[sign\]"):
            Session(signed, verify_key=keys[1])
