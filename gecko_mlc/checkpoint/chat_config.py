"""``mlc-chat-config.json``: what running a model needs to know beside its weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gecko_mlc.checkpoint.mapping import QUANTIZATIONS, QuantizationError
from gecko_mlc.checkpoint.source import CheckpointError
from gecko_mlc.config import GeckoConfig

CHAT_CONFIG_NAME = "mlc-chat-config.json"
# The version of this file's keys, as MLC numbers it.
CHAT_CONFIG_VERSION = "0.1.0"
# Copied when there; only the first is needed to encode and decode.
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Vocabularies that can only be bytes, with up to four special tokens after them.
BYTE_VOCABULARIES = range(256, 261)
BYTES = "bytes"
NONE = "none"


def write_chat_config(
    config: GeckoConfig, quantization: str, output: str | Path, tokenizer: str | Path
) -> dict[str, Any]:
    """Write ``mlc-chat-config.json`` and copy the tokenizer beside it; returns what was written.

    ``tokenizer`` is ``"bytes"``, ``"none"`` for a model that is only given token ids, a
    ``tokenizer.json``, or a folder with one. Its special tokens come from the
    ``tokenizer_config.json`` beside it. CheckpointError when it does not fit.
    """
    if quantization not in QUANTIZATIONS:
        raise QuantizationError(
            f"no quantization {quantization!r}; there are {', '.join(QUANTIZATIONS)}"
        )
    output = Path(output)
    files, bos, eos = [], None, None
    if tokenizer == BYTES:
        if config.vocab_size < 256:
            raise CheckpointError(
                f"vocab_size is {config.vocab_size}, wanted at least 256 for a tokenizer of bytes"
            )
        eos = 0  # no text holds this byte: training puts it between documents
    elif tokenizer != NONE:
        files = _tokenizer_files(Path(tokenizer))
        bos, eos = _special_tokens(files, config)
    values = {
        "version": CHAT_CONFIG_VERSION,
        "model_type": "gecko",
        "quantization": quantization,
        "model_config": config.to_dict(),
        "vocab_size": config.vocab_size,
        "context_window_size": -1,
        "temperature": 0.7,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "bos_token_id": bos,
        "stop_token_ids": [] if eos is None else [eos],
        "stop_strings": [],
        "conv_template": None,
        "tokenizer": "huggingface" if files else BYTES if tokenizer == BYTES else None,
        "tokenizer_files": [file.name for file in files],
    }
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.resolve() != (output / file.name).resolve():
            _replace(output / file.name, partial(shutil.copyfile, file))
    text = json.dumps(values, indent=1) + "\n"
    _replace(output / CHAT_CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    return values


def find_tokenizer(folder: Path, config: GeckoConfig) -> Path | str:
    """The ``tokenizer.json`` in a checkpoint's folder, else bytes if the vocabulary is of bytes."""
    if (folder / TOKENIZER_NAMES[0]).is_file():
        return folder
    if config.vocab_size in BYTE_VOCABULARIES:
        return BYTES
    raise CheckpointError(
        f"no {TOKENIZER_NAMES[0]} in {folder}, and {config.vocab_size} tokens are not bytes "
        f"({BYTE_VOCABULARIES.start} to {BYTE_VOCABULARIES.stop - 1}): name the tokenizer's file "
        f"or folder with --tokenizer, or say --tokenizer {NONE} to do without text"
    )


def _tokenizer_files(path: Path) -> list[Path]:
    """``tokenizer.json`` first, then what is there of the others."""
    folder = path if path.is_dir() else path.parent
    first = folder / TOKENIZER_NAMES[0]
    if not first.is_file() or not (path.is_dir() or path.name == first.name):
        raise CheckpointError(
            f"no tokenizer at {path}: wanted {TOKENIZER_NAMES[0]} of Hugging Face tokenizers, "
            f"a folder with it, or the word {BYTES} (a SentencePiece tokenizer.model has to be "
            "converted first, which transformers does when it saves the fast tokenizer)"
        )
    return [folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()]


def _special_tokens(files: list[Path], config: GeckoConfig) -> tuple[int | None, int | None]:
    """Ids to begin every text with and to stop at, None for none, as tokenizer_config.json says."""
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(files[0])).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{files[0]} is not a Hugging Face tokenizer: {error}") from error
    highest = max(vocabulary.values(), default=0)
    if highest >= config.vocab_size:
        raise CheckpointError(
            f"{files[0]} has token ids up to {highest}, but vocab_size is {config.vocab_size}: "
            "this is another model's tokenizer"
        )
    settings_file = files[0].with_name("tokenizer_config.json")
    if settings_file not in files:
        return None, None
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{settings_file} is not JSON: {error}") from error

    def token_id(key: str) -> int | None:
        token = settings.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            return None
        if token not in vocabulary:
            raise CheckpointError(f"{settings_file} has {key} {token!r}, which is not a token")
        return vocabulary[token]

    bos = token_id("bos_token") if settings.get("add_bos_token", True) else None
    return bos, token_id("eos_token")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path``, then rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
