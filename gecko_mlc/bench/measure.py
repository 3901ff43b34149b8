"""The measurements of ``gecko-mlc bench``, one after the other."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import gecko_mlc
from gecko_mlc.bench import memory, results
from gecko_mlc.bench.calls import CallClock, recorded
from gecko_mlc.bench.compiled import Compiled
from gecko_mlc.bench.cuda import Cuda
from gecko_mlc.bench.gpu import Gpu
from gecko_mlc.bench.host import Host
from gecko_mlc.bench.kernel_clock import KernelClock
from gecko_mlc.bench.random_parameters import fill_windows
from gecko_mlc.bench.timing import Action, Effort, Timing, alternate
from gecko_mlc.bench.vulkan import Vulkan
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.engine import Engine
from tir_kernels.cost import Cost, Span


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
    def default_positions(cls, config: GeckoConfig, device: str) -> list[int]:
        """An early one; one that sees nearly two chunks and the memory; a far one likewise.

        From there on the chunk has room for the steps that are timed as one, without its last
        position, where the memory is updated.
        """
        on_gpu = not device.startswith("cpu")
        steps = (Gpu if on_gpu else Host).steps
        far = 1_000_000 if on_gpu else 100_000
        last = config.chunk_size - 1 - steps
        chunk = far // config.chunk_size * config.chunk_size
        return [min(16, config.chunk_size // 2), 2 * config.chunk_size + last, chunk + last]

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
    engine: Engine,
    model: Path,
    device: str,
    plan: Plan,
    name: str,
    compile_seconds: float | None,
    on_progress: Callable[[str], object] = lambda line: None,
) -> results.Result:
    """Measure all of ``plan`` on an engine with a slot for each sequence of the largest batch.

    ``model`` is the folder it was made from. ``name`` and ``compile_seconds`` are passed on to the
    result.
    """
    plan.check()
    if device.startswith("metal"):
        raise BenchError("cannot measure on device metal: TVM's runtime has no clock for its GPU")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if device.startswith("cpu"):
        on_progress("memory")
        library = engine.library.path
        found = memory.measure(
            model, library, device, plan.threads, max(plan.prompts), plan.positions
        )
    else:
        found = None
    bench = _Bench(engine, plan, on_progress)
    # Before the products: a GPU that has multiplied for seconds on end is slower for a while.
    prefill = bench.prefill()
    decode = bench.decode()
    generation = [bench.generation(prompt) for prompt in plan.prompts]
    bench.measure_limits()
    metadata = engine.metadata
    return results.Result(
        version=gecko_mlc.__version__,
        date=date,
        command=shlex.join(["gecko-mlc", *sys.argv[1:]]),
        versions=metadata["versions"],
        model=name,
        quantization=metadata["quantization"],
        model_config=engine.config.to_dict(),
        library=str(engine.library.path),
        target=metadata["target"]["name"],
        processor=bench.machine.name,
        load=load,
        compile_seconds=compile_seconds,
        reference=bench.machine.reference_name(),
        limits=bench.limits,
        prefill=prefill,
        decode=decode,
        generation=generation,
        steps=[bench.prefill_step(max(plan.prompts))] + bench.decode_steps(),
        products=bench.products,
        memory=bench.memory(found),
    )


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise BenchError(
            "the reference needs PyTorch (pip install gecko-mlc[reference]); "
            "measure without it with --no-reference"
        ) from error


def _torch_with_cuda() -> ModuleType | None:
    """On a GPU only PyTorch's matrix product is measured, and that where it can be."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = _torch()
    return torch if torch.cuda.is_available() else None


