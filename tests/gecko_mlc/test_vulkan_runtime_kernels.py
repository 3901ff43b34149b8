"""Kernels on a Vulkan device: arguments, dimensions, order, what a device lacks, what is kept."""

from __future__ import annotations

import concurrent.futures
import struct
from pathlib import Path

import numpy as np
import pytest
import tvm
import vulkan_kernels
from vulkan_kernels import THREADS, address, axpy, module_bytes

from gecko_mlc.runtime import native, vulkan

COUNT = 1000
GROUPS = -(-COUNT // THREADS)


@pytest.fixture
def device():
    return vulkan_kernels.device()


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(COUNT).astype(np.float32)


@pytest.mark.parametrize("block", ["push", "memory"])
def test_a_launch_computes(device, tmp_path, block):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path, block)}))["axpy"]
    a, o = (tvm.runtime.tensor(numbers(seed), device) for seed in range(2))
    kernel(address(a), address(o), 0.5, COUNT - 3, GROUPS, THREADS)
    expected = numbers(1)
    expected[:-3] += numbers(0)[:-3] * np.float32(0.5)
    np.testing.assert_array_equal(o.numpy(), expected)


@pytest.mark.parametrize("block", ["push", "memory"])
def test_each_launch_sees_what_the_one_before_wrote(device, tmp_path, block):
    # Enough launches to be submitted in several batches, and more arguments than fit one chunk.
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path, block)}))["axpy"]
    a, b = (tvm.runtime.tensor(np.full(COUNT, value, np.float32), device) for value in (1, 0))
    for turn in range(3000):
        source, target = (a, b) if turn % 2 else (b, a)
        kernel(address(source), address(target), 2.0**-10, COUNT, GROUPS, THREADS)
    x, y = np.float32(1), np.float32(0)
    for turn in range(3000):
        if turn % 2:
            y += x * np.float32(2.0**-10)
        else:
            x += y * np.float32(2.0**-10)
    np.testing.assert_allclose(a.numpy(), np.full(COUNT, x), rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), np.full(COUNT, y), rtol=1e-6)
    del a, b
    device.sync()
    assert vulkan.memory()["arguments"]["used"] == 0


def test_kernels_copies_and_host_writes_keep_their_order(device, tmp_path):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}))["axpy"]
    a, o, kept = (tvm.runtime.tensor(np.zeros(COUNT, np.float32), device) for _ in range(3))
    hosts: list[tvm.runtime.Tensor] = []
    for value in range(1, 50):
        hosts.append(tvm.runtime.tensor(np.full(COUNT, value, np.float32)))
        hosts[-1].copyto(a)  # without a wait
        kernel(address(a), address(o), 1.0, COUNT, GROUPS, THREADS)
        o.copyto(kept)
        kernel(address(kept), address(a), 1.0, COUNT, GROUPS, THREADS)
    total = sum(range(1, 50))
    assert (o.numpy() == total).all()
    assert (a.numpy() == 49 + total).all()


def test_threads_share_a_device(device, tmp_path):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path, "memory")}))["axpy"]

    def work(seed: int) -> np.ndarray:
        for _ in range(30):
            a, o = (tvm.runtime.tensor(numbers(seed + i), device) for i in range(2))
            for _ in range(20):
                kernel(address(a), address(o), 0.5, COUNT, GROUPS, THREADS)
            result = o.numpy()
        return result

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for seed, found in enumerate(pool.map(work, range(8))):
            expected = numbers(seed + 1)
            for _ in range(20):
                expected += numbers(seed) * np.float32(0.5)
            np.testing.assert_array_equal(found, expected)


def test_no_workgroups_is_no_work(device, tmp_path):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}))["axpy"]
    o = tvm.runtime.tensor(numbers(0), device)
    kernel(address(o), address(o), 1.0, COUNT, 0, THREADS)
    np.testing.assert_array_equal(o.numpy(), numbers(0))


def test_what_a_launch_may_not_ask_for(device, tmp_path):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}))["axpy"]
    o = tvm.runtime.tensor(numbers(0), device)
    most = vulkan.describe()["workgroups"][0]
    with pytest.raises(ValueError, match=f"kernel axpy: {most + 1} workgroups in dimension x"):
        kernel(address(o), address(o), 1.0, COUNT, most + 1, THREADS)
    with pytest.raises(ValueError, match=f"kernel axpy: 32 threads .* compiled for {THREADS}"):
        kernel(address(o), address(o), 1.0, COUNT, 1, 32)
    with pytest.raises(TypeError, match="4 arguments and 2 launch parameters, found 3"):
        kernel(address(o), address(o), 1.0)
    with pytest.raises(TypeError, match="wanted the address of a tensor"):
        kernel(1, address(o), 1.0, COUNT, 1, THREADS)


def test_other_dimensions_have_limits_too(device, tmp_path):
    module = module_bytes({"axpy": axpy(tmp_path, launch=["blockIdx.y", "threadIdx.x"])})
    kernel = vulkan_kernels.load(module)["axpy"]
    o = tvm.runtime.tensor(numbers(0), device)
    with pytest.raises(ValueError, match="workgroups in dimension y"):
        kernel(address(o), address(o), 1.0, COUNT, 1 << 31, THREADS)


def test_a_module_can_go_while_its_kernels_run(device, tmp_path):
    a, o = (tvm.runtime.tensor(numbers(seed), device) for seed in range(2))
    for _ in range(5):
        kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}))["axpy"]
        kernel(address(a), address(o), 0.5, COUNT, GROUPS, THREADS)
        del kernel
    expected = numbers(1)
    for _ in range(5):
        expected += numbers(0) * np.float32(0.5)
    np.testing.assert_array_equal(o.numpy(), expected)


