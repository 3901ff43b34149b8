"""Memory of a Vulkan device: no two tensors share bytes, all of it comes back; copies."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import vulkan_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko_mlc.runtime import vulkan
from gecko_mlc.runtime.memory import Staging, TensorMemory

MIB = 1 << 20
# Around what is copied inside the commands, in one piece and in several.
SIZES = [1, 2, 3, 4, 5, 255, 4092, 4096, 4097, 4100, 65536, MIB + 1, 4 * MIB, 4 * MIB + 5, 9 * MIB]


@pytest.fixture
def device():
    return vulkan_kernels.device()


def in_use() -> dict[str, int]:
    return vulkan.memory()["tensors"]


def empty(device, nbytes: int) -> tvm.runtime.Tensor:
    return tvm.runtime.empty((nbytes,), "uint8", device)


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 * MIB), st.integers(0, 3)), min_size=1, max_size=60))
def test_no_two_tensors_share_bytes(requests):
    device = vulkan_kernels.device()
    before = in_use()
    tensors: list[tvm.runtime.Tensor] = []
    for size, choice in requests:
        if choice == 0 and tensors:
            del tensors[size % len(tensors)]
        else:
            tensors.append(empty(device, size))
        ranges = sorted((t.data_ptr(), t.data_ptr() + t.shape[0]) for t in tensors)
        assert all(start % 256 == 0 for start, _ in ranges)
        assert all(end <= start for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False))
    del tensors
    after = in_use()
    assert (after["used"], after["allocations"]) == (before["used"], before["allocations"])


def test_neighbours_that_were_freed_are_one_piece(device):
    # No gap that others have left is as large as a piece: the pieces are in a block of their own.
    before, fillers = in_use()["blocks"], []
    while in_use()["blocks"] == before:
        fillers.append(empty(device, MIB))
    pieces = [empty(device, MIB) for _ in range(30)]
    blocks = in_use()["blocks"]
    first = min(piece.data_ptr() for piece in pieces)
    for order in (slice(0, None, 2), slice(None)):
        del pieces[order]
    whole = empty(device, 30 * MIB)
    assert in_use()["blocks"] == blocks
    assert whole.data_ptr() <= first


def test_blocks_go_back_to_the_driver(device):
    device.sync()
    before = in_use()
    large = [empty(device, 40 * MIB) for _ in range(3)]
    assert in_use()["reserved"] >= before["reserved"] + 120 * MIB
    small = [empty(device, 10 * MIB) for _ in range(20)]
    full = in_use()
    assert full["reserved"] >= full["used"] >= before["used"] + 320 * MIB
    del large, small
    after = in_use()
    assert after["used"] == before["used"]
    # One empty block is kept for whoever comes next.
    assert after["blocks"] <= before["blocks"] + 1


def test_a_large_tensor_takes_no_more_than_it_needs(device):
    before = in_use()["reserved"]
    tensor = empty(device, 100 * MIB)
    assert in_use()["reserved"] - before <= 101 * MIB
    del tensor


def test_freed_memory_is_used_again_after_the_commands_that_read_it(device):
    target, zeros = empty(device, 8 * MIB), tvm.runtime.tensor(np.zeros(8 * MIB, np.uint8))
    for seed in range(5):
        source = tvm.runtime.tensor(random_bytes(8 * MIB, seed), device)
        place = source.data_ptr()
        source.copyto(target)
        del source  # while the copy may not have begun
        other = empty(device, 8 * MIB)
        assert other.data_ptr() == place
        zeros.copyto(other)
        assert (target.numpy() == random_bytes(8 * MIB, seed)).all()
        del other


@pytest.mark.parametrize("size", SIZES)
def test_copies_to_the_device_on_it_and_back(device, size):
    values = random_bytes(size)
    tensor = tvm.runtime.tensor(values, device)
    other = empty(device, size)
    tensor.copyto(other)
    assert (other.numpy() == values).all()
    assert (tensor.numpy() == values).all()


@pytest.mark.parametrize("offset", [1, 2, 4, 256, 4093])
@pytest.mark.parametrize("size", [1, 4, 1000, 4096, 70001])
def test_copies_of_a_part_leave_the_rest(device, offset, size):
    around = 5000
    values, part = random_bytes(offset + size + around), random_bytes(size, 1)
    tensor = tvm.runtime.tensor(values, device)
    view = tensor._create_view((size,), "uint8", offset)
    assert (view.numpy() == values[offset : offset + size]).all()
    view.copyfrom(part)
    values[offset : offset + size] = part
    assert (tensor.numpy() == values).all()
    source = tvm.runtime.tensor(random_bytes(size, 2), device)
    source.copyto(view)
    values[offset : offset + size] = random_bytes(size, 2)
    assert (tensor.numpy() == values).all()


def test_tensors_without_elements(device):
    tensor = tvm.runtime.empty((0, 5), "float32", device)
    assert tensor.numpy().shape == (0, 5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "bfloat16"])
def test_tensor_memory_on_the_device(device, dtype):
    import ml_dtypes

    memory = TensorMemory(device)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    values = np.arange(120).reshape(4, 30).astype(kind)
    uploaded = memory.upload(values)
    assert str(uploaded.dtype) == dtype
    kept = memory.keep(uploaded)
    del uploaded
    bits = kept._create_view((4, 30 * kind.itemsize), "uint8").numpy()
    assert (bits == values.view(np.uint8)).all()


def test_staging_does_not_wait_and_arrives(device):
    sent, received = Staging((1000,), "int32", device), Staging((1000,), "int32", device)
    tensor = tvm.runtime.empty((1000,), "int32", device)
    stream = device.create_raw_stream()
    between = tvm.get_global_func("runtime.Device_StreamSyncFromTo")
    for turn in range(20):
        sent.host[...] = np.arange(1000) + turn
        sent.send(tensor)
        received.receive(tensor)
        between(device, 0, stream)
        later = tvm.runtime.empty((1000,), "int32", device)
        later.copyto(tensor)  # a later command, for which nobody waits
        device.sync(stream)
        assert (received.host == np.arange(1000) + turn).all()
    device.sync()
    device.free_raw_stream(stream)


def test_staging_memory_comes_back(device):
    device.sync()
    before = vulkan.memory()["staging"]["used"]
    staging = [Staging((MIB,), "uint8", device) for _ in range(5)]
    assert vulkan.memory()["staging"]["used"] == before + 5 * MIB
    # Large copies still pass when tensors of the host fill staging memory.
    more = [Staging((10 * MIB,), "uint8", device) for _ in range(5)]
    values = random_bytes(20 * MIB)
    assert (tvm.runtime.tensor(values, device).numpy() == values).all()
    del staging, more
    device.sync()
    assert vulkan.memory()["staging"]["used"] == before
