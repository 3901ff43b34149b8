"""Compiling a model's library: graph, kernels and metadata in one shared object."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import StringImm
from tvm.relax.frontend import nn

import gecko_mlc
from gecko_mlc.checkpoint.mapping import QUANTIZATIONS
from gecko_mlc.compile.build import build, check_tools, export
from gecko_mlc.compile.targets import CompileTarget, CpuTarget
from gecko_mlc.config import FORMAT_VERSION, GeckoConfig
from relax_model.gecko import Gecko
from relax_model.gpu import GpuGecko
from relax_model.kernel_call import call, fresh
from relax_model.state import state_tensors
from tir_kernels.cpu import CpuKernels
from tir_kernels.gpu.kernels import GpuKernels

_ITEMSIZE = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}


class _Packing(nn.Module):
    """The functions that bring a matrix of the checkpoint into the kernels' layout."""

    def __init__(self, kernels):
        self.kernels = kernels

    def _pack(self, weight: nn.Tensor, gated: bool) -> nn.Tensor:
        outputs, inputs = weight.shape
        shape = self.kernels.packed_shape(outputs // 2 if gated else outputs, inputs, gated)
        output = fresh(shape, self.kernels.dtype)
        return call(self.kernels.pack(gated), "pack_matrix", [weight], output)

    def pack(self, weight: nn.Tensor):
        return self._pack(weight, gated=False)

    def pack_gated(self, weight: nn.Tensor):
        return self._pack(weight, gated=True)


def compile_library(
    config: GeckoConfig,
    quantization: str,
    target: CompileTarget,
    output: Path,
    dump: Path | None = None,
) -> None:
    """Compile the model for ``target`` into the shared object ``output`` (written at once).

    ``dump`` is a folder for the module after every pass and, for a GPU, its source and the
    assembler's report. Raises CompileError without a linker or, for a GPU, its compiler.
    """
    check_tools(target, output)
    model = _model(config, QUANTIZATIONS[quantization], target)
    module, parameters = model.export_tvm(spec=model.module_spec())
    module = model.annotate(module)
    metadata = library_metadata(config, quantization, target, model, parameters)
    if any(row["pack"] for row in metadata["params"]):
        module.update(_packing(model.kernels))
    export(build(with_metadata(module, metadata), target, dump), output)


def _model(config: GeckoConfig, dtype: str, target: CompileTarget) -> Gecko:
    if isinstance(target, CpuTarget):
        return Gecko(config, CpuKernels(config, dtype, target.unit, target.cores))
    return GpuGecko(config, GpuKernels(config, dtype, target.unit))


def _packing(kernels: CpuKernels) -> tvm.IRModule:
    weight = nn.spec.Tensor(["n", "k"], kernels.dtype)
    bare = {"param_mode": "none", "effect_mode": "none"}
    module, _ = _Packing(kernels).export_tvm(
        spec={name: {"weight": weight, "$": bare} for name in ("pack", "pack_gated")}
    )
    return module


def library_metadata(
    config: GeckoConfig,
    quantization: str,
    target: CompileTarget,
    model: Gecko,
    parameters: list,
) -> dict[str, Any]:
    """What a library says about itself, as its ``_metadata`` function returns it in JSON.

    ``parameters`` lists, in the order functions take them, each parameter's name in the weights
    (``source``), its shape and dtype there, and the function that packs it, if any. ``memory``
    gives bytes of the parameters and of one slot of state, ``batches`` the batch sizes that have a
    function of their own for a step (none: one function serves all), ``cublaslt`` whether prefill
    and score exist with cuBLASLt's products, too.
    """
    table = [_parameter(config, name, parameter) for name, parameter in parameters]
    state = state_tensors(config, model.kernels.dtype)
    return {
        "model_type": "gecko",
        "format_version": FORMAT_VERSION,
        "model_config": config.to_dict(),
        "quantization": quantization,
        "target": target.describe(),
        "versions": versions(),
        "batches": list(model.batches),
        "cublaslt": "prefill_cublaslt" in model.module_spec(),
        "params": table,
        "state": [
            {
                "name": tensor.name,
                "layers": tensor.layers,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
            }
            for tensor in state
        ],
        "memory": {
            "params": sum(math.prod(row["shape"]) * _ITEMSIZE[row["dtype"]] for row in table),
            "slot": 4 + sum(t.layers * t.size * _ITEMSIZE[t.dtype] for t in state),
        },
    }


def versions() -> dict[str, str]:
    """Versions a library depends on."""
    return {"gecko_mlc": gecko_mlc.__version__, "tvm": tvm.__version__, "ffi": tvm_ffi.__version__}


def _parameter(config: GeckoConfig, name: str, parameter) -> dict[str, Any]:
    shared = name == "output.output.weight" and config.share_emb
    row: dict[str, Any] = {
        "name": name,
        "source": "embed.weight" if shared else name,
        "shape": [int(extent) for extent in parameter.shape],
        "dtype": parameter.dtype,
        "pack": None,
    }
    if "matrix" in parameter.attrs:
        matrix, gated = parameter.attrs["matrix"]
        if row["shape"] != matrix:
            row["shape"] = matrix
            row["pack"] = "pack_gated" if gated else "pack"
    return row


def with_metadata(module: tvm.IRModule, metadata: dict[str, Any]) -> tvm.IRModule:
    """The module with a function ``_metadata`` that returns the metadata in JSON."""
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(StringImm(json.dumps(metadata)))
    return builder.get()
