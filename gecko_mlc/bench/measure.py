"""The measurements of ``gecko-mlc bench``, one after the other."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

import gecko_mlc
from gecko_mlc.bench import memory, results
from gecko_mlc.bench.compiled import Compiled
from gecko_mlc.bench.kernel_clock import KernelClock
from gecko_mlc.bench.limits import READ_BYTES, Reader, numpy_multiply_rate, processor
from gecko_mlc.bench.timing import Action, Effort, Timing, alternate
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.engine import Engine
from tir_kernels.cost import PRODUCTS, Cost, Span

if TYPE_CHECKING:
    from gecko_mlc.bench.reference import Reference


class BenchError(ValueError):
    """A measurement that makes no sense."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure: prompt lengths, tokens to decode behind them, positions and batch sizes."""

    prompts: list[int]
    decode: int
    positions: list[int]
    batches: list[int]
    threads: int
    reference: bool
    effort: Effort = Effort()

    @classmethod
    def default_positions(cls, config: GeckoConfig) -> list[int]:
        """An early one; one that sees nearly two chunks and the memory; far ones that see as much.

        The last position of a chunk would update the memory in every step.
        """
        full = 3 * config.chunk_size - 2
        far = 100_000 // config.chunk_size * config.chunk_size + config.chunk_size - 2
        return [min(16, config.chunk_size // 2), full, far]

    def check(self) -> None:
        for name, values, least in (
            ("--prompt", self.prompts, 1),
            ("--decode", [self.decode], 1),
            ("--position", self.positions, 0),
            ("--batch", self.batches, 1),
            ("--threads", [self.threads], 1),
        ):
            wrong = [value for value in values if value < least]
            if wrong or not values:
                raise BenchError(f"{name} is {wrong}, wanted at least {least}")


def run(
    model: Path,
    library: Path,
    device: str,
    plan: Plan,
    name: str,
    compile_seconds: float | None,
    on_progress: Callable[[str], object] = lambda line: None,
) -> results.Result:
    """Measure all of ``plan``. ``name`` and ``compile_seconds`` are passed on to the result."""
    plan.check()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    slots = max(plan.batches)
    on_progress("memory")
    memory_found = memory.measure(
        model, library, device, plan.threads, max(plan.prompts), plan.positions
    )
    engine = Engine(model, library, device=device, threads=plan.threads, slots=slots)
    bench = _Bench(engine, plan, on_progress)
    metadata = engine.metadata
    return results.Result(
        version=gecko_mlc.__version__,
        model=name,
        quantization=metadata["quantization"],
        model_config=engine.config.to_dict(),
        library=str(library),
        target=metadata["target"]["name"],
        processor=processor(),
        load=load,
        compile_seconds=compile_seconds,
        reference=bench.reference_name,
        limits=bench.limits,
        prefill=[bench.prefill(tokens) for tokens in plan.prompts],
        decode=bench.decode(),
        generation=[bench.generation(prompt) for prompt in plan.prompts],
        steps=[bench.prefill_step(max(plan.prompts))]
        + [bench.decode_step(position) for position in plan.positions],
        products=bench.products,
        memory=results.Memory(
            params=metadata["memory"]["params"],
            slot=metadata["memory"]["slot"],
            imported=memory_found["imported"],
            imported_private=memory_found["imported_private"],
            loaded=memory_found["loaded"],
            at=dict(zip(map(str, plan.positions), memory_found["at"], strict=True)),
            peak=memory_found["peak"],
        ),
    )


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise BenchError(
            "the reference needs PyTorch (pip install gecko-mlc[reference]); "
            "measure without it with --no-reference"
        ) from error


class _Bench:
    """An engine, the reference and the machine's limits, ready to be timed against one another."""

    def __init__(self, engine: Engine, plan: Plan, on_progress: Callable[[str], object]) -> None:
        self._engine, self._plan, self._on_progress = engine, plan, on_progress
        self._effort = plan.effort
        self._compiled = Compiled(engine, slots=max(plan.batches))
        self._reference: Reference | None = None
        self.reference_name: str | None = None
        torch = _torch() if plan.reference else None
        if torch is not None:
            from gecko_mlc.bench.reference import Reference

            on_progress("reference's weights")
            self._reference = Reference(engine.config, plan.threads)
            self.reference_name = f"PyTorch {torch.__version__}, float32"
        on_progress("read bandwidth")
        self._reader = Reader(plan.threads, torch, self._effort)
        on_progress("matrix products")
        self.products = self._measure_products()
        self.limits = self._limits()

    def _tokens(self, count: int) -> np.ndarray:
        generator = np.random.default_rng(0)
        return generator.integers(self._engine.config.vocab_size, size=count, dtype=np.int32)

    def _shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Products of ``score`` of a chunk, by operation: m, k, n and how many of them."""
        c = self._engine.config
        dim, value, m, layers = c.model_dim, c.value_dim, c.chunk_size, c.num_layers
        hidden = c.ffn_hidden_dim
        return {
            "wv": (m, dim, value, layers),
            "wzrh": (m, dim, c.z_dim + value + dim, layers),
            "wh2": (m, value, dim, layers),
            "fc1": (m, dim, 2 * hidden if c.swiglu else hidden, layers),
            "fc2": (m, hidden, dim, layers),
            "logits": (m, dim, c.num_outputs, 1),
        }

    def _measure_products(self) -> list[results.Product]:
        shapes = self._shapes()
        clock = KernelClock(self._engine.library)
        score = self._compiled.score(self._tokens(self._engine.config.chunk_size))
        actions = {"library": clock.action(score)}
        if self._reference is not None:
            from gecko_mlc.bench.reference import Multiplier

            multiplier = Multiplier(shapes, self._plan.threads)
            actions["torch"] = multiplier.action()
        alternate(actions, self._effort)
        kernels = clock.kernels()
        torch_seconds = multiplier.seconds() if self._reference is not None else {}
        products = []
        for name in PRODUCTS:
            if name not in kernels:
                continue  # a back end may join it with another
            m, k, n, _ = shapes[name]
            calls, seconds = kernels[name]
            rate = 2 * m * k * n * calls / seconds
            torch_rate = 2 * m * k * n / torch_seconds[name] if torch_seconds else None
            ratio = rate / torch_rate if torch_rate else None
            products.append(results.Product(name, m, k, n, rate, torch_rate, ratio))
        return products

    def _limits(self) -> results.Limits:
        threads, reader = self._plan.threads, self._reader
        try:
            from gecko_mlc.bench.multiply_add import multiply_add_rate

            rate, by = multiply_add_rate(threads, self._effort), "multiply-adds on registers"
        except ImportError:  # the compiler is not installed
            shapes = [(m, k, n) for m, k, n, _ in self._shapes().values()]
            rate, by = numpy_multiply_rate(shapes, threads, self._effort), "numpy.matmul"
        return results.Limits(threads, reader.bandwidth, reader.name, rate, by)

    def _compare(self, library: Action, reference: Action | None) -> dict[str, Timing]:
        actions = {"library": library, "read": self._reader.action}
        if reference is not None:
            actions["reference"] = reference
        return alternate(actions, self._effort)

    def prefill(self, tokens: int) -> results.Prefill:
        self._on_progress(f"prefill of {tokens} tokens")
        prompt = self._tokens(tokens)
        reference = None if self._reference is None else self._reference.prefill(prompt)
        timings = self._compare(self._compiled.prefill(prompt), reference)
        seconds = timings["library"].median
        return results.Prefill(tokens, seconds, tokens / seconds, *_versus(timings))

    def decode(self) -> list[results.Decode]:
        """Every position and batch in the same rounds, so that they compare with one another."""
        self._on_progress("steps of decode")
        cases = [(at, batch) for at in self._plan.positions for batch in self._plan.batches]
        token = self._tokens(1)
        actions = {"read": self._reader.action}
        for case in cases:
            actions[f"library {case}"] = self._compiled.decode(token, *case)
        if self._reference is not None:
            for case in cases:
                actions[f"reference {case}"] = self._reference.decode(token, *case)
        timings = alternate(actions, self._effort)
        return [self._decode(case, timings) for case in cases]

    def _decode(self, case: tuple[int, int], timings: Mapping[str, Timing]) -> results.Decode:
        position, batch = case
        library, read = timings[f"library {case}"], timings["read"]
        reference = timings.get(f"reference {case}")
        cost = self._decode_cost(position, batch)
        return results.Decode(
            position=position,
            visible=self._visible(position),
            batch=batch,
            seconds=library.median,
            tokens_per_second=batch / library.median,
            bytes=cost.bytes,
            weight_bytes=cost.weights,
            read_bandwidth=READ_BYTES / read.median,
            of_limit=library.over(read) * cost.bytes / READ_BYTES,
            reference_seconds=None if reference is None else reference.median,
            speedup=None if reference is None else library.over(reference),
        )

    def _decode_cost(self, position: int, batch: int) -> Cost:
        costs = self._compiled.decode_costs(position, batch)
        del costs["last_row"]  # only prefill has it
        return sum(costs.values(), Cost())

    def _visible(self, position: int) -> int:
        span = Span(position)
        return self._compiled.work((span,), 1).visible(span)

    def generation(self, prompt: int) -> results.Generation:
        count = self._plan.decode
        self._on_progress(f"{count} tokens behind {prompt}")
        tokens = self._tokens(count)
        reference = None if self._reference is None else self._reference.decode(tokens, prompt)
        timings = self._compare(self._compiled.decode(tokens, prompt), reference)
        seconds = timings["library"].median
        return results.Generation(prompt, count, seconds, count / seconds, *_versus(timings))

    def prefill_step(self, tokens: int) -> results.Step:
        return self._step(
            "prefill",
            f"{tokens} tokens",
            self._compiled.prefill(self._tokens(tokens)),
            self._compiled.prefill_costs(tokens),
        )

    def decode_step(self, position: int) -> results.Step:
        costs = self._compiled.decode_costs(position, 1)
        action = self._compiled.decode(self._tokens(1), position)
        return self._step("decode", f"position {position}", action, costs)

    def _step(
        self, function: str, description: str, action: Action, costs: Mapping[str, Cost]
    ) -> results.Step:
        self._on_progress(f"kernels of {function}, {description}")
        clock = KernelClock(self._engine.library)
        actions = {"plain": action, "clocked": clock.action(action), "read": self._reader.action}
        timings = alternate(actions, self._effort)
        step, bandwidth = timings["plain"].median, READ_BYTES / timings["read"].median
        kernels = clock.kernels()
        return results.Step(
            function=function,
            description=description,
            seconds=step,
            rest=step - sum(seconds for _, seconds in kernels.values()),
            between=clock.between(),
            read_bandwidth=bandwidth,
            operations=[
                self._operation(name, calls, seconds, step, costs.get(name), bandwidth)
                for name, (calls, seconds) in kernels.items()
            ],
        )

    def _operation(
        self, name: str, calls: int, seconds: float, step: float, cost: Cost | None, read: float
    ) -> results.Operation:
        of_step = seconds / step
        if cost is None:
            return results.Operation(name, calls, seconds, of_step, None, None, None, None)
        memory_time = cost.bytes / read
        compute_time = cost.operations / self.limits.multiply_rate
        return results.Operation(
            name,
            calls,
            seconds,
            of_step,
            cost.bytes,
            cost.operations,
            "memory" if memory_time >= compute_time else "compute",
            max(memory_time, compute_time) / seconds,
        )


def _versus(timings: Mapping[str, Timing]) -> tuple[float | None, float | None]:
    """The reference's seconds, and how many times faster the library is."""
    if "reference" not in timings:
        return None, None
    return timings["reference"].median, timings["library"].over(timings["reference"])
