"""Programs of TVM's own, scheduled and lowered by TVM, on this machine's Vulkan device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.s_tir import dlight
from tvm.script import tirx as T

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.targets import resolve
from gecko_mlc.vulkan import register

op = relax.op
# What is computed, the arguments' shapes, and the type.
PROGRAMS: dict[str, tuple[Callable, list[tuple[int, ...]], str]] = {
    "matmul": (op.matmul, [(128, 256), (256, 192)], "float32"),
    "matmul in float16": (op.matmul, [(128, 256), (256, 192)], "float16"),
    "vector": (lambda x, w: op.matmul(x, op.permute_dims(w)), [(1, 512), (256, 512)], "float32"),
    "softmax": (op.nn.softmax, [(37, 333)], "float32"),
    "softmax in float16": (op.nn.softmax, [(37, 333)], "float16"),
    "layer norm": (
        lambda x, w, b: op.nn.layer_norm(x, w, b, axes=[-1]),
        [(12, 256), (256,), (256,)],
        "float32",
    ),
    "gelu": (op.nn.gelu, [(1000,)], "float32"),
    "functions": (lambda x: op.sin(x) + op.cos(x) * op.tanh(x), [(1000,)], "float32"),
    "rounding": (lambda x: op.round(x) + op.floor(x) + op.ceil(x), [(1000,)], "float32"),
    "convolution": (
        lambda x, w: op.nn.conv2d(x, w, padding=1),
        [(1, 8, 16, 16), (16, 8, 3, 3)],
        "float32",
    ),
    "attention": (
        op.nn.attention,
        [(1, 16, 4, 32), (1, 24, 4, 32), (1, 24, 4, 32)],
        "float32",
    ),
    "sum": (lambda x: op.sum(x, axis=[0]), [(300, 40)], "float32"),
    "where": (lambda a, b: op.where(op.greater(a, b), a, b), [(100, 7), (100, 7)], "float32"),
}


def _vulkan() -> tvm.target.Target:
    return resolve("vulkan-from-device").tvm_target


def _program(make: Callable, shapes: list[tuple[int, ...]], dtype: str) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    arguments = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, shape in enumerate(shapes)
    ]
    with builder.function("main", arguments):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(make(*arguments)))
        builder.emit_func_output(result)
    return builder.get()


def _built(module: tvm.IRModule, target: tvm.target.Target):
    """As TVM's users build: operators fused, for a GPU scheduled by dlight's rules."""
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    gpu = dlight.gpu
    if "gpu" in target.keys:
        rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
        passes.append(dlight.ApplyDefaultSchedule(*rules))
    with target:
        return relax.build(tvm.transform.Sequential(passes)(module), target)


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    """In memory, against TVM's own code for the CPU."""
    make, shapes, dtype = PROGRAMS[name]
    register()
    module = _program(make, shapes, dtype)
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    results = []
    for name in ("vulkan", "cpu"):
        target = _vulkan() if name == "vulkan" else tvm.target.Target("llvm")
        device = tvm.device(name)
        machine = relax.VirtualMachine(_built(module, target), device)
        result = machine["main"](*(tvm.runtime.tensor(a, device) for a in arguments))
        results.append(result.numpy().astype(np.float64))
    ours, theirs = results
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    assert np.abs(ours - theirs).max() < tolerance * max(1.0, np.abs(theirs).max())


def test_exported(tmp_path: Path) -> None:
    make, shapes, dtype = PROGRAMS["softmax"]
    register()
    library = tmp_path / "softmax.so"
    _built(_program(make, shapes, dtype), _vulkan()).export_library(library)
    device = tvm.device("vulkan")
    machine = relax.VirtualMachine(tvm.runtime.load_module(library), device)
    x = np.random.default_rng(0).standard_normal(shapes[0]).astype(dtype)
    wanted = np.exp(x.astype(np.float64))
    wanted /= wanted.sum(-1, keepdims=True)
    found = machine["main"](tvm.runtime.tensor(x, device)).numpy()
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_what_cannot_be_expressed_is_named(dtype: str) -> None:
    @T.prim_func(s_tir=True)
    def narrow(a: T.handle, b: T.handle):
        T.func_attr({"global_symbol": "narrow", "tirx.noalias": True})
        A = T.match_buffer(a, (256,), dtype)
        B = T.match_buffer(b, (256,), dtype)
        for i in T.thread_binding(256, thread="threadIdx.x"):
            with T.sblock("copy"):
                at = T.axis.spatial(256, i)
                B[at] = A[at]

    register()
    with pytest.raises(CompileError, match=f"kernel narrow_kernel: .*{dtype}"):
        tvm.compile(tvm.IRModule({"narrow": narrow}), resolve("vulkan").tvm_target)
