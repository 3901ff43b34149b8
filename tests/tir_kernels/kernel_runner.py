"""Compiling one kernel by itself and calling it with NumPy arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import tvm

from gecko_mlc.compile.targets import resolve

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Kernel:
    """A TensorIR function compiled for this machine's processor."""

    def __init__(self, function) -> None:
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        self._function = tvm.compile(module, target=resolve("cpu").tvm_target)["main"]

    def __call__(self, *arguments: Any, writes: tuple[int, ...] = (-1,)) -> Any:
        """The arrays at ``writes`` as the call leaves them (alone if there is one).

        All others must stay as they are, bit for bit.
        """
        given = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        self._function(*given)
        written = {index % len(given) for index in writes}
        for index, (before, after) in enumerate(zip(arguments, given, strict=True)):
            if isinstance(before, np.ndarray) and index not in written:
                assert before.tobytes() == after.numpy().tobytes(), f"argument {index} was changed"
        results = [given[index].numpy() for index in writes]
        return results[0] if len(results) == 1 else results


def poisoned(*shape: int) -> np.ndarray:
    """An output that shows what a kernel leaves out."""
    return np.full(shape, np.nan, np.float32)


def assert_near(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """No element further off than ``tolerance`` times the largest magnitude (at least 1)."""
    found = np.asarray(found, np.float64)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all(), "not everything was written"
    error = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
    assert error <= tolerance, f"off by {error:.2e}, wanted at most {tolerance:.0e}"


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)
