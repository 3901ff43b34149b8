"""A kernel from TensorIR to a SPIR-V module."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import tirx

from gecko_mlc.compile import CompileError
from gecko_mlc.vulkan.arguments import ADDRESS, arguments
from gecko_mlc.vulkan.buffers import Buffers
from gecko_mlc.vulkan.code import Code
from gecko_mlc.vulkan.enumerants import Capability
from gecko_mlc.vulkan.expressions import Expressions
from gecko_mlc.vulkan.scalars import Scalars
from gecko_mlc.vulkan.spirv import Module
from gecko_mlc.vulkan.statements import Statements
from gecko_mlc.vulkan.unsupported import Unsupported
from gecko_mlc.vulkan.uses import BufferUses

# What the specification promises of every device.
_PUSH_CONSTANTS, _SHARED = 128, 16 * 1024


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a device offers: threads and bytes of shared memory of a CTA, bytes of push constants,
    threads of a subgroup (0: not known), types beyond float32 and int32.
    """

    threads: int
    shared: int
    push_constants: int
    subgroup: int
    float16: bool
    storage16: bool
    int64: bool
    int16: bool
    cooperative_matrix: bool

    @classmethod
    def of(cls, target: tvm.target.Target) -> Limits:
        """Those of a TVM target of kind vulkan."""
        attributes = target.attrs
        subgroup = int(attributes["thread_warp_size"])
        return cls(
            threads=int(attributes["max_num_threads"]),
            shared=int(attributes.get("max_shared_memory_per_block", _SHARED)),
            push_constants=int(attributes.get("max_push_constants_size", _PUSH_CONSTANTS)),
            subgroup=subgroup if subgroup > 1 else 0,
            float16=bool(attributes.get("supports_float16", False)),
            storage16=bool(attributes.get("supports_16bit_buffer", False)),
            int64=bool(attributes.get("supports_int64", False)),
            int16=bool(attributes.get("supports_int16", False)),
            cooperative_matrix=bool(attributes.get("supports_cooperative_matrix", False)),
        )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its SPIR-V and what a launch has to know.

    ``arguments`` are "address" or a scalar type each; ``launch`` names the launch parameters that
    follow them; ``in_memory`` is whether the arguments are in a block in memory instead of the push
    constants. ``subgroup`` is the size of subgroup it needs, 0 if it needs none,
    ``bfloat16`` whether it has cooperative matrices of that type.
    """

    name: str
    spirv: bytes
    threads: tuple[int, int, int]
    arguments: tuple[str, ...]
    launch: tuple[str, ...]
    in_memory: bool
    argument_bytes: int
    subgroup: int
    shared: int
    float16: bool
    storage16: bool
    int64: bool
    int16: bool
    cooperative_matrix: bool
    bfloat16: bool


def compile_kernel(function: tirx.PrimFunc, limits: Limits) -> Kernel:
    """Compile a lowered device function. CompileError if it has no translation, or exceeds the
    limits.
    """
    name = str(function.attrs["global_symbol"])
    try:
        kernel = _translate(name, function, limits)
    except Unsupported as error:
        raise CompileError(
            f"kernel {name}: {error} cannot be expressed in SPIR-V for this target"
        ) from error
    _check(kernel, limits)
    return kernel


def _translate(name: str, function: tirx.PrimFunc, limits: Limits) -> Kernel:
    module = Module()
    code = Code(module)
    scalars = Scalars(code)
    buffers = Buffers(scalars, BufferUses(function.body))
    expressions = Expressions(scalars, buffers, limits.subgroup)
    statements = Statements(expressions, buffers)
    block = arguments(function)
    in_memory = block.size > limits.push_constants
    kinds = [
        buffers.address_type(variable.__chandle__(), parameter.dtype)
        if parameter.type == ADDRESS
        else scalars.kind(parameter.type)
        for variable, parameter in zip(function.params, block.parameters, strict=True)
    ]
    values = block.load(code, kinds, in_memory)
    for variable, parameter, value in zip(function.params, block.parameters, values, strict=True):
        if parameter.type == ADDRESS:
            buffers.address(variable.__chandle__(), value, parameter.dtype)
        else:
            expressions.bind(variable, [value])
    statements.translate(function.body)
    x, y, z = statements.threads
    uses_subgroup = any(
        module.has_capability(capability)
        for capability in (Capability.GroupNonUniform, Capability.CooperativeMatrix)
    )
    return Kernel(
        name=name,
        spirv=module.assemble((x, y, z), code.finish()),
        threads=(x, y, z),
        arguments=tuple(parameter.type for parameter in block.parameters),
        launch=tuple(str(tag) for tag in function.attrs["tirx.kernel_launch_params"]),
        in_memory=in_memory,
        argument_bytes=block.size,
        subgroup=limits.subgroup if uses_subgroup else 0,
        shared=buffers.shared,
        float16=module.has_capability(Capability.Float16),
        storage16=module.has_capability(Capability.StorageBuffer16BitAccess),
        int64=module.has_capability(Capability.Int64),
        int16=module.has_capability(Capability.Int16),
        cooperative_matrix=module.has_capability(Capability.CooperativeMatrix),
        bfloat16=module.has_capability(Capability.BFloat16CooperativeMatrix),
    )


def _check(kernel: Kernel, limits: Limits) -> None:
    x, y, z = kernel.threads
    if x * y * z > limits.threads:
        raise CompileError(
            f"kernel {kernel.name} has {x * y * z} threads, the target allows {limits.threads}"
        )
    if kernel.shared > limits.shared:
        raise CompileError(
            f"kernel {kernel.name} takes {kernel.shared} bytes of shared memory, the target has "
            f"{limits.shared}"
        )
    for feature in ("float16", "storage16", "int64", "int16", "cooperative_matrix"):
        if getattr(kernel, feature) and not getattr(limits, feature):
            raise CompileError(f"kernel {kernel.name} needs {feature}, which the target lacks")
