"""The whole model: its result does not depend on how a sequence is cut, and it can be trained."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko

PLAIN = GeckoConfig(
    num_layers=2,
    model_dim=12,
    z_dim=8,
    value_dim=12,
    num_heads=2,
    ffn_hidden_dim=10,
    vocab_size=11,
    cema_ndim=3,
    chunk_size=6,
    timenorm_num_groups=3,
)
OTHER = dataclasses.replace(
    PLAIN,
    num_rope_heads=1,
    layernorm_num_groups=2,
    norm_affine=False,
    swiglu=False,
    two_hop_residual=True,
    rescale_nffn=True,
    scale_emb=True,
    share_emb=True,
    timenorm_beta1=0.9,
    rope_base=100.0,
)
NO_ROPE = dataclasses.replace(PLAIN, num_rope_heads=0, z_dim=6, output_size=5)
CONFIGS = [PLAIN, OTHER, NO_ROPE]


def model(config: GeckoConfig, dtype: torch.dtype = torch.float64, noise: float = 0.3) -> Gecko:
    """A model whose every parameter matters (the initial norms and scales are zeros)."""
    torch.manual_seed(0)
    result = Gecko(config).double()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
        for name, buffer in result.named_buffers():
            if name.endswith("prior_count"):
                buffer.fill_(3)
            else:
                buffer.uniform_(0.001, 0.002)
    return Gecko.from_tensors(config, result.state_dict(), dtype)


def text(config: GeckoConfig, length: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.vocab_size, (batch, length), generator=generator)


@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    grad=st.booleans(),
)
def test_any_cut_gives_the_same(config: GeckoConfig, sizes: list[int], grad: bool) -> None:
    gecko = model(config)
    tokens = text(config, sum(sizes))
    state, pieces = None, []
    with torch.set_grad_enabled(grad):
        whole, end = gecko(tokens)
        for part in tokens.split(sizes, 1):
            logits, state = gecko(part, state)
            pieces.append(logits)
        single, _ = gecko(tokens[:1])
    assert (torch.cat(pieces, 1) - whole).norm() < 1e-10 * whole.norm()
    assert (single - whole[:1]).norm() < 1e-10 * whole.norm()  # sequences do not see one another
    assert state is not None and state.position == end.position == tokens.shape[1]
    valid = config.chunk_size + state.position % config.chunk_size
    for found, wanted in zip(state.layers, end.layers, strict=True):
        for field in dataclasses.fields(found):
            a, b = getattr(found, field.name), getattr(wanted, field.name)
            if "key" in field.name or field.name == "value":
                a, b = a[:, :valid], b[:, :valid]
                if state.position < config.chunk_size:  # no chunk before the first
                    a, b = a[:, config.chunk_size :], b[:, config.chunk_size :]
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_clone_is_a_fork() -> None:
    gecko, tokens = model(PLAIN), text(PLAIN, 30)
    with torch.inference_mode():
        whole, _ = gecko(tokens)
        _, state = gecko(tokens[:, :16])
        fork = state.clone()
        gecko(tokens[:, :14], state)
        rest, _ = gecko(tokens[:, 16:], fork)
    torch.testing.assert_close(rest, whole[:, 16:])


def test_a_later_token_changes_no_earlier_logits_and_an_early_one_is_remembered() -> None:
    gecko, tokens = model(PLAIN), text(PLAIN, 40)
    changed = tokens.clone()
    changed[:, 20] = (tokens[:, 20] + 1) % PLAIN.vocab_size
    with torch.inference_mode():
        difference = (gecko(tokens)[0] - gecko(changed)[0]).abs().amax((0, 2))
    assert (difference[:20] == 0).all()
    assert (difference[20:] > 1e-9).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_through_the_model(config: GeckoConfig) -> None:
    """Directional derivatives of a loss over two calls (state between them) by differences."""
    gecko, tokens = model(config).train(), text(config, 27, batch=1)

    def loss() -> torch.Tensor:
        first, state = gecko(tokens[:, :16])
        second, _ = gecko(tokens[:, 16:], state)
        return torch.cat([first, second], 1).log_softmax(-1)[..., 0].sum()

    parameters = dict(gecko.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    step = 1e-6
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step * direction)
            above = loss()
            parameter.sub_(2 * step * direction)
            below = loss()
            parameter.add_(step * direction)
        found = (gradient * direction).sum()
        wanted = (above - below) / (2 * step)
        assert abs(found - wanted) < 1e-6 + 1e-5 * abs(wanted), name


def test_folded_constants_follow_the_parameters() -> None:
    gecko, tokens = model(PLAIN), text(PLAIN, 9)
    with torch.inference_mode():
        before, _ = gecko(tokens)
        gecko.float()
        single, _ = gecko(tokens)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), before, rtol=1e-3, atol=1e-3)
        weights = {k: v + 1 if v.is_floating_point() else v for k, v in gecko.state_dict().items()}
        gecko.load_state_dict(weights)
        loaded, _ = gecko(tokens)
        fresh, _ = Gecko.from_tensors(PLAIN, weights)(tokens)
    torch.testing.assert_close(loaded, fresh)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_configuration_in_16_bits(config: GeckoConfig, dtype: torch.dtype) -> None:
    exact = model(config, noise=0.02)
    tokens = text(config, 20)
    with torch.inference_mode():
        wanted, _ = exact(tokens)
        taps: dict[str, torch.Tensor] = {}
        found, _ = Gecko.from_tensors(config, exact.state_dict(), dtype)(tokens, None, taps)
    assert {name for name, tap in taps.items() if tap.dtype != dtype} == {"output.logits"}
    assert (found.double() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("whole", [True, False], ids=["all parameters", "matrices only"])
def test_bfloat16_stays_near_float64(whole: bool) -> None:
    """3000 tokens, the last 1000 singly: the error at the end is that of the start."""
    config = dataclasses.replace(
        PLAIN, model_dim=32, z_dim=16, value_dim=32, chunk_size=64, timenorm_num_groups=8
    )
    exact = model(config, noise=0.02)
    low = Gecko.from_tensors(config, exact.state_dict(), torch.bfloat16)
    if whole:
        low = low.bfloat16()
    tokens = text(config, 3000, batch=1)
    with torch.inference_mode():
        wanted, _ = exact(tokens)
        found, state = low(tokens[:, :2000])
        pieces = [found]
        for part in tokens[:, 2000:].split(1, 1):
            found, state = low(part, state)
            pieces.append(found)
    assert state.layers[0].timenorm_var.dtype == torch.float32
    assert state.layers[0].key.dtype == torch.bfloat16
    error = (torch.cat(pieces, 1).double() - wanted).norm(dim=(0, 2)) / wanted.norm(dim=(0, 2))
    assert error[-500:].mean() < 0.05
    assert error[-500:].mean() < 2 * error[100:600].mean()


def test_initial_weights() -> None:
    """As in the reference implementation: an untrained model predicts about uniformly."""
    config = dataclasses.replace(PLAIN, model_dim=192, z_dim=48, value_dim=192, vocab_size=64)
    torch.manual_seed(0)
    gecko = Gecko(config)
    weights = gecko.state_dict()
    assert abs(weights["layers.0.mega.wv.weight"].std() * (3 * 192) ** 0.5 - 1) < 0.05
    assert weights["layers.0.mega.wv.bias"].abs().max() == 0
    assert weights["embed.weight"].abs().max() <= 3 * 192**-0.5
    assert weights["layers.0.mega.cema.gamma"][..., 1].abs().max() == 0
    frequencies = torch.sigmoid(weights["layers.0.mega.cema.theta"]).sort().values
    assert abs(frequencies[0] * 192 - 1) < 1e-3
    tokens = text(config, 40)
    logits, _ = gecko(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(64)) < 1.0
