"""Shapes that attention's GPU kernels are tested at."""

from __future__ import annotations

from attention_reference import Shape

SHAPES = {
    # 16-bit accesses as wide as they can be; more lanes than a head needs.
    "bfloat16": Shape(2, 64, 128, 64, 48, 2, "bfloat16"),
    # As the 7B model has them: a lane for each vector of a key, a thread for each of a value.
    "wide": Shape(1, 256, 2048, 32, 64, 1, "float16"),
    "five heads": Shape(5, 24, 26, 48, 40, 2, "float32"),
    "odd": Shape(3, 7, 13, 24, 12, 0, "bfloat16"),
    "large heads": Shape(1, 320, 1100, 20, 8, 1, "float32"),
}
