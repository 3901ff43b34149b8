"""16-bit floating-point numbers of the emulated device, against NumPy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cuda_emulator.block_program import run_block

TYPES = {"half": np.float16, "nv_bfloat16": ml_dtypes.bfloat16}
EVERY_TYPE = pytest.mark.parametrize("name", TYPES)


@EVERY_TYPE
def test_every_number_as_float32(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    body = f"""
    const {name}* numbers = (const {name}*)x;
    for (int i = threadIdx.x; i < 65536; i += 1024) ((float*)y)[i] = numbers[i];
    """
    found = run_block(body, every, 1 << 16, 1024).view(np.float32)
    wanted = every.view(TYPES[name]).astype(np.float32)
    assert np.array_equal(found, wanted, equal_nan=True)
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


@EVERY_TYPE
def test_rounding_of_float32(name: str) -> None:
    number = TYPES[name]
    infinity = int(np.array(np.inf, number).view(np.uint16))
    exact = np.arange(infinity, dtype=np.uint16).view(number).astype(np.float64)
    ties = ((exact[:-1] + exact[1:]) / 2).astype(np.float32)
    anything = np.random.default_rng(1).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    x = np.concatenate(
        [ties, np.nextafter(ties, np.float32(0)), anything.view(np.float32), -ties]
        + [np.array([np.inf, -np.inf, -0.0], np.float32)]
    )
    x = np.pad(x, (0, -len(x) % 1024))
    body = f"""
    {name}* numbers = ({name}*)y;
    for (int i = threadIdx.x; i < {len(x)}; i += 1024) numbers[i] = ((const float*)x)[i];
    """
    found = run_block(body, x, len(x) // 2, 1024).view(number)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(number)
    assert np.array_equal(found.astype(np.float32), wanted.astype(np.float32), equal_nan=True)


@EVERY_TYPE
def test_arithmetic_rounds_once(name: str) -> None:
    number = TYPES[name]
    a, b = np.random.default_rng(2).standard_normal((2, 1024)).astype(number)
    body = f"""
    const {name}* operands = (const {name}*)x + threadIdx.x;
    const {name} a = operands[0], b = operands[1024];
    {name}* results = ({name}*)y + threadIdx.x;
    results[0] = a + b;
    results[1024] = a - b;
    results[2048] = a * b;
    results[3072] = a / b;
    results[4096] = __hfma(a, b, b);
    """
    found = run_block(body, np.concatenate([a, b]), 2560, 1024).view(number)
    c, d = a.astype(np.float64), b.astype(np.float64)
    wanted = np.stack([c + d, c - d, c * d, c / d, c * d + d]).astype(number)
    assert np.array_equal(found.reshape(5, 1024), wanted)
