"""Text to token ids and back, also while the text is still growing."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

CHAT_CONFIG_NAME = "mlc-chat-config.json"
REPLACEMENT = "\ufffd"


class TokenizerError(ValueError):
    """A tokenizer that is missing, broken, or was given what it cannot encode."""


class TextStream(Protocol):
    """Turns the tokens of a growing text into pieces of it, whole characters only."""

    def push(self, token: int) -> str:
        """The text that ``token`` completes, possibly empty."""
        ...

    def finish(self) -> str:
        """What was held back: replacement characters for bytes that never became a character."""
        ...


class Tokenizer(Protocol):
    """What generating text needs of a tokenizer."""

    bos_token_id: int | None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids; ``bos`` puts the model's begin-of-text token first, where it has one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a whole list of tokens, without special tokens."""
        ...

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A stream of the text that follows ``context``, from which nothing is repeated."""
        ...


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """The tokenizer that ``mlc-chat-config.json`` in ``model_dir`` names, or TokenizerError."""
    folder = Path(model_dir)
    path = folder / CHAT_CONFIG_NAME
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"no {CHAT_CONFIG_NAME} in {folder}: run gen-config first") from None
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    bos = config.get("bos_token_id")
    if config.get("tokenizer") == "bytes":
        return ByteTokenizer(bos)
    if "tokenizer" in config and config["tokenizer"] is None:
        raise TokenizerError(
            f"{path} says that the model has no tokenizer, so it cannot be given text: run "
            "gen-config with --tokenizer and a tokenizer.json"
        )
    file = folder / "tokenizer.json"
    if file.name not in config.get("tokenizer_files", ()):
        raise TokenizerError(
            f"{path} names no tokenizer: wanted tokenizer_files with {file.name}, or tokenizer "
            '"bytes"'
        )
    if not file.is_file():
        raise TokenizerError(f"{file} is missing, though {CHAT_CONFIG_NAME} names it")
    return HuggingFaceTokenizer(file, bos)


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255. Tokens above are special and have no text."""

    def __init__(self, bos_token_id: int | None = None) -> None:
        self.bos_token_id = bos_token_id

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        try:
            ids = list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text cannot be written as UTF-8: {error}") from error
        return _with_bos(ids, bos, self.bos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return _ByteStream()


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` of Hugging Face tokenizers."""

    def __init__(self, path: str | Path, bos_token_id: int | None = None) -> None:
        from tokenizers import Tokenizer as Fast

        self.bos_token_id = bos_token_id
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise TokenizerError(f"{path} is not a Hugging Face tokenizer: {error}") from error

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        ids = list(self._fast.encode(text, add_special_tokens=False).ids)
        return _with_bos(ids, bos, self.bos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return _WindowStream(self, context)


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Decodes a window of the last tokens again with each new one, and gives out the difference.

    What a token adds depends on those before it: SentencePiece drops a space at the start of what
    it decodes, and a character's bytes may be spread over tokens. So the window always begins with
    tokens whose text was given out already, and text that ends in a replacement character waits.
    """

    # Tokens of the context to begin with, and how many more to try when they begin inside a
    # character, which has at most four bytes.
    CONTEXT = 8
    CHARACTER = 4
    # Bytes that do not become a character within this many tokens never will.
    PATIENCE = 16

    def __init__(self, tokenizer: HuggingFaceTokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        for size in range(self.CONTEXT, self.CONTEXT + self.CHARACTER):
            self._window = list(context[-size:])
            text = tokenizer.decode(self._window)
            if not text.startswith(REPLACEMENT):
                break
        self._given = len(text)  # characters of the window's text
        self._settled = len(self._window)  # tokens whose text is all given

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        if len(whole) < len(text) and len(self._window) - self._settled <= self.PATIENCE:
            piece = whole[self._given :]
            self._given += len(piece)
            return piece
        piece = text[self._given :]
        if piece:
            # The next window begins with the tokens of this piece.
            self._window = self._window[self._settled :]
            self._given = len(self._tokenizer.decode(self._window))
            self._settled = len(self._window)
        return piece

    def finish(self) -> str:
        piece = self._tokenizer.decode(self._window)[self._given :]
        self._given += len(piece)
        return piece


def _with_bos(ids: list[int], wanted: bool, bos_token_id: int | None) -> list[int]:
    return [bos_token_id, *ids] if wanted and bos_token_id is not None else ids
