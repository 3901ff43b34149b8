from __future__ import annotations

import json
from pathlib import Path

import pytest

from gecko_mlc.config import TRAINING_KEYS, ConfigError, GeckoConfig

SMALLEST = {
    "num_layers": 1,
    "model_dim": 8,
    "z_dim": 4,
    "value_dim": 8,
    "num_heads": 2,
    "ffn_hidden_dim": 8,
    "vocab_size": 16,
    "timenorm_num_groups": 2,
}


def make(**changes: object) -> GeckoConfig:
    return GeckoConfig.from_dict({**SMALLEST, **changes})


@pytest.mark.parametrize("name", ["tiny", "small", "7b"])
def test_presets_load_and_survive_a_round_trip(name: str) -> None:
    config = GeckoConfig.preset(name)
    assert GeckoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*7b, small, tiny"):
        GeckoConfig.preset("huge")


def test_defaults_and_derived_sizes() -> None:
    config = make()
    assert (config.cema_ndim, config.chunk_size, config.rope_base) == (16, 2048, 500000.0)
    assert (config.z_head_dim, config.v_head_dim) == (2, 4)
    assert config.rope_heads == 2
    assert config.num_outputs == 16


@pytest.mark.parametrize(("given_heads", "rotated"), [(None, 2), (0, 0), (1, 1)])
def test_null_rotary_heads_means_all(given_heads: int | None, rotated: int) -> None:
    assert make(num_rope_heads=given_heads).rope_heads == rotated


def test_output_size_replaces_the_vocabulary_in_the_logits() -> None:
    assert make(output_size=5).num_outputs == 5


def test_odd_sizes_are_models_too() -> None:
    config = make(
        model_dim=60, z_dim=50, value_dim=35, num_heads=5, chunk_size=48, cema_ndim=8,
        timenorm_num_groups=3,
    )  # fmt: skip
    assert (config.z_head_dim, config.v_head_dim) == (10, 7)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"num_layers": 0}, "num_layers is 0, wanted a positive integer"),
        ({"model_dim": 8.0}, "model_dim is 8.0, wanted a positive integer"),
        ({"num_heads": True}, "num_heads is True, wanted a positive integer"),
        ({"chunk_size": "48"}, "chunk_size is '48', wanted a positive integer"),
        ({"z_dim": 5}, r"z_dim is 5, wanted a multiple of num_heads \(2\)"),
        ({"value_dim": 7}, r"value_dim is 7, wanted a multiple of num_heads \(2\)"),
        ({"timenorm_num_groups": 3}, "model_dim is 8, wanted a multiple of timenorm_num_groups"),
        ({"timenorm_num_groups": 8}, "a group of one feature has no variance"),
        ({"layernorm_num_groups": 3}, "model_dim is 8, wanted a multiple of layernorm_num_groups"),
        ({"num_rope_heads": 3}, "num_rope_heads is 3, wanted null or 0 to 2"),
        ({"z_dim": 6}, "z_dim / num_heads is 3, wanted an even number"),
        ({"output_size": 0}, "output_size is 0"),
        ({"share_emb": True, "output_size": 5}, "share_emb with output_size 5"),
        ({"timenorm_beta2": 1.0}, "timenorm_beta2 is 1.0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_base": -1.0}, "rope_base is -1.0"),
    ],
)
def test_a_fault_is_named_with_what_was_wanted(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        make(**changes)


def test_an_odd_head_is_fine_without_rotary_heads() -> None:
    assert make(z_dim=6, num_rope_heads=0).z_head_dim == 3


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make(z_dim=5, value_dim=7, output_size=0, timenorm_beta1=2.0, norm_eps=-1.0)
    lines = str(caught.value).splitlines()
    assert lines[0] == "not a Gecko configuration:"
    assert [line.split()[0] for line in lines[1:]] == [
        "z_dim",
        "value_dim",
        "output_size",
        "timenorm_beta1",
        "norm_eps",
    ]


def test_unknown_and_missing_keys_are_listed_together() -> None:
    values: dict[str, object] = {**SMALLEST, "hidden_size": 8, "n_heads": 2}
    del values["model_dim"], values["num_heads"]
    with pytest.raises(ConfigError) as caught:
        GeckoConfig.from_dict(values)
    message = str(caught.value)
    for fault in (
        "unknown key 'hidden_size'",
        "unknown key 'n_heads'",
        "missing key 'model_dim'",
        "missing key 'num_heads'",
    ):
        assert fault in message
    assert "known keys: num_layers, model_dim" in message


def test_training_keys_of_the_reference_are_dropped() -> None:
    assert make(**dict.fromkeys(TRAINING_KEYS, 0.1)) == make()


@pytest.mark.parametrize(
    ("text", "fault"),
    [("{", "is not JSON"), ("[1]", "holds a list, wanted a JSON object")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "params.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=fault) as caught:
        GeckoConfig.from_file(path)
    assert str(path) in str(caught.value)


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps({**SMALLEST, "dropout": 0.1}), encoding="utf-8")
    assert GeckoConfig.from_file(path) == make()


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm_eps", "1e-5"), ("output_size", "x"), ("num_rope_heads", 1.5), ("swiglu", "yes")],
)
def test_a_value_of_the_wrong_type_is_named(name: str, value: object) -> None:
    values = GeckoConfig.preset("tiny").to_dict() | {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value!r}, wanted"):
        GeckoConfig.from_dict(values)
