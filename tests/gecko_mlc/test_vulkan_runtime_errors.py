"""What the Vulkan runtime says of machines without a device, with several, with bad ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import vulkan_kernels

PRELUDE = """
import sys
import numpy as np, tvm
import vulkan_kernels as v
from gecko_mlc.runtime import vulkan
from gecko_mlc.runtime.library import Library, LibraryError
from pathlib import Path

def said(error, action):
    try:
        action()
    except error as found:
        return str(found)
    raise SystemExit(f"no {error.__name__}")
"""
# The driver of lavapipe among those installed.
MANIFESTS = Path("/usr/share/vulkan/icd.d")


def run(program: str, **variables: str) -> str:
    return vulkan_kernels.run_program(PRELUDE + program, **variables)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``faulty(fault, program)``: what a program prints on a device with this fault.

    Whatever it does, no object of Vulkan may be left when its device is destroyed.
    """
    vulkan_kernels.device()
    folder = tmp_path_factory.mktemp("layer")
    source = Path(__file__).parent / "faulty_vulkan_layer.cc"
    library = folder / "libfaulty.so"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    layer = {
        "name": "VK_LAYER_GECKO_faulty",
        "type": "GLOBAL",
        "library_path": str(library),
        "api_version": "1.3.0",
        "implementation_version": "1",
        "description": "faults for tests",
    }
    text = json.dumps({"file_format_version": "1.2.0", "layer": layer})
    (folder / "faulty.json").write_text(text, encoding="utf-8")

    variables, log = vulkan_kernels.validated(folder)
    variables["VK_INSTANCE_LAYERS"] = f"VK_LAYER_GECKO_faulty:{variables['VK_INSTANCE_LAYERS']}"
    variables["VK_ADD_LAYER_PATH"] = str(folder)

    def run_faulty(fault: str, program: str) -> str:
        printed = run(program, FAULTY_VULKAN=fault, **variables)
        assert not log.read_text(encoding="utf-8")
        return printed

    return run_faulty


def lavapipe() -> Path:
    found = sorted(MANIFESTS.glob("lvp_icd*.json"))
    assert found, f"found no lavapipe in {MANIFESTS}: apt-get install mesa-vulkan-drivers"
    return found[0]


def test_no_driver(tmp_path):
    nothing = str(tmp_path / "nothing.json")
    printed = run(
        "print(said(vulkan.VulkanError, vulkan.load_runtime));"
        "print(tvm.runtime.device('vulkan', 0).exist);"
        "print(said(LibraryError, lambda: Library('lib.so', 'vulkan')))",
        VK_DRIVER_FILES=nothing,
    )
    first, exists, third = printed.splitlines()
    assert first.startswith("found ") and "no dr" in first or "no device" in first
    assert f"(VK_DRIVER_FILES is {nothing})" in first
    assert "install libvulkan1 and a driver" in first
    assert exists == "False"
    assert first in third


def test_no_loader(tmp_path):
    # A library of that name that is none comes first.
    (tmp_path / "libvulkan.so.1").write_bytes(b"")
    printed = run(
        "print(said(vulkan.VulkanError, vulkan.load_runtime))", LD_LIBRARY_PATH=str(tmp_path)
    )
    assert printed.startswith("found no Vulkan loader (")
    assert "install libvulkan1 and a driver" in printed


