"""Matrix products by NVIDIA's cuBLASLt, on machines that have it.

The function it calls (``gecko_mlc/native/cublaslt.cc``) is looked up at the first call: a library
that holds such products loads and runs everything else where cuBLASLt is missing.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T


@functools.cache
def cublaslt_matmul(dtype: str, out_dtype: str):
    """Kernel (a [m, k], w [n, k]) -> a w^T [m, n], with float32 accumulation.

    Runs on the host: it launches cuBLASLt's own kernels on the current stream.
    """

    @T.prim_func(private=True)
    def matmul(a: T.handle, w: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True})
        m, n, k = T.int64(), T.int64(), T.int64()
        A = T.match_buffer(a, (m, k), dtype)
        W = T.match_buffer(w, (n, k), dtype)
        Out = T.match_buffer(out, (m, n), out_dtype)
        T.evaluate(T.call_packed("gecko_mlc.cublaslt.matmul", A, W, Out))

    return matmul
