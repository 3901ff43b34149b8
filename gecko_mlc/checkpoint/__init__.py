"""Reading gecko-llm checkpoints and converting them to what a compiled library takes."""

from gecko_mlc.checkpoint.chat_config import write_chat_config
from gecko_mlc.checkpoint.conversion import convert
from gecko_mlc.checkpoint.random_weights import random_checkpoint
from gecko_mlc.checkpoint.reader import open_checkpoint
from gecko_mlc.checkpoint.source import CheckpointError

__all__ = [
    "CheckpointError",
    "convert",
    "open_checkpoint",
    "random_checkpoint",
    "write_chat_config",
]