def test_several_devices(tmp_path):
    # The same driver under two names.
    copy = tmp_path / "copy.json"
    manifest = json.loads(lavapipe().read_text(encoding="utf-8"))
    driver = Path(manifest["ICD"]["library_path"])
    manifest["ICD"]["library_path"] = str(driver)
    copy.write_text(json.dumps(manifest), encoding="utf-8")
    printed = run(
        f"""
folder = Path({str(tmp_path)!r})
first, second = v.device(0), v.device(1)
print(vulkan.describe(0)["name"] == vulkan.describe(1)["name"])
print(said(LibraryError, lambda: Library("lib.so", "vulkan:2")))
values = np.arange(2**20, dtype="float32")
there = tvm.runtime.tensor(values, second)
here = tvm.runtime.empty(values.shape, "float32", first)
there.copyto(here)
there2 = tvm.runtime.empty(values.shape, "float32", second)
here.copyto(there2)
print((there2.numpy() == values).all(), vulkan.memory(0)["tensors"]["allocations"],
      vulkan.memory(1)["tensors"]["allocations"])
module = v.load(v.module_bytes({{"axpy": v.axpy(folder)}}))
choose = tvm.get_global_func("__tvm_set_device")
for device, tensor in ((first, here), (second, there)):
    choose(device.dlpack_device_type(), device.index)
    module["axpy"](v.address(tensor), v.address(tensor), 1.0, 100, 2, 64)
    print((tensor.numpy()[:101] == values[:101] * ([2] * 100 + [1])).all())
""",
        VK_DRIVER_FILES=f"{lavapipe()}:{copy}",
    )
    lines = printed.splitlines()
    assert lines[0] == "True"
    assert "no device vulkan:2; Vulkan's devices here:" in lines[1]
    assert [line.split()[0] for line in lines[2:4]] == ["vulkan:0", "vulkan:1"]
    assert lines[4:] == ["True 1 2", "True", "True"]


def test_an_old_driver(faulty):
    printed = faulty("old", "print(said(vulkan.VulkanError, vulkan.load_runtime))")
    assert "no device vulkan:0; Vulkan's devices here:" in printed
    assert "unusable: llvmpipe" in printed
    assert "has Vulkan 1.2.0, wanted 1.3 or newer: update its driver" in printed


def test_a_driver_without_float16(faulty, tmp_path):
    printed = faulty(
        "no-float16",
        f"""
v.device()
print(vulkan.describe()["float16"])
module = v.load(v.module_bytes({{"axpy": v.axpy(Path({str(tmp_path)!r}))}}, float16=True))
print(said(RuntimeError, lambda: module["check_device"](0)))
""",
    )
    assert printed.startswith("False\ndevice vulkan:0 (llvmpipe")
    assert "it has no float16 arithmetic" in printed
    assert "q0f32" in printed


def test_out_of_memory(faulty):
    printed = faulty(
        f"memory={200 << 20}",
        """
device = v.device()
make = lambda mib: tvm.runtime.empty((mib << 20,), "uint8", device)
kept = [make(60) for _ in range(2)]
kept.append(make(1))  # a block for small ones
print(said(MemoryError, lambda: make(100)))
source = tvm.runtime.tensor(np.full(1000, 7, "uint8"), device)  # all else goes on
print((source.numpy() == 7).all())
del kept, source
large = make(180)  # takes the empty block too
print(vulkan.memory()["tensors"]["used"] == 180 << 20)
""",
    )
    message, works, room = printed.splitlines()
    assert "has no 104857600 bytes of memory to give" in message
    assert "VK_ERROR_OUT_OF_DEVICE_MEMORY" in message
    assert "holds 126877696 bytes there in 3 tensors" in message
    assert "use fewer slots, a smaller model or a device with more memory" in message
    assert (works, room) == ("True", "True")


def test_more_than_a_device_has_is_refused():
    printed = run(
        """
device = v.device()
most = device.total_global_memory
print(said(MemoryError, lambda: tvm.runtime.empty((most + 1,), "uint8", device)))
print(said(MemoryError, lambda: tvm.runtime.empty((1 << 50,), "uint8", device)))
print(vulkan.memory()["tensors"]["reserved"])
"""
    )
    first, second, reserved = printed.splitlines()
    assert "bytes of memory to give" in first
    assert "allows" in second and "bytes in one piece" in second
    assert reserved == "0"


def test_a_lost_device(faulty, tmp_path):
    printed = faulty(
        "lost=4",
        f"""
device = v.device()
module = v.load(v.module_bytes({{"axpy": v.axpy(Path({str(tmp_path)!r}))}}))
tensor = tvm.runtime.tensor(np.zeros(1000, "float32"), device)
tensor.numpy()
kernel = module["axpy"]
def work():
    for _ in range(1000):
        kernel(v.address(tensor), v.address(tensor), 1.0, 1000, 16, 64)
    device.sync()
print(said(RuntimeError, work))
for refused in (work, device.sync, tensor.numpy, lambda: tvm.runtime.empty((5,), "int8", device)):
    print(said(RuntimeError, refused))
""",
    )
    lines = printed.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("device vulkan:0 (llvmpipe")
        assert "was lost" in line and "start the program again" in line
