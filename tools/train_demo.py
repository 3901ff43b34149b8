"""Train the demo model: a byte-level Gecko on the source of Python's own standard library.

    python tools/train_demo.py --device cuda        # writes tools/demo
    python tools/train_demo.py --evaluate tools/demo

Needs the package with its extra `reference`, and `safetensors`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_corpus import evaluation_text, stdlib, text
from safetensors.torch import save_file
from torch import Tensor

from gecko_mlc.checkpoint import open_checkpoint
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko

CONFIG = GeckoConfig(
    num_layers=6,
    model_dim=192,
    z_dim=128,
    value_dim=384,
    num_heads=4,
    ffn_hidden_dim=512,
    cema_ndim=16,
    chunk_size=256,
    vocab_size=256,
    timenorm_num_groups=24,
)
WARM_UP = 100
WEIGHT_DECAY = 0.1
EVALUATIONS = 10


def batch(data: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows at random places of the text [bytes]: [rows, length + 1]."""
    start = torch.randint(0, len(data) - length, (rows, 1), generator=generator)
    return data[(start + torch.arange(length + 1)).to(data.device)].long()


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: a linear warm-up, then half a cosine down to nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP))


def add_dropout(model: Gecko, share: float) -> None:
    """Drop from what each half of a block adds to the residual; inactive in evaluation mode."""
    for name, module in model.named_modules():
        if name.endswith((".wh1", ".wh2", ".fc2")):
            module.register_forward_hook(lambda m, _, out: F.dropout(out, share, m.training))


def bits_per_byte(model: Gecko, data: bytes) -> float:
    """Mean information of each byte after the first, read as one stream."""
    device = model.embed.weight.device
    tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device).long()[None]
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    state, nats = None, 0.0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for part, target in zip(inputs.split(4096, 1), targets.split(4096, 1), strict=True):
            logits, state = model(part, state)
            nats += F.cross_entropy(logits[0].double(), target[0], reduction="sum").item()
    model.train(training)
    return nats / targets.shape[1] / math.log(2.0)


def matrices(model: Gecko) -> set[str]:
    """Names of the embedding and the projections: decayed in training, stored in 16 bits."""
    kinds = torch.nn.Linear, torch.nn.Embedding
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, kinds)}


