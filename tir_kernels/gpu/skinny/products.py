"""The products of a decode step: activations [B, inputs] times weights [outputs, inputs].

Each reads its weights once and does what comes before and after the product on the way; the first
weights are under way before it waits for the kernel before. ``spread`` sets how the work is dealt
out, never what it computes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tvm.script import tirx as T

from ...vector_math import silu
from ..dependent_launch import DependentLaunch
from ..unit import GpuUnit
from . import cooperative
from .cooperative import CooperativePlan, cooperative_product
from .ending import Ending
from .norms import Norm, Normalised, norms_fused
from .plan import Plan, Shape, Spread, spread_for
from .rows import Rows
from .simt import SimtPlan, simt_product
from .tensor_core import tensor_core_product


@dataclasses.dataclass(frozen=True)
class Product:
    """The work of ``ctas`` CTAs: a product with what comes before (``source``) and after it.

    ``run`` is an inline (W, (inputs, outputs), arena, cta, tx) for a CTA of ``threads`` threads;
    ``arena`` is ``shared`` elements of ``element`` in shared memory of that ``scope``.
    """

    ctas: int
    threads: int
    shared: int
    element: str
    scope: str
    run: Callable


@dataclasses.dataclass(frozen=True)
class Part:
    """One product of a kernel: ``sms`` multiprocessors for it, what comes before and after."""

    shape: Shape
    sms: int
    source: Rows | Normalised
    ending: Ending


class _Maker:
    """How the products of one kernel are made: their unit, spread and launch."""

    def __init__(self, batch: int, dtype: str, unit: GpuUnit, spread: Spread | None):
        self.batch, self.dtype, self.unit = batch, dtype, unit
        self.spread = spread or spread_for(batch, unit)
        self.launch = DependentLaunch(unit.dependent_launch)

    def normed(self, norm: Norm) -> tuple[Rows | Normalised, str]:
        """Activations after a norm: float32 rows to be normalised, or rows that already are."""
        if norms_fused(self.batch, norm, self.dtype, self.unit, self.spread):
            return Normalised(norm), "float32"
        return Rows(), self.dtype

    def products(self, *parts: Part) -> list[Product]:
        """Those of one kernel, all with the same number of threads."""
        shapes = [part.shape for part in parts]
        if self.unit.ptx:
            spreads = [dataclasses.replace(self.spread, sms=part.sms) for part in parts]
            plans = _alike([Plan(*pair) for pair in zip(shapes, spreads, strict=True)])
            if all(plan.fits for plan in plans):
                return [self._tensor_cores(*pair) for pair in zip(parts, plans, strict=True)]
        if all(cooperative.serves(shape, self.unit) for shape in shapes):
            small = all(cooperative.small(part.shape, part.sms) for part in parts)
            matrices = _alike([CooperativePlan(p.shape, self.unit, p.sms, small) for p in parts])
            return [_matrix_units(*pair) for pair in zip(parts, matrices, strict=True)]
        return [self._lanes(part) for part in parts]

    def _tensor_cores(self, part: Part, plan: Plan) -> Product:
        run = tensor_core_product(plan, part.source, part.ending, self.launch)
        return Product(plan.ctas, plan.threads, plan.bytes, "uint8", "shared.dyn", run)

    def _lanes(self, part: Part) -> Product:
        plan = SimtPlan(part.shape, self.unit, self.spread.sms)
        run = simt_product(plan, part.source, part.ending, self.launch)
        return Product(plan.ctas, plan.threads, plan.staged, self.dtype, "shared", run)

    def one(
        self, inputs: int, outputs: int, source: Rows | Normalised, ending: Ending, gated=False
    ) -> Product:
        shape = Shape(self.batch, inputs, outputs, self.dtype, gated)
        return self.products(Part(shape, self.spread.sms, source, ending))[0]


def _matrix_units(part: Part, plan: CooperativePlan) -> Product:
    run = cooperative_product(plan, part.ending)
    return Product(plan.ctas, plan.threads, plan.words, "uint32", "shared", run)


def _alike(plans: list) -> list:
    """The plans with as many tiles for a CTA as the one that has most."""
    tiles = max(plan.tiles for plan in plans)
    return [dataclasses.replace(plan, least_tiles=tiles) for plan in plans]


@functools.cache
def projections_step(
    batch: int,
    norm: Norm,
    value_dim: int,
    z_dim: int,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """v = silu(wv o + bias_v) and projected = z | silu(r) | h, each wzrh mx + bias.

    o [B, D] of ``dtype``; mx = RMSNorm(y), y [B, D] float32, or, without ``norms_fused``, y
    is mx already, of ``dtype``. v [B, E] and projected [B, S + E + D] are float32.
    """
    dim = norm.dim
    columns = z_dim + value_dim + dim
    make = _Maker(batch, dtype, unit, spread)
    source, source_dtype = make.normed(norm)

    def bias_of(others, b, output):
        return others[0][output]

    @T.inline
    def write_v(others, sums, b, output):
        others[1][b, output] = silu(sums[0])

    @T.inline
    def write_projected(others, sums, b, output):
        others[1][b, output] = T.Select(
            T.And(output >= z_dim, output < z_dim + value_dim), silu(sums[0]), sums[0]
        )

    # CTAs in proportion to the outputs.
    launch, sms = make.launch, make.spread.sms
    share = max(1, sms * value_dim // (value_dim + columns))
    of_v, of_columns = (Shape(batch, dim, outputs, dtype) for outputs in (value_dim, columns))
    first, second = make.products(
        Part(of_v, share, Rows(), Ending(write_v, bias_of)),
        Part(of_columns, sms - share, source, Ending(write_projected, bias_of)),
    )

    @T.prim_func(private=True)
    def projections_step(
        o: T.handle,
        y: T.handle,
        weight: T.handle,
        wv: T.handle,
        bias_v: T.handle,
        wzrh: T.handle,
        bias: T.handle,
        v: T.handle,
        projected: T.handle,
    ):
        T.func_attr(launch.attributes)
        Normed = T.match_buffer(o, (batch, dim), dtype)
        Y = T.match_buffer(y, (batch, dim), source_dtype)
        Weight = T.match_buffer(weight, (dim,), "float32")
        Wv = T.match_buffer(wv, (value_dim, dim), dtype)
        BiasV = T.match_buffer(bias_v, (value_dim,), "float32")
        Wzrh = T.match_buffer(wzrh, (columns, dim), dtype)
        Bias = T.match_buffer(bias, (columns,), "float32")
        V = T.match_buffer(v, (batch, value_dim), "float32")
        Projected = T.match_buffer(projected, (batch, columns), "float32")
        T.device_entry()
        cta = T.cta_id([first.ctas + second.ctas])
        tx = T.thread_id([first.threads])
        arena = T.alloc_buffer(
            (max(first.shared, second.shared),), first.element, scope=first.scope
        )
        if cta < first.ctas:
            first.run(Wv, ((Normed,), (BiasV, V)), arena, cta, tx)
        else:
            second.run(Wzrh, ((Y, Weight), (Bias, Projected)), arena, cta - first.ctas, tx)

    return projections_step


@functools.cache
def wh2_step(
    batch: int,
    value_dim: int,
    dim: int,
    z_dim: int,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """out [B, D] float32 = wh2 gated + h + x; h stands behind z and r in projected [B, S + E + D].

    gated [B, E] of ``dtype``, x [B, D] float32.
    """
    offset = z_dim + value_dim

    def residuals(others, b, output):
        return others[0][b, offset + output] + others[1][b, output]

    @T.inline
    def write(others, sums, b, output):
        others[2][b, output] = sums[0]

    make = _Maker(batch, dtype, unit, spread)
    launch = make.launch
    product = make.one(value_dim, dim, Rows(), Ending(write, residuals))

    @T.prim_func(private=True)
    def wh2_step(gated: T.handle, w: T.handle, projected: T.handle, x: T.handle, out: T.handle):
        T.func_attr(launch.attributes)
        Gated = T.match_buffer(gated, (batch, value_dim), dtype)
        W = T.match_buffer(w, (dim, value_dim), dtype)
        Projected = T.match_buffer(projected, (batch, offset + dim), "float32")
        X = T.match_buffer(x, (batch, dim), "float32")
        Out = T.match_buffer(out, (batch, dim), "float32")
        T.device_entry()
        cta = T.cta_id([product.ctas])
        tx = T.thread_id([product.threads])
        arena = T.alloc_buffer((product.shared,), product.element, scope=product.scope)
        product.run(W, ((Gated,), (Projected, X, Out)), arena, cta, tx)

    return wh2_step


@functools.cache
def fc1_step(
    batch: int,
    norm: Norm,
    hidden: int,
    swiglu: bool,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """hid [B, F] of ``dtype`` = silu(fc1 n) * fc3 n, or silu(fc1 n) without ``swiglu``.

    w [2F, D] is fc1 over fc3, or just fc1 [F, D].
    n = LayerNorm(out), out [B, D] float32, or, without ``norms_fused``, out is n already, of
    ``dtype``.
    """
    make = _Maker(batch, dtype, unit, spread)
    source, source_dtype = make.normed(norm)

    def gate(sums):
        return silu(sums[0]) * sums[1] if swiglu else silu(sums[0])

    @T.inline
    def write(others, sums, b, output):
        others[0][b, output] = T.Cast(dtype, gate(sums))

    launch = make.launch
    product = make.one(norm.dim, hidden, source, Ending(write), gated=swiglu)

    @T.prim_func(private=True)
    def fc1_step(out: T.handle, weight: T.handle, bias: T.handle, w: T.handle, hid: T.handle):
        T.func_attr(launch.attributes)
        Out = T.match_buffer(out, (batch, norm.dim), source_dtype)
        Weight = T.match_buffer(weight, (norm.dim,), "float32")
        Bias = T.match_buffer(bias, (norm.dim,), "float32")
        W = T.match_buffer(w, (2 * hidden if swiglu else hidden, norm.dim), dtype)
        Hid = T.match_buffer(hid, (batch, hidden), dtype)
        T.device_entry()
        cta = T.cta_id([product.ctas])
        tx = T.thread_id([product.threads])
        arena = T.alloc_buffer((product.shared,), product.element, scope=product.scope)
        product.run(W, ((Out, Weight, Bias), (Hid,)), arena, cta, tx)

    return fc1_step


@functools.cache
def fc2_step(
    batch: int,
    hidden: int,
    dim: int,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """x [B, D] float32 = fc2 hid + residual; hid [B, F] of ``dtype``, residual [B, D] float32."""

    def residual_of(others, b, output):
        return others[0][b, output]

    @T.inline
    def write(others, sums, b, output):
        others[1][b, output] = sums[0]

    make = _Maker(batch, dtype, unit, spread)
    launch = make.launch
    product = make.one(hidden, dim, Rows(), Ending(write, residual_of))

    @T.prim_func(private=True)
    def fc2_step(hid: T.handle, w: T.handle, residual: T.handle, x: T.handle):
        T.func_attr(launch.attributes)
        Hid = T.match_buffer(hid, (batch, hidden), dtype)
        W = T.match_buffer(w, (dim, hidden), dtype)
        Residual = T.match_buffer(residual, (batch, dim), "float32")
        X = T.match_buffer(x, (batch, dim), "float32")
        T.device_entry()
        cta = T.cta_id([product.ctas])
        tx = T.thread_id([product.threads])
        arena = T.alloc_buffer((product.shared,), product.element, scope=product.scope)
        product.run(W, ((Hid,), (Residual, X)), arena, cta, tx)

    return fc2_step


@functools.cache
def fc2_scaled_step(
    batch: int,
    hidden: int,
    dim: int,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """x [B, D] float32 = alpha * fc2 hid + residual (rescale_nffn), alpha [D] float32."""

    @T.inline
    def write(others, sums, b, output):
        others[2][b, output] = others[1][output] * sums[0] + others[0][b, output]

    make = _Maker(batch, dtype, unit, spread)
    launch = make.launch
    product = make.one(hidden, dim, Rows(), Ending(write))

    @T.prim_func(private=True)
    def fc2_step(hid: T.handle, w: T.handle, residual: T.handle, alpha: T.handle, x: T.handle):
        T.func_attr(launch.attributes)
        Hid = T.match_buffer(hid, (batch, hidden), dtype)
        W = T.match_buffer(w, (dim, hidden), dtype)
        Residual = T.match_buffer(residual, (batch, dim), "float32")
        Alpha = T.match_buffer(alpha, (dim,), "float32")
        X = T.match_buffer(x, (batch, dim), "float32")
        T.device_entry()
        cta = T.cta_id([product.ctas])
        tx = T.thread_id([product.threads])
        arena = T.alloc_buffer((product.shared,), product.element, scope=product.scope)
        product.run(W, ((Hid,), (Residual, Alpha, X)), arena, cta, tx)

    return fc2_step


@functools.cache
def logits_step(
    batch: int,
    dim: int,
    outputs: int,
    dtype: str,
    unit: GpuUnit,
    spread: Spread | None = None,
):
    """y [B, V] float32 = w o, o [B, D] of ``dtype``."""

    @T.inline
    def write(others, sums, b, output):
        others[0][b, output] = sums[0]

    make = _Maker(batch, dtype, unit, spread)
    launch = make.launch
    product = make.one(dim, outputs, Rows(), Ending(write))

    @T.prim_func(private=True)
    def logits_step(o: T.handle, w: T.handle, y: T.handle):
        T.func_attr(launch.attributes)
        Normed = T.match_buffer(o, (batch, dim), dtype)
        W = T.match_buffer(w, (outputs, dim), dtype)
        Y = T.match_buffer(y, (batch, outputs), "float32")
        T.device_entry()
        cta = T.cta_id([product.ctas])
        tx = T.thread_id([product.threads])
        arena = T.alloc_buffer((product.shared,), product.element, scope=product.scope)
        product.run(W, ((Normed,), (Y,)), arena, cta, tx)

    return logits_step