class _Bench:
    """An engine, the reference and the machine's limits, ready to be timed against one another."""

    def __init__(self, engine: Engine, plan: Plan, on_progress: Callable[[str], object]) -> None:
        self._engine, self._plan, self._on_progress = engine, plan, on_progress
        self._effort = plan.effort
        self._compiled = Compiled(engine, slots=max(plan.batches))
        self._workspace: int | None = None
        if engine.samples_on_device:
            on_progress("memory")
            self._workspace = memory.workspace(self._compiled, plan.batches)
        on_progress("bandwidth")
        self.machine: Host | Cuda | Vulkan
        if engine.samples_on_device:
            fill_windows(engine)
        kind = engine.metadata["target"]["options"]["kind"]
        if kind in ("cuda", "vulkan"):
            torch = _torch_with_cuda() if plan.reference else None
            self.machine = (Cuda if kind == "cuda" else Vulkan)(engine, torch, plan.effort)
        else:
            self.machine = Host(plan.threads, _torch() if plan.reference else None, self._effort)
        self._reader = self.machine.reader
        self._reference = self.machine.reference(engine.config)

    def measure_limits(self) -> None:
        """Matrix products, and the machine's limits with them."""
        self._on_progress("matrix products")
        self.products = self._measure_products()
        self.limits = self.machine.limits(self._shapes(), self.products)

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
        """Those of ``score`` of a chunk, with the operands they have there, by themselves."""
        shapes, machine = self._shapes(), self.machine
        tokens = self._tokens(self._engine.config.chunk_size)
        clocks = {}
        for by, cublaslt in machine.products.items():
            score = self._compiled.score(tokens, cublaslt)
            calls = recorded(self._engine, score, machine.operation)
            # A back end may join one with another.
            products = {name: calls[name] for name in machine.multiplying if name in calls}
            clocks[by] = CallClock(products, machine.timer())
        actions = {by: clock.action() for by, clock in clocks.items()}
        torch = machine.torch_products(shapes)
        if torch is not None:
            actions["torch"] = torch.action()
        alternate(actions, self._effort)
        torch_seconds = {} if torch is None else torch.seconds()
        found = []
        for by, clock in clocks.items():
            for name, seconds in clock.seconds().items():
                product = machine.multiplying[name]
                m, k, n, _ = shapes[product]
                rate = 2 * m * k * n / seconds
                torch_rate = 2 * m * k * n / torch_seconds[product] if torch_seconds else None
                ratio = rate / torch_rate if torch_rate else None
                found.append(results.Product(name, by, m, k, n, rate, torch_rate, ratio))
        return found

    def _clock(self) -> KernelClock:
        return KernelClock(self._engine, self.machine.timer(), self.machine.operation)

    def _compare(self, library: Action, reference: Action | None) -> dict[str, Timing]:
        actions = {"library": library, "read": self._reader.action}
        if reference is not None:
            actions["reference"] = reference
        return alternate(actions, self._effort)

    def prefill(self) -> list[results.Prefill]:
        return [
            self._prefill(tokens, *products)
            for tokens in self._plan.prompts
            for products in self.machine.products.items()
        ]

    def _prefill(self, tokens: int, products: str, cublaslt: bool) -> results.Prefill:
        self._on_progress(f"prefill of {tokens} tokens, products by {products}")
        prompt = self._tokens(tokens)
        reference = None if self._reference is None else self._reference.prefill(prompt)
        timings = self._compare(self._compiled.prefill(prompt, cublaslt), reference)
        seconds = timings["library"].median
        return results.Prefill(tokens, products, seconds, tokens / seconds, *_versus(timings))

    def decode(self) -> list[results.Decode]:
        """Every position and batch in the same rounds, so that they compare with one another."""
        self._on_progress("steps of decode")
        cases = [(at, batch) for at in self._plan.positions for batch in self._plan.batches]
        tokens = self._tokens(self.machine.steps)
        actions = {"read": self._reader.action}
        for case in cases:
            actions[f"library {case}"] = self._compiled.generate(tokens, *case)
        if self._reference is not None:
            for case in cases:
                actions[f"reference {case}"] = self._reference.decode(tokens, *case)
        timings = alternate(actions, self._effort)
        return [self._decode(case, timings) for case in cases]

    def _decode(self, case: tuple[int, int], timings: Mapping[str, Timing]) -> results.Decode:
        position, batch = case
        library, read = timings[f"library {case}"], timings["read"]
        reference = timings.get(f"reference {case}")
        steps = self.machine.steps
        costs = self._compiled.decode_costs(position, batch, self.machine.decode_costs)
        cost = sum(costs.values(), Cost())
        return results.Decode(
            position=position,
            visible=self._visible(position),
            batch=batch,
            seconds=library.median / steps,
            tokens_per_second=steps * batch / library.median,
            bytes=cost.bytes,
            weight_bytes=cost.weights,
            read_bandwidth=self._reader.bytes / read.median,
            of_limit=library.over(read) * steps * cost.bytes / self._reader.bytes,
            reference_seconds=None if reference is None else reference.median / steps,
            speedup=None if reference is None else library.over(reference),
        )

    def _visible(self, position: int) -> int:
        span = Span(position)
        return self._compiled.work((span,), 1).visible(span)

    def generation(self, prompt: int) -> results.Generation:
        count = self._plan.decode
        self._on_progress(f"{count} tokens behind {prompt}")
        tokens = self._tokens(count)
        reference = None if self._reference is None else self._reference.decode(tokens, prompt)
        timings = self._compare(self._compiled.generate(tokens, prompt), reference)
        seconds = timings["library"].median
        return results.Generation(prompt, count, seconds, count / seconds, *_versus(timings))

    def prefill_step(self, tokens: int) -> results.Step:
        machine = self.machine
        action = self._compiled.prefill(self._tokens(tokens), max(machine.products.values()))
        costs = self._compiled.prefill_costs(tokens, machine.forward_costs, machine.commit_costs)
        return self._step("prefill", f"{tokens} tokens", action, costs)

    def decode_steps(self) -> list[results.Step]:
        """Every position for one sequence, and for the largest batch where that is larger."""
        batches = sorted({1, max(self._plan.batches)})
        return [self._decode_step(at, batch) for batch in batches for at in self._plan.positions]

    def _decode_step(self, position: int, batch: int) -> results.Step:
        costs = self._compiled.decode_costs(position, batch, self.machine.decode_costs)
        action = self._compiled.decode(self._tokens(1), position, batch)
        description = f"position {position}" + (f", batch {batch}" if batch > 1 else "")
        if isinstance(self.machine, Host):
            return self._step("decode", description, action, costs)
        steps = self._compiled.generate(self._tokens(self.machine.steps), position, batch)
        if isinstance(self.machine, Cuda):
            return self._replayed_step(self.machine, description, steps, action, costs)
        return self._step("decode", description, action, costs, steps)

    def _step(
        self,
        function: str,
        description: str,
        step: Action,
        costs: Mapping[str, Cost],
        steps: Action | None = None,
    ) -> results.Step:
        """With a clock around every kernel of ``step``.

        Where a device replays steps, ``steps`` are as many as it times as one: what a step takes.
        """
        self._on_progress(f"kernels of {function}, {description}")
        clock = self._clock()
        actions = {
            "plain": steps or step,
            "clocked": clock.action(step),
            "read": self._reader.action,
        }
        timings = alternate(actions, self._effort)
        seconds = timings["plain"].median / (self.machine.steps if steps else 1)
        bandwidth = self._reader.bytes / timings["read"].median
        kernels = clock.kernels()
        between = None if steps else clock.between()
        return self._table(function, description, seconds, kernels, between, bandwidth, costs)

    def _replayed_step(
        self,
        machine: Cuda,
        description: str,
        steps: Action,
        step: Action,
        costs: Mapping[str, Cost],
    ) -> results.Step:
        """A step is a graph: each kernel in a graph of its own calls, so that they add up to it.

        ``steps`` are as many as the machine times as one, ``step`` is one, kernel by kernel.
        """
        self._on_progress(f"kernels of decode, {description}")
        actions = {"step": steps, "read": self._reader.action}
        calls = recorded(self._engine, step, machine.operation)
        times = {}
        for name, launches in calls.items():
            graph, times[name] = machine.in_graph(launches)
            actions[f"kernel {name}"] = Action(graph.run, step.prepare)
        timings = alternate(actions, self._effort)
        kernels = {
            name: (len(launches), timings[f"kernel {name}"].median / times[name])
            for name, launches in calls.items()
        }
        seconds = timings["step"].median / machine.steps
        bandwidth = self._reader.bytes / timings["read"].median
        return self._table("decode", description, seconds, kernels, None, bandwidth, costs)

    def _table(
        self,
        function: str,
        description: str,
        step: float,
        kernels: Mapping[str, tuple[int, float]],
        between: int | None,
        bandwidth: float,
        costs: Mapping[str, Cost],
    ) -> results.Step:
        return results.Step(
            function=function,
            description=description,
            seconds=step,
            rest=step - sum(seconds for _, seconds in kernels.values()),
            between=between,
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

    def memory(self, found: Mapping[str, Any] | None) -> results.Memory:
        """``found``: the sizes of a process of its own, where they were measured."""
        account = self._engine.metadata["memory"]
        found = found or {}
        at = zip(map(str, self._plan.positions), found.get("at", []), strict=False)
        return results.Memory(
            params=account["params"],
            slot=account["slot"],
            imported=found.get("imported"),
            imported_private=found.get("imported_private"),
            loaded=found.get("loaded"),
            at=dict(at),
            peak=found.get("peak"),
            workspace=self._workspace,
        )


def _versus(timings: Mapping[str, Timing]) -> tuple[float | None, float | None]:
    """The reference's seconds, and how many times faster the library is."""
    if "reference" not in timings:
        return None, None
    return timings["reference"].median, timings["library"].over(timings["reference"])
