"""Artifacts that nobody means well with: each case writes one into a folder and gives its path.

`python tests/hostile/worker.py artifact` opens all of them in processes with limits. Most are
sealed: the hashes are right, and only what they say is wrong.
"""

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_files

CASES: dict[str, Callable[[Path], Path]] = {}
LEGAL: set[str] = set()
MANIFEST = "manifest.json"
_COMMENT = b"leakyforge sha256="
_WHOLE: list[bytes] = []


def case(function):
    assert function.__name__ not in CASES
    CASES[function.__name__] = function
    return function


def whole():
    """The bytes of a whole artifact: a product, so that it has weights; compiled once."""
    if not _WHOLE:
        from leakyforge.kernels import compile

        model = onnx_files.model(
            [onnx_files.node("MatMul", ["x", "w"], ["t"]), onnx_files.node("LeakyRelu", ["t"])],
            outputs=[onnx_files.info("y", [2, 5])],
            initializers=[onnx_files.tensor("w", np.random.default_rng(0).standard_normal((3, 5)))],
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(model.SerializeToString())
            _WHOLE.append(compile(path, measure=False).read_bytes())
    return _WHOLE[0]


def parts():
    """Members of the whole artifact by name, the manifest as a dictionary apart."""
    with zipfile.ZipFile(io.BytesIO(whole())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(members.pop(MANIFEST)), members


def seal(folder, manifest, members, kind=zipfile.ZIP_STORED):
    """Write an artifact with a right hash of its manifest, which is a dictionary or bytes."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    path = folder / "model.lfa"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.comment = _COMMENT + hashlib.sha256(text).hexdigest().encode()
        archive.writestr(MANIFEST, text)
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return path


def written(folder, data):
    path = folder / "model.lfa"
    path.write_bytes(data)
    return path


@case
def empty(folder):
    return written(folder, b"")


@case
def directory(folder):
    path = folder / "model.lfa"
    path.mkdir()
    return path


@case
def absent(folder):
    return folder / "model.lfa"


@case
def pipe(folder):
    os.mkfifo(folder / "model.lfa")
    return folder / "model.lfa"


@case
def device(folder):
    (folder / "model.lfa").symlink_to("/dev/zero")
    return folder / "model.lfa"


@case
def name_too_long(folder):
    return folder / ("m" * 5000 + ".lfa")


@case
def name_with_nul(folder):
    return folder / "m\0.lfa"


# The manifest: every field of another kind.

_VALUES = {
    "none": None, "number": 7, "negative": -1, "huge": 2**62, "infinite": float("inf"),
    "text": "evil", "empty_text": "", "list": [1], "empty_list": [], "dictionary": {"a": 1},
    "nested": [[[]]], "true": True,
}  # fmt: skip
_PLACES = {
    "": ("model", "onnx_sha256", "onnx_path", "inputs", "outputs", "machine", "reference",
         "versions", "leakyforge", "variants", "files", "format"),
    "variants.0.": ("name", "features", "target", "thread_hint", "tuning_records", "library",
                    "library_size", "weights", "kernels", "parity",
                    "memory", "stages"),
    "variants.0.weights.0.": ("shape", "dtype", "member"),
    "variants.0.kernels.0.": ("name", "output", "algorithm", "flops", "computed", "bytes_moved",
                              "resources"),
    "variants.0.parity.": ("result", "cpu", "lacks", "outputs"),
    "variants.0.parity.outputs.0.": ("output", "error", "tolerance", "used"),
    "inputs.0.": ("name", "shape", "dtype", "low", "high", "rounding_steps", "quantisations"),
    "outputs.0.": ("name", "shape", "dtype", "low", "high", "rounding_steps", "quantisations"),
}  # fmt: skip


def at(manifest, place):
    """What holds a field, and the field's key."""
    *path, key = place.split(".")
    for step in path:
        manifest = manifest[int(step) if step.isdecimal() else step]
    return manifest, key


def edited(place, value):
    def write(folder):
        manifest, members = parts()
        holder, key = at(manifest, place)
        holder[key] = value
        return seal(folder, manifest, members)

    return write


def without(place):
    def write(folder):
        manifest, members = parts()
        holder, key = at(manifest, place)
        del holder[key]
        return seal(folder, manifest, members)

    return write


def enter(name, write, *, legal=False):
    write.__name__ = name
    case(write)
    if legal:
        LEGAL.add(name)


for _start, _keys in _PLACES.items():
    for _key in _keys:
        enter(f"without_{_start}{_key}", without(_start + _key))
        for _name, _value in _VALUES.items():
            # Which of them are harmless is not for this list to say: none may end otherwise.
            enter(f"{_start}{_key}_is_{_name}", edited(_start + _key, _value), legal=True)

for _name, _value in {
    "negative": [-3, 5], "two_negative": [-3, -5], "huge": [2**62], "overflow": [2**40, 2**40],
    "wider": [300, 500], "narrower": [1, 1], "text": ["three", 5], "fraction": [3.0, 5.0],
    "infinite": [float("inf"), 5], "rank_1000": [1] * 1000,
}.items():  # fmt: skip
    enter(f"weight_shape_{_name}", edited("variants.0.weights.0.shape", _value))
for _start in ("inputs.0.", "outputs.0."):
    for _name, _value in {
        "negative": [-2, 3], "huge": [2**62, 3], "fraction": [2.0, 3], "nested": [[2], 3],
        "text": ["x" * 100_000, 3], "null": [None, 3],
    }.items():  # fmt: skip
        enter(f"{_start}shape_{_name}", edited(_start + "shape", _value), legal=True)
    for _name in ("object", "O", "str", "V8", "float128", "f4,f4", "bfloat", "bfloat16", "int4",
                  "datetime64", "float8_e4m3fn", "finfo", "complex64", "float64",
                  ">f4"):  # fmt: skip
        enter(f"{_start}dtype_{_name}", edited(_start + "dtype", _name), legal=True)
for _name in ("object", "O", "str", "float128", "f4,f4", "bfloat", "int4", "finfo", "float64",
              "bfloat16", "M8[s]"):  # fmt: skip
    enter(f"weight_dtype_{_name}", edited("variants.0.weights.0.dtype", _name))
for _name, _value in {
    "parent": "../../../etc/passwd", "absolute": "/etc/passwd", "manifest": MANIFEST,
    "reference": "reference/input_0.npy", "absent": "weights/absent.bin", "nul": "a\0b",
    "surrogate": "\ud800",
}.items():  # fmt: skip
    enter(f"weight_member_{_name}", edited("variants.0.weights.0.member", _value))
    enter(f"library_{_name}", edited("variants.0.library", _value))


@case
def unknown_field(folder):
    manifest, members = parts()
    manifest["evil"] = 1
    return seal(folder, manifest, members)


@case
def unknown_field_of_a_variant(folder):
    manifest, members = parts()
    manifest["variants"][0]["evil"] = 1
    return seal(folder, manifest, members)


@case
def inputs_twice_the_same(folder):
    manifest, members = parts()
    manifest["inputs"] *= 2
    return seal(folder, manifest, members)


def text_case(name, text):
    enter(f"manifest_{name}", lambda folder: seal(folder, text, parts()[1]))


text_case("empty", b"")
text_case("not_json", b"evil")
text_case("not_utf8", b"\xff\xfe\xff")
text_case("nan", b"NaN")
text_case("deep", b"[" * 100_000 + b"]" * 100_000)
text_case("deep_dictionaries", b'{"a":' * 50_000 + b"1" + b"}" * 50_000)
text_case("long_number", b'{"format": ' + b"9" * 1_000_000 + b"}")
text_case("list", b"[]")
text_case("utf16", json.dumps({"format": 4}).encode("utf-16"))


# Members.


@case
def members_of_others(folder):
    """Names that lead out of the file: nothing is ever written under them."""
    manifest, members = parts()
    for name in ("../../evil", "/tmp/evil", "a\\..\\b"):
        members[name] = b"evil"
        manifest["files"][name] = hashlib.sha256(b"evil").hexdigest()
    return seal(folder, manifest, members)


LEGAL.add("members_of_others")


@case
def member_without_a_hash(folder):
    manifest, members = parts()
    del manifest["files"][manifest["variants"][0]["library"]]
    return seal(folder, manifest, members)


@case
def hash_without_a_member(folder):
    manifest, members = parts()
    manifest["files"]["weights/absent.bin"] = "0" * 64
    return seal(folder, manifest, members)


@case
def hash_that_is_no_text(folder):
    manifest, members = parts()
    manifest["files"] = dict.fromkeys(manifest["files"], 7)
    return seal(folder, manifest, members)


def replaced(name, start, edit):
    """A member whose name begins so, edited and hashed again."""

    def write(folder):
        manifest, members = parts()
        member = next(each for each in members if each.startswith(start))
        members[member] = edit(members[member])
        manifest["files"][member] = hashlib.sha256(members[member]).hexdigest()
        return seal(folder, manifest, members)

    enter(name, write)


def npy(header, data=b""):
    """An .npy file with a header of any text."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


replaced("weight_shorter", "weights/", lambda data: data[:-4])
replaced("weight_longer", "weights/", lambda data: data + bytes(4))
replaced("weight_empty", "weights/", lambda data: b"")
replaced("library_empty", "library/", lambda data: b"")
replaced("library_of_zeros", "library/", lambda data: bytes(4096))
replaced("library_header_only", "library/", lambda data: data[:64])
for _share in (10, 50):
    replaced(
        f"library_cut_at_{_share}",
        "library/",
        lambda data, share=_share: data[: len(data) * share // 100],
    )
replaced(
    "library_of_endless_headers", "library/", lambda data: data[:54] + b"\xff" * 10 + data[64:]
)
replaced("library_of_text", "library/", lambda data: b"INPUT(/etc/passwd)\n")
for _member in ("input", "output"):
    for _name, _content in {
        "empty": b"",
        "pickle": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n"),
        "huge": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }"),
        "tebibyte": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }"),
        "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }", bytes(24)),
        "overflow": npy(
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**33}, {2**31}), }}"
        ),
        "short": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", bytes(8)),
        "other_shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }", bytes(28)),
        "other_dtype": npy(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }", bytes(48)
        ),
        "code": npy("__import__('os').getpid()"),
        "nested": npy("(" * 5000 + ")" * 5000),
        "npz": b"PK\x03\x04" + bytes(100),
    }.items():
        replaced(f"reference_{_member}_{_name}", f"reference/{_member}",
                 lambda data, content=_content: content)  # fmt: skip


# The zip around it.


@case
def bomb_manifest(folder):
    """128 MiB of spaces, 130 KB packed."""
    manifest, members = parts()
    text = json.dumps(manifest).encode() + b" " * (1 << 27)
    return seal(folder, text, members, zipfile.ZIP_DEFLATED)


@case
def bomb_member(folder):
    manifest, members = parts()
    members[manifest["variants"][0]["library"]] = bytes(1 << 27)
    digest = hashlib.sha256(bytes(1 << 27)).hexdigest()
    manifest["files"][manifest["variants"][0]["library"]] = digest
    return seal(folder, manifest, members, zipfile.ZIP_DEFLATED)


@case
def bomb_of_another_kind(folder):
    """Nothing that is read: only `read_manifest(whole=True)` and `verify` look at it."""
    manifest, members = parts()
    members["other"] = bytes(1 << 27)
    manifest["files"]["other"] = hashlib.sha256(members["other"]).hexdigest()
    return seal(folder, manifest, members, zipfile.ZIP_DEFLATED)


for _name, _kind in {
    "deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA,
}.items():  # fmt: skip
    enter(f"compressed_{_name}", lambda folder, kind=_kind: seal(folder, *parts(), kind))


def patched(name, edit):
    """A whole artifact with bytes of its zip records changed; `edit` gets a bytearray."""

    def write(folder):
        data = bytearray(whole())
        edit(data)
        return written(folder, bytes(data))

    enter(name, write)


def _sizes(data, size, *, central=True, local=True):
    """Write sizes of the library's member into its records."""
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        info = next(each for each in archive.infolist() if each.filename.startswith("library/"))
    if local:
        struct.pack_into("<LL", data, info.header_offset + 18, size, size)
    if central:
        name = info.filename.encode()
        place = data.rindex(name) - 46
        struct.pack_into("<LL", data, place + 20, size, size)


patched("size_that_lies_everywhere", lambda data: _sizes(data, 0xFFFFFFF0))
patched("size_that_lies_in_the_directory", lambda data: _sizes(data, 0x7FFFFFFF, local=False))
patched("size_that_is_small", lambda data: _sizes(data, 16))
patched("size_of_zero", lambda data: _sizes(data, 0))


def _end(data, offset, form, value):
    place = data.rindex(b"PK\x05\x06")
    struct.pack_into(form, data, place + offset, value)


patched("entries_65535", lambda data: (_end(data, 8, "<H", 65535), _end(data, 10, "<H", 65535)))
patched("directory_offset_beyond", lambda data: _end(data, 16, "<L", 0xFFFFFFFE))
patched("directory_size_beyond", lambda data: _end(data, 12, "<L", 0xFFFFFFFE))
patched("directory_offset_zero", lambda data: _end(data, 16, "<L", 0))


@case
def zip64_sizes(folder):
    """Sizes of 2**60 bytes in a zip64 record."""
    data = bytearray(whole())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        info = next(each for each in archive.infolist() if each.filename.startswith("library/"))
    place = data.rindex(info.filename.encode()) - 46
    extra = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
    struct.pack_into("<LL", data, place + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", data, place + 30, len(extra))
    end = place + 46 + len(info.filename)
    data[end:end] = extra
    _end(data, 12, "<L", struct.unpack_from("<L", data, data.rindex(b"PK\x05\x06") + 12)[0] + 20)
    return written(folder, bytes(data))


@case
def members_20000(folder):
    manifest, members = parts()
    members |= {f"m{index}": b"" for index in range(20_000)}
    return seal(folder, manifest, members)


LEGAL.add("members_20000")


@case
def member_twice(folder):
    """Two members of one name: the second is another library."""
    manifest, members = parts()
    path = seal(folder, manifest, members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(manifest["variants"][0]["library"], b"evil")
    return path


@case
def manifest_twice(folder):
    manifest, members = parts()
    path = seal(folder, manifest, members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MANIFEST, b"{}")
    return path


@case
def encrypted(folder):
    data = bytearray(whole())
    place = data.rindex(b"PK\x01\x02")
    struct.pack_into("<H", data, place + 8, 1)
    return written(folder, bytes(data))


@case
def comment_that_is_not_ascii(folder):
    data = whole()
    return written(folder, data[:-64] + b"\xff" * 64)


@case
def bytes_before_it(folder):
    """As in a file that unpacks itself: zip allows it, and the hashes hold."""
    return written(folder, b"#!/bin/sh\n" + whole())


LEGAL |= {"bytes_before_it", "entries_65535"}


# A plan for a device: no device is needed to refuse it.

_PLAN = {
    "programs": [""], "cubin": "", "arena": 512, "buffers": [{"size": 24, "offset": 0}],
    "inputs": [0], "weights": [], "outputs": [0],
    "launches": [
        {"program": 0, "kernel": "k", "buffers": [0], "grid": [1, 1, 1], "group": [1, 1, 1]}
    ],
}  # fmt: skip


def plan(name, text=None, **fields):
    def write(folder):
        manifest, members = parts()
        data = json.dumps({**_PLAN, **fields}).encode() if text is None else text
        variant = manifest["variants"][0]
        del members[variant["library"]]
        variant |= {"name": "opencl", "features": [], "library": "library/opencl.json",
                    "library_size": len(data)}  # fmt: skip
        members["library/opencl.json"] = data
        manifest["machine"] = "opencl"
        manifest["files"] = {
            each: hashlib.sha256(content).hexdigest() for each, content in members.items()
        }
        return seal(folder, manifest, members)

    enter(f"plan_{name}", write)


plan("empty", b"")
plan("list", b"[]")
plan("deep", b"[" * 100_000)
plan("buffer_absent", inputs=[9])
plan("buffer_negative", outputs=[-1])
plan("buffer_of_no_bytes", buffers=[{"size": 0, "offset": 0}])
plan("buffer_huge", buffers=[{"size": 2**62, "offset": None}])
plan("buffer_outside_of_the_arena", buffers=[{"size": 24, "offset": 500}])
plan("program_absent", launches=[{**_PLAN["launches"][0], "program": 7}])
plan("buffer_smaller_than_the_input", buffers=[{"size": 1, "offset": 0}])
plan("buffers_text", buffers="abc")
plan("grid_negative", launches=[{**_PLAN["launches"][0], "grid": [-1, 1, 1]}])
plan("grid_of_two", launches=[{**_PLAN["launches"][0], "grid": [1, 1]}])
plan("grid_huge", launches=[{**_PLAN["launches"][0], "grid": [2**62, 1, 1]}])
plan("kernel_absent")
plan("cubin_not_base64", cubin="***")
plan("source_that_is_none", programs=["evil("])
plan("inputs_too_many", inputs=[0, 0, 0])
plan("weights_too_many", weights=[0] * 100)
