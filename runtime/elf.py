"""Whether a shared library is whole, before the system's loader maps it.

The loader maps segments by the sizes in the file's head, and the process is killed (SIGBUS) where
it touches a page that a file which was cut does not have. (System V ABI, edition 4.1, chapter 5,
"Program Header"; ELF-64 Object File Format, version 1.5.)
"""

import struct

# Magic number, class ELFCLASS64 and data encoding ELFDATA2LSB: of all targets that are supported.
_HEAD = b"\x7fELF\x02\x01"
# e_phoff at 32, e_phentsize and e_phnum at 54; in a program header p_type, p_flags, p_offset,
# p_vaddr, p_paddr, p_filesz.
_TABLE, _SIZES = struct.Struct("<Q"), struct.Struct("<HH")
_PROGRAM = struct.Struct("<IIQQQQ")
_FILE_HEADER = 64


def missing_bytes(library: bytes) -> str:
    """What a library lacks of what its own head says; empty where it is whole."""
    if not library.startswith(_HEAD) or len(library) < _FILE_HEADER:
        return "it is no 64-bit little-endian ELF file"
    (table,) = _TABLE.unpack_from(library, 32)
    size, count = _SIZES.unpack_from(library, 54)
    end = table + size * count
    if size < _PROGRAM.size or end > len(library):
        return f"it has {len(library)} bytes, and its program headers end at {end}"
    for place in range(table, end, size):
        _, _, offset, _, _, length = _PROGRAM.unpack_from(library, place)
        if offset + length > len(library):
            return f"it has {len(library)} bytes, and a segment of it ends at {offset + length}"
    return ""
