"""The size of the last cache, as Linux tells it."""

from leakyforge.runtime import cpu


def write_caches(folder, sizes):
    for index, size in enumerate(sizes):
        (folder / f"index{index}").mkdir()
        (folder / f"index{index}" / "size").write_text(f"{size}\n")


def test_largest_of_the_caches(tmp_path):
    write_caches(tmp_path, ["32K", "32K", "1024K", "32768K"])
    assert cpu.last_level_cache(tmp_path) == 32 << 20


def test_usual_size_where_linux_does_not_tell(tmp_path):
    assert cpu.last_level_cache(tmp_path / "absent") == 32 << 20
