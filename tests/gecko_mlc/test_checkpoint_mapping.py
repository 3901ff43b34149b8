"""The folds against formulas written another way: complex numbers, sums instead of recurrences."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

from gecko_mlc.checkpoint import mapping
from gecko_mlc.config import GeckoConfig

PLAIN = GeckoConfig(
    num_layers=1,
    model_dim=12,
    z_dim=8,
    value_dim=20,
    num_heads=2,
    ffn_hidden_dim=16,
    vocab_size=32,
    cema_ndim=3,
    chunk_size=5,
    timenorm_num_groups=4,
)
OTHER = GeckoConfig.from_dict(
    {
        **PLAIN.to_dict(),
        "norm_affine": False,
        "swiglu": False,
        "rescale_nffn": True,
        "share_emb": True,
        "num_rope_heads": 0,
    }
)

TIMENORM = {"weight": [12], "bias": [12], "prior_count": [1], "prior_mean": [4], "prior_var": [4]}
MEGA = {
    "cema.p": [12, 3],
    "cema.q": [12, 3, 2],
    "cema.gamma": [12, 3, 2],
    "rmsnorm.weight": [12],
    "wv.weight": [20, 12],
    "wv.bias": [20],
    "wzrh.weight": [40, 12],
    "wzrh.bias": [40],
    "gamma": [4, 8],
    "beta": [4, 8],
    "wh2.weight": [12, 20],
}
NARROW = {"embed", "wv", "wzrh", "wh2", "fc1", "fc2", "output.output"}


def table(config: GeckoConfig, quantization: str = "q0f32") -> dict[str, mapping.Parameter]:
    return {row.name: row for row in mapping.parameters(config, quantization)}


@pytest.mark.parametrize("config", [PLAIN, OTHER], ids=["plain", "other"])
def test_names_and_shapes(config: GeckoConfig) -> None:
    wanted = {"embed.weight": [32, 12]}
    wanted |= {f"layers.0.mega.timenorm.{name}": shape for name, shape in TIMENORM.items()}
    wanted |= {f"layers.0.mega.{name}": shape for name, shape in MEGA.items()}
    wanted |= {f"output.final_norm.{name}": shape for name, shape in TIMENORM.items()}
    wanted |= {"layers.0.nffn.norm.weight": [12], "layers.0.nffn.norm.bias": [12]}
    wanted |= {"layers.0.nffn.fc2.weight": [12, 16], "rope.table": [10, 2, 2]}
    if config is PLAIN:
        wanted |= {"layers.0.nffn.fc1.weight": [32, 12], "output.output.weight": [32, 12]}
    else:
        wanted |= {"layers.0.nffn.fc1.weight": [16, 12], "layers.0.nffn.alpha": [12]}
    assert {name: list(row.shape) for name, row in table(config).items()} == wanted


@pytest.mark.parametrize(
    ("quantization", "narrow"), [("q0f32", "float32"), ("q0f16", "float16"), ("q0bf16", "bfloat16")]
)
def test_only_matrices_are_narrow(quantization: str, narrow: str) -> None:
    for name, row in table(PLAIN, quantization).items():
        if name.endswith("prior_count"):
            assert row.dtype == "int32"
        elif name.endswith(".weight") and any(name.endswith(f"{key}.weight") for key in NARROW):
            assert row.dtype == narrow, name
        else:
            assert row.dtype == "float32", name


def test_unknown_quantization() -> None:
    with pytest.raises(mapping.QuantizationError, match="q3f7.*q0f32, q0f16, q0bf16"):
        mapping.parameters(PLAIN, "q3f7")


def test_joined_matrices_keep_the_order_of_their_rows() -> None:
    rows = table(PLAIN)
    joined = [source.name for source in rows["layers.0.mega.wzrh.weight"].sources]
    assert joined == [f"layers.0.mega.{name}.weight" for name in ("wz", "wr", "wh1")]
    joined = [source.name for source in rows["layers.0.mega.wzrh.bias"].sources]
    assert joined == [f"layers.0.mega.{name}.bias" for name in ("wz", "wr", "wh1")]
    joined = [source.name for source in rows["layers.0.nffn.fc1.weight"].sources]
    assert joined == [f"layers.0.nffn.{name}.weight" for name in ("fc1", "fc3")]


def test_folded_cema_steps_like_the_complex_formula() -> None:
    rng = np.random.default_rng(0)
    d, n, length = 7, 5, 40
    alpha, delta = rng.normal(size=(d, n)), rng.normal(size=(d, n))
    theta, gamma = 3 * rng.normal(size=d), rng.normal(size=(d, n, 2))
    x = rng.normal(size=(length, d))

    # The sum that the recurrence unrolls to, one complex number at a time.
    def logistic(value: float) -> float:
        return 1.0 / (1.0 + math.exp(-value))

    wanted = np.array(x)
    for i in range(d):
        for k in range(n):
            p = logistic(alpha[i, k])
            angle = (k + 1) * logistic(theta[i]) * 2.0 * math.pi / n
            q = cmath.rect(1.0 - p * logistic(delta[i, k]), angle)
            mix = complex(*gamma[i, k])
            for t in range(length):
                total = sum(q ** (t - s) * p * x[s, i] for s in range(t + 1))
                wanted[t, i] += (mix * total).real

    fold_p = mapping.cema_p(alpha)
    q_re, q_im = np.moveaxis(mapping.cema_q(alpha, delta, theta), -1, 0)
    h_re, h_im = np.zeros((d, n)), np.zeros((d, n))
    for t in range(length):
        h_re, h_im = (
            q_re * h_re - q_im * h_im + fold_p * x[t, :, None],
            q_re * h_im + q_im * h_re,
        )
        y = (gamma[..., 0] * h_re - gamma[..., 1] * h_im).sum(-1) + x[t]
        np.testing.assert_allclose(y, wanted[t], rtol=1e-11, atol=1e-11)


def test_extreme_cema_parameters_neither_overflow_nor_round_to_zero() -> None:
    p = mapping.cema_p(np.array([[-60.0, 0.0, 60.0, -1000.0, 1000.0]]))
    np.testing.assert_allclose(p[0, :3], [math.exp(-60.0), 0.5, 1.0], rtol=1e-14)
    assert p[0, 3] == 0.0 and p[0, 4] == 1.0


def test_norms_and_attention_scale() -> None:
    rng = np.random.default_rng(1)
    stored = rng.normal(size=(4, 8))
    rows = table(PLAIN)
    scale = rows["layers.0.mega.gamma"].fold
    assert scale is not None
    np.testing.assert_allclose(scale(stored) * 2.0, stored + 1.0)  # zh = 4
    for name in ("mega.timenorm", "mega.rmsnorm", "nffn.norm"):
        fold = rows[f"layers.0.{name}.weight"].fold
        assert fold is not None
        np.testing.assert_array_equal(fold(stored[0]), stored[0] + 1.0)
    rows = table(OTHER)
    for name, value in (("mega.rmsnorm.weight", 1.0), ("nffn.norm.weight", 1.0)):
        fold = rows[f"layers.0.{name}"].fold
        assert fold is not None
        np.testing.assert_array_equal(fold(), np.full(12, value))
    fold = rows["layers.0.nffn.norm.bias"].fold
    assert fold is not None
    np.testing.assert_array_equal(fold(), np.zeros(12))


@pytest.mark.parametrize("base", [500000.0, 10000.0])
def test_rope_table_turns_by_the_same_angle_each_row(base: float) -> None:
    rows, zh = 64, 12
    table = mapping.rope_table(rows, zh, base)
    turns = table[..., 0] + 1j * table[..., 1]
    for j in range(zh // 2):
        step = cmath.exp(1j * math.exp(-2 * j / zh * math.log(base)))
        turned = 1.0 + 0.0j
        for index in range(rows):
            assert abs(turns[index, j] - turned) < 1e-12
            turned *= step


@pytest.mark.parametrize("count", [-1.0, 0.5, 2.0**31, math.nan])
def test_prior_count_has_to_be_a_count(count: float) -> None:
    with pytest.raises(ValueError, match="wanted a whole number from 0 to 2147483647"):
        mapping.whole_count(np.array(count))
