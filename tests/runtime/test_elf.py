"""Libraries that are cut are found before they are mapped."""

from pathlib import Path

import pytest

from leakyforge.runtime.elf import missing_bytes


@pytest.fixture(scope="module")
def library():
    """Bytes of the C library, of another compiler than ours."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    path = next(line.split()[-1] for line in maps if "/libc" in line and ".so" in line)
    return Path(path).read_bytes()


def test_a_whole_library(library):
    assert missing_bytes(library) == ""


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_library_that_is_cut(library, share):
    assert "bytes, and " in missing_bytes(library[: int(len(library) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", bytes(100), b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01"]
)
def test_no_library(data):
    assert "no 64-bit" in missing_bytes(data)
