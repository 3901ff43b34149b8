"""The reference against what the reference implementation's CUDA kernels computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko, State

GOLDEN = Path(__file__).parents[1] / "golden"

Golden = tuple[Gecko, dict[str, torch.Tensor]]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    assert found.shape == wanted.shape
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.fixture(params=["tiny", "alt"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def golden(name: str, request: pytest.FixtureRequest) -> Golden:
    config = GeckoConfig.from_file(GOLDEN / f"config_{name}.json")
    weights = load_file(GOLDEN / f"weights_{name}.safetensors")
    model = Gecko.from_tensors(config, weights, request.param)
    return model, load_file(GOLDEN / f"golden_{name}_f32.safetensors")


def stream(model: Gecko, tokens: torch.Tensor) -> tuple[torch.Tensor, State]:
    """As the golden stream was cut: three chunks, one, a quarter, then single tokens."""
    chunk = model.config.chunk_size
    sizes = [3 * chunk, chunk, chunk // 4]
    sizes += [1] * (tokens.shape[1] - sum(sizes))
    logits, state = [], None
    with torch.inference_mode():
        for part in tokens.split(sizes, 1):
            out, state = model(part, state)
            logits.append(out)
    assert state is not None
    return torch.cat(logits, 1), state


def test_parallel_logits(golden: Golden) -> None:
    model, wanted = golden
    tokens = wanted["tokens"][:, : 5 * model.config.chunk_size]
    with torch.inference_mode():
        assert distance(model(tokens)[0], wanted["logits_train_5chunks"]) < 1e-4
        whole, _ = model(wanted["tokens"])
        assert distance(whole, wanted["logits_stream"]) < 1e-4
        last, _ = model(wanted["tokens"], last_logits_only=True)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-5, atol=1e-5)


def test_stream(golden: Golden) -> None:
    model, wanted = golden
    logits, state = stream(model, wanted["tokens"])
    assert distance(logits, wanted["logits_stream"]) < 1e-4

    chunk, length = model.config.chunk_size, wanted["tokens"].shape[1]
    assert state.position == length
    valid = slice(0, chunk + length % chunk)
    for i, layer in enumerate(state.layers):
        expected = {k.split(".")[2]: v for k, v in wanted.items() if k.startswith(f"state.{i}.")}
        found = {
            "tn_mean": layer.timenorm_mean,
            "cema_hx": torch.view_as_real(layer.cema),
            "awm_memory": layer.memory,
            "awm_log_norm": layer.log_norm,
            "sca_key": layer.key[:, valid],
            "value": layer.value[:, valid],
            "awm_key": layer.memory_key[:, valid].transpose(1, 2),
        }
        for key, tensor in found.items():
            assert distance(tensor, expected[key]) < 1e-4, key
        assert distance(layer.timenorm_var, expected["tn_var"]) < 5e-4
        assert (expected["tn_count"] == state.position).all()
    assert distance(state.output_mean, wanted["state.out.tn_mean"]) < 1e-4
    assert distance(state.output_var, wanted["state.out.tn_var"]) < 5e-4


def test_taps_name_every_operation(golden: Golden) -> None:
    model, wanted = golden
    config = model.config
    taps: dict[str, torch.Tensor] = {}
    tokens = wanted["tokens"][:, :5]
    with torch.inference_mode():
        logits, _ = model(tokens, taps=taps)
    D, S, E = config.model_dim, config.z_dim, config.value_dim
    widths = {
        "timenorm": D,
        "cema": D,
        "rmsnorm": D,
        "wv": E,
        "wzrh": S + E + D,
        "znorm_qk": S,
        "key": S,
        "memory_query": S,
        "memory_key": S,
        "attention": E,
        "memory_read": E,
        "wh2": D,
        "layernorm": D,
        "fc1": config.ffn_hidden_dim,
        "fc2": D,
    }
    expected = {f"layers.{i}.{op}": w for i in range(config.num_layers) for op, w in widths.items()}
    expected |= {"embed": D, "output.timenorm": D, "output.logits": config.num_outputs}
    assert {k: tuple(v.shape) for k, v in taps.items()} == {
        k: (2, 5, width) for k, width in expected.items()
    }
    assert torch.equal(taps["output.logits"], logits)


def test_faulty_state_dict_is_refused(name: str) -> None:
    config = GeckoConfig.from_file(GOLDEN / f"config_{name}.json")
    weights = load_file(GOLDEN / f"weights_{name}.safetensors")
    weights["surplus"] = weights.pop("layers.1.mega.wz.weight")
    weights["layers.0.mega.wv.bias"] = weights["layers.0.mega.wv.bias"][:-1]
    with pytest.raises(RuntimeError) as error:
        Gecko.from_tensors(config, weights)
    for word in ("surplus", "layers.1.mega.wz.weight", "layers.0.mega.wv.bias"):
        assert word in str(error.value)
