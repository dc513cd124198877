"""Artifacts of several variants: which one runs, what is read of the file, and what is stored."""

import zipfile

import numpy as np
import pytest

from leakyforge import errors
from leakyforge.runtime import Session, artifact, check, cpu, read_artifact, read_manifest, verify
from leakyforge.runtime.variants import choose_variant, choose_variants

V4, V3, V1 = "x86-64-v4", "x86-64-v3", "x86-64"
NAMES = [V4, V3, V1]
LEAST = frozenset({"cmov", "sse", "sse2"})


def needs(name, fat):
    """Skip a test that runs a variant for which this CPU is too old."""
    variant = next(each for each in read_manifest(fat).variants if each.name == name)
    missing = set(variant.features) - cpu.host_features()
    for feature in ("avx512f", "avx2", *missing):
        if feature in missing:
            pytest.skip(f"this CPU lacks {feature}")


@pytest.fixture
def features(fat):
    """The features of each variant."""
    return {variant.name: set(variant.features) for variant in read_manifest(fat).variants}


@pytest.fixture
def host_has(monkeypatch):
    """Give this machine other features."""

    def host_has(features):
        monkeypatch.setattr(cpu, "host_features", lambda: frozenset(features))

    return host_has


class TestChoice:
    def test_order(self, fat):
        assert [variant.name for variant in read_manifest(fat).variants] == NAMES

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("more", [set(), {"sse4a", "avx512fp16"}], ids=["just", "more"])
    def test_first_that_the_cpu_can_run(self, fat, features, host_has, name, more):
        host_has(features[name] | more)
        assert choose_variant(read_manifest(fat), fat).name == name

    @pytest.mark.parametrize(
        ("lacking", "name"), [("avx512f", V3), ("avx512vl", V3), ("fma", V1), ("popcnt", V1)]
    )
    def test_one_feature_that_is_missing(self, fat, features, host_has, lacking, name):
        host_has(features[V4] - {lacking})
        assert choose_variant(read_manifest(fat), fat).name == name

    def test_none(self, fat, host_has):
        host_has(LEAST - {"sse2"})
        with pytest.raises(errors.ArtifactCpuError) as caught:
            Session(fat)
        assert f"artifact {fat} was compiled for x86-64 and needs" in str(caught.value)
        assert f"{cpu.model_name()} lacks: sse2; compile it" in str(caught.value)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_chosen_one_runs(self, fat, features, host_has, name):
        needs(name, fat)
        host_has(features[name])
        session = Session(fat)
        assert session.variant == name
        assert verify(fat)

    @pytest.mark.parametrize("name", NAMES)
    def test_forced(self, fat, name):
        needs(name, fat)
        loaded = read_artifact(fat, name)
        session = Session(fat, variant=name)
        assert session.variant == loaded.variant.name == name
        for actual, desired in zip(
            session.run(None, loaded.reference_inputs),
            loaded.reference_outputs.values(),
            strict=True,
        ):
            np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-5)

    def test_variants_are_other_code(self, fat):
        assert len({variant.target for variant in read_manifest(fat).variants}) == 3
        with zipfile.ZipFile(fat) as archive:
            assert len({archive.read(f"library/{name}.so") for name in NAMES}) == 3

    def test_unknown(self, fat):
        message = f"{fat} has no variant 'znver9'; give one of: x86-64-v4, x86-64-v3, x86-64"
        with pytest.raises(errors.ArtifactError, match=message):
            Session(fat, variant="znver9")

    def test_forced_and_not_runnable(self, fat, features, host_has):
        host_has(features[V3])
        with pytest.raises(errors.ArtifactCpuError) as caught:
            Session(fat, variant=V4)
        assert f"variant x86-64-v4 of artifact {fat} needs" in str(caught.value)
        assert "lacks: avx512bw, avx512cd, avx512dq, avx512f, avx512vl;" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_ordinary_artifact_has_one(self, conv):
        (variant,) = read_manifest(conv).variants
        assert Session(conv, variant=variant.name).variant == Session(conv).variant == variant.name

    def test_all(self, fat, features, host_has):
        manifest = read_manifest(fat)
        host_has(features[V3])
        run, not_run = choose_variants(manifest, fat, "all")
        assert [variant.name for variant in run] == [V3, V1]
        assert not_run.keys() == {V4}
        assert not_run[V4].startswith(f"{cpu.model_name()} lacks avx512bw, ")
        assert [variant.name for variant in choose_variants(manifest, fat, None)[0]] == [V3]
        host_has(())
        with pytest.raises(errors.ArtifactCpuError):
            choose_variants(manifest, fat, "all")


