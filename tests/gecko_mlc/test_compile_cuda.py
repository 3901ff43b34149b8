"""CUDA libraries made without a GPU: what is inside them, and that a runtime alone loads them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec
from tvm.script import tirx as T

from gecko_mlc.checkpoint import write_chat_config
from gecko_mlc.cli import main
from gecko_mlc.compile import CompileError, nvcc
from gecko_mlc.compile.build import build, export
from gecko_mlc.compile.gpu_targets import CudaTarget
from gecko_mlc.compile.library import with_metadata
from gecko_mlc.compile.machine_code import source_kept
from gecko_mlc.compile.targets import TargetError, resolve
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import cuda
from gecko_mlc.runtime.library import Library, LibraryError
from relax_model.kernel_call import call, fresh
from tir_kernels.gpu.cublaslt import cublaslt_matmul

TARGETS = ("cuda-sm90a", "cuda")
COLUMNS = 64
# A driver for a machine without one: the functions TVM's CUDA runtime is linked to, each of which
# answers that there is no device.
DRIVER = """
int cuDeviceGetName(void) { return 100; }
int cuFuncSetAttribute(void) { return 100; }
int cuGetErrorName(void) { return 100; }
int cuGetErrorString(void) { return 100; }
int cuLaunchKernelEx(void) { return 100; }
int cuModuleGetFunction(void) { return 100; }
int cuModuleLoadData(void) { return 100; }
int cuModuleUnload(void) { return 100; }
int cuTensorMapEncodeTiled(void) { return 100; }
"""


def cuda_target(name: str) -> CudaTarget:
    target = resolve(name)
    assert isinstance(target, CudaTarget)
    return target


def doubled():
    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, COLUMNS), "float32")
        Y = T.match_buffer(y, (m, COLUMNS), "float32")
        T.device_entry()
        row = T.cta_id([m])
        column = T.thread_id([COLUMNS])
        Y[row, column] = X[row, column] * T.float32(2)

    return kernel


class Product(nn.Module):
    """A kernel of ours, then a product by cuBLASLt."""

    def product(self, x: nn.Tensor, w: nn.Tensor) -> nn.Tensor:
        y = call(doubled(), "doubled", [x], fresh(x.shape))
        kernel = cublaslt_matmul("float32", "float32")
        return call(kernel, "product", [y, w], fresh([x.shape[0], w.shape[0]]))


def make(target: CudaTarget, folder: Path) -> Path:
    """A library of ``Product`` in ``folder``, and its dump in ``<target>.dump`` beside it."""
    x, w = spec.Tensor(["m", COLUMNS], "float32"), spec.Tensor(["n", COLUMNS], "float32")
    bare = {"param_mode": "none", "effect_mode": "none"}
    module, _ = Product().export_tvm(spec={"product": {"x": x, "w": w, "$": bare}})
    module = with_metadata(module, {"target": target.describe()})
    library = folder / f"{target.name}.so"
    export(build(module, target, folder / f"{target.name}.dump"), library)
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cuda")
    return {name: make(cuda_target(name), folder) for name in TARGETS}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that finds no device."""
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    soname = f"-Wl,-soname,{library.name}"
    subprocess.run(
        ["g++", "-shared", "-fPIC", soname, "-x", "c", "-", "-o", str(library)],
        input=DRIVER,
        text=True,
        check=True,
    )
    return library.parent


def run_with_driver(driver: Path, program: str, *arguments: str, **environment: str) -> str:
    """Standard output of a Python program on a machine that has that driver."""
    (cudart,) = [
        file for folder in cuda.nvidia_packages() for file in folder.glob("*/lib/libcudart.so*")
    ]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": f"{driver}:{cudart.parent}",
            "PYTHONPATH": f"{checkout}:{Path(__file__).parent}",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fatbin_entries(library: Path) -> list[tuple[str, int, bytes]]:
    """Kind ("ptx" or "elf"), architecture (90 for sm_90 and sm_90a) and bytes of each entry."""
    data = library.read_bytes()
    magic = struct.pack("<I", 0xBA55ED50)
    assert data.count(magic) == 1
    start = data.index(magic)
    _, header, size = struct.unpack_from("<HHQ", data, start + 4)
    place, entries = start + header, []
    while place < start + header + size:
        kind, _, skip, length = struct.unpack_from("<HHIQ", data, place)
        (architecture,) = struct.unpack_from("<I", data, place + 28)
        code = data[place + skip : place + skip + length]
        entries.append(({1: "ptx", 2: "elf"}[kind], architecture, code))
        place += skip + length
    return entries


