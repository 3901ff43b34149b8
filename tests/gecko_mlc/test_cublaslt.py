"""Products by cuBLASLt, against a stand-in of the same interface that runs on the CPU."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm

from gecko_mlc.runtime import native


@pytest.fixture(scope="module")
def cublaslt(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The stand-in, opened for device 0."""
    library = tmp_path_factory.mktemp("fake") / "libcublasLt.so"
    source = Path(__file__).with_name("fake_cublaslt.cc")
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(RuntimeError, match="cuBLASLt was not opened for device 0"):
        product(*operands(1, 1, 1))
    workspace = tvm.runtime.tensor(np.zeros(64, "uint8"))
    with pytest.raises(RuntimeError, match="cannot load nowhere.so: nowhere.so"):
        native.function("cublaslt.open")("nowhere.so", workspace)
    native.function("cublaslt.open")(str(library), workspace)
    return ctypes.CDLL(str(library))


def operands(m: int, n: int, k: int, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([m, n, k])
    a, w = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    return a.astype(dtype), w.astype(dtype)


def product(
    a: np.ndarray, w: np.ndarray, shape: tuple[int, ...] | None = None, times: int = 1
) -> np.ndarray:
    shape = shape or (len(a), len(w))
    out = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
    tensors = tvm.runtime.tensor(a), tvm.runtime.tensor(w), out
    for _ in range(times):
        native.function("cublaslt.matmul")(*tensors)
    return out.numpy()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (7, 5, 3), (1, 64, 33), (40, 8, 16)])
def test_products(cublaslt: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    a, w = operands(*shape)
    wanted = a.astype("float64") @ w.astype("float64").T
    np.testing.assert_allclose(product(a, w), wanted, rtol=1e-5, atol=1e-5)


def test_algorithms_are_asked_for_once(cublaslt: ctypes.CDLL) -> None:
    """For one shape and one alignment."""
    before = cublaslt.fake_heuristics()
    product(*operands(6, 11, 13), times=3)
    assert cublaslt.fake_heuristics() - before == 1
    product(*operands(11, 6, 13))
    assert cublaslt.fake_heuristics() - before == 2


def test_what_it_refuses(cublaslt: ctypes.CDLL) -> None:
    a, w = operands(3, 5, 7)
    with pytest.raises(ValueError, match=r"wanted \[m, k\], \[n, k\] -> \[m, n\]"):
        product(a, w, (5, 3))
    with pytest.raises(ValueError, match="wanted contiguous matrices, found 3 dimensions"):
        product(a, w, (1, 3, 5))
    with pytest.raises(TypeError, match="types float32, float64"):
        product(a, w.astype("float64"))
    # Mixed types that the stand-in has no algorithm for.
    with pytest.raises(RuntimeError, match="no algorithm: CUBLAS_STATUS_NOT_SUPPORTED"):
        product(*operands(3, 5, 7, ml_dtypes.bfloat16))
