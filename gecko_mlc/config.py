"""The model's configuration, in the names of the reference implementation (``gecko-llm``)."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

# Keys of a reference configuration that only matter to training or to its CUDA kernels.
TRAINING_KEYS = frozenset(
    {
        "dropout",
        "hidden_dropout",
        "attention_dropout",
        "init_mode",
        "efficient_attn",
        "memory_efficient_norm",
    }
)


_SWITCHES = (
    "norm_affine",
    "two_hop_residual",
    "swiglu",
    "rescale_nffn",
    "scale_emb",
    "share_emb",
)

# Raised whenever a parameter's or a state tensor's name, shape or meaning changes, or what a
# library says of itself: libraries, weights and saved sequences must agree.
FORMAT_VERSION = 2


class ConfigError(ValueError):
    """A configuration that is not a Gecko model: the message lists every fault found."""


@dataclasses.dataclass(frozen=True)
class GeckoConfig:
    """Sizes and switches of one Gecko model (arXiv 2601.06463, section 3).

    Letters used in shapes throughout: D ``model_dim``, S ``z_dim``, E ``value_dim``,
    H ``num_heads``, F ``ffn_hidden_dim``, N ``cema_ndim``, C ``chunk_size``, V ``num_outputs``,
    G ``timenorm_num_groups``, zh = S/H, vh = E/H.
    """

    num_layers: int
    model_dim: int
    z_dim: int
    value_dim: int
    num_heads: int
    ffn_hidden_dim: int
    vocab_size: int
    cema_ndim: int = 16
    chunk_size: int = 2048
    output_size: int = -1
    timenorm_num_groups: int = 64
    timenorm_beta1: float = 0.999
    timenorm_beta2: float = 0.9999
    layernorm_num_groups: int = 1
    norm_affine: bool = True
    norm_eps: float = 1e-5
    two_hop_residual: bool = False
    rope_base: float = 500000.0
    num_rope_heads: int | None = None
    swiglu: bool = True
    rescale_nffn: bool = False
    scale_emb: bool = False
    share_emb: bool = False

    def __post_init__(self) -> None:
        faults = []
        for name in (
            "num_layers",
            "model_dim",
            "z_dim",
            "value_dim",
            "num_heads",
            "ffn_hidden_dim",
            "vocab_size",
            "cema_ndim",
            "chunk_size",
            "timenorm_num_groups",
            "layernorm_num_groups",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(f"{name} is {value!r}, wanted a positive integer")
        mistyped = []
        for name, kinds, wanted in (
            ("output_size", int, "an integer"),
            ("num_rope_heads", (int, type(None)), "an integer or null"),
            ("timenorm_beta1", (int, float), "a number"),
            ("timenorm_beta2", (int, float), "a number"),
            ("norm_eps", (int, float), "a number"),
            ("rope_base", (int, float), "a number"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                mistyped.append(f"{name} is {value!r}, wanted {wanted}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                mistyped.append(f"{name} is {getattr(self, name)!r}, wanted true or false")
        if mistyped:
            raise ConfigError("not a Gecko configuration:\n  " + "\n  ".join(faults + mistyped))
        if not faults:
            for name, divisor in (
                ("z_dim", "num_heads"),
                ("value_dim", "num_heads"),
                ("model_dim", "timenorm_num_groups"),
                ("model_dim", "layernorm_num_groups"),
            ):
                if getattr(self, name) % getattr(self, divisor):
                    faults.append(
                        f"{name} is {getattr(self, name)}, wanted a multiple of "
                        f"{divisor} ({getattr(self, divisor)})"
                    )
            if self.timenorm_num_groups >= self.model_dim:
                faults.append(
                    f"timenorm_num_groups is {self.timenorm_num_groups}, wanted fewer than "
                    f"model_dim ({self.model_dim}): a group of one feature has no variance"
                )
            if not 0 <= self.rope_heads <= self.num_heads:
                faults.append(
                    f"num_rope_heads is {self.num_rope_heads}, wanted null or 0 to {self.num_heads}"
                )
            if self.rope_heads and self.z_head_dim % 2:
                faults.append(
                    f"z_dim / num_heads is {self.z_head_dim}, wanted an even number for rotary "
                    "embedding (or num_rope_heads 0)"
                )
        if self.output_size != -1 and self.output_size < 1:
            faults.append(f"output_size is {self.output_size}, wanted -1 (vocab_size) or positive")
        if self.share_emb and self.output_size not in (-1, self.vocab_size):
            faults.append(
                f"share_emb with output_size {self.output_size}, wanted -1 or {self.vocab_size}"
            )
        for name in ("timenorm_beta1", "timenorm_beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                faults.append(f"{name} is {getattr(self, name)}, wanted a number in (0, 1)")
        for name in ("norm_eps", "rope_base"):
            if not getattr(self, name) > 0.0:
                faults.append(f"{name} is {getattr(self, name)}, wanted a positive number")
        if faults:
            raise ConfigError("not a Gecko configuration:\n  " + "\n  ".join(faults))

    @property
    def z_head_dim(self) -> int:
        return self.z_dim // self.num_heads

    @property
    def v_head_dim(self) -> int:
        return self.value_dim // self.num_heads

    @property
    def rope_heads(self) -> int:
        """Heads whose queries and keys are rotated, counted from the first."""
        return self.num_heads if self.num_rope_heads is None else self.num_rope_heads

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return self.vocab_size if self.output_size == -1 else self.output_size

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeckoConfig:
        """From a reference ``params.json``: training keys are dropped, unknown ones refused."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields) - TRAINING_KEYS)
        missing = sorted(
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        )
        if unknown or missing:
            faults = [f"unknown key {name!r}" for name in unknown]
            faults += [f"missing key {name!r}" for name in missing]
            raise ConfigError(
                "not a Gecko configuration:\n  "
                + "\n  ".join(faults)
                + f"\nknown keys: {', '.join(fields)}"
            )
        return cls(**{name: value for name, value in values.items() if name in fields})

    @classmethod
    def from_file(cls, path: str | Path) -> GeckoConfig:
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, wanted a JSON object")
        return cls.from_dict(values)

    @classmethod
    def preset(cls, name: str) -> GeckoConfig:
        """One of the configurations shipped with the package: ``tiny``, ``small`` or ``7b``."""
        folder = resources.files("gecko_mlc") / "presets"
        file = folder / f"{name}.json"
        if not file.is_file():
            known = sorted(entry.name[:-5] for entry in folder.iterdir())
            raise ConfigError(f"no preset {name!r}; there are {', '.join(known)}")
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
