"""Finding what a checkpoint consists of: the configuration and the files with the tensors."""

from __future__ import annotations

import json
from pathlib import Path

from gecko_mlc.checkpoint.safetensors_file import SafetensorsFile
from gecko_mlc.checkpoint.source import CheckpointError, JoinedTensors, TensorSource
from gecko_mlc.checkpoint.torch_file import TorchFile
from gecko_mlc.config import ConfigError, GeckoConfig

CONFIG_NAMES = ("params.json", "config.json")
INDEX_NAME = "model.safetensors.index.json"
# The first of these that matches anything is the checkpoint; others beside it (an optimiser's
# state, the same weights in an older format) are not read.
WEIGHT_PATTERNS = ("*.safetensors", "consolidated.*.pt", "*.pt", "*.pth")


def open_checkpoint(path: str | Path) -> tuple[GeckoConfig, TensorSource]:
    """Configuration and tensors of a gecko-llm checkpoint.

    ``path`` is a folder (or one of its weight files) with ``params.json`` or ``config.json`` in the
    reference's names, and ``.safetensors`` or ``.pt`` files, one or several shards. Of the tensors
    only names and shapes are read. CheckpointError or ConfigError say what is wrong.
    """
    path = Path(path)
    tensors = open_tensors(path)
    return read_config(path, tensors), tensors


def checkpoint_folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def read_config(path: Path, tensors: TensorSource) -> GeckoConfig:
    """The configuration beside the weights, flat or under the key ``model``.

    The reference leaves ``vocab_size`` to its tokenizer (-1 in a configuration): then it is the
    number of rows of the embedding.
    """
    folder = checkpoint_folder(path)
    files = [folder / name for name in CONFIG_NAMES if (folder / name).is_file()]
    if not files:
        raise CheckpointError(
            f"no {' or '.join(CONFIG_NAMES)} in {folder}: the configuration has to be there, "
            "in the names of the reference implementation"
        )
    try:
        values = json.loads(files[0].read_text(encoding="utf-8"))
        if isinstance(values, dict) and isinstance(values.get("model"), dict):
            values = values["model"]
        if not isinstance(values, dict):
            raise ConfigError(f"holds a {type(values).__name__}, wanted a JSON object")
        if values.get("vocab_size", -1) == -1 and "embed.weight" in tensors:
            values = {**values, "vocab_size": tensors.shape("embed.weight")[0]}
        return GeckoConfig.from_dict(values)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{files[0]} is not JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{files[0]}: {error}") from error


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a weight file, or of all shards in a folder."""
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    index = path / INDEX_NAME
    if index.is_file():
        return _open_indexed(index)
    for pattern in WEIGHT_PATTERNS:
        files = sorted(path.glob(pattern))
        if files:
            return _join([_open_file(file) for file in files], files)
    raise CheckpointError(f"no weights in {path}: wanted one of {', '.join(WEIGHT_PATTERNS)}")


def _open_file(path: Path) -> TensorSource:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".pt", ".pth"):
        return TorchFile(path)
    raise CheckpointError(f"{path} is neither .safetensors nor .pt")


def _open_indexed(index: Path) -> TensorSource:
    """The files that ``weight_map`` names, holding at least the tensors it promises."""
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError.listing(
            f"{index} names files that are not there", [f"{name} is missing" for name in absent]
        )
    shards = {name: _open_file(index.parent / name) for name in names}
    faults = [
        f"{tensor} is not in {file}"
        for tensor, file in weight_map.items()
        if tensor not in shards[file]
    ]
    if faults:
        raise CheckpointError.listing(f"{index} and its files differ", faults)
    return _join(list(shards.values()), [index.parent / name for name in names])


def _join(shards: list[TensorSource], files: list[Path]) -> TensorSource:
    if len(shards) == 1:
        return shards[0]
    owners: dict[str, TensorSource] = {}
    where: dict[str, Path] = {}
    faults = []
    for shard, file in zip(shards, files, strict=True):
        for name in shard:
            if name in owners:
                faults.append(f"{name} is in {where[name].name} and in {file.name}")
            owners[name], where[name] = shard, file
    if faults:
        raise CheckpointError.listing(
            f"the shards in {files[0].parent} overlap (wanted each tensor whole, in one file)",
            faults,
        )
    return JoinedTensors(owners)
