"""What a benchmark found: times in seconds, sizes in bytes, rates per second.

``reference_*`` and ``speedup`` (reference's time over the library's, by rounds) are None without
PyTorch.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """The machine's, a processor's with ``threads`` threads; ``*_by`` says what reached them.

    ``copy_bandwidth`` counts the bytes read and those written; None for a processor.
    """

    threads: int | None
    read_bandwidth: float
    read_by: str
    copy_bandwidth: float | None
    multiply_rate: float
    multiply_by: str


@dataclasses.dataclass(frozen=True)
class Prefill:
    """``tokens`` from an empty sequence on, with the logits of the last one only.

    ``products``: whose matrix products, the library's own or cuBLASLt's.
    """

    tokens: int
    products: str
    seconds: float
    tokens_per_second: float
    reference_seconds: float | None
    speedup: float | None


@dataclasses.dataclass(frozen=True)
class Decode:
    """One step of ``batch`` sequences at ``position``, which see ``visible`` rows of their rings.

    On a CUDA device one of several in a row from there on, each sampled there and read a step late.

    ``bytes`` is the least the step moves, ``weight_bytes`` of it weights; ``read_bandwidth`` is the
    machine's in the same rounds, and ``of_limit`` bytes / seconds over that.
    """

    position: int
    visible: int
    batch: int
    seconds: float
    tokens_per_second: float
    bytes: int
    weight_bytes: int
    read_bandwidth: float
    of_limit: float
    reference_seconds: float | None
    speedup: float | None


@dataclasses.dataclass(frozen=True)
class Generation:
    """``tokens`` decoded one after the other behind a prompt; seconds of all of them."""

    prompt: int
    tokens: int
    seconds: float
    tokens_per_second: float
    reference_seconds: float | None
    speedup: float | None


@dataclasses.dataclass(frozen=True)
class Operation:
    """All calls of one kernel in a step.

    ``of_step``: share of the step's time. ``bound_by``: memory or compute, whichever takes longer
    at the machine's limits for what the kernel must move and compute; ``of_limit``: that time over
    the measured one, above 1 where a cache serves what is counted as memory traffic. Both None, as
    bytes and operations, for a kernel without a cost.
    """

    name: str
    calls: int
    seconds: float
    of_step: float
    bytes: int | None
    operations: int | None
    bound_by: str | None
    of_limit: float | None


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a step's time goes: kernels, and the ``rest`` between them.

    ``seconds`` is measured without the kernels' clock. ``between`` counts the virtual machine's own
    calls, None where the step is replayed as a graph.
    """

    function: str
    description: str
    seconds: float
    rest: float
    between: int | None
    read_bandwidth: float
    operations: list[Operation]


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [n, k]^T in ``score`` of a chunk, its fused ending included.

    ``by``: the library, or cuBLASLt.
    """

    name: str
    by: str
    m: int
    k: int
    n: int
    rate: float
    torch_rate: float | None
    ratio: float | None


@dataclasses.dataclass(frozen=True)
class Memory:
    """``params`` and ``slot`` by the library's account, the others of a process of its own.

    ``imported`` and ``loaded``: the process before and after loading the model, files it maps
    included; ``imported_private`` and ``at``: without them, before and after a step at each
    position; ``peak``: over prefill and decode. None where the system does not tell.
    ``workspace``: what prefill and decode take on a CUDA device beside parameters and state.
    """

    params: int
    slot: int
    imported: int | None
    imported_private: int | None
    loaded: int | None
    at: dict[str, int | None]
    peak: int | None
    workspace: int | None


@dataclasses.dataclass(frozen=True)
class Result:
    """``date`` (UTC) is of the beginning; ``compile_seconds`` is None when the library was there.

    ``load`` is the number of running threads (the last minute's average) before anything was
    measured: with others on the same cores, times say little, of PyTorch least of all.
    """

    version: str
    date: str
    command: str
    versions: dict[str, str]
    model: str
    quantization: str
    model_config: dict[str, Any]
    library: str
    target: str
    processor: str
    load: float | None
    compile_seconds: float | None
    reference: str | None
    limits: Limits
    prefill: list[Prefill]
    decode: list[Decode]
    generation: list[Generation]
    steps: list[Step]
    products: list[Product]
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
