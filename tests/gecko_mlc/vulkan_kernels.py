"""A Vulkan device for tests, small kernels for it, and modules of kind ``vulkan`` made of them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tvm
import tvm_ffi

from gecko_mlc.runtime import vulkan

THREADS = 64

# o[i] = o[i] + a[i] * scale for i < n. The arguments are a struct, in the push constants or where
# an address in the push constants says.
_AXPY = """
               OpCapability Shader
               OpCapability PhysicalStorageBufferAddresses
               OpMemoryModel PhysicalStorageBuffer64 GLSL450
               OpEntryPoint GLCompute %main "main" %id %push
               OpExecutionMode %main LocalSize 64 1 1
               OpDecorate %id BuiltIn GlobalInvocationId
               OpMemberDecorate %Arguments 0 Offset 0
               OpMemberDecorate %Arguments 1 Offset 8
               OpMemberDecorate %Arguments 2 Offset 16
               OpMemberDecorate %Arguments 3 Offset 20
               OpDecorate %Arguments Block
               OpDecorate %floats ArrayStride 4
               OpMemberDecorate %Buffer 0 Offset 0
               OpDecorate %Buffer Block
               {decorations}
       %void = OpTypeVoid
   %function = OpTypeFunction %void
       %uint = OpTypeInt 32 0
        %int = OpTypeInt 32 1
      %float = OpTypeFloat 32
       %bool = OpTypeBool
      %uvec3 = OpTypeVector %uint 3
  %in_uvec3  = OpTypePointer Input %uvec3
    %in_uint = OpTypePointer Input %uint
         %id = OpVariable %in_uvec3 Input
               OpTypeForwardPointer %buffer PhysicalStorageBuffer
     %floats = OpTypeRuntimeArray %float
     %Buffer = OpTypeStruct %floats
     %buffer = OpTypePointer PhysicalStorageBuffer %Buffer
  %Arguments = OpTypeStruct %buffer %buffer %float %int
    %element = OpTypePointer PhysicalStorageBuffer %float
         %u0 = OpConstant %uint 0
         %u1 = OpConstant %uint 1
         %u2 = OpConstant %uint 2
         %u3 = OpConstant %uint 3
{push}
     %p_addr = OpTypePointer {class} %buffer
    %p_float = OpTypePointer {class} %float
      %p_int = OpTypePointer {class} %int
       %main = OpFunction %void None %function
      %begin = OpLabel
       %p_id = OpAccessChain %in_uint %id %u0
          %i = OpLoad %uint %p_id
{arguments}
       %pn   = OpAccessChain %p_int %args %u3
       %n    = OpLoad %int %pn{align4}
       %un   = OpBitcast %uint %n
         %in = OpULessThan %bool %i %un
               OpSelectionMerge %end None
               OpBranchConditional %in %work %end
       %work = OpLabel
         %pa = OpAccessChain %p_addr %args %u0
          %a = OpLoad %buffer %pa{align8}
         %po = OpAccessChain %p_addr %args %u1
          %o = OpLoad %buffer %po{align8}
         %ps = OpAccessChain %p_float %args %u2
      %scale = OpLoad %float %ps{align4}
        %pai = OpAccessChain %element %a %u0 %i
         %ai = OpLoad %float %pai Aligned 4
        %poi = OpAccessChain %element %o %u0 %i
         %oi = OpLoad %float %poi Aligned 4
    %product = OpFMul %float %ai %scale
        %sum = OpFAdd %float %oi %product
               OpStore %poi %sum Aligned 4
               OpBranch %end
        %end = OpLabel
               OpReturn
               OpFunctionEnd
