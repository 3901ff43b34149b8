"""Compilation as a list of named passes over the Relax module."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

# Prefix of the functions that TVM's pass calls to record and replay part of a function.
_CUDA_GRAPH = "vm.builtin.cuda_graph"


def graph_passes(graphs: str | None) -> list:
    """The model's graph holds kernel calls only: nothing to legalise, fuse or schedule.

    With ``relax.backend.use_cuda_graph``, functions whose ``num_input`` is 0 are recorded once and
    replayed, by functions whose names begin with ``graphs``.
    """
    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.RewriteCUDAGraph(),
        replayed_by(graphs),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def replayed_by(graphs: str | None):
    """A pass that puts the functions of another device in place of those of CUDA graphs."""

    @relax.expr_functor.mutator
    class Rename(relax.PyExprMutator):
        def visit_extern_func_(self, function: relax.ExternFunc) -> relax.Expr:
            prefix, _, name = function.global_symbol.rpartition(".")
            return relax.ExternFunc(f"{graphs}.{name}") if prefix == _CUDA_GRAPH else function

    @tvm.transform.module_pass(opt_level=0, name="gecko_mlc.replayed_by")
    def run(mod: tvm.IRModule, _context) -> tvm.IRModule:
        if graphs in (None, _CUDA_GRAPH):
            return mod
        rename = Rename(mod)
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mod[variable] = rename.visit_expr(function)
        return mod

    return run


def pipeline(dump: Path | None = None, graphs: str | None = None):
    """The passes as one; with ``dump``, the module after each goes to ``dump/NN_name.py``."""

    @tvm.transform.module_pass(opt_level=0, name="gecko_mlc.pipeline")
    def run(mod: tvm.IRModule, _context) -> tvm.IRModule:
        _dump(dump, 0, "model", mod)
        for number, transform in enumerate(graph_passes(graphs), start=1):
            mod = transform(mod)
            _dump(dump, number, transform.info.name, mod)
        return mod

    return run


def _dump(folder: Path | None, number: int, name: str, mod: tvm.IRModule) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}_{name}.py").write_text(mod.script(), encoding="utf-8")
