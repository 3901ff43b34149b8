"""What NVIDIA's assembler makes of the kernels for Hopper: no product spilled, none serialised."""

from __future__ import annotations

import re
from pathlib import Path

import tvm

from gecko_mlc.compile import nvcc
from gecko_mlc.compile.gpu_targets import CudaTarget
from gecko_mlc.compile.machine_code import source_kept
from gecko_mlc.compile.targets import resolve
from tir_kernels.gpu.sm90.attention import attention, attention_weights
from tir_kernels.gpu.sm90.matmul import gated_matmul, matmul

KERNELS = {
    "matmul": matmul(4096, 8192, "bfloat16", "bfloat16"),
    "logits": matmul(4096, 32000, "bfloat16", "float32"),
    "gated": gated_matmul(4096, 8192, "bfloat16"),
    "weights": attention_weights(4, 256, 2048, 2048, 32, "bfloat16"),
    "attention": attention(4, 256, 2048, 4096, 2048, 32, "bfloat16"),
}


def test_machine_code(tmp_path: Path) -> None:
    target = resolve("cuda-sm90a")
    assert isinstance(target, CudaTarget)
    functions = {name: f.with_attr("global_symbol", name) for name, f in KERNELS.items()}
    with source_kept(), target.tvm_target:
        built = tvm.compile(
            tvm.IRModule(functions), target=target.tvm_target, tir_pipeline=target.tir_pipeline
        )
    nvcc.compile_cuda(built.mod.imports[0].inspect_source("cuda"), target, tmp_path)
    report = (tmp_path / "ptxas.txt").read_text(encoding="utf-8")
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill stores", report)]
    assert len(spilled) == len(KERNELS)
    # A counter or two of the loop over tiles may go to memory.
    assert max(spilled) <= 16
    assert "Potential Performance Loss" not in report