"""

_IN_PUSH = {
    "decorations": "",
    "push": """
     %p_args = OpTypePointer PushConstant %Arguments
       %push = OpVariable %p_args PushConstant""",
    "class": "PushConstant",
    "arguments": "       %args = OpCopyObject %p_args %push",
    "align4": "",
    "align8": "",
}
_IN_MEMORY = {
    "decorations": """
               OpMemberDecorate %Push 0 Offset 0
               OpDecorate %Push Block""",
    "push": """
     %p_args = OpTypePointer PhysicalStorageBuffer %Arguments
       %Push = OpTypeStruct %p_args
     %p_push = OpTypePointer PushConstant %Push
   %p_p_args = OpTypePointer PushConstant %p_args
       %push = OpVariable %p_push PushConstant""",
    "class": "PhysicalStorageBuffer",
    "arguments": """
     %p_args0 = OpAccessChain %p_p_args %push %u0
       %args = OpLoad %p_args %p_args0""",
    "align4": " Aligned 4",
    "align8": " Aligned 8",
}

NOTHING_NEEDED = {
    "subgroup": 0,
    "float16": False,
    "storage16": False,
    "int64": False,
    "int16": False,
    "cooperative_matrix": False,
    "shared": 0,
    "threads": THREADS,
    "push_constants": 24,
}


def device(index: int = 0):
    """Device ``vulkan:index``; without one a test fails and says what to install."""
    try:
        vulkan.load_runtime()
    except vulkan.VulkanError as error:
        pytest.fail(f"{error}\napt-get install libvulkan1 mesa-vulkan-drivers")
    return tvm.runtime.device("vulkan", index)


def load(data: bytes):
    """The module of these bytes, as TVM loads it from a library."""
    device()
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan")(data)


def address(tensor) -> ctypes.c_void_p:
    """A tensor as host code gives it to a kernel."""
    return ctypes.c_void_p(tensor.data_ptr())


def run_program(program: str, *arguments: str, **variables: str) -> str:
    """What a Python program prints in a process with TVM's runtime alone, and these variables."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TVM_USE_RUNTIME_LIB": "1",
        **variables,
    }
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def validated(folder: Path) -> tuple[dict[str, str], Path]:
    """Variables for a process in which Khronos's layer watches every call of Vulkan, and its log.

    The log has each violation of the specification, also of memory read before a write to it is
    over, and objects that are left when their device is destroyed. A test without the layer fails.
    """
    manifest = "vulkan/explicit_layer.d/VkLayer_khronos_validation.json"
    places = [Path(root) / manifest for root in ("/usr/share", "/usr/local/share", "/etc")]
    assert any(place.is_file() for place in places), (
        f"found no {places[0]}: apt-get install vulkan-validationlayers"
    )
    log = folder / "validation.log"
    settings = {
        "debug_action": "VK_DBG_LAYER_ACTION_LOG_MSG",
        "report_flags": "error,warn",
        "log_filename": log,
        "enables": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
    }
    lines = [f"khronos_validation.{key} = {value}\n" for key, value in settings.items()]
    (folder / "vk_layer_settings.txt").write_text("".join(lines), encoding="utf-8")
    return {
        "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation",
        "VK_LAYER_SETTINGS_PATH": str(folder),
    }, log


class Kernel(NamedTuple):
    """SPIR-V and what the runtime has to know of it."""

    words: bytes
    row: dict[str, Any]


def axpy(folder: Path, block: str = "push", capability: str = "", **changes: Any) -> Kernel:
    """o += a * scale; arguments a, o, scale, n, then blockIdx.x and threadIdx.x."""
    if capability:
        capability = f"OpCapability {capability}"
    text = capability + _AXPY.format(**(_IN_PUSH if block == "push" else _IN_MEMORY))
    row = {
        "threads": [THREADS, 1, 1],
        "arguments": ["address", "address", "float32", "int32"],
        "launch": ["blockIdx.x", "threadIdx.x"],
        "block": block,
        "subgroup": 0,
        "shared": 0,
        "cooperative_matrix": False,
    }
    return Kernel(assemble(text, folder), {**row, **changes})


def find_program(name: str) -> str:
    """The path of one of the SPIR-V tools; a test without it fails and says what to install."""
    path = shutil.which(name)
    assert path is not None, f"found no {name}: apt-get install spirv-tools"
    return path


def assemble(text: str, folder: Path) -> bytes:
    """SPIR-V from its text, checked."""
    source, binary = folder / "kernel.spvasm", folder / "kernel.spv"
    source.write_text(text, encoding="utf-8")
    for command in (
        [find_program("spirv-as"), "--target-env", "spv1.6", str(source), "-o", str(binary)],
        [find_program("spirv-val"), "--target-env", "vulkan1.3", str(binary)],
    ):
        subprocess.run(command, check=True)
    return binary.read_bytes()


def module_bytes(kernels: dict[str, Kernel], **needs: Any) -> bytes:
    """A module of kind ``vulkan`` as a library holds it."""
    rows, code = {}, b""
    for name, kernel in kernels.items():
        place = {"offset": len(code) // 4, "size": len(kernel.words) // 4}
        rows[name] = {**kernel.row, **place}
        code += kernel.words
    text = json.dumps({"needs": {**NOTHING_NEEDED, **needs}, "kernels": rows}).encode()
    head = b"GKVK" + struct.pack("<IQ", 1, len(text)) + text
    return head + bytes(-len(head) % 4) + code
