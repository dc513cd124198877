"""Darknet's networks: a .cfg file of layers and a .weights file become an ONNX model.

Source: https://github.com/pjreddie/darknet, src/parser.c. Published weights of the YOLO family have
this form.
"""

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import onnx

from leakyforge.errors import ExportError
from leakyforge.models.darknet_layers import Convolution, DarknetLayers
from leakyforge.models.graph import Array
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_opset

# The largest published .cfg has 40 kB.
_MOST_TEXT = 2**20
# An ONNX file holds no more.
_MOST_WEIGHTS = 2**31 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)
_SHORT_NAMES = {"network": "net", "conv": "convolutional", "max": "maxpool"}
# Values with which an option that we do not read changes nothing; of the others it is 0.
_NEUTRAL = {"groups": "1", "dilation": "1", "alpha": "1", "beta": "1", "scale": "1"}
_TRAINING = {"learning_rate", "stopbackward"}


def read_darknet(
    cfg: str | Path, weights: str | Path, *, batch: int | str = 1, opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Read a network of darknet with its weights.

    Input `input`: [batch, channels, height, width] float32 in [0, 1], with the sizes of [net].
    Outputs: what each [yolo] or [region] section reads, as it is (no decoding of boxes), called
    after the layer that makes it, like `layer15_conv`; without such a section the last layer.

    Takes the sections net, convolutional, maxpool, route, shortcut, upsample, yolo and region, and
    the activations leaky (alpha 0.1), linear, logistic and relu.

    Args:
        cfg: The file of layers.
        weights: The file of float32 weights.
        batch: Number of images, or the name of a symbolic dimension; that of [net] is for training.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: A file cannot be read, a section, option or value is not among those above
            (with its line), the layers do not fit each other, or the weights are too few or too
            many for them.
    """
    batch, opset = checked_batch(batch), checked_opset(opset)
    cfg, weights = Path(cfg), Path(weights)
    net, *sections = _sections(cfg)
    with net.context():
        layers = DarknetLayers(
            channels=net.integer("channels", minimum=1),
            height=net.integer("height", minimum=1),
            width=net.integer("width", minimum=1),
            batch=batch,
        )
    with _opened(weights) as stream:
        values = _Values(weights, stream)
        for section in sections:
            with section.context():
                _LAYERS[section.kind](section, layers, values)
        values.check_end()
    with net.context():
        return layers.build(cfg.stem, opset=opset)


class _Section:
    """A section of a .cfg file and its options, which know their lines."""

    def __init__(self, kind: str, where: str) -> None:
        self.kind = kind
        self._where = where
        self._options: dict[str, tuple[str, int]] = {}
        self._unread: set[str] = set()

    def add(self, key: str, value: str, line: int) -> None:
        """Of options with the same name the first counts, as in darknet."""
        self._options.setdefault(key, (value, line))
        self._unread.add(key)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Say in every `ExportError` that leaves the block where the section is."""
        try:
            yield
        except ExportError as error:
            raise ExportError(f"{self._where}: {error}") from error

    def text(self, key: str, default: str | None = None) -> str:
        """Value of an option."""
        self._unread.discard(key)
        if key in self._options:
            return self._options[key][0]
        if default is None:
            raise ExportError(f"the option {key} is missing")
        return default

    def integers(self, key: str, default: int | None = None) -> list[int]:
        """Integers between commas."""
        text = self.text(key, None if default is None else str(default))
        parts = text.split(",")
        if not all(_INTEGER.fullmatch(part) for part in parts):
            raise ExportError(f"{self._option(key)} is not an integer of at most nine digits")
        return [int(part) for part in parts]

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        """One integer of `minimum` or more."""
        first, *others = self.integers(key, default)
        if others or first < minimum:
            raise ExportError(f"{self._option(key)} is not an integer of {minimum} or more")
        return first

    def check_all_read(self) -> None:
        """Refuse options that would change the result, and that nobody has asked for."""
        for key in sorted(self._unread - _TRAINING):
            if self._options[key][0] != _NEUTRAL.get(key, "0"):
                raise ExportError(f"{self._option(key)} is not supported here")

    def _option(self, key: str) -> str:
        value, line = self._options[key]
        return f"{key}={value[:40]} (line {line})"


class _Values:
    """The numbers of a .weights file, in order."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream = path, stream
        self._left = os.fstat(stream.fileno()).st_size
        if self._left > _MOST_WEIGHTS:
            raise ExportError(f"{path} has {self._left} bytes; an ONNX file holds at most 2 GiB")
        major, minor, _revision = struct.unpack("<3i", self._bytes(12))
        # The number of images seen in training, in 64 bits since version 0.2.
        wide = 10 * major + minor >= 2 and major < 1000 and minor < 1000
        self._bytes(8 if wide else 4)

    def convolution(self, filters: int, inputs: int, size: int, *, normalized: bool) -> Convolution:
        """Weights of the next convolution."""
        count = filters * inputs * size * size
        # Checked as a whole: sizes out of a wrong .cfg must not allocate anything.
        self._check(4 * (count + filters * (4 if normalized else 1)))
        bias = self._floats(filters)
        norm = None
        if normalized:
            scale, mean, variance = (self._floats(filters) for _ in range(3))
            norm = (scale, mean, variance)
        weight = self._floats(count).reshape(filters, inputs, size, size)
        return Convolution(weight, bias, norm)

    def check_end(self) -> None:
        """Refuse a file that has more than the layers need."""
        if self._left:
            raise ExportError(
                f"{self._path} has {self._left} bytes more than the layers take; "
                "is it of another network?"
            )

    def _floats(self, count: int) -> Array:
        return np.frombuffer(self._bytes(4 * count), "<f4").astype(np.float32, copy=False)

    def _bytes(self, count: int) -> bytes:
        self._check(count)
        data = self._stream.read(count)
        if len(data) != count:  # The file has shrunk since.
            self._left = len(data)
            self._check(count)
        self._left -= count
        return data

    def _check(self, count: int) -> None:
        if count > self._left:
            raise ExportError(
                f"{self._path} is too short: {count} bytes come next and {self._left} are left; "
                "is it truncated, or of another network?"
            )


def _convolutional(section: _Section, layers: DarknetLayers, values: _Values) -> None:
    filters = section.integer("filters", 1, minimum=1)
    size = section.integer("size", 1, minimum=1)
    stride = section.integer("stride", 1, minimum=1)
    pad = section.integer("padding", 0)
    if section.integer("pad", 0):
        pad = size // 2
    normalized = bool(section.integer("batch_normalize", 0))
    activation = section.text("activation", "logistic")
    section.check_all_read()
    weights = values.convolution(filters, layers.channels, size, normalized=normalized)
    layers.convolutional(weights, stride=stride, pad=pad, activation=activation)


def _maxpool(section: _Section, layers: DarknetLayers, _values: _Values) -> None:
    stride = section.integer("stride", 1, minimum=1)
    size = section.integer("size", stride, minimum=1)
    padding = section.integer("padding", size - 1)
    section.check_all_read()
    layers.maxpool(size=size, stride=stride, padding=padding)


def _route(section: _Section, layers: DarknetLayers, _values: _Values) -> None:
    parts = section.integers("layers")
    groups = section.integer("groups", 1, minimum=1)
    group = section.integer("group_id", 0)
    section.check_all_read()
    layers.route(*parts, groups=groups, group=group)


def _shortcut(section: _Section, layers: DarknetLayers, _values: _Values) -> None:
    other, *others = section.integers("from")
    if others:
        raise ExportError("shortcut adds more than one layer, which is not supported")
    activation = section.text("activation", "linear")
    section.check_all_read()
    layers.shortcut(other, activation=activation)


def _upsample(section: _Section, layers: DarknetLayers, _values: _Values) -> None:
    stride = section.integer("stride", 2, minimum=1)
    section.check_all_read()
    layers.upsample(stride)


def _head(_section: _Section, layers: DarknetLayers, _values: _Values) -> None:
    layers.head()


_LAYERS: dict[str, Callable[[_Section, DarknetLayers, _Values], None]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _head,
    "region": _head,
}


def _sections(path: Path) -> list[_Section]:
    """Sections of a .cfg file; the first is [net]."""
    with _opened(path) as stream:
        data = stream.read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        raise ExportError(f"{path} is larger than 1 MiB; is it a .cfg file?")
    sections: list[_Section] = []
    for number, text in enumerate(data.decode("utf-8-sig", "replace").split("\n"), start=1):
        # Darknet takes every blank out of a line, those in between too.
        line = "".join(text.split())
        if not line or line[0] in "#;":
            continue
        where = f"{path}, line {number}"
        if line[0] == "[":
            name = line.strip("[]")
            kind = _SHORT_NAMES.get(name, name)
            if (kind == "net") != (not sections) or kind not in {"net", *_LAYERS}:
                if not sections:
                    raise ExportError(f"{where}: the first section is {line[:40]}, not [net]")
                raise ExportError(
                    f"{where}: layer {len(sections) - 1} is {line[:40]}, which is not supported; "
                    f"those after [net] can be {', '.join(_LAYERS)}"
                )
            layer = f"layer {len(sections) - 1} " if sections else ""
            sections.append(_Section(kind, f"{where}, {layer}{line}"))
            continue
        key, equals, value = line.partition("=")
        if not equals or not sections:
            raise ExportError(f"{where}: {line[:40]!r} is neither a section nor an option of one")
        sections[-1].add(key, value, number)
    if not sections:
        raise ExportError(f"{path} has no section; is it a .cfg file?")
    return sections


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    # Opening a pipe would wait for its writer.
    if path.exists() and not path.is_file():
        raise ExportError(f"{path} is not a regular file")
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
