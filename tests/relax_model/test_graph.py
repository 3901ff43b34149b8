"""The graph: what functions it offers, what parameters it takes, and how many kernels it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tvm
from tvm import relax, tirx

from gecko_mlc.checkpoint.mapping import QUANTIZATIONS, parameters
from gecko_mlc.compile.library import library_metadata
from gecko_mlc.compile.targets import cpu_target, resolve
from gecko_mlc.config import GeckoConfig
from relax_model.gecko import Gecko
from relax_model.gpu import GpuGecko
from tir_kernels.cpu import CpuKernels
from tir_kernels.gpu.kernels import GpuKernels
from tir_kernels.gpu.unit import SM80
from tir_kernels.vector_unit import PORTABLE

SMALL = GeckoConfig(
    num_layers=1,
    model_dim=12,
    z_dim=8,
    value_dim=12,
    num_heads=2,
    ffn_hidden_dim=10,
    vocab_size=11,
    cema_ndim=2,
    chunk_size=6,
    output_size=9,
    timenorm_num_groups=3,
)


def configuration(name: str, golden: Path) -> GeckoConfig:
    if name == "alt":
        return GeckoConfig.from_file(golden / "config_alt.json")
    return SMALL if name == "SMALL" else GeckoConfig.preset(name)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["tiny", "small", "7b", "alt", "SMALL"])
def test_parameters_are_what_conversion_writes(name: str, quantization: str, golden: Path) -> None:
    config = configuration(name, golden)
    written = {
        parameter.name: (list(parameter.shape), parameter.dtype)
        for parameter in parameters(config, quantization)
    }
    total = sum(parameter.nbytes for parameter in parameters(config, quantization))
    shared = config.vocab_size * config.model_dim * (4 if quantization == "q0f32" else 2)
    cpu, dtype = cpu_target(), QUANTIZATIONS[quantization]
    for target, model in (
        (cpu, Gecko(config, CpuKernels(config, dtype, cpu.unit))),
        (resolve("cuda"), GpuGecko(config, GpuKernels(config, dtype, SM80))),
    ):
        named = list(model.named_parameters())
        metadata = library_metadata(config, quantization, target, model, named)
        read = {row["source"]: (row["shape"], row["dtype"]) for row in metadata["params"]}
        assert read == written
        assert [row["name"] for row in metadata["params"]] == [name for name, _ in named]
        assert len(named) == len(written) + config.share_emb
        assert metadata["memory"]["params"] == total + config.share_emb * shared
        assert any(row["pack"] for row in metadata["params"]) == (target is cpu)


def test_memory_of_a_slot() -> None:
    """The bytes of DESIGN section 3's table, whatever the length of a sequence."""
    for quantization, width in (("q0f32", 4), ("q0bf16", 2)):
        kernels = CpuKernels(SMALL, QUANTIZATIONS[quantization], PORTABLE)
        metadata = library_metadata(SMALL, quantization, cpu_target(), Gecko(SMALL, kernels), [])
        rings = 12 * (8 + 12 + 8) * width
        memory = 2 * 4 * 6 * 4 + 2 * 4 * 4
        norms, cema = 2 * 2 * 3 * 4, 12 * 2 * 2 * 4
        assert metadata["memory"]["slot"] == rings + memory + norms + cema + 4


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    return export(SMALL)


def export(config: GeckoConfig) -> tvm.IRModule:
    model = Gecko(config, CpuKernels(config, "float16", PORTABLE))
    exported, _ = model.export_tvm(spec=model.module_spec())
    return exported


def tensors(type_) -> list[tuple[tuple[str, ...], str]]:
    """Shapes and dtypes in a tensor's or tuple's type, in order."""
    if isinstance(type_, relax.TensorType):
        extents = tuple(
            str(int(extent)) if isinstance(extent, tirx.IntImm) else str(extent)
            for extent in type_.shape
        )
        return [(extents, str(type_.dtype))]
    return [tensor for field in type_.fields for tensor in tensors(field)]


STATE = [
    (("num_slots",), "int32"),
    (("1", "num_slots", "12", "8"), "float16"),
    (("1", "num_slots", "12", "12"), "float16"),
    (("1", "num_slots", "12", "8"), "float16"),
    (("1", "num_slots", "2", "4", "6"), "float32"),
    (("1", "num_slots", "2", "4"), "float32"),
    (("2", "num_slots", "3"), "float32"),
    (("2", "num_slots", "3"), "float32"),
    (("1", "num_slots", "12", "2", "2"), "float32"),
]
ONE, SOME = (("1",), "int32"), (("m",), "int32")
SLOT = [
    (("1", "1"), "int32"),
    (("1", "96"), "float16"),
    (("1", "144"), "float16"),
    (("1", "96"), "float16"),
    (("1", "48"), "float32"),
    (("1", "8"), "float32"),
    (("2", "3"), "float32"),
    (("2", "3"), "float32"),
    (("1", "48"), "float32"),
]


@pytest.mark.parametrize(
    ("name", "takes", "has_parameters", "returns"),
    [
        ("prefill", [SOME, ONE, *STATE], True, [(("1", "9"), "float32"), *STATE]),
        ("score", [SOME, ONE, *STATE], True, [(("m", "9"), "float32"), *STATE]),
        ("decode", [SOME, SOME, *STATE], True, [(("m", "9"), "float32"), *STATE]),
        ("commit", [SOME, *STATE], False, STATE),
        ("reset", [ONE, *STATE], True, None),
        ("get_slot", [ONE, *STATE], False, SLOT),
        ("set_slot", [ONE, *SLOT, *STATE], False, None),
    ],
)
def test_signature(
    module: tvm.IRModule, name: str, takes: list, has_parameters: bool, returns: list | None
) -> None:
    function = module[name]
    arguments = list(function.params)
    if has_parameters:
        packed = tensors(arguments.pop().ty)
        wanted = [(parameter.shape, parameter.dtype) for parameter in parameters(SMALL, "q0f16")]
        assert len(packed) == len(wanted)
    assert [tensor for argument in arguments for tensor in tensors(argument.ty)] == takes
    if returns is not None:
        assert tensors(function.ret_ty) == returns


def test_one_kernel_serves_all_layers(module: tvm.IRModule) -> None:
    def kernels(exported: tvm.IRModule) -> set[str]:
        return {
            variable.name_hint
            for variable, function in exported.functions_items()
            if isinstance(function, tirx.PrimFunc)
        }

    deeper = kernels(export(dataclasses.replace(SMALL, num_layers=3)))
    operations = {name.rstrip("0123456789") for name in kernels(module)}
    assert operations == {name.rstrip("0123456789") for name in deeper}
    # Layers differ in the tensors they are given only; with one layer, some tensors of the state
    # have equal sizes and share the functions that copy them.
    copies = ("get_slot", "set_slot", "fill_slot")
    assert {name for name in deeper if not name.startswith(copies)} == {
        name for name in kernels(module) if not name.startswith(copies)
    }
    steps = {f"{name}_step" for name in ("timenorm", "cema", "attention_inputs", "attention")}
    assert steps | {"advance_step", "memory_commit", "wzrh", "wh2", "fc1", "fc2"} <= deeper
