"""Tokenizers trained here, of the two kinds in use, and their text as it grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gecko_mlc.runtime.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
)

CORPUS = [
    "The gecko holds on to the ceiling, and the ceiling holds on to the house.",
    "  two spaces, then\ttabs\n\nand lines   here",
    "def main(argv):\n    return [x for x in argv if x]\n",
    "naïve café über 你好世界 здравствуй",
] * 3
TEXTS = [
    "The gecko holds on.",
    " leading and  double   spaces ",
    "emoji 🦎🦎 family 👩‍👩‍👧‍👦, 你好, ½ e\u0301",
    "\n\ttabs\n",
    "unknown ᚠᛇᚻ runes 🦎",
    "def f():\n    return '🦎'\n",
]


def byte_level(path: Path) -> Path:
    """As GPT-2, NeoX, Llama 3: words of bytes."""
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS, trainer)
    fast.save(str(path))
    return path


def sentencepiece(path: Path) -> Path:
    """As Llama 2: words that begin with a mark for the space, bytes for what is unknown."""
    fast = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    fast.train_from_iterator(CORPUS[:3], trainer)
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    settings = json.loads(fast.to_str())
    vocabulary = settings["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    settings["model"]["byte_fallback"] = True
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "byte_level": HuggingFaceTokenizer(byte_level(folder / "bytes.json"), 0),
        "sentencepiece": HuggingFaceTokenizer(sentencepiece(folder / "pieces.json"), 1),
        "bytes": ByteTokenizer(),
    }


KINDS = pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "bytes"])


def streamed(tokenizer: Tokenizer, ids: list[int], context: list[int]) -> list[str]:
    stream = tokenizer.stream(context)
    return [*(stream.push(token) for token in ids), stream.finish()]


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_whole_and_streamed(
    kinds: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = streamed(tokenizer, ids, [])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_nothing_of_the_context_is_repeated_and_no_space_lost(
    kinds: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode("The house " + text)
    for cut in range(len(ids)):
        before = tokenizer.decode(ids[:cut])
        if not before.endswith("\ufffd"):  # a context is the tokens of a whole text
            assert (
                before + "".join(streamed(tokenizer, ids[cut:], ids[:cut])) == "The house " + text
            )


@KINDS
def test_pieces_come_as_soon_as_they_are_characters(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    text = "on 🦎 the 你好"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    given = ""
    for count, token in enumerate(ids, 1):
        given += stream.push(token)
        # Byte fallback decodes a whole run of bytes or nothing of it; a stream need not.
        assert text.startswith(given)
        assert len(given) >= len(tokenizer.decode(ids[:count]).rstrip("\ufffd"))
    assert given == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=60))
def test_any_byte_level_tokens_stream_to_what_they_decode_to(
    kinds: dict[str, Tokenizer], ids: list[int]
) -> None:
    tokenizer = kinds["byte_level"]
    assert "".join(streamed(tokenizer, ids, [])) == tokenizer.decode(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_stream_to_what_they_decode_to(data: bytes) -> None:
    wanted = data.decode("utf-8", errors="replace")
    assert "".join(streamed(ByteTokenizer(), list(data), [])) == wanted
    assert ByteTokenizer().decode(list(data)) == wanted


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_streams(kinds: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids, [])
    assert "".join(pieces) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_bytes_that_never_become_characters_do_not_wait_for_ever(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = kinds[kind]
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    name = "<0xFF>" if kind == "sentencepiece" else "ÿ"
    token = tokenizer._fast.token_to_id(name)
    assert token is not None
    stream = tokenizer.stream()
    assert "\ufffd" in "".join(stream.push(token) for _ in range(40))


def test_special_tokens_have_no_text(kinds: dict[str, Tokenizer]) -> None:
    for kind, special in (("byte_level", 1), ("sentencepiece", 2), ("bytes", 257)):
        tokenizer = kinds[kind]
        ids = [special, *tokenizer.encode("The house"), special]
        assert tokenizer.decode(ids) == "The house"
        assert "".join(streamed(tokenizer, ids, [])) == "The house"


def test_bos_is_the_configurations(kinds: dict[str, Tokenizer]) -> None:
    assert kinds["byte_level"].encode("on", bos=True)[0] == 0
    assert kinds["sentencepiece"].encode("on", bos=True)[0] == 1
    assert kinds["sentencepiece"].encode("on")[0] != 1
    assert kinds["bytes"].encode("on", bos=True) == [111, 110]
    assert ByteTokenizer(256).encode("", bos=True) == [256]


def test_loading_what_the_chat_config_names(tmp_path: Path) -> None:
    config = tmp_path / "mlc-chat-config.json"
    with pytest.raises(TokenizerError, match="no mlc-chat-config.json in .*: run gen-config first"):
        load_tokenizer(tmp_path)
    config.write_text("{")
    with pytest.raises(TokenizerError, match="is not JSON"):
        load_tokenizer(tmp_path)
    config.write_text('{"tokenizer": "bytes", "tokenizer_files": [], "bos_token_id": 256}')
    assert load_tokenizer(tmp_path).encode("a", bos=True) == [256, 97]
    config.write_text('{"tokenizer_files": []}')
    with pytest.raises(TokenizerError, match="names no tokenizer"):
        load_tokenizer(tmp_path)
    config.write_text('{"tokenizer_files": ["tokenizer.json"]}')
    with pytest.raises(TokenizerError, match="tokenizer.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="is not a Hugging Face tokenizer"):
        load_tokenizer(tmp_path)
    byte_level(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("The house", bos=True)) == "The house"


def test_text_that_is_not_text() -> None:
    with pytest.raises(TokenizerError, match="cannot be written as UTF-8"):
        ByteTokenizer().encode("half a pair \ud83e")


def test_text_modules_need_neither_tvm_nor_torch() -> None:
    code = (
        "import sys, gecko_mlc.runtime.generation, gecko_mlc.runtime.tokenizer; "
        "assert not {'tvm', 'tvm_ffi', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
