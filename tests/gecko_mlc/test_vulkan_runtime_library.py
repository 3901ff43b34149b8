"""Libraries with kernels for Vulkan: which device and machine they are refused on."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm
import vulkan_kernels
from tvm import relax
from vulkan_kernels import axpy, module_bytes

from gecko_mlc.compile.library import with_metadata
from gecko_mlc.config import FORMAT_VERSION, GeckoConfig
from gecko_mlc.runtime import machine, native, vulkan
from gecko_mlc.runtime.library import Library, LibraryError


def library(folder: Path, **needs) -> Path:
    """A library with one kernel and nothing that a model has but its description."""
    target = {
        "name": "vulkan-test",
        "options": {"kind": "vulkan"},
        "architecture": machine.architecture(),
    }
    metadata = {
        "format_version": FORMAT_VERSION,
        "target": target,
        "model_config": GeckoConfig.preset("tiny").to_dict(),
    }
    module = with_metadata(tvm.IRModule(), metadata)
    executable = relax.build(module, target="llvm")
    kernels = module_bytes({"axpy": axpy(folder)}, **needs)
    executable.mod.import_module(native.function("binary_module")("vulkan", kernels))
    path = folder / "library.so"
    executable.export_library(str(path))
    return path


def test_a_library_that_the_device_runs(tmp_path):
    vulkan_kernels.device()
    found = Library(library(tmp_path), "vulkan")
    assert found.device == tvm.runtime.device("vulkan", 0)
    assert Library(found.path, "vulkan:0").metadata["target"]["name"] == "vulkan-test"


def test_a_library_that_asks_for_more_is_refused_when_it_is_loaded(tmp_path):
    vulkan_kernels.device()
    path = library(tmp_path, shared=1 << 30, threads=1 << 20)
    with pytest.raises(LibraryError) as raised:
        Library(path, "vulkan")
    message = str(raised.value)
    assert message.startswith(f"{path} (target vulkan-test): device vulkan:0 (")
    assert "bytes of shared memory in a workgroup, the library wants 1073741824" in message
    assert "threads in a workgroup, the library wants 1048576" in message


def test_the_wrong_device(tmp_path):
    vulkan_kernels.device()
    path = library(tmp_path)
    with pytest.raises(LibraryError, match="compiled for vulkan-test, it cannot run on device cpu"):
        Library(path, "cpu")
    # Without Vulkan in the process nobody can read the kernels.
    program = (
        "import sys; from gecko_mlc.runtime.library import Library, LibraryError\n"
        "try: Library(sys.argv[1], 'cpu')\n"
        "except LibraryError as error: print(error)"
    )
    printed = vulkan_kernels.run_program(program, str(path))
    assert "is compiled for a GPU: wanted device vulkan" in printed


def test_a_device_that_is_not_there(tmp_path):
    vulkan_kernels.device()
    with pytest.raises(LibraryError, match=r"(?s)no device 'vulkan:99': .*vulkan:0 "):
        Library(library(tmp_path), "vulkan:99")


def test_a_tvm_with_vulkan_keeps_its_own():
    program = (
        "import tvm; from gecko_mlc.runtime import vulkan\n"
        "tvm.register_global_func('device_api.vulkan', lambda: None)\n"
        "vulkan.load_runtime()\n"
        "print('gecko_mlc_vulkan' in open('/proc/self/maps').read())\n"
        "try: vulkan.describe()\n"
        "except vulkan.VulkanError as error: print(error)"
    )
    loaded, message = vulkan_kernels.run_program(program).splitlines()
    assert loaded == "False"
    assert "this TVM was built with Vulkan" in message


def test_an_installation_without_vulkan_says_so(monkeypatch):
    def missing(name: str = "") -> None:
        raise FileNotFoundError(f"found no lib{name}.so")

    monkeypatch.setattr(vulkan, "_is_ours", vulkan._is_ours.__wrapped__)
    monkeypatch.setattr(native, "load", missing)
    monkeypatch.setattr(vulkan.tvm_ffi, "get_global_func", lambda *_, **__: None)
    with pytest.raises(vulkan.VulkanError, match="without Vulkan.*libvulkan-dev.*gecko_mlc_vulkan"):
        vulkan.load_runtime()
