"""MSL as TVM's code generator prints it, turned into C++ for the emulator.

The text of a kernel stays as it is but for arrays in threadgroup memory. What C++ would let pass
and Metal would not is an error here: an argument without its place, a pointer without its address
space, a name that MSL keeps for itself.
"""

from __future__ import annotations

import re

# Metal's limits on a kernel.
_MAX_BUFFERS = 31
_MAX_THREADGROUP_MEMORY = 32 << 10

_SIZES = {
    "bool": 1,
    "uchar": 1,
    "half": 2,
    "short": 2,
    "ushort": 2,
    "float": 4,
    "int": 4,
    "uint": 4,
}
_SIZES |= {f"{name}{n}": n * size for name, size in _SIZES.items() for n in (2, 4)}

_FUNCTION = re.compile(r"^// Function: (\w+)\n", re.M)
_SIGNATURE = re.compile(r"^kernel void (\w+)\((.*?)\n\) \{$", re.M | re.S)
_BUFFER = re.compile(r"device (\w+)\* (\w+) \[\[ buffer\((\d+)\) \]\]")
_NUMBERS = re.compile(r"constant (\w+_args_t)& (\w+) \[\[ buffer\((\d+)\) \]\]")
_POSITION = re.compile(r"uint([23]?) (\w+) \[\[(\w+)\]\]")
_POSITIONS = {
    "threadgroup_position_in_grid": "at.of_group",
    "thread_position_in_threadgroup": "at.in_group",
}
_ARRAY = re.compile(r"^(\s*)threadgroup (\w+) (\w+)\[(\d+)\];$", re.M)
_SPACES = {"device", "threadgroup", "thread", "constant"}
_NAME = re.compile(r"\b(?:int|uint|float|half|long|short|ushort|bool)\d? (\w+)\b")
# Words of C++ are errors to the C++ compiler; these are MSL's, types of its library among them.
_WORDS = (
    "kernel vertex fragment device constant thread threadgroup threadgroup_imageblock ray_data "
    "object_data half bfloat uchar ushort uint ulong sampler texture1d texture2d texture3d "
    "texturecube depth2d array atomic_int atomic_uint atomic_float packed_float4 packed_half4 "
    "metal simd quad simdgroup matrix vec tensor size_t ptrdiff_t visible stitchable patch"
)
_RESERVED = frozenset(_WORDS.split())


class MetalError(ValueError):
    """Text that is no MSL, or beyond Metal's limits."""


def translate(source: str) -> str:
    """The C++ source: each kernel in a namespace of its own, described as
    ``metal_kernel_<name>``.
    """
    pieces = _FUNCTION.split(source)
    names, bodies = pieces[1::2], pieces[2::2]
    if pieces[0].strip():
        raise MetalError(f"text before the first kernel: {pieces[0][:80]!r}")
    parts = ["#include <metal_stdlib>\n"]
    for name, body in zip(names, bodies, strict=True):
        parts.append(f"namespace of_{name} {{\n{_kernel(name, body)}}}\n")
    return "".join(parts)


def _kernel(name: str, body: str) -> str:
    _check_text(name, body)
    signatures = _SIGNATURE.findall(body)
    if len(signatures) != 1 or signatures[0][0] != name:
        raise MetalError(f"{name}: found kernels {[found for found, _ in signatures]}")
    buffers, values = _arguments(name, signatures[0][1])
    body, taken = _place_arrays(name, body)
    return (
        f"{body}\n"
        f"static void invoke([[maybe_unused]] void** buffers) {{\n"
        f"  [[maybe_unused]] const emulator::Position at = emulator::position();\n"
        f"  {name}({', '.join(values)});\n"
        f"}}\n"
        f'extern "C" __attribute__((visibility("default")))\n'
        f"const emulator::Description metal_kernel_{name}{{invoke, {buffers}, {taken}}};\n"
    )


def _arguments(kernel: str, text: str) -> tuple[int, list[str]]:
    """The number of buffers, and what to call the function with."""
    values, buffers = [], 0
    for part in text.split(",\n"):
        argument = part.strip()
        if found := _BUFFER.fullmatch(argument) or _NUMBERS.fullmatch(argument):
            if int(found[3]) != buffers:
                raise MetalError(f"{kernel}: buffer {buffers} is at index {found[3]}")
            pointer = f"static_cast<{found[1]}*>(buffers[{buffers}])"
            values.append(f"*{pointer}" if argument.startswith("constant") else pointer)
            buffers += 1
        elif (found := _POSITION.fullmatch(argument)) and found[3] in _POSITIONS:
            rank = int(found[1] or 1)
            place = [f"{_POSITIONS[found[3]]}[{axis}]" for axis in range(rank)]
            values.append(f"uint{found[1]}({', '.join(place)})")
        else:
            raise MetalError(f"{kernel}: cannot place the argument {argument!r}")
    if buffers > _MAX_BUFFERS:
        raise MetalError(f"{kernel}: {buffers} buffers, Metal has {_MAX_BUFFERS}")
    return buffers, values


def _place_arrays(kernel: str, body: str) -> tuple[str, int]:
    """Arrays in threadgroup memory get their places there; the bytes they take.

    An array is aligned for its elements and for nothing larger, as far as MSL promises.
    """
    taken = wanted = 0
    names = []

    def place(array: re.Match[str]) -> str:
        nonlocal taken, wanted
        indentation, element, name, count = array.groups()
        names.append(name)
        alignment, size = _SIZES[element], _SIZES[element] * int(count)
        wanted = -(-wanted // alignment) * alignment + size
        start = -(-taken // alignment) * alignment
        start += alignment if start % (2 * alignment) == 0 else 0
        taken = start + size
        kind = f"emulator::ThreadgroupArray<{element}, {count}>"
        return f"{indentation}const {kind} {name}({start});"

    body = _ARRAY.sub(place, body)
    if wanted > _MAX_THREADGROUP_MEMORY:
        raise MetalError(
            f"{kernel}: {wanted} bytes of threadgroup memory, Metal has {_MAX_THREADGROUP_MEMORY}"
        )
    for name in names:
        body = re.sub(rf"\(threadgroup (\w+)\*\){name}\b", rf"{name}.as<\1>()", body)
    return body, taken


def _check_text(kernel: str, body: str) -> None:
    if found := re.search(r"\b(double|bfloat|asm|new|malloc)\b", body):
        raise MetalError(f"{kernel}: {found[0]} is no MSL")
    for pointer in re.finditer(r"\(([^()]*?)\*\)", body):
        if pointer[1].split()[0] not in _SPACES:
            raise MetalError(f"{kernel}: a pointer without an address space, {pointer[0]}")
    for name in _NAME.findall(body):
        if name in _RESERVED:
            raise MetalError(f"{kernel}: a variable is called {name}, a word of MSL")
