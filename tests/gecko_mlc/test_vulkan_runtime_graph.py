"""Graphs on a Vulkan device: recorded once by a virtual machine's call, replayed by later ones."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import vulkan_kernels
from tvm import relax
from vulkan_kernels import THREADS, address, axpy, module_bytes

from gecko_mlc.runtime import vulkan

COUNT = 1000
GROUPS = -(-COUNT // THREADS)
LAUNCHES = 200


@pytest.fixture
def device():
    return vulkan_kernels.device()


@pytest.fixture(scope="module")
def executable():
    """main(a): the function ``vulkan_test.body(a, out)`` in a graph, out in cached memory."""
    tensor, anything = relax.TensorType((COUNT,), "float32"), relax.ObjectType()
    nothing = relax.TupleType([])
    builder = relax.BlockBuilder()
    a, storage = relax.Var("a", tensor), relax.Var("storage", anything)
    with builder.function("capture", [a, storage], pure=False):
        shape = relax.ShapeExpr([COUNT])
        out = builder.emit(relax.op.memory.alloc_tensor(storage, 0, shape, "float32"))
        body = relax.ExternFunc("vulkan_test.body")
        builder.emit(relax.Call(body, [a, out], None, [nothing]))
        builder.emit_func_output(relax.Tuple([out]))
    with builder.function("alloc", [], pure=False):
        bytes_needed = relax.ShapeExpr([4 * COUNT])
        made = builder.emit(relax.op.memory.alloc_storage(bytes_needed, 0, "global", "uint8"))
        builder.emit_func_output(relax.Tuple([made]))
    functions = {var.name_hint: var for var in builder.get().get_global_vars()}
    given = relax.Var("a", tensor)
    with builder.function("main", [given], pure=False):
        cached = builder.emit(
            relax.op.call_builtin_with_ctx(
                "gecko_mlc.vulkan.get_cached_alloc",
                [functions["alloc"], relax.prim_value(0)],
                ty_args=relax.TupleType([anything]),
            )
        )
        memory = builder.emit(relax.TupleGetItem(cached, 0))
        results = builder.emit(
            relax.op.call_builtin_with_ctx(
                "gecko_mlc.vulkan.run_or_capture",
                [functions["capture"], relax.Tuple([given, memory]), relax.prim_value(0)],
                ty_args=relax.TupleType([tensor]),
            )
        )
        builder.emit_func_output(builder.emit(relax.TupleGetItem(results, 0)))
    passes = [
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    pipeline = tvm.transform.Sequential(passes)
    return relax.build(builder.get(), target="llvm", relax_pipeline=pipeline)


@pytest.fixture
def run(device, executable):
    """``run(body)``: the function main of a new virtual machine, whose graph holds ``body``."""

    def make(body):
        tvm.register_global_func("vulkan_test.body", body, override=True)
        return relax.VirtualMachine(executable, device)["main"]

    return make


@pytest.fixture(params=["push", "memory"])
def kernel(request, device, tmp_path):
    return vulkan_kernels.load(module_bytes({"axpy": axpy(tmp_path, request.param)}))["axpy"]


def tensor(device, value: float) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(np.full(COUNT, value, np.float32), device)


def test_a_graph_is_recorded_once_and_runs_each_time(device, run, kernel):
    calls = []
    zero = tensor(device, 0)

    def body(a, out):
        calls.append(1)
        zero.copyto(out)
        for _ in range(LAUNCHES):
            kernel(address(a), address(out), 0.5, COUNT, GROUPS, THREADS)

    main = run(body)
    a = tensor(device, 1)
    assert (main(a).numpy() == LAUNCHES / 2).all()
    for value in range(2, 6):
        a.copyfrom(np.full(COUNT, value, np.float32))
        assert (main(a).numpy() == value * LAUNCHES / 2).all()
    assert len(calls) == 1


def test_graphs_follow_one_another_without_a_wait(device, run, kernel):
    # Each replay adds to what the last one left, and copies lie between them.
    def body(a, out):
        kernel(address(out), address(a), 1.0, COUNT, GROUPS, THREADS)
        kernel(address(a), address(out), 0.0, COUNT, GROUPS, THREADS)

    main = run(body)
    a, one = tensor(device, 0), tensor(device, 1)
    out = main(a)
    a.copyfrom(np.zeros(COUNT, np.float32))
    for _ in range(50):
        one.copyto(out)
        main(a)
    assert (a.numpy() == 50).all()


def test_a_graph_goes_with_its_virtual_machine(device, run, kernel):
    device.sync()
    before = vulkan.memory()["arguments"]["used"]
    main = run(lambda a, out: kernel(address(a), address(out), 0.5, COUNT, GROUPS, THREADS))
    a = tensor(device, 1)
    for _ in range(3):
        main(a)
    del main  # while it may be running
    device.sync()
    assert vulkan.memory()["arguments"]["used"] == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda a, out: out.copyfrom(np.zeros(COUNT, np.float32)), "copy between host and device"),
        (lambda a, out: out.numpy(), "copy between host and device"),
        (lambda a, out: tvm.runtime.device("vulkan", 0).sync(), "waiting for device vulkan:0"),
        (lambda a, out: vulkan.TimestampTimer(0).begin(), "a time inside a graph"),
    ],
)
def test_what_a_graph_cannot_hold(device, run, body, message):
    a = tensor(device, 1)
    main = run(body)
    for _ in range(2):  # a failed recording is not kept
        with pytest.raises(RuntimeError, match=message):
            main(a)
    device.sync()
    assert (a.numpy() == 1).all()