class TestReading:
    def test_only_the_chosen_variant_is_read(self, fat, monkeypatch):
        read = []
        chunks = artifact._chunks

        def watched(archive, path, name, digest):
            read.append(name)
            return chunks(archive, path, name, digest)

        monkeypatch.setattr(artifact, "_chunks", watched)
        loaded = read_artifact(fat, V1)
        references = [name for name in loaded.manifest.files if name.startswith("reference/")]
        assert sorted(read) == sorted([*loaded.variant.members, *references])
        assert len(loaded.weight_memory) < loaded.variant.library_size
        read.clear()
        read_manifest(fat)
        assert read == []
        read_manifest(fat, whole=True)
        assert sorted(read) == sorted(loaded.manifest.files)

    def damaged(self, fat, path, name):
        """A copy with one bit of a member flipped."""
        data = bytearray(fat.read_bytes())
        with zipfile.ZipFile(fat) as archive:
            content = archive.read(name)
        data[data.index(content) + len(content) // 2] ^= 1
        path.write_bytes(data)
        return path

    @pytest.mark.parametrize("kind", ["library", "weight"])
    @pytest.mark.parametrize("hurt", NAMES)
    def test_damage_is_found_in_the_variant_that_is_loaded(
        self, fat, tmp_path, features, host_has, kind, hurt
    ):
        """Features are made up, for what is damaged is not executed."""
        manifest = read_manifest(fat)
        other = V3 if hurt == V1 else V1
        variants = {variant.name: variant for variant in manifest.variants}
        (member,) = [
            name
            for name in variants[hurt].members
            if name not in variants[other].members and name.startswith(kind)
        ]
        path = self.damaged(fat, tmp_path / "m.lfa", member)
        host_has(features[V4])
        with pytest.raises(errors.ArtifactHashError, match=member):
            Session(path, variant=hurt)
        with pytest.raises(errors.ArtifactHashError, match=member):
            read_manifest(path, whole=True)
        # Reading another one does not meet the damage, `verify` reads the whole file.
        assert read_artifact(path, other).variant.name == other
        with pytest.raises(errors.ArtifactHashError, match=member):
            verify(path, other)

    def test_equal_weights_are_stored_once(self, fat):
        manifest = read_manifest(fat)
        used = [spec.member for variant in manifest.variants for spec in variant.weights]
        with zipfile.ZipFile(fat) as archive:
            stored = [name for name in archive.namelist() if name.startswith("weights/")]
            contents = {archive.read(name) for name in stored}
        assert sorted(stored) == sorted(set(used))
        assert len(contents) == len(stored) < len(used)
        # The bias is the same for every CPU.
        biases = {spec.member for v in manifest.variants for spec in v.weights if spec.nbytes == 12}
        assert len(biases) == 1


class TestReports:
    def test_all_runs_each_and_says_which_it_does_not(self, fat, features, host_has):
        needs(V3, fat)
        host_has(features[V3])
        for report in (check(fat, variant="all", samples=1), verify(fat, "all")):
            assert report
            assert list(dict.fromkeys(row.variant for row in report.outputs)) == [V3, V1]
            assert {row.output for row in report.outputs if row.variant == V1} == {"wide", "mean"}
            assert report.not_run.keys() == {V4}
            assert "avx512f" in report.to_dict()["not_run"][V4]

    def test_one_by_default(self, fat, features, host_has):
        host_has(LEAST)
        for report in (check(fat, samples=1), verify(fat)):
            assert {row.variant for row in report.outputs} == {V1}
            assert report.not_run == {}

    def test_one_wrong_variant_fails_them_all(self, fat, host_has, rewrite, tmp_path):
        needs(V3, fat)
        wrong = read_artifact(fat, V1).variant
        (kernel,) = [spec for spec in wrong.weights if spec.nbytes > 100]
        ones = {kernel.member: np.ones(kernel.shape, kernel.dtype).tobytes()}
        path = rewrite(fat, tmp_path / "m.lfa", parts=ones)
        report = verify(path, "all")
        assert not report
        assert {row.variant for row in report.outputs if not row.passed} == {V1}
        assert verify(path, V3)
        assert not verify(path, V1)