def save(model: Gecko, folder: Path) -> None:
    """Matrices as float16, all else (norms, CEMA, scales) as it is."""
    small = matrices(model)
    tensors = {
        name: (tensor.half() if name in small else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(CONFIG.to_dict(), indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors.new")
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")


def load(folder: Path, device: str) -> Gecko:
    config, tensors = open_checkpoint(folder)
    loaded = {name: torch.from_numpy(tensors[name]) for name in tensors}
    return Gecko.from_tensors(config, loaded).to(device)


def training_step(model: Gecko, optimizer: torch.optim.Optimizer, tokens: Tensor) -> Tensor:
    """One step on tokens [B, T + 1]; the loss in nats. On a GPU the products are bfloat16."""
    low = tokens.device.type != "cpu"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
        logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph: launching its ten thousand kernels would take twice their time.

    Runs the step three times first; the learning rate must be 0 then.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    corpus, held_out = text(args.stdlib, held_out=False), evaluation_text(args.stdlib)
    data = torch.frombuffer(bytearray(corpus), dtype=torch.uint8).to(args.device)
    with torch.device(args.device):
        model = Gecko(CONFIG)
    add_dropout(model, args.dropout)
    decayed = matrices(model)
    rate = torch.zeros((), device=args.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter], "weight_decay": WEIGHT_DECAY if name in decayed else 0.0}
            for name, parameter in model.named_parameters()
        ],
        lr=rate,
        betas=(0.9, 0.95),
        capturable=args.device != "cpu",
        fused=True,
    )
    tokens = torch.zeros(args.batch, args.length + 1, dtype=torch.long, device=args.device)
    take_step = partial(training_step, model, optimizer, tokens)
    if args.device != "cpu":
        take_step = captured(take_step)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(corpus)} bytes of text", flush=True)

    generator = torch.Generator().manual_seed(0)
    began, history, losses = time.monotonic(), [], []
    for step in range(args.steps):
        rate.fill_(args.rate * learning_rate(step, args.steps))
        tokens.copy_(batch(data, args.batch, args.length, generator))
        losses.append(take_step().clone())
        if step + 1 == args.steps or (step + 1) % max(1, args.steps // EVALUATIONS) == 0:
            seen = (step + 1) * args.batch * args.length
            training = torch.stack(losses).mean().item() / math.log(2.0)
            save(model, args.output)
            history.append((step + 1, seen, training, bits_per_byte(model, held_out)))
            losses.clear()
            speed = seen / (time.monotonic() - began)
            print(
                f"step {step + 1}: {seen / 1e6:.1f} M bytes, training {training:.4f}, "
                f"held out {history[-1][3]:.4f} bits per byte, {speed:.0f} bytes/s",
                flush=True,
            )
    minutes = (time.monotonic() - began) / 60
    torch.set_float32_matmul_precision("highest")
    stored = load(args.output, args.device)
    final = bits_per_byte(stored, held_out)
    whole = bits_per_byte(stored, text(args.stdlib, held_out=True))
    write_readme(args, parameters, corpus, held_out, history, minutes, final, whole)
    print(f"{final:.6f} bits per byte held out ({whole:.6f} over all), {minutes:.1f} minutes")


def write_readme(
    args: argparse.Namespace,
    parameters: int,
    corpus: bytes,
    held_out: bytes,
    history: list[tuple[int, int, float, float]],
    minutes: float,
    final: float,
    whole: float,
) -> None:
    device = platform.processor() or platform.machine()
    if args.device != "cpu":
        device = torch.cuda.get_device_name()
    rows = "\n".join(f"| {s} | {n / 1e6:.1f} | {t:.3f} | {h:.3f} |" for s, n, t, h in history)
    digest = hashlib.sha256(corpus).hexdigest()[:16]
    held_digest = hashlib.sha256(held_out).hexdigest()[:16]
    readme = f"""# The demo model

A byte-level Gecko with {parameters:,} parameters ({CONFIG.num_layers} layers, chunks of
{CONFIG.chunk_size} bytes), trained on the source text of Python's standard library without its
tests and tables ({len(corpus):,} bytes, sha256 {digest}...). One module in sixteen,
picked by the hash of its name, is held out. Tokens are bytes; byte 0 stands before each file.

    python tools/train_demo.py --device {args.device} --steps {args.steps} --batch {args.batch} \\
      --length {args.length} --rate {args.rate} --dropout {args.dropout}

took {minutes:.1f} minutes on one {device} (PyTorch {torch.__version__}).

Held out, weights as stored, float32 reference, read as one stream: **{final:.4f} bits per byte**
over the first {len(held_out):,} bytes (sha256 {held_digest}...), {whole:.4f} over all.
The last weights are kept; none were chosen by the held-out text. Another release of Python has a
slightly different library, hence other numbers:

    python tools/train_demo.py --evaluate tools/demo

| step | million bytes | training, bits per byte | held out, first part |
| --- | --- | --- | --- |
{rows}

The training column is measured with dropout. Matrices are stored as float16, norms, CEMA and
scales as float32.
"""
    (args.output / "README.md").write_text(readme, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "demo")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="only measure a checkpoint")
    parser.add_argument("--stdlib", type=Path, default=stdlib(), help="another Python's library")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1850)
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--length", type=int, default=4096, help="bytes per sequence")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    if args.evaluate is None:
        train(args)
    else:
        data = evaluation_text(args.stdlib)
        print(f"{bits_per_byte(load(args.evaluate, args.device), data):.6f} bits per byte")


if __name__ == "__main__":
    main()