def test_machine_code_of_every_architecture(libraries: dict[str, Path]) -> None:
    entries = fatbin_entries(libraries["cuda-sm90a"])
    assert [(kind, architecture) for kind, architecture, _ in entries] == [("elf", 90)]
    entries = fatbin_entries(libraries["cuda"])
    machine_code = [architecture for kind, architecture, _ in entries if kind == "elf"]
    assert sorted(machine_code) == [80, 86, 89, 90, 100, 120]
    assert [architecture for kind, architecture, _ in entries if kind == "ptx"] == [80]
    for kind, _, code in entries:
        if kind == "elf":
            assert code.startswith(b"\x7fELF") and struct.unpack_from("<H", code, 18) == (190,)
            assert b"doubled_kernel" in code


def assert_no_source(library: Path) -> None:
    for text in (b"__global__", b"__launch_bounds__", b"#include", b"_kernel(", b"asm volatile"):
        assert text not in library.read_bytes()


@pytest.mark.parametrize("target", TARGETS)
def test_no_source_is_left(libraries: dict[str, Path], target: str) -> None:
    assert_no_source(libraries[target])
    source = (libraries[target].parent / f"{target}.dump" / "kernels.cu").read_text()
    assert "__global__ void" in source and "doubled_kernel(" in source
    for line in sorted(source.splitlines(), key=len)[-20:]:
        assert line.encode() not in libraries[target].read_bytes()


@pytest.mark.parametrize("target", TARGETS)
def test_the_dump_has_the_assemblers_report(libraries: dict[str, Path], target: str) -> None:
    report = (libraries[target].parent / f"{target}.dump" / "ptxas.txt").read_text()
    assert report.count("Compiling entry function 'doubled_kernel'") == {"cuda": 6}.get(target, 1)
    assert "registers" in report and "bytes spill stores" in report


RUNTIME_ONLY = """
import ctypes, json, sys
from pathlib import Path
import tvm
from tvm.runtime import vm
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import cuda

try:
    cuda.load_runtime()
except cuda.CudaError as error:
    refusal = str(error)
ctypes.CDLL(str(Path(tvm.__file__).parent / "lib/libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)
said = []
for library in sys.argv[1:]:
    machine = vm.VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())
    said.append(json.loads(str(machine["_metadata"]())))
with open("/proc/self/maps") as maps:
    compiler = "libtvm_compiler" in maps.read()
print(json.dumps({"refusal": refusal, "said": said, "compiler": compiler}))
"""


def test_loads_with_the_runtime_alone(libraries: dict[str, Path], driver: Path) -> None:
    """All but running its kernels, on a machine with a driver that finds no device."""
    paths = map(str, libraries.values())
    found = json.loads(run_with_driver(driver, RUNTIME_ONLY, *paths, TVM_USE_RUNTIME_LIB="1"))
    assert found["said"] == [{"target": cuda_target(name).describe()} for name in TARGETS]
    assert found["refusal"].startswith("no CUDA device can be used: ")
    assert not found["compiler"]


