"""Compilation as a list of named passes over the Relax module."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax


def graph_passes() -> list:
    """The model's graph holds kernel calls only: nothing to legalise, fuse or schedule.

    With ``relax.backend.use_cuda_graph``, functions whose ``num_input`` is 0 become CUDA graphs.
    """
    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.RewriteCUDAGraph(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def pipeline(dump: Path | None = None):
    """The passes as one; with ``dump``, the module after each goes to ``dump/NN_name.py``."""

    @tvm.transform.module_pass(opt_level=0, name="gecko_mlc.pipeline")
    def run(mod: tvm.IRModule, _context) -> tvm.IRModule:
        _dump(dump, 0, "model", mod)
        for number, transform in enumerate(graph_passes(), start=1):
            mod = transform(mod)
            _dump(dump, number, transform.info.name, mod)
        return mod

    return run


def _dump(folder: Path | None, number: int, name: str, mod: tvm.IRModule) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}_{name}.py").write_text(mod.script(), encoding="utf-8")
