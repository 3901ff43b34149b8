"""Every operation against a loop over steps written from the formulas alone, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gecko_mlc.reference.ops import (
    cema_coefficients,
    complex_ema,
    group_layer_norm,
    group_rms_norm,
    memory_commit,
    memory_read,
    rotary,
    rotation,
    sliding_chunk_attention,
    timestep_decay_norm,
)

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_timenorm(
    x: Tensor, mean: Tensor, var: Tensor, count: int, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, features = x.shape
    groups = mean.shape[1]
    rows = []
    for t in range(length):
        step = x[:, t].reshape(batch, groups, features // groups)
        u = step.sum(-1) * groups / features
        s = ((step - u[..., None]) ** 2).sum(-1) * groups / features
        mean, var, count = beta1 * mean + (1 - beta1) * u, beta2 * var + (1 - beta2) * s, count + 1
        centre, spread = mean / (1 - beta1**count), var / (1 - beta2**count)
        rows.append(((step - centre[..., None]) / (spread[..., None] + eps).sqrt()).flatten(1))
    return torch.stack(rows, 1), mean, var


@pytest.mark.parametrize(("length", "count"), [(1, 0), (1, 700), (5, 0), (300, 3)])
def test_timenorm(length: int, count: int) -> None:
    x, weight, bias = normal(2, length, 12) + 3, normal(12, seed=1), normal(12, seed=2)
    mean, var = normal(2, 4, seed=3) * 0.01, normal(2, 4, seed=4).abs() * 0.001
    betas = 0.999, 0.9999, 1e-5
    y, end_mean, end_var = timestep_decay_norm(x, mean, var, count, weight, bias, *betas)
    wanted, wanted_mean, wanted_var = naive_timenorm(x, mean, var, count, *betas)
    torch.testing.assert_close(y, wanted * weight + bias, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(end_mean, wanted_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(end_var, wanted_var, rtol=1e-12, atol=1e-14)


def test_timenorm_gradient() -> None:
    x, mean, var = normal(2, 9, 6), normal(2, 3, seed=1), normal(2, 3, seed=2).square() + 0.1
    weight, bias = normal(6, seed=3), normal(6, seed=4)
    inputs = [t.requires_grad_() for t in (x, mean, var, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda x, m, v, w, b: timestep_decay_norm(x, m, v, 4, w, b, 0.9, 0.8, 1e-5), inputs
    )


def test_bfloat16_timenorm_keeps_moving() -> None:
    """On a growing input a bfloat16 average would stop; over 3000 single steps this must not."""
    steps = torch.linspace(0.5, 4.0, 3000, dtype=DOUBLE)
    x = (normal(1, 3000, 8) * steps[None, :, None]).bfloat16()
    weight, bias = torch.ones(8), torch.zeros(8)
    mean = var = torch.zeros(1, 2)
    rows = []
    for t in range(3000):
        y, mean, var = timestep_decay_norm(
            x[:, t : t + 1], mean, var, t, weight, bias, 0.999, 0.9999, 1e-5
        )
        rows.append(y)
    assert rows[0].dtype == torch.bfloat16 and var.dtype == torch.float32
    start = torch.zeros(1, 2, dtype=DOUBLE)
    wanted, wanted_mean, wanted_var = naive_timenorm(
        x.double(), start, start, 0, 0.999, 0.9999, 1e-5
    )
    torch.testing.assert_close(var.double(), wanted_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-4, atol=1e-5)
    found = torch.cat(rows, 1).double()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-3)


def naive_cema(
    x: Tensor, h: Tensor, alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    modes = alpha.shape[1]
    phase = torch.sigmoid(theta) * 2 * math.pi / modes
    p = torch.sigmoid(alpha)
    size = 1 - p * torch.sigmoid(delta)
    angle = phase[:, None] * torch.arange(1, modes + 1)
    q = torch.complex(size * angle.cos(), size * angle.sin())
    weight = torch.complex(gamma[..., 0], gamma[..., 1])
    rows = []
    for t in range(x.shape[1]):
        h = q * h + p * x[:, t, :, None]
        rows.append((weight * h).sum(-1).real + x[:, t])
    return torch.stack(rows, 1), h


def cema_inputs(length: int) -> list[Tensor]:
    x, h = normal(2, length, 6), torch.complex(normal(2, 6, 3, seed=1), normal(2, 6, 3, seed=2))
    alpha, delta = normal(6, 3, seed=3), normal(6, 3, seed=4) - 3
    return [x, h, alpha, delta, normal(6, seed=5), normal(6, 3, 2, seed=6)]


def cema(
    x: Tensor, h: Tensor, alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    return complex_ema(x, h, *cema_coefficients(alpha, delta, theta, gamma, x.dtype))


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 205])
def test_cema(length: int) -> None:
    inputs = cema_inputs(length)
    for found, wanted in zip(cema(*inputs), naive_cema(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_cema_float32() -> None:
    """Slow decays, 1 - |q| near 1e-4, over 4000 steps: the rounding of q is what is left."""
    inputs = cema_inputs(4000)
    inputs[3] -= 6
    single = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in inputs]
    exact = [t.to(torch.complex128 if t.is_complex() else DOUBLE) for t in single]
    for found, wanted in zip(cema(*single), naive_cema(*exact), strict=True):
        assert found.dtype in (torch.float32, torch.complex64)
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("length", [1, 7, 70])
def test_cema_gradient(length: int) -> None:
    inputs = [t.requires_grad_() for t in cema_inputs(length)]
    weight = normal(2, length, 6, seed=9)
    gradients = []
    for form in (cema, naive_cema):
        y, h = form(*inputs)
        loss = (y * weight).sum() + h.abs().square().sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_cema_gradient_where_a_mode_forgets_at_once() -> None:
    """|q| = 0 exactly: no power or logarithm of it may turn into NaN."""
    inputs = cema_inputs(40)
    inputs[2][0], inputs[3][0] = 100.0, 100.0
    inputs = [t.requires_grad_() for t in inputs]
    y, _ = cema(*inputs)
    torch.testing.assert_close(y, naive_cema(*inputs)[0])
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient.abs().isfinite().all()


@pytest.mark.parametrize("groups", [1, 3])
def test_norms(groups: int) -> None:
    x, weight, bias = normal(2, 5, 12), normal(12, seed=1), normal(12, seed=2)
    rms, layer = torch.empty_like(x), torch.empty_like(x)
    for i in range(groups):
        part = slice(i * 12 // groups, (i + 1) * 12 // groups)
        values = x[..., part]
        rms[..., part] = values / ((values**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        centred = values - values.mean(-1, keepdim=True)
        layer[..., part] = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(group_rms_norm(x, weight, groups, 1e-5), rms * weight)
    torch.testing.assert_close(group_rms_norm(x, None, groups, 1e-5), rms)
    torch.testing.assert_close(
        group_layer_norm(x, weight, bias, groups, 1e-5), layer * weight + bias
    )
    torch.testing.assert_close(group_layer_norm(x, None, None, groups, 1e-5), layer)
    low = group_layer_norm(x.bfloat16(), weight.float(), bias.float(), groups, 1e-5)
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_rotary(heads: int) -> None:
    x, base, position = normal(2, 4, 3, 8), 10000.0, 4_000_000
    turns = rotation(position, 4, 8, base, DOUBLE, x.device)
    found = rotary(x, turns, heads)
    wanted = x.clone()
    for t in range(4):
        for head in range(heads):
            for j in range(4):
                angle = (position + t) * base ** (-2 * j / 8)
                a, b = x[:, t, head, 2 * j], x[:, t, head, 2 * j + 1]
                wanted[:, t, head, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
                wanted[:, t, head, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 40), (5, 5), (7, 30), (150, 310)])
def test_attention(n: int, m: int) -> None:
    q, k, v = normal(2, 3, n, 4), normal(2, 3, m, 4, seed=1), normal(2, 3, m, 6, seed=2)
    found = sliding_chunk_attention(q, k, v)
    for row in range(n):
        seen = m - n + row + 1
        weights = torch.exp((k[:, :, :seen] * q[:, :, row, None]).sum(-1))
        wanted = (weights[..., None] * v[:, :, :seen]).sum(2) / weights.sum(-1)[..., None]
        torch.testing.assert_close(found[:, :, row], wanted)


def test_memory() -> None:
    """Three commits: unrolled, M is a running average of the chunks' corrected summaries."""
    memory, log_norm = torch.zeros(2, 3, 4, dtype=DOUBLE), torch.full((2, 3), -math.inf).double()
    wanted, weight = torch.zeros_like(memory), torch.zeros(2, 3, dtype=DOUBLE)
    for chunk in range(3):
        key, value = 3 * normal(2, 5, 3, seed=chunk), normal(2, 5, 4, seed=10 + chunk)
        memory, log_norm = memory_commit(memory, log_norm, key, value)
        raw = torch.exp(key)
        shares = raw / raw.sum(2, keepdim=True)  # over features
        news = value - torch.einsum("bts,bsv->btv", shares, wanted)
        summary = torch.einsum("bts,btv->bsv", raw, news) / raw.sum(1)[..., None]
        before, weight = weight, weight + raw.sum(1)
        wanted = (before[..., None] * wanted + raw.sum(1)[..., None] * summary) / weight[..., None]
        torch.testing.assert_close(memory, wanted)
        torch.testing.assert_close(log_norm, weight.log())
    query = normal(2, 7, 3, seed=20)
    raw = torch.exp(query)
    read = torch.einsum("bts,bsv->btv", raw / raw.sum(-1, keepdim=True), wanted)
    torch.testing.assert_close(memory_read(query, memory), read)
