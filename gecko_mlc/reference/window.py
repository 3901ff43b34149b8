"""Attention and memory of new tokens beside a sequence's state, however the tokens are cut.

The tokens are taken a chunk at a time: the rest of a chunk begun earlier, whole chunks, and a
chunk left open. The memory is committed when a chunk closes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gecko_mlc.reference.ops import memory_commit, memory_read, sliding_chunk_attention
from gecko_mlc.reference.state import LayerState

Rows = tuple[Tensor, Tensor, Tensor]  # key, value and memory key of some positions: [B, n, H, .]


def attend(
    state: LayerState,
    position: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory_query: Tensor,
    memory_key: Tensor,
) -> tuple[Tensor, Tensor, LayerState]:
    """T tokens from `position` on: their attention and memory read, and the state after them.

    query, key (both rotated), memory_query, memory_key [B, T, H, zh]; value [B, T, H, vh].
    Returns attention and memory read [B, T, E] and the state. Without gradients the state's
    windows are written in place.
    """
    state = dataclasses.replace(state)
    length, chunk = query.shape[1], state.key.shape[1] // 2
    new = key, value, memory_key
    attention, read = [], []
    done = 0
    while done < length:
        start, index = position + done, (position + done) % chunk
        end = done + min(chunk - index, length - done)
        if end - done < chunk:
            keys, values, memory_keys = _extend(state, start, _rows(new, done, end))
        elif done >= chunk:  # the chunk before lies beside it
            keys, values, memory_keys = _rows(new, done - chunk, end)
        else:
            keys, values, memory_keys = _beside_last(state, start, _rows(new, done, end))
        q, memory_q = _by_head(query[:, done:end]), _by_head(memory_query[:, done:end])
        attention.append(sliding_chunk_attention(q, _by_head(keys), _by_head(values)))
        read.append(memory_read(memory_q, state.memory))
        if index + end - done == chunk:
            if start >= chunk:
                state.memory, state.log_norm = memory_commit(
                    state.memory,
                    state.log_norm,
                    _by_head(memory_keys[:, :chunk]),
                    _by_head(values[:, :chunk]),
                )
            if done < chunk or length - end < chunk:  # else the next chunk finds it beside itself
                closed = (keys[:, -chunk:], values[:, -chunk:], memory_keys[:, -chunk:])
                _write(state, 0, closed)
        done = end
    return _by_token(attention), _by_token(read), state


def _rows(new: Rows, start: int, end: int) -> Rows:
    key, value, memory_key = new
    return key[:, start:end], value[:, start:end], memory_key[:, start:end]


def _extend(state: LayerState, position: int, rows: Rows) -> Rows:
    """Add rows to the state's open chunk; the window that ends with them."""
    chunk = state.key.shape[1] // 2
    start = chunk + position % chunk
    _write(state, start, rows)
    first = 0 if position >= chunk else chunk  # chunk 0 has none before it
    windows = state.key, state.value, state.memory_key
    return _rows(windows, first, start + rows[0].shape[1])


def _beside_last(state: LayerState, position: int, rows: Rows) -> Rows:
    """The window of a whole chunk's rows, behind the state's last chunk."""
    chunk = state.key.shape[1] // 2
    if position == 0:
        return rows
    key, value, memory_key = rows
    return (
        torch.cat([state.key[:, :chunk], key], 1),
        torch.cat([state.value[:, :chunk], value], 1),
        torch.cat([state.memory_key[:, :chunk], memory_key], 1),
    )


def _write(state: LayerState, start: int, rows: Rows) -> None:
    """Put rows into the state's windows; into copies of them where gradients may be recorded."""
    end = start + rows[0].shape[1]
    if torch.is_grad_enabled():
        state.key, state.value, state.memory_key = (
            torch.cat([window[:, :start], new, window[:, end:]], 1)
            for window, new in zip((state.key, state.value, state.memory_key), rows, strict=True)
        )
    else:
        state.key[:, start:end], state.value[:, start:end], state.memory_key[:, start:end] = rows


def _by_head(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _by_token(pieces: list[Tensor]) -> Tensor:
    """Pieces [B, H, n, vh] to [B, T, E]."""
    tokens = [piece.transpose(1, 2) for piece in pieces]
    return (tokens[0] if len(tokens) == 1 else torch.cat(tokens, 1)).flatten(2)
