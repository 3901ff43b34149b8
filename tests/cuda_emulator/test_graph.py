"""CUDA graphs on the emulated device."""

from __future__ import annotations

import ctypes

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec
from tvm.script import tirx as T

import cuda_emulator
from gecko_mlc.compile.pipeline import pipeline
from relax_model.kernel_call import call, fresh

LENGTH = 96


@T.prim_func(private=True)
def add_count(x: T.handle, count: T.handle, y: T.handle):
    X = T.match_buffer(x, (LENGTH,), "float32")
    Count = T.match_buffer(count, (1,), "int32")
    Y = T.match_buffer(y, (LENGTH,), "float32")
    T.device_entry()
    T.cta_id([1])
    tx = T.thread_id([LENGTH])
    Y[tx] = X[tx] + T.cast(Count[0], "float32")


class Sums(nn.Module):
    def thrice(self, x: nn.Tensor, count: nn.Tensor) -> nn.Tensor:
        for _ in range(3):
            x = call(add_count, "add_count", [x, count], fresh([LENGTH]))
        return x


def test_replay_reads_what_the_buffers_hold() -> None:
    cuda_emulator.install()
    bare = {"param_mode": "none", "effect_mode": "none"}
    inputs = {"x": spec.Tensor([LENGTH], "float32"), "count": spec.Tensor([1], "int32"), "$": bare}
    module, _ = Sums().export_tvm(spec={"thrice": inputs})
    module["thrice"] = module["thrice"].with_attr("num_input", 0)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")
    options = {"relax.backend.use_cuda_graph": True}
    with target, tvm.transform.PassContext(config=options):
        built = relax.build(module, target, relax_pipeline=pipeline(), tir_pipeline="tirx")
    assert "cuda_graph.run_or_capture" in built.as_text()
    device = tvm.cuda(0)
    vm = relax.VirtualMachine(built, device)
    x = tvm.runtime.empty((LENGTH,), "float32", device)
    count = tvm.runtime.empty((1,), "int32", device)
    for turn in range(3):
        values = np.random.default_rng(turn).standard_normal(LENGTH, dtype=np.float32)
        x.copyfrom(values)
        count.copyfrom(np.array([turn], np.int32))
        found = vm["thrice"](x, count).numpy()
        np.testing.assert_allclose(found, values + 3 * turn, rtol=0, atol=1e-6)


def test_what_may_not_be_captured() -> None:
    cuda_emulator.install()
    runtime = ctypes.CDLL("libcudart.so.13")
    stream, pointer, graph = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.cudaStreamCreate(ctypes.byref(stream)) == 0
    assert runtime.cudaMalloc(ctypes.byref(pointer), 64) == 0
    assert runtime.cudaStreamBeginCapture(stream, 0) == 0
    unsupported, implicit = 900, 906
    assert runtime.cudaMalloc(ctypes.byref(pointer), 64) == unsupported
    assert runtime.cudaStreamSynchronize(stream) == unsupported
    size = ctypes.c_size_t(32)
    assert pointer.value is not None
    other = ctypes.c_void_p(pointer.value + 32)
    assert runtime.cudaMemcpyAsync(other, pointer, size, 3, None) == implicit
    assert runtime.cudaMemcpyAsync(other, pointer, size, 3, stream) == 0
    assert runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    assert runtime.cudaMemcpyAsync(other, pointer, size, 3, None) == 0
    assert runtime.cudaGetLastError() != 0
    assert runtime.cudaGetLastError() == 0
