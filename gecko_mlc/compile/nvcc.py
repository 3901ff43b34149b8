"""NVIDIA's compiler: CUDA source to machine code for several architectures."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.gpu_targets import CudaTarget
from gecko_mlc.runtime.cuda import nvidia_packages


def find_nvcc() -> Path:
    """nvcc of CUDA_HOME, of PATH or of its Python package. Raises CompileError without one."""
    candidates = []
    if "CUDA_HOME" in os.environ:
        candidates.append(Path(os.environ["CUDA_HOME"]) / "bin/nvcc")
    on_path = shutil.which("nvcc")
    if on_path is not None:
        candidates.append(Path(on_path))
    for folder in nvidia_packages():
        candidates += sorted(folder.glob("*/bin/nvcc"))
    for nvcc in candidates:
        if nvcc.is_file():
            return nvcc
    raise CompileError(
        "found no nvcc in CUDA_HOME, PATH or this Python's packages, wanted NVIDIA's compiler for "
        "a cuda target: pip install 'gecko-mlc[nvcc]', or install the CUDA toolkit; "
        "running a finished library needs none"
    )


def compile_cuda(source: str, target: CudaTarget, dump: Path | None = None) -> bytes:
    """A fatbin of ``source``: machine code for each of the target's architectures, and its PTX.

    ``dump`` is a folder for the source and the assembler's report on registers and memory.
    Raises CompileError with nvcc's message.
    """
    nvcc = find_nvcc()
    # One intermediate form, that of the architecture the kernels were written for, serves all.
    intermediate = target.arch.replace("sm", "compute")
    code = [(intermediate, name) for name in target.machine_code]
    if target.ptx is not None:
        code.append((target.ptx, target.ptx))
    with tempfile.TemporaryDirectory(prefix="gecko-mlc-nvcc-") as folder:
        file, fatbin = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        file.write_text(source, encoding="utf-8")
        # No --use_fast_math: division, square roots and denormal numbers stay IEEE's. Host code
        # is looked at, never compiled, so the age of the C++ compiler does not matter.
        command = [str(nvcc), "--fatbin", "-O3", "-std=c++17", "--threads=0", "--ptxas-options=-v"]
        command += ["--disable-warnings", "--allow-unsupported-compiler"]
        if shutil.which("g++") is None:
            command.append("--compiler-bindir=clang++")
        command += [f"--generate-code=arch={virtual},code={real}" for virtual, real in code]
        done = subprocess.run(
            [*command, "-o", str(fatbin), str(file)], capture_output=True, text=True
        )
        report = done.stdout + done.stderr
        if dump is not None:
            dump.mkdir(parents=True, exist_ok=True)
            (dump / "kernels.cu").write_text(source, encoding="utf-8")
            (dump / "ptxas.txt").write_text(report, encoding="utf-8")
        if done.returncode:
            raise CompileError(f"{nvcc} failed on the kernels of {target.name}:\n{report[-4000:]}")
        return fatbin.read_bytes()
