"""Names of variables that mean something else in MSL."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx

# TVM's printer keeps clear of C's keywords alone.
_CPP = (
    "alignas alignof and and_eq asm bitand bitor bool catch class compl constexpr const_cast "
    "decltype delete dynamic_cast explicit export false friend inline mutable namespace new "
    "noexcept not not_eq nullptr operator or or_eq private protected public reinterpret_cast "
    "static_assert static_cast template this thread_local throw true try typeid typename using "
    "virtual wchar_t xor xor_eq"
)
_MSL = (
    "kernel vertex fragment device constant thread threadgroup threadgroup_imageblock ray_data "
    "object_data metal half bfloat uchar ushort uint ulong size_t ptrdiff_t sampler array vec "
    "matrix atomic tensor visible stitchable as_type mem_flags"
)
# What is printed for operations.
_FUNCTIONS = (
    "abs ceil clz cos cosh exp exp10 exp2 fabs floor fmod log log10 log2 max min nearbyint "
    "popcount pow rint round rsqrt select sin sinh sqrt tanh trunc "
    "simd_shuffle simd_shuffle_up simd_shuffle_down simd_shuffle_xor "
    "simdgroup_barrier threadgroup_barrier"
)
_VECTORS = "char short int long uchar ushort uint ulong half float"
RESERVED = frozenset(
    [
        *f"{_CPP} {_MSL} {_FUNCTIONS}".split(),
        *(f"{element}{count}" for element in _VECTORS.split() for count in (2, 3, 4)),
    ]
)


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.rename_reserved")
def rename_reserved(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """A variable with a name that C++ or MSL keeps for itself gets an underscore at its end."""
    renamed: dict[tirx.Var, tirx.Var] = {}

    def rename(variable: tirx.Var) -> tirx.Var:
        if variable.name not in RESERVED:
            return variable
        if variable not in renamed:
            renamed[variable] = tirx.Var(f"{variable.name}_", variable.ty)
        return renamed[variable]

    return tvm_ffi.structural_map(function, (tirx.Var, rename))