def test_a_whole_model(driver: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The compile verb's library for a GPU that is not here."""
    write_chat_config(GeckoConfig.preset("tiny"), "q0bf16", tmp_path, "bytes")
    library = tmp_path / "model.so"
    assert main(["compile", str(tmp_path), "--target", "cuda-sm90a", "-o", str(library)]) == 0
    assert f"{library}: q0bf16 for sm_90a, " in capsys.readouterr().err
    ((kind, architecture, code),) = fatbin_entries(library)
    assert (kind, architecture) == ("elf", 90) and b"attention_step" in code
    assert_no_source(library)
    program = run_with_driver(driver, RUNTIME_ONLY, str(library), TVM_USE_RUNTIME_LIB="1")
    (metadata,) = json.loads(program)["said"]
    assert metadata["target"] == cuda_target("cuda-sm90a").describe()
    assert metadata["cublaslt"] and metadata["batches"] == [1, 2, 4, 8, 16, 32]
    assert not any(row["pack"] for row in metadata["params"])


WITH_DRIVER = """
import sys
from pathlib import Path
import tvm, tvm_ffi
from test_compile_cuda import cuda_target, make

assert tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None
make(cuda_target("cuda-sm90a"), Path(sys.argv[1]))
"""


def test_a_driver_changes_nothing(libraries: dict[str, Path], driver: Path, tmp_path: Path) -> None:
    """Where TVM could make its own CUDA module, too, ours holds the machine code."""
    run_with_driver(driver, WITH_DRIVER, str(tmp_path))
    made = fatbin_entries(tmp_path / "cuda-sm90a.so")
    assert made == fatbin_entries(libraries["cuda-sm90a"])


WITHOUT_CUDA = """
import sys
from gecko_mlc.runtime.library import Library, LibraryError

try:
    Library(sys.argv[1])
except LibraryError as error:
    print(error)
"""


def test_refused_on_another_device(libraries: dict[str, Path]) -> None:
    """In a process of its own: others may have an emulated GPU."""
    command = [sys.executable, "-c", WITHOUT_CUDA, str(libraries["cuda"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cuda.so is compiled for a GPU: wanted device cuda" in done.stdout


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(path, mode=0):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", no_library)
    cuda.load_runtime.cache_clear()
    with pytest.raises(LibraryError, match=r"no device 'cuda': found no NVIDIA driver \(libcuda"):
        Library("model.so", "cuda")
    assert not cuda.open_cublaslt.__wrapped__(0)


@pytest.mark.parametrize(
    ("target", "gpus"),
    [
        ("cuda-sm90a", {(9, 0)}),
        ("cuda-sm80", {(8, 0), (8, 6), (8, 9)}),
        ("cuda", {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (13, 0)}),
    ],
)
def test_which_gpus_run_a_target(target: str, gpus: set[tuple[int, int]]) -> None:
    known = {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (13, 0)}
    described = cuda_target(target).describe()
    can = {gpu for gpu in known if cuda.can_run(described["machine_code"], described["ptx"], gpu)}
    assert can == gpus
    machine_code = described["machine_code"]
    without_ptx = {gpu for gpu in known if cuda.can_run(machine_code, None, gpu)}
    assert without_ptx == gpus - {(11, 0), (13, 0)}


def test_refused_on_another_gpu() -> None:
    library = object.__new__(Library)
    library.path = Path("h200.so")
    target = cuda_target("cuda-sm90a").describe()
    library._check_gpu(target, (9, 0))
    found = r"h200\.so \(target cuda-sm90a\) has machine code for sm_90a, this GPU has .* 8\.6; "
    with pytest.raises(LibraryError, match=found + "--target cuda compiles for all from 8.0 on"):
        library._check_gpu(target, (8, 6))


def test_options_of_another_kind() -> None:
    for option in ({"mcpu": "znver4"}, {"threads": 2}):
        with pytest.raises(TargetError, match="'cuda' is a GPU: processor and threads are for CPU"):
            resolve("cuda", **option)


def test_where_nvcc_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(folder: str) -> Path:
        file = tmp_path / folder / "bin/nvcc"
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
        return file

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(nvcc, "nvidia_packages", lambda: [tmp_path])
    with pytest.raises(CompileError, match=r"found no nvcc .* pip install 'gecko-mlc\[nvcc\]'"):
        nvcc.find_nvcc()
    package = program("cu13")
    assert nvcc.find_nvcc() == package
    on_path = program("path")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert nvcc.find_nvcc() == on_path
    home = program("home")
    monkeypatch.setenv("CUDA_HOME", str(home.parents[1]))
    assert nvcc.find_nvcc() == home


def test_with_the_compiler_of_the_python_package(monkeypatch: pytest.MonkeyPatch) -> None:
    (package, *_) = [
        file for folder in cuda.nvidia_packages() for file in folder.glob("*/bin/nvcc")
    ]
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: package)
    source = '#include <cuda_bf16.h>\nextern "C" __global__ void k(nv_bfloat16* x) { *x = 1; }'
    assert nvcc.compile_cuda(source, cuda_target("cuda-sm90a")).startswith(b"\x50\xed\x55\xba")


def test_the_compilers_own_message(tmp_path: Path) -> None:
    target = CudaTarget("odd", "sm_80", ("sm_80",))
    with pytest.raises(CompileError, match=r'(?s)kernels of odd.*identifier "abacus" is undefined'):
        nvcc.compile_cuda("int x = abacus;", target, tmp_path)
    assert (tmp_path / "kernels.cu").read_text() == "int x = abacus;"
    target = CudaTarget("odd", "sm_12", ("sm_12",))
    with pytest.raises(CompileError, match="Unsupported gpu architecture 'compute_12'"):
        nvcc.compile_cuda("int x;", target)


def test_tvm_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "0"):
        if before is not None:
            monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", before)
        with source_kept():
            assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "1"
        assert os.environ.get("TVM_COMPILE_FORCE_FALLBACK") == before
