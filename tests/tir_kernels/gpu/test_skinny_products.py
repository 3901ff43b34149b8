"""The products of a decode step, against NumPy's in float64 with the operands as rounded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, silu

from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import COOPERATIVE, LARGE, LEAST
from tir_kernels.gpu import skinny
from tir_kernels.gpu.skinny.cooperative import CooperativePlan
from tir_kernels.gpu.skinny.plan import BLOCK, Plan, Shape, spread_for
from tir_kernels.gpu.unit import SM80, SM90A, GpuUnit

EPS = 1e-5
# Sums of some hundred products of unit normals, scaled to unit variance, in float32.
TOLERANCE = 3e-6
SMALL = GpuUnit("cooperative", threads=256, shared=16 * 1024)
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's sizes, and how a step's kernels are to be spread."""

    batch: int
    dtype: str
    dim: int
    value_dim: int
    z_dim: int
    hidden: int
    groups: int = 1
    swiglu: bool = True
    scaled: bool = False
    sms: int = 3
    max_tiles: int = 16

    unit: GpuUnit | None = None

    @property
    def on(self) -> GpuUnit:
        return self.unit or (SM90A if self.batch == 1 else SM80)

    @property
    def spread(self) -> skinny.Spread:
        return skinny.Spread(self.sms, max_tiles=self.max_tiles, max_warps=4)

    @property
    def how(self) -> dict:
        return {"unit": self.on, "spread": self.spread}

    def norm(self, centred: bool) -> skinny.Norm:
        return skinny.Norm(self.dim, self.groups, EPS, centred)

    @property
    def fused(self) -> bool:
        return skinny.norms_fused(self.batch, self.norm(True), self.dtype, self.on, self.spread)


CASES = {
    "one row": Case(1, "bfloat16", 256, 512, 20, 40, scaled=True, max_tiles=2),
    "four rows": Case(4, "float16", 128, 256, 24, 33, sms=2, max_tiles=4),
    "many rows": Case(32, "bfloat16", 128, 192, 8, 24),
    "an SM for each tile": Case(8, "float16", 128, 128, 8, 16, swiglu=False, sms=132),
    "odd shape": Case(4, "bfloat16", 36, 50, 6, 23, swiglu=False),
    "groups": Case(1, "float16", 256, 128, 6, 23, groups=4),
    "float32": Case(1, "float32", 128, 66, 8, 30, scaled=True),
    "float32, many rows": Case(32, "float32", 24, 20, 4, 14),
    # Inputs in several chunks; inputs shared by several warps.
    "least": Case(1, "float16", 1024, 9000, 20, 40, unit=LEAST),
    "least, eight rows": Case(8, "bfloat16", 1536, 200, 20, 8, unit=LEAST),
    "large": Case(1, "bfloat16", 4096, 1024, 6, 33, sms=132, unit=LARGE),
    "matrix units": Case(8, "float16", 128, 256, 24, 33, sms=2, unit=COOPERATIVE, scaled=True),
    "matrix units, many rows": Case(
        32, "bfloat16", 256, 4096, 8, 300, sms=3, unit=COOPERATIVE, swiglu=False
    ),
    "matrix units, small": Case(16, "float16", 2080, 64, 16, 40, sms=2, unit=SMALL),
    "matrix units, odd shape": Case(16, "float16", 72, 48, 16, 40, unit=COOPERATIVE),
    "large, many rows": Case(32, "float16", 2080, 136, 6, 9, sms=132, unit=LARGE),
}
everywhere = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


