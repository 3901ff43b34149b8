"""The bytes of a module of kind vulkan, and the code generator as TVM calls it."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import tvm
import tvm_ffi
from small_kernels import compiled, vulkan_target
from tvm.script import tirx as T

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.portable import PIPELINE
from gecko_mlc.runtime import vulkan
from gecko_mlc.vulkan import build
from gecko_mlc.vulkan.module import pack, unpack


@T.prim_func(private=True)
def scale(A: T.Buffer((64,), "float32"), B: T.Buffer((64,), "float32"), factor: T.float32):
    T.device_entry()
    _group = T.cta_id([2])
    tx = T.thread_id([32])
    B[_group * 32 + tx] = A[_group * 32 + tx] * factor


def test_pack_and_unpack():
    first = compiled(scale).kernel
    second = dataclasses.replace(first, name="another", in_memory=True, shared=77, subgroup=8)
    data = pack([first, second])
    magic, version, length = struct.unpack_from("<4sIQ", data)
    assert (magic, version) == (b"GKVK", 1)
    assert (len(data) - 16 - length) % 4 in range(4) and len(data) % 4 == 0

    description, code = unpack(data)
    assert code == {"test_kernel": first.spirv, "another": second.spirv}
    assert description["needs"] | {"push_constants": 24, "shared": 77} == description["needs"]
    assert description["needs"]["subgroup"] == 8 and description["needs"]["threads"] == 32
    row = description["kernels"]["test_kernel"]
    assert row["arguments"] == ["address", "address", "float32"] and row["block"] == "push"
    assert row["launch"] == ["blockIdx.x", "threadIdx.x"] and row["threads"] == [32, 1, 1]
    assert description["kernels"]["another"]["block"] == "memory"


@pytest.mark.parametrize(
    "data, message", [(b"GK", "2 bytes are no Vulkan module"), (b"GKVX" + bytes(99), "b'GKVX'")]
)
def test_other_bytes_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        unpack(data)


def test_tvm_calls_the_generator_and_the_library_runs(tmp_path):
    build.register()
    target = vulkan_target()
    module = tvm.IRModule({"scale": scale.with_attr("global_symbol", "scale")})
    with target:
        built = tvm.tirx.build(module, target, pipeline=PIPELINE)
    path = str(tmp_path / "scale.so")
    built.export_library(path)
    vulkan.load_runtime()
    device = tvm.runtime.device("vulkan", 0)
    a = np.arange(64, dtype=np.float32)
    source, result = (tvm.runtime.tensor(values, device) for values in (a, np.zeros_like(a)))
    tvm.runtime.load_module(path)["scale"](source, result, 3.0)
    np.testing.assert_array_equal(result.numpy(), a * 3)


def test_errors_pass_through_tvm_as_they_are():
    build.register()
    target = vulkan_target(max_num_threads=16)
    module = tvm.IRModule({"scale": scale.with_attr("global_symbol", "scale")})
    with target, pytest.raises(CompileError, match="kernel scale_kernel has 32 threads"):
        tvm.tirx.build(module, target, pipeline=PIPELINE)


def test_a_generator_of_tvms_own_stays(monkeypatch):
    theirs = object()
    monkeypatch.setattr(tvm_ffi, "get_global_func", lambda name, allow_missing: theirs)
    monkeypatch.setattr(tvm_ffi, "register_global_func", lambda *_: pytest.fail("replaced"))
    build.register()