def test_a_kernel_written_for_the_devices_subgroups(device, tmp_path):
    size = vulkan.describe()["subgroup"]
    data = module_bytes({"axpy": axpy(tmp_path, subgroup=size)}, subgroup=size)
    a, o = (tvm.runtime.tensor(numbers(seed), device) for seed in range(2))
    vulkan_kernels.load(data)["axpy"](address(a), address(o), 1.0, COUNT, GROUPS, THREADS)
    np.testing.assert_array_equal(o.numpy(), numbers(1) + numbers(0))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"subgroup": 512}, r"its subgroups have .* threads, the library wants 512"),
        (
            {"shared": 1 << 30},
            r"bytes of shared memory in a workgroup, the library wants 1073741824",
        ),
        ({"threads": 1 << 20}, "threads in a workgroup, the library wants 1048576"),
        ({"push_constants": 1 << 20}, "bytes of push constants, the library wants 1048576"),
        ({"telepathy": True}, "telepathy, is not known to this version"),
    ],
)
def test_a_device_that_lacks_something_is_refused(device, tmp_path, needs, message):
    module = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}, **needs))
    for refused in (lambda: module["check_device"](0), lambda: module["axpy"](0)):
        with pytest.raises(RuntimeError, match=message) as raised:
            refused()
        assert "compile with --target vulkan" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"what" + data[4:], "gecko-mlc did not make"),
        (lambda data: data[:4] + struct.pack("<I", 7) + data[8:], "of version 7"),
        (lambda data: data[:10], "gecko-mlc did not make"),
        (lambda data: data[:100], "cut off"),
        (lambda data: data[:-4], "kernel axpy is cut off"),
    ],
)
def test_damaged_modules_are_refused(device, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        vulkan_kernels.load(change(module_bytes({"axpy": axpy(tmp_path)})))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"arguments": ["address", "float64"]}, "argument of type float64"),
        ({"launch": ["blockIdx.w"]}, "launch parameter blockIdx.w"),
        ({"block": "registers"}, "arguments in registers, wanted push or memory"),
        ({"arguments": ["address"] * 300}, "300 arguments, 2400 bytes"),
    ],
)
def test_rows_that_this_runtime_does_not_know(device, tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path, **row)}))


def test_a_module_is_saved_as_it_was_made(device, tmp_path):
    data = module_bytes({"axpy": axpy(tmp_path)})
    made = native.function("binary_module")("vulkan", data)
    assert made.kind == "vulkan"
    assert not made.implements_function("axpy")
    assert vulkan_kernels.load(data).implements_function("axpy")


def test_arguments_lie_at_their_natural_alignment(device, tmp_path):
    # What the kernel takes for a float and an integer as one number of 64 bits.
    row = axpy(tmp_path, arguments=["address", "address", "int64"])
    kernel = vulkan_kernels.load(module_bytes({"axpy": row}))["axpy"]
    a, o = (tvm.runtime.tensor(numbers(seed), device) for seed in range(2))
    (half,) = struct.unpack("<I", struct.pack("<f", 0.5))
    kernel(address(a), address(o), half | COUNT << 32, GROUPS, THREADS)
    np.testing.assert_array_equal(o.numpy(), numbers(1) + numbers(0) * np.float32(0.5))


def test_times_of_kernels(device, tmp_path):
    kernel = vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path)}))["axpy"]
    large = tvm.runtime.tensor(np.zeros(1 << 21, np.float32), device)
    timer = vulkan.TimestampTimer(0)
    for _ in range(2):
        timer.begin()
        for count in (1, 1 << 21):
            timer.start()
            kernel(address(large), address(large), 0.0, count, -(-count // THREADS), THREADS)
            timer.stop()
        seconds = timer.finish()
    assert len(seconds) == 2
    assert 0 <= seconds[0] < seconds[1] < 10
    # More times than a pool of queries has.
    timer.begin()
    for _ in range(400):
        timer.start()
        timer.stop()
    assert len(timer.finish()) == 400


def _run_and_list(folder: Path, cache: Path) -> dict[str, bytes]:
    """Files in a process's cache folder after it has launched a kernel."""
    program = (
        "import numpy as np, tvm, pathlib, vulkan_kernels as v;"
        "d = v.device(); o = tvm.runtime.tensor(np.ones(64, 'float32'), d);"
        f"m = v.load(v.module_bytes({{'axpy': v.axpy(pathlib.Path({str(folder)!r}))}}));"
        "m['axpy'](v.address(o), v.address(o), 1.0, 64, 1, 64);"
        "assert (o.numpy() == 2).all()"
    )
    vulkan_kernels.run_program(program, XDG_CACHE_HOME=str(cache))
    return {path.name: path.read_bytes() for path in (cache / "gecko-mlc").iterdir()}


def test_pipelines_are_kept_on_disk(tmp_path):
    vulkan_kernels.device()
    kept = _run_and_list(tmp_path, tmp_path / "cache")
    ((name, data),) = kept.items()
    assert name.startswith("vulkan-") and name.endswith(".cache")
    for damaged in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1])):
        (tmp_path / "cache/gecko-mlc" / name).write_bytes(damaged)
        assert _run_and_list(tmp_path, tmp_path / "cache")[name][:8] == data[:8]


def test_where_nothing_can_be_kept_nothing_is(tmp_path):
    (tmp_path / "cache").write_text("not a folder", encoding="utf-8")
    with pytest.raises(NotADirectoryError):
        _run_and_list(tmp_path, tmp_path / "cache")
