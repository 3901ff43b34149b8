"""What convert writes, read back with nothing but json and numpy, and with TVM's runtime."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gecko_mlc.checkpoint import CheckpointError, convert, open_checkpoint, random_checkpoint
from gecko_mlc.checkpoint.mapping import parameters
from gecko_mlc.checkpoint.reader import open_tensors
from gecko_mlc.checkpoint.tensor_cache import SHARD_BYTES
from gecko_mlc.config import GeckoConfig

GOLDEN = Path(__file__).parent.parent / "golden"
NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}

SMALL = GeckoConfig(
    num_layers=2,
    model_dim=16,
    z_dim=8,
    value_dim=24,
    num_heads=2,
    ffn_hidden_dim=20,
    vocab_size=40,
    cema_ndim=4,
    chunk_size=8,
    timenorm_num_groups=4,
)


def read_cache(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, after checking every statement of the index about its files."""
    index = json.loads((folder / "tensor-cache.json").read_text())
    tensors = {}
    for shard in index["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        assert shard["format"] == "raw-shard"
        assert shard["nbytes"] == len(data)
        assert shard["md5sum"] == hashlib.md5(data).hexdigest()
        offset = 0
        for record in shard["records"]:
            assert record["format"] == "raw" and record["byteOffset"] == offset
            offset += record["nbytes"]
            dtype = NUMPY_DTYPES.get(record["dtype"], ml_dtypes.bfloat16)
            array = np.frombuffer(data[record["byteOffset"] : offset], dtype)
            tensors[record["name"]] = array.reshape(record["shape"])
        assert offset == len(data)
    return tensors


def weights(config: GeckoConfig = SMALL) -> dict[str, np.ndarray]:
    return dict(random_checkpoint(config, seed=3))


def golden(name: str) -> tuple[GeckoConfig, dict[str, np.ndarray]]:
    config = GeckoConfig.from_file(GOLDEN / f"config_{name}.json")
    return config, load_file(GOLDEN / f"weights_{name}.safetensors")


@pytest.mark.parametrize("name", ["tiny", "alt"])
@pytest.mark.parametrize("quantization", ["q0f32", "q0f16", "q0bf16"])
def test_golden_weights(name: str, quantization: str, tmp_path: Path) -> None:
    config, stored = golden(name)
    told: list[int] = []
    convert(config, stored, quantization, tmp_path / "model", told.append)
    table = {row.name: row for row in parameters(config, quantization)}
    read = read_cache(tmp_path / "model")
    assert list(read) == list(table)
    assert {key: value.shape for key, value in read.items()} == {
        key: row.shape for key, row in table.items()
    }
    size = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.bin"))
    assert size == sum(told) == sum(row.nbytes for row in table.values())

    # torch rounds the matrices, and another order of the same formulas makes the vectors.
    dtype = {"q0f32": torch.float32, "q0f16": torch.float16, "q0bf16": torch.bfloat16}[quantization]

    def rounded(*names: str) -> np.ndarray:
        rows = torch.cat([torch.from_numpy(stored[key]) for key in names])
        return rows.to(dtype).to(torch.float32).numpy()

    def same(key: str, wanted: np.ndarray) -> None:
        np.testing.assert_array_equal(read[key].astype(np.float32), wanted, err_msg=key)

    same("embed.weight", rounded("embed.weight"))
    for prefix in ("layers.0.", "layers.1."):
        mega, nffn = prefix + "mega.", prefix + "nffn."
        same(mega + "wzrh.weight", rounded(*(f"{mega}{key}.weight" for key in ("wz", "wr", "wh1"))))
        same(mega + "wv.weight", rounded(mega + "wv.weight"))
        same(mega + "wh2.weight", rounded(mega + "wh2.weight"))
        gates = ("fc1", "fc3") if config.swiglu else ("fc1",)
        same(nffn + "fc1.weight", rounded(*(f"{nffn}{key}.weight" for key in gates)))
        same(nffn + "fc2.weight", rounded(nffn + "fc2.weight"))
        biases = [stored[f"{mega}{key}.bias"] for key in ("wz", "wr", "wh1")]
        same(mega + "wzrh.bias", np.concatenate(biases))
        same(mega + "beta", stored[mega + "beta"])
        if config.rescale_nffn:
            same(nffn + "alpha", stored[nffn + "alpha"])
        if config.norm_affine:
            same(mega + "rmsnorm.weight", stored[mega + "rmsnorm.weight"] + np.float32(1.0))
            same(nffn + "norm.bias", stored[nffn + "norm.bias"])
        else:
            same(mega + "rmsnorm.weight", np.ones(config.model_dim, np.float32))
        scale = (stored[mega + "gamma"].astype(np.float64) + 1.0) * config.z_head_dim**-0.5
        np.testing.assert_allclose(read[mega + "gamma"], scale, rtol=1e-7)
        assert read[mega + "timenorm.prior_count"].tolist() == [0]

        alpha, delta, theta = (
            torch.from_numpy(stored[f"{mega}cema.{key}"]).double()
            for key in ("alpha", "delta", "theta")
        )
        modes = torch.arange(1, config.cema_ndim + 1)
        q = torch.polar(
            1.0 - torch.sigmoid(alpha) * torch.sigmoid(delta),
            torch.outer(torch.sigmoid(theta), modes) * 2.0 * torch.pi / config.cema_ndim,
        )
        np.testing.assert_allclose(read[mega + "cema.q"][..., 0], q.real, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(read[mega + "cema.q"][..., 1], q.imag, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(read[mega + "cema.p"], torch.sigmoid(alpha), rtol=1e-7)
        same(mega + "cema.gamma", stored[mega + "cema.gamma"])
    if config.share_emb:
        assert "output.output.weight" not in read
    else:
        same("output.output.weight", rounded("output.output.weight"))
    index = np.arange(2 * config.chunk_size)[:, None]
    turn = np.exp(1j * index * stored["rope.freqs"].astype(np.float64))
    np.testing.assert_allclose(read["rope.table"][..., 0], turn.real, atol=1e-5)
    np.testing.assert_allclose(read["rope.table"][..., 1], turn.imag, atol=1e-5)

    metadata = json.loads((tmp_path / "model" / "tensor-cache.json").read_text())["metadata"]
    assert GeckoConfig.from_dict(metadata["model_config"]) == config
    assert metadata["quantization"] == quantization and metadata["format_version"] == 2


LOAD = """
import json, sys
import numpy as np
import tvm, tvm_ffi
folder, names = sys.argv[1], json.loads(sys.argv[2])
tvm_ffi.get_global_func("vm.builtin.tensor_cache.load")(folder, 1, 0)
arrays = tvm_ffi.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
digests = {}
for name, array in zip(names, arrays):
    digests[name] = [list(array.shape), str(array.dtype), array.numpy().tobytes().hex()[:4000]]
print(json.dumps(digests))
"""


@pytest.mark.parametrize("quantization", ["q0f32", "q0f16", "q0bf16"])
def test_the_runtime_alone_loads_it(quantization: str, tmp_path: Path) -> None:
    convert(SMALL, weights(), quantization, tmp_path)
    read = read_cache(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(list(read))],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(result.stdout)
    for name, array in read.items():
        wanted = [list(array.shape), str(array.dtype), array.tobytes().hex()[:4000]]
        assert loaded[name] == wanted, name


def test_every_fault_in_one_error_and_nothing_left(tmp_path: Path) -> None:
    stored = weights()
    del stored["layers.0.mega.wz.bias"]
    del stored["output.final_norm.weight"]
    stored["layers.2.mega.beta"] = np.zeros((4, 8), np.float32)
    stored["layers.1.mega.wv.weight"] = stored["layers.1.mega.wv.weight"][:-1]
    stored["layers.0.nffn.fc3.weight"][3, 4:6] = np.nan
    stored["layers.1.mega.cema.theta"][0] = -np.inf
    stored["layers.0.mega.wh2.weight"][0, 0] = 70000.0
    stored["layers.0.mega.wv.weight"] = stored["layers.0.mega.wv.weight"].astype(np.int8)
    stored["layers.1.mega.timenorm.prior_count"] = np.array(2.5)
    stored["rope.freqs"] = np.ones(2, np.float32)
    with pytest.raises(CheckpointError) as caught:
        convert(SMALL, stored, "q0f16", tmp_path / "deep" / "model")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(lines) == sorted(
        [
            "layers.0.mega.wz.bias is missing",
            "output.final_norm.weight is missing",
            "layers.2.mega.beta [4, 8] is not part of this configuration",
            "layers.1.mega.wv.weight has shape [23, 16], wanted [24, 16]",
            "layers.0.nffn.fc3.weight has 2 values that are not finite",
            "layers.1.mega.cema.theta has 1 values that are not finite",
            "layers.0.mega.wh2.weight has 1 values too large for float16",
            "layers.0.mega.wv.weight is stored as int8, wanted floating point",
            "layers.1.mega.timenorm.prior_count is 2.5, wanted a whole number from 0 to 2147483647",
            "rope.freqs are not the frequencies of rope_base 500000",
        ]
    )
    assert "10 faults" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_float16_is_kept_and_the_next_refused(tmp_path: Path) -> None:
    stored = weights()
    stored["embed.weight"][0, :2] = 65519.0, -65504.0  # the first rounds down
    convert(SMALL, stored, "q0f16", tmp_path)
    assert read_cache(tmp_path)["embed.weight"][0, :2].tolist() == [65504.0, -65504.0]
    stored["embed.weight"][0, 0] = 65520.0
    with pytest.raises(CheckpointError, match="embed.weight has 1 values too large for float16"):
        convert(SMALL, stored, "q0f16", tmp_path)
    stored["embed.weight"][0, 0] = np.finfo(np.float32).max
    with pytest.raises(CheckpointError, match="embed.weight has 1 values too large for bfloat16"):
        convert(SMALL, stored, "q0bf16", tmp_path)
    assert read_cache(tmp_path)["embed.weight"][0, 0] == 65504.0  # the first one is still there


def test_shared_embedding_stored_twice_has_to_be_equal(tmp_path: Path) -> None:
    config, stored = golden("alt")
    convert(config, stored, "q0f32", tmp_path / "model")
    stored["output.output.weight"][5, 6] += 1.0
    with pytest.raises(CheckpointError, match="output.output.weight differs from embed.weight"):
        convert(config, stored, "q0f32", tmp_path / "other")
    del stored["output.output.weight"]
    convert(config, stored, "q0f32", tmp_path / "other")
    assert read_cache(tmp_path / "model").keys() == read_cache(tmp_path / "other").keys()


def test_interrupted_halfway_nothing_is_left(tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(SMALL, weights(), "q0f32", tmp_path / "model", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_converting_again_replaces_the_weights_only(tmp_path: Path) -> None:
    (tmp_path / "mlc-chat-config.json").write_text("{}")
    (tmp_path / "params_shard_7.bin").write_bytes(b"of a larger model")
    convert(SMALL, weights(), "q0f32", tmp_path)
    convert(SMALL, dict(random_checkpoint(SMALL, seed=4)), "q0f16", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "mlc-chat-config.json",
        "params_shard_0.bin",
        "tensor-cache.json",
    ]
    assert read_cache(tmp_path)["embed.weight"].dtype == np.float16


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(CheckpointError, match="model is a file, wanted a folder"):
        convert(SMALL, weights(), "q0f32", tmp_path / "model")


WIDE = GeckoConfig.from_dict(
    {**SMALL.to_dict(), "vocab_size": 40000, "model_dim": 256, "value_dim": 512}
)
LARGEST = 40000 * 256 * 4


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some 90 MB as .safetensors and as .pt, each in its folder."""
    folder = tmp_path_factory.mktemp("wide")
    stored = dict(random_checkpoint(WIDE))
    assert sum(array.nbytes for array in stored.values()) > LARGEST + SHARD_BYTES + (8 << 20)
    save: dict[str, Callable[[Path], object]] = {
        "safetensors": lambda path: save_file(stored, path),
        "pt": lambda path: torch.save({k: torch.from_numpy(v) for k, v in stored.items()}, path),
    }
    for suffix, write in save.items():
        (folder / suffix).mkdir()
        (folder / suffix / "params.json").write_text(json.dumps(WIDE.to_dict()))
        write(folder / suffix / f"model.{suffix}")
    return folder


def test_large_tensors_have_a_shard_of_their_own(wide_checkpoint: Path, tmp_path: Path) -> None:
    config, tensors = open_checkpoint(wide_checkpoint / "safetensors")
    tracemalloc.start()
    try:
        convert(config, tensors, "q0f32", tmp_path / "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SHARD_BYTES  # a few blocks; a whole matrix is more
    shards = json.loads((tmp_path / "model" / "tensor-cache.json").read_text())["records"]
    assert any(len(shard["records"]) > 1 for shard in shards)
    for shard in shards:
        assert shard["nbytes"] <= SHARD_BYTES or len(shard["records"]) == 1
    read = read_cache(tmp_path / "model")
    np.testing.assert_array_equal(read["embed.weight"], tensors["embed.weight"])


RESIDENT = """
import sys
from gecko_mlc.checkpoint import convert, open_checkpoint

def resident(key):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(key))

config, tensors = open_checkpoint(sys.argv[1])
before = resident("VmRSS")
convert(config, tensors, "q0bf16", sys.argv[2])
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_resident_memory(suffix: str, wide_checkpoint: Path, tmp_path: Path) -> None:
    """Mapped files count too: one shard above the largest tensor at most."""
    result = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(wide_checkpoint / suffix), str(tmp_path / "model")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) <= LARGEST + SHARD_BYTES


def test_random_checkpoint_is_a_plausible_one(tmp_path: Path) -> None:
    for name in ("tiny", "alt"):
        config, stored = golden(name)
        tensors = random_checkpoint(config, seed=5)
        extra = {"rope.freqs", "output.output.weight"} if config.share_emb else {"rope.freqs"}
        assert set(tensors) == set(stored) - extra
        for key, array in tensors.items():
            assert array.dtype == np.float32 and array.shape == stored[key].shape
            assert array.shape == tensors.shape(key) and np.isfinite(array).all()
            spread = float(stored[key].std())
            assert 0.7 * spread <= float(array.std()) <= 1.5 * spread + 1e-6, key
        again = random_checkpoint(config, seed=5)
        for key in reversed(list(tensors)):
            np.testing.assert_array_equal(tensors[key], again[key])
        assert not np.array_equal(
            tensors["embed.weight"], random_checkpoint(config)["embed.weight"]
        )
        convert(config, tensors, "q0f16", tmp_path / name)


def test_bfloat16_checkpoint_passes_through_unchanged(tmp_path: Path) -> None:
    stored = {
        key: torch.from_numpy(value).to(torch.bfloat16)
        for key, value in weights().items()
        if not key.endswith("prior_count")
    }
    counts = {key: torch.tensor(7) for key in weights() if key.endswith("prior_count")}
    torch.save({**stored, **counts}, tmp_path / "model.pt")
    convert(SMALL, open_tensors(tmp_path), "q0bf16", tmp_path / "model")
    read = read_cache(tmp_path / "model")
    wanted = stored["layers.1.mega.wh2.weight"].view(torch.uint16).numpy()
    np.testing.assert_array_equal(read["layers.1.mega.wh2.weight"].view(np.uint16), wanted)
    assert read["output.final_norm.prior_count"].tolist() == [7]
