"""The bytes in which a library keeps its Metal kernels, as TVM's runtime on a Mac reads them."""

from __future__ import annotations

import dataclasses
import struct

_CODES = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat"}


@dataclasses.dataclass(frozen=True)
class SavedKernel:
    """A kernel: the types of its arguments ("handle" is a buffer), what its launch gives after
    them, and its source.
    """

    name: str
    types: list[str]
    launch: list[str]
    source: str


def read_module(data: bytes) -> list[SavedKernel]:
    """The kernels of a module of kind metal. ValueError unless it holds MSL in TVM's form."""
    reader = _Reader(data)
    form = reader.text()
    if form != "metal":
        raise ValueError(f"a module of {form!r}, wanted MSL ('metal')")
    table = {}
    for _ in range(reader.count()):
        key, name = reader.text(), reader.text()
        if key != name:
            raise ValueError(f"kernel {name} is listed as {key}")
        types = [reader.type() for _ in range(reader.count())]
        launch = [reader.text() for _ in range(reader.count())]
        tags = [reader.word("<i") for _ in range(reader.count())]
        if any(tags):
            raise ValueError(f"kernel {name} has arguments of a special kind: {tags}")
        table[name] = types, launch
    sources = {reader.text(): reader.text() for _ in range(reader.count())}
    reader.end()
    if table.keys() != sources.keys():
        raise ValueError(f"kernels {sorted(table)}, sources of {sorted(sources)}")
    return [SavedKernel(name, *table[name], sources[name]) for name in table]


class _Reader:
    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def word(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def count(self) -> int:
        return self.word("<Q")

    def text(self) -> str:
        length = self.count()
        self._at += length
        if self._at > len(self._data):
            raise ValueError("the module ends too early")
        return self._data[self._at - length : self._at].decode()

    def type(self) -> str:
        code, bits, lanes = self.word("<B"), self.word("<B"), self.word("<H")
        if lanes != 1 or code not in _CODES:
            raise ValueError(f"an argument of type ({code}, {bits}, {lanes})")
        return _CODES[code] if code == 3 else f"{_CODES[code]}{bits}"

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes after the module's end")