class Numbers:
    """Random operands of a case."""

    def __init__(self, case: Case, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._dtype = DTYPES[case.dtype]

    def floats(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, dtype=np.float32)

    def rounded(self, *shape: int) -> np.ndarray:
        return self.floats(*shape).astype(self._dtype)

    def weight(self, outputs: int, inputs: int) -> np.ndarray:
        return (self.floats(outputs, inputs) / inputs**0.5).astype(self._dtype)


def product(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ w.astype(np.float64).T


def unwritten(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.full(shape, np.nan, DTYPES[dtype])


def normalised(case: Case, centred: bool, x, weight, bias=0.0) -> np.ndarray:
    groups = x.astype(np.float64).reshape(case.batch, case.groups, -1)
    if centred:
        groups = groups - groups.mean(-1, keepdims=True)
    groups = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + EPS)
    return groups.reshape(x.shape) * weight + bias


def as_staged(case: Case, x: np.ndarray) -> np.ndarray:
    """Normalised activations as the tensor cores get them."""
    return x.astype(DTYPES[case.dtype])


def inputs_of_norm(case: Case, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What a kernel takes: x, or what ``*norm_step`` made of it."""
    return x if case.fused else as_staged(case, wanted)


@everywhere
def test_projections(case: Case) -> None:
    numbers = Numbers(case, 0)
    columns = case.z_dim + case.value_dim + case.dim
    kernel = GpuKernel(
        skinny.projections_step(
            case.batch,
            case.norm(centred=False),
            case.value_dim,
            case.z_dim,
            case.dtype,
            **case.how,
        )
    )
    o, y = numbers.rounded(case.batch, case.dim), numbers.floats(case.batch, case.dim)
    weight = 1.0 + 0.1 * numbers.floats(case.dim)
    wv, bias_v = numbers.weight(case.value_dim, case.dim), numbers.floats(case.value_dim)
    wzrh, bias = numbers.weight(columns, case.dim), numbers.floats(columns)
    mx = normalised(case, False, y, weight)
    v, projected = kernel(
        o,
        inputs_of_norm(case, y, mx),
        weight,
        wv,
        bias_v,
        wzrh,
        bias,
        unwritten(case.batch, case.value_dim),
        unwritten(case.batch, columns),
        writes=(-2, -1),
    )
    assert_near(v, silu(product(o, wv) + bias_v), TOLERANCE)
    wanted = product(as_staged(case, mx), wzrh) + bias
    gate = slice(case.z_dim, case.z_dim + case.value_dim)
    wanted[:, gate] = silu(wanted[:, gate])
    assert_near(projected, wanted, TOLERANCE + ROUNDING[case.dtype] / 4)


@everywhere
def test_wh2(case: Case) -> None:
    numbers = Numbers(case, 1)
    offset = case.z_dim + case.value_dim
    kernel = GpuKernel(
        skinny.wh2_step(case.batch, case.value_dim, case.dim, case.z_dim, case.dtype, **case.how)
    )
    gated, w = numbers.rounded(case.batch, case.value_dim), numbers.weight(case.dim, case.value_dim)
    projected = numbers.floats(case.batch, offset + case.dim)
    x = numbers.floats(case.batch, case.dim)
    out = kernel(gated, w, projected, x, unwritten(case.batch, case.dim))
    assert_near(out, product(gated, w) + projected[:, offset:] + x, TOLERANCE)


@everywhere
def test_fc1(case: Case) -> None:
    numbers = Numbers(case, 2)
    norm = case.norm(centred=True)
    kernel = GpuKernel(
        skinny.fc1_step(case.batch, norm, case.hidden, case.swiglu, case.dtype, **case.how)
    )
    # A mean far from zero costs the variance no digits.
    out = numbers.floats(case.batch, case.dim) + 30.0
    weight, bias = 1.0 + 0.1 * numbers.floats(case.dim), numbers.floats(case.dim)
    w = numbers.weight(case.hidden * (2 if case.swiglu else 1), case.dim)
    n = normalised(case, True, out, weight, bias)
    hid = kernel(
        inputs_of_norm(case, out, n),
        weight,
        bias,
        w,
        unwritten(case.batch, case.hidden, dtype=case.dtype),
    )
    sums = product(as_staged(case, n), w)
    wanted = silu(sums[:, : case.hidden]) * (sums[:, case.hidden :] if case.swiglu else 1.0)
    assert_near(hid, wanted, 3 * TOLERANCE + ROUNDING[case.dtype])


@everywhere
def test_fc2(case: Case) -> None:
    numbers = Numbers(case, 3)
    builder = skinny.fc2_scaled_step if case.scaled else skinny.fc2_step
    inputs = case.value_dim
    kernel = GpuKernel(builder(case.batch, inputs, case.dim, case.dtype, **case.how))
    hid, w = numbers.rounded(case.batch, inputs), numbers.weight(case.dim, inputs)
    residual, alpha = numbers.floats(case.batch, case.dim), numbers.floats(case.dim)
    scale = [alpha] if case.scaled else []
    x = kernel(hid, w, residual, *scale, unwritten(case.batch, case.dim))
    assert_near(x, product(hid, w) * (alpha if case.scaled else 1.0) + residual, TOLERANCE)


@pytest.mark.parametrize(
    ("batch", "dim", "dtype", "shared"),
    [(2, 256, "float16", 200_000), (32, 1024, "bfloat16", 90_000), (1, 33, "float32", 48_000)],
    ids=["at once", "in chunks", "without tensor cores"],
)
def test_logits(batch: int, dim: int, dtype: str, shared: int) -> None:
    rng = np.random.default_rng(4)
    outputs = 101
    kernel = GpuKernel(
        skinny.logits_step(
            batch,
            dim,
            outputs,
            dtype,
            SM80,
            skinny.Spread(3, max_tiles=8, max_warps=4, shared=shared),
        )
    )
    o = rng.standard_normal((batch, dim)).astype(DTYPES[dtype])
    w = (rng.standard_normal((outputs, dim)) / dim**0.5).astype(DTYPES[dtype])
    y = kernel(o, w, unwritten(batch, outputs))
    assert_near(y, product(o, w), TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("unit", [SM90A, SM80], ids=["sm_90", "sm_80"])
def test_large_shapes_fit_the_tensor_cores(batch: int, unit: GpuUnit) -> None:
    spread = spread_for(batch, unit)
    norm = skinny.Norm(4096, 1, EPS, centred=True)
    assert skinny.norms_fused(batch, norm, "bfloat16", unit) == (batch <= 8)
    assert spread.shared <= (227 if unit is SM90A else 99) * 1024 - 1024
    for inputs, outputs, gated in ((4096, 13312, False), (8192, 4096, False), (4096, 8192, True)):
        plan = Plan(Shape(batch, inputs, outputs, "bfloat16", gated), spread)
        assert plan.fits
        assert plan.bytes <= spread.shared
        assert plan.threads <= 1024
        assert plan.ctas * plan.tiles * plan.span >= outputs
        assert plan.parts * plan.depth * plan.splits * plan.chunks * BLOCK == inputs
        # What is normalised in the kernel must be in shared memory at once.
        assert plan.chunks == 1 or batch > 8 or inputs == 8192


@everywhere
def test_norms(case: Case) -> None:
    numbers = Numbers(case, 5)
    x = numbers.floats(case.batch, case.dim) + 30.0
    weight, bias = 1.0 + 0.1 * numbers.floats(case.dim), numbers.floats(case.dim)
    y = unwritten(case.batch, case.dim, dtype=case.dtype)
    tolerance = 1e-5 + ROUNDING[case.dtype]
    norm = case.norm(centred=False)
    found = GpuKernel(skinny.rmsnorm_step(case.batch, norm, case.dtype, case.on))(x, weight, y)
    assert_near(found, normalised(case, False, x, weight), tolerance)
    norm = case.norm(centred=True)
    found = GpuKernel(skinny.layernorm_step(case.batch, norm, case.dtype, case.on))(
        x, weight, bias, y
    )
    assert_near(found, normalised(case, True, x, weight, bias), tolerance)


@pytest.mark.parametrize("batch", [8, 16, 32])
@pytest.mark.parametrize("unit", [COOPERATIVE, SMALL, GpuUnit("cooperative", 128, 32 << 10)])
@pytest.mark.parametrize("outputs", [(8192, 13312), (40, 8192), (17, 100)])
def test_matrix_units_of_one_kernel(batch: int, unit: GpuUnit, outputs: tuple[int, int]) -> None:
    """Products of one kernel have the same threads, and each keeps to the unit's limits."""
    shapes = [Shape(batch, 4096, n, "float16") for n in outputs]
    for few in (True, False):
        plans = [CooperativePlan(shape, unit, 66, few) for shape in shapes]
        tiles = max(plan.tiles for plan in plans)
        plans = [dataclasses.replace(plan, least_tiles=tiles) for plan in plans]
        assert len({plan.threads for plan in plans}) == 1
        for plan in plans:
            assert plan.threads <= unit.threads and 4 * plan.words <= unit.shared
            assert plan.ctas * plan.tiles * 16 >= plan.shape.outputs
            assert plan.chunks * plan.chunk == 4096 and plan.chunks % plan.together == 0
