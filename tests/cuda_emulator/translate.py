"""CUDA source as TVM's code generator makes it, turned into C++ for the emulator."""

from __future__ import annotations

import re

from cuda_emulator.ptx import translate_assembly

_SIZES = {
    "bool": 1,
    "char": 1,
    "int8_t": 1,
    "signed char": 1,
    "uchar": 1,
    "uint8_t": 1,
    "unsigned char": 1,
    "half": 2,
    "nv_bfloat16": 2,
    "short": 2,
    "ushort": 2,
    "float": 4,
    "half2": 4,
    "int": 4,
    "nv_bfloat162": 4,
    "uint": 4,
    "uint32_t": 4,
    "double": 8,
    "float2": 8,
    "int64_t": 8,
    "uint64_t": 8,
    "float4": 16,
    "int4": 16,
    "uint4": 16,
}
# Bytes that a block's static arrays may take together.
_MAX_STATIC_SHARED = 48 << 10

_INCLUDE = re.compile(
    r"^\s*#\s*include\s*<(?:cuda|cooperative_groups|mma|math_constants)[^>]*>", re.M
)
_KERNEL = re.compile(r'extern "C" __global__ void (?:__\w+__\([^)]*\) )*(\w+)\([^)]*\)\s*([;{])')
_STATIC = re.compile(r"__shared__ (?:alignas\((\d+)\) )?([\w ]+?) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\)|alignas\(\d+\)) ([\w ]+?) (\w+)\[\];")


def translate(source: str) -> str:
    """The C++ source: inline assembly is C++, shared arrays lie in the block's memory, and each
    kernel is described under the name ``emulator_kernel_<name>``.
    """
    source = translate_assembly(_INCLUDE.sub("", source))
    kernels = [kernel for kernel in _KERNEL.finditer(source) if kernel[2] == "{"]
    ends = [*(kernel.start() for kernel in kernels), len(source)]
    pieces = ['#include "ptx.h"\n', source[: ends[0]]]
    for kernel, end in zip(kernels, ends[1:], strict=True):
        body, shared = _place_shared(source[kernel.start() : end])
        pieces += [body, f"\nEMULATOR_KERNEL({kernel[1]}, {shared})\n"]
    return "".join(pieces)


def _place_shared(body: str) -> tuple[str, int]:
    """Shared arrays become references into the block's memory; the bytes the static ones take."""
    taken = 0

    def place(array: re.Match[str]) -> str:
        nonlocal taken
        alignment, element, name, count = array.groups()
        step = max(int(alignment or 1), 16)
        start = -(-taken // step) * step
        taken = start + _SIZES[element] * int(count)
        place = f"emulator::current->block->shared + {start}"
        return f"auto& {name} = *reinterpret_cast<{element} (*)[{count}]>({place});"

    body = _STATIC.sub(place, body)
    if taken > _MAX_STATIC_SHARED:
        raise ValueError(f"{taken} bytes of static shared memory, a block has {_MAX_STATIC_SHARED}")
    taken = -(-taken // 1024) * 1024
    body = _DYNAMIC.sub(
        lambda array: (
            f"{array[1]}* const {array[2]} = reinterpret_cast<{array[1]}*>("
            f"emulator::current->block->shared + {taken});"
        ),
        body,
    )
    if "__shared__" in body:
        line = next(line for line in body.splitlines() if "__shared__" in line)
        raise ValueError(f"cannot place {line.strip()}")
    return body, taken
