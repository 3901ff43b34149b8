"""Converting a checkpoint's tensors to the compiled library's parameters, block by block."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

import gecko_mlc
from gecko_mlc.checkpoint import mapping
from gecko_mlc.checkpoint.mapping import Parameter, Source
from gecko_mlc.checkpoint.source import CheckpointError, MemoryTensors, TensorSource
from gecko_mlc.checkpoint.tensor_cache import CACHE_NAME, SHARD_PREFIX, TensorCacheWriter
from gecko_mlc.config import FORMAT_VERSION, GeckoConfig

# Matrices pass through in blocks of about this many elements.
BLOCK_ELEMENTS = 1 << 20


def convert(
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    output: str | Path,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Write the parameters of ``tensors`` (a state dict in the reference's names) to a folder.

    ``output`` gets ``tensor-cache.json`` and ``params_shard_*.bin``, all of them or none: they are
    written to a hidden folder and moved when complete. ``on_bytes`` is told the bytes of every
    block, which add up to those of ``mapping.parameters``. Memory: some blocks, and the largest
    folded (that is, small) tensor.

    Raises CheckpointError listing every tensor that is missing, unknown, misshapen, not finite, or
    holds values the quantization's dtype cannot hold.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is a file, wanted a folder")
    source = tensors if isinstance(tensors, TensorSource) else MemoryTensors(tensors)
    table = mapping.parameters(config, quantization)
    faults, usable = _check_names_and_shapes(config, table, source)
    faults += _check_copies(config, source, usable)
    with _staging_folder(output) as folder, contextlib.closing(TensorCacheWriter(folder)) as writer:
        for parameter in table:
            if not all(wanted.name in usable for wanted in parameter.sources):
                continue
            if not faults:
                writer.begin(
                    parameter.name,
                    parameter.shape,
                    parameter.dtype,
                    _numpy_dtype(parameter.dtype).itemsize,
                )
            for block in _parameter_blocks(parameter, source, faults):
                if not faults:
                    writer.write(block)
                on_bytes(block.nbytes)
        if faults:
            raise CheckpointError.listing(
                f"cannot be converted to {quantization}, {len(faults)} faults",
                faults,
            )
        writer.finish(_metadata(config, quantization, table))
        _publish(folder, output)


def _check_names_and_shapes(
    config: GeckoConfig, table: list[Parameter], tensors: TensorSource
) -> tuple[list[str], set[str]]:
    """Faults, and the names of the tensors that can be read all the same."""
    wanted = {source.name: source for parameter in table for source in parameter.sources}
    copies = {source.name: source for source in mapping.tolerated(config)}
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    usable = set()
    for name in tensors:
        expected = wanted.get(name) or copies.get(name)
        if expected is None:
            faults.append(f"{name} {list(tensors.shape(name))} is not part of this configuration")
        elif tensors.shape(name) != expected.shape:
            faults.append(
                f"{name} has shape {list(tensors.shape(name))}, wanted {list(expected.shape)}"
            )
        else:
            usable.add(name)
    return faults, usable


def _check_copies(config: GeckoConfig, tensors: TensorSource, usable: set[str]) -> list[str]:
    """Faults of tensors that are not converted because they repeat something."""
    faults = []
    if "rope.freqs" in usable and config.rope_heads:
        expected = mapping.rope_frequencies(config.z_head_dim, config.rope_base)
        # Loose enough for a copy in bfloat16; another rope_base is much further off.
        if not np.allclose(tensors["rope.freqs"].astype(np.float64), expected, rtol=1e-2, atol=0):
            faults.append(f"rope.freqs are not the frequencies of rope_base {config.rope_base:g}")
    if config.share_emb and {"output.output.weight", "embed.weight"} <= usable:
        pairs = zip(
            _blocks(tensors, "embed.weight"),
            _blocks(tensors, "output.output.weight"),
            strict=True,
        )
        if not all(np.array_equal(left, right, equal_nan=True) for left, right in pairs):
            faults.append(
                "output.output.weight differs from embed.weight, but share_emb says they are one"
            )
    return faults


def _parameter_blocks(
    parameter: Parameter, tensors: TensorSource, faults: list[str]
) -> Iterator[np.ndarray]:
    """A parameter in its final dtype, in blocks; what is wrong with it is added to ``faults``."""
    if parameter.fold is None:
        for source in parameter.sources:
            blocks = _checked_blocks(tensors, source, faults)
            yield from _narrowed(source.name, parameter.dtype, blocks, faults)
        return
    known = len(faults)
    read = [
        [block.astype(np.float64) for block in _checked_blocks(tensors, source, faults)]
        for source in parameter.sources
    ]
    if len(faults) > known:
        return
    arrays = [
        np.concatenate(blocks).reshape(source.shape)
        for blocks, source in zip(read, parameter.sources, strict=True)
    ]
    try:
        folded = parameter.fold(*arrays)
    except ValueError as error:
        faults.append(f"{parameter.name} {error}")
        return
    yield from _narrowed(parameter.name, parameter.dtype, [folded], faults)


def _checked_blocks(
    tensors: TensorSource, source: Source, faults: list[str]
) -> Iterator[np.ndarray]:
    """Blocks of a source with numbers in them, counting those that are not finite."""
    not_finite = 0
    for block in _blocks(tensors, source.name):
        floating = block.dtype.kind == "f" or block.dtype == ml_dtypes.bfloat16
        if not floating and not (source.integer and block.dtype.kind in "iu"):
            faults.append(f"{source.name} is stored as {block.dtype}, wanted floating point")
            return
        not_finite += block.size - int(np.count_nonzero(np.isfinite(block)))
        yield block
    if not_finite:
        faults.append(f"{source.name} has {not_finite} values that are not finite")


def _blocks(tensors: TensorSource, name: str) -> Iterator[np.ndarray]:
    shape = tensors.shape(name) or (1,)
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield tensors.rows(name, start, min(start + step, shape[0]))


def _narrowed(
    name: str, dtype: str, blocks: Iterator[np.ndarray] | list[np.ndarray], faults: list[str]
) -> Iterator[np.ndarray]:
    """Blocks rounded to ``dtype``, counting finite values that became infinite."""
    overflowed = 0
    for block in blocks:
        with np.errstate(over="ignore"):
            narrow = block.astype(_numpy_dtype(dtype))
        if narrow.dtype != block.dtype:
            overflowed += int(np.count_nonzero(np.isinf(narrow) & np.isfinite(block)))
        yield narrow
    if overflowed:
        faults.append(f"{name} has {overflowed} values too large for {dtype}")


def _numpy_dtype(dtype: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _metadata(
    config: GeckoConfig, quantization: str, table: list[Parameter]
) -> dict[str, str | int | float | dict]:
    nbytes = sum(parameter.nbytes for parameter in table)
    elements = sum(math.prod(parameter.shape) for parameter in table)
    return {
        "ParamSize": len(table),
        "ParamBytes": nbytes,
        "BitsPerParam": 8.0 * nbytes / elements,
        "model_type": "gecko",
        "format_version": FORMAT_VERSION,
        "gecko_mlc_version": gecko_mlc.__version__,
        "quantization": quantization,
        "model_config": config.to_dict(),
    }


@contextlib.contextmanager
def _staging_folder(output: Path) -> Iterator[Path]:
    """A folder on the file system of ``output``, gone afterwards whatever happened."""
    home = output.absolute()  # itself if it exists: it may be a file system of its own
    while not home.exists():
        home = home.parent
    folder = home / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    """Move the finished files. The index goes last, and an older one first: without an index the
    folder holds no weights, so there is no moment at which it pairs old with new."""
    output.mkdir(parents=True, exist_ok=True)
    (output / CACHE_NAME).unlink(missing_ok=True)
    for stale in output.glob(f"{SHARD_PREFIX}*.bin"):
        stale.unlink()
    for shard in folder.glob(f"{SHARD_PREFIX}*.bin"):
        os.replace(shard, output / shard.name)
    os.replace(folder / CACHE_NAME, output / CACHE_NAME)
