"""Metal libraries: the text of their kernels, Metal's limits, object files for a Mac."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
from metal_emulator.device_kernel import DeviceKernel
from tvm.script import tirx as T

from gecko_mlc.checkpoint import open_checkpoint, write_chat_config
from gecko_mlc.cli import main
from gecko_mlc.compile import CompileError
from gecko_mlc.compile.build import build
from gecko_mlc.compile.gpu_targets import MetalTarget
from gecko_mlc.compile.metal.source import metal_source
from gecko_mlc.compile.targets import resolve
from gecko_mlc.config import GeckoConfig
from relax_model.gpu import GpuGecko
from tir_kernels.gpu.kernels import GpuKernels

N = 4096
DEMO = Path(__file__).parents[2] / "tools/demo"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def mapped(function, dtype: str, out_dtype: str, width: int = 4):
    """y = function(x), elementwise over N elements, ``width`` at a time."""

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (N,), dtype)
        Y = T.match_buffer(y, (N,), out_dtype)
        T.device_entry()
        cta = T.cta_id([N // (64 * width)])
        tx = T.thread_id([64])
        given = T.alloc_local((width,), dtype)
        result = T.alloc_local((width,), out_dtype)
        for j in T.vectorized(width):
            given[j] = X[(cta * 64 + tx) * width + j]
        for j in T.unroll(width):
            result[j] = function(given[j])
        for j in T.vectorized(width):
            Y[(cta * 64 + tx) * width + j] = result[j]

    return kernel


def values(function, x: np.ndarray, out_dtype: np.dtype, width: int = 4) -> np.ndarray:
    """What the kernel gives for x, any number of elements."""
    kernel = DeviceKernel(mapped(function, x.dtype.name, out_dtype.name, width))
    parts = np.pad(x.ravel(), (0, -x.size % N)).reshape(-1, N)
    found = [kernel(part, np.zeros(N, out_dtype))[1] for part in parts]
    return np.concatenate(found)[: x.size].reshape(x.shape)


def text_of(function) -> str:
    target = resolve("metal").tvm_target
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with target:
        compiled = tvm.compile(module, target=target, tir_pipeline=MetalTarget.tir_pipeline)
    return metal_source(compiled.mod)


@pytest.mark.parametrize("number", [0.1, 1 / 3, np.log2(np.e), -np.inf, np.finfo(np.float32).max])
def test_constants_are_exact(number: float) -> None:
    """Seven digits, as TVM prints them, are two too few."""
    constant = T.float32(float(number))
    found = values(lambda _x: constant, np.zeros(1, np.float32), np.dtype(np.float32))
    assert found.tobytes() == np.float32(number).tobytes()


def test_expm1() -> None:
    x = np.concatenate([-np.geomspace(1e-8, 80, 3000), np.geomspace(1e-8, 5, 1000), [0.0]])
    x = x.astype(np.float32)
    found = values(
        lambda v: T.call_pure_extern("float32", "expm1f", v), x, np.dtype(np.float32)
    ).astype(np.float64)
    wanted = np.expm1(x.astype(np.float64))
    assert np.abs(found - wanted).max(initial=0, where=wanted == 0) == 0
    relative = np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-30)
    assert relative.max() < 3e-7


@pytest.mark.parametrize("width", [4, 8])
def test_bfloat16_is_read_and_rounded(width: int) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)
    numbers = every[np.isfinite(every.astype(np.float32))]
    found = values(lambda v: T.Cast("float32", v), numbers, np.dtype(np.float32), width)
    assert np.array_equal(found, numbers.astype(np.float32))
    exact = numbers.astype(np.float32)
    between = np.concatenate(
        [np.nextafter(exact, np.float32(s)) for s in (-3e38, 3e38)] + [1.001953125 * exact[::7]]
    )
    between = between[np.isfinite(between)]
    found = values(lambda v: T.Cast("bfloat16", v), between, BFLOAT16, width)
    with np.errstate(over="ignore"):
        wanted = between.astype(BFLOAT16)
    assert np.array_equal(found.view(np.uint16), wanted.view(np.uint16))


def test_vectors_and_names() -> None:
    """No vector of eight, no element-wise load, no word of MSL as a name, no type that it lacks."""

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (512,), "bfloat16")
        Y = T.match_buffer(y, (512,), "bfloat16")
        T.device_entry()
        tx = T.thread_id([64])
        half = T.alloc_local((8,), "bfloat16")
        new = T.alloc_local((1,), "int32")
        new[0] = tx
        for j in T.vectorized(8):
            half[j] = X[tx * 8 + j]
        half[new[0] % 8] = T.bfloat16(1.0)
        for j in T.vectorized(8):
            Y[tx * 8 + j] = half[j]

    text = text_of(kernel)
    assert "bfloat" not in text and text.count("*(device ushort4*)(X_ptr") == 2
    assert "thread ushort half_[8]" in text and "thread int new_[1]" in text
    x = np.random.default_rng(1).standard_normal(512).astype(BFLOAT16)
    wanted = x.reshape(64, 8).copy()
    wanted[np.arange(64), np.arange(64) % 8] = 1.0
    assert DeviceKernel(kernel)(x, np.zeros(512, BFLOAT16))[1].tobytes() == wanted.tobytes()


def test_limits() -> None:
    def of(threads: int, words: int):
        @T.prim_func(private=True)
        def kernel(y: T.handle):
            Y = T.match_buffer(y, (512,), "float32")
            T.device_entry()
            tx = T.thread_id([threads])
            shared = T.alloc_shared((words,), "float32")
            shared[tx] = T.float32(1.0)
            T.tvm_storage_sync("shared")
            Y[tx] = shared[threads - 1 - tx]

        return kernel

    assert "threadgroup float" in text_of(of(256, 8192))
    for threads, words, message in [
        (512, 512, "found 512 threads a threadgroup, wanted at most 256"),
        (64, 8193, "found 32772 bytes of threadgroup memory, wanted at most 32768"),
    ]:
        with pytest.raises(CompileError, match=f"kernel main_kernel: {message}"):
            text_of(of(threads, words))


def test_too_many_buffers() -> None:
    def of(buffers: int, number: bool):
        names = [f"x{i}" for i in range(buffers)]
        declared = "".join(
            f"    X{i} = T.match_buffer(x{i}, (64,), 'float32')\n" for i in range(buffers)
        )
        stored = "".join(f"    X{i}[tx] = T.float32(k)\n" for i in range(buffers))
        source = (
            f"@T.prim_func(private=True)\ndef kernel({', '.join(f'{n}: T.handle' for n in names)}"
            f"{', k: T.int32' if number else ''}):\n{declared}    T.device_entry()\n"
            f"    tx = T.thread_id([64])\n{stored if number else stored.replace('(k)', '(1.0)')}"
        )
        return tvm.script.from_source(source)

    assert "[[ buffer(30) ]]" in text_of(of(31, number=False))
    with pytest.raises(CompileError, match="found 32 buffers, wanted at most 31"):
        text_of(of(31, number=True))


@pytest.mark.parametrize(
    "function, dtype, out_dtype, message",
    [
        (lambda v: T.Cast("float32", T.Cast("float64", v) * v), "float32", "float32", "in float64"),
        (lambda v: v + v, "bfloat16", "bfloat16", "in bfloat16, wanted loads, stores and conver"),
    ],
)
def test_what_metal_cannot_express(function, dtype: str, out_dtype: str, message: str) -> None:
    with pytest.raises(CompileError, match=f"kernel main_kernel: found .*{message}"):
        text_of(mapped(function, dtype, out_dtype))


@pytest.mark.parametrize("name", ["alt", "demo", "7b"])
def test_kernels_of_other_sizes_are_within_limits(
    name: str, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuGecko, "batches", (1,))
    config = {
        "alt": lambda: GeckoConfig.from_file(golden / "config_alt.json"),
        "demo": lambda: open_checkpoint(DEMO)[0],
        "7b": lambda: GeckoConfig.preset("7b"),
    }[name]()
    target = resolve("metal")
    assert isinstance(target, MetalTarget)
    model = GpuGecko(config, GpuKernels(config, "float16", target.unit))
    module, _ = model.export_tvm(spec=model.module_spec())
    text = metal_source(build(model.annotate(module), target).mod)
    assert text.count("kernel void ") > 40


def test_object_files_for_a_mac(
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(GpuGecko, "batches", (1,))
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    write_chat_config(config, "q0f16", tmp_path, "bytes")
    command = ["compile", str(tmp_path), "--target", "metal-macos", "-o"]
    assert main([*command, str(tmp_path / "library.so")]) == 2
    assert "output is library.so, wanted a .tar" in capsys.readouterr().err
    dump = tmp_path / "dump"
    assert main([*command, str(tmp_path / "library.tar"), "--dump-ir", str(dump)]) == 0
    with tarfile.open(tmp_path / "library.tar") as archive:
        objects = [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
    for content in objects:
        magic, processor = struct.unpack_from("<II", content)
        assert (magic, processor) == (0xFEEDFACF, 0x0100000C)  # Mach-O, 64 bits; ARM64
    text = (dump / "kernels.metal").read_text()
    kernels = text.count("kernel void ")
    assert kernels > 40 and sum(content.count(b"kernel void ") for content in objects) == kernels
