"""Two elements of 16 bits in a word of 32."""

from __future__ import annotations

from gecko_mlc.vulkan.enumerants import Op
from gecko_mlc.vulkan.scalars import Scalars


class Packing:
    """Remembers which elements came out of which word, so that copying them copies the word."""

    def __init__(self, scalars: Scalars):
        self._scalars = scalars
        self._origin: dict[int, tuple[int, int]] = {}

    def unpack(self, word: int, dtype: str) -> list[int]:
        """The lower and the upper element."""
        if dtype == "bfloat16":
            elements = [self._scalars.low_half(word), self._scalars.high_half(word)]
        else:
            code, kind = self._scalars.code, self._scalars.kind(dtype)
            pair = code.value(Op.Bitcast, self._scalars.module.vector(kind, 2), word)
            elements = [code.value(Op.CompositeExtract, kind, pair, half) for half in (0, 1)]
        for half, element in enumerate(elements):
            self._origin[element] = (word, half)
        return elements

    def pack(self, low: int, high: int, dtype: str) -> int:
        """The word with these elements."""
        word, half = self._origin.get(low, (None, 0))
        if word is not None and half == 0 and self._origin.get(high) == (word, 1):
            return word
        if dtype == "bfloat16":
            return self._scalars.halves(low, high)
        code, module = self._scalars.code, self._scalars.module
        pair_type = module.vector(self._scalars.kind(dtype), 2)
        pair = code.value(Op.CompositeConstruct, pair_type, low, high)
        return code.value(Op.Bitcast, module.integer(32), pair)
