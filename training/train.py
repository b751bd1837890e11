"""Trains the demo model: `python -m training.train --minutes 90 --seed 0 --out runs/demo`.

Knows the schedule and the checkpoints of a run. Does not know data, layers or file formats. A run goes on
where it stopped with `--resume`; the batches depend on the seed and the step alone.
"""

import argparse
import copy
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from training.batches import Batch, ChatLayout
from training.feed import batches
from training.layout_check import check_layout
from training.model import TrainablePixtral, demo_config
from training.muon import Muon
from training.scores import RunningScores, held_out_accuracy

_WARMUP_STEPS = 100
_STEADY_SHARE = 0.6
_LOG_STEPS = 20


@dataclass(slots=True)
class Clock:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0


class Trainer:
    """fp32 weights with their optimizers, and the bf16 copy that does the work."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.weights = TrainablePixtral(demo_config())
        self.worker = copy.deepcopy(self.weights).to(torch.bfloat16)
        if args.compile:
            _compile_layers(self.worker)
        hidden, others = _split_parameters(self.weights)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=args.lr, weight_decay=args.weight_decay),
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.lr: float = args.lr
        self.clock = Clock()

    def step(self, batch: Batch, progress: float) -> tuple[float, Tensor]:
        """Learn from one batch; returns the answer loss and which targets were right."""
        loss, helping, right = self.worker(batch)
        (loss + 0.5 * max(0.2, 1 - progress) * helping).backward()
        for weight, working in zip(self.weights.parameters(), self.worker.parameters(), strict=True):
            weight.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        nn.utils.clip_grad_norm_(self.weights.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.lr * self._rate(progress)
            optimizer.step()
        self.sync()
        self.clock.step += 1
        return loss.item(), right

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the weights to the working copy."""
        for weight, working in zip(self.weights.parameters(), self.worker.parameters(), strict=True):
            working.copy_(weight)

    def _rate(self, progress: float) -> float:
        """Warm up, hold, then fall to nearly nothing."""
        falling = (1 - progress) / (1 - _STEADY_SHARE)
        return min(1.0, (self.clock.step + 1) / _WARMUP_STEPS, max(falling, 0.01))

    def save(self, folder: Path) -> None:
        """Write the checkpoint, in one motion."""
        state = {
            "weights": self.weights.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.clock.step,
            "seconds": self.clock.seconds,
        }
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint."""
        state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.weights.load_state_dict(state["weights"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.clock = Clock(state["step"], state["seconds"])
        self.sync()


def train(args: argparse.Namespace) -> None:
    """Run until the minutes are spent, then leave the last checkpoint."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        args.tekken = args.out / "tekken.json"
    else:
        shutil.copyfile(args.tekken, args.out / "tekken.json")
    layout = ChatLayout(args.tekken)
    check_layout(args.tekken, layout)
    trainer = Trainer(args)
    if args.resume:
        trainer.load(args.out)
    try:
        _loop(trainer, layout, args)
    finally:
        trainer.save(args.out)


def _loop(trainer: Trainer, layout: ChatLayout, args: argparse.Namespace) -> None:
    clock, scores = trainer.clock, RunningScores()
    feed = batches(args.tekken, seed=args.seed, first_step=clock.step, ramp=args.ramp, cpu=args.data_cpu)
    before, looked = time.monotonic(), clock.seconds
    while clock.seconds < 60 * args.minutes:
        batch = next(feed)
        loss, right = trainer.step(batch, clock.seconds / (60 * args.minutes))
        scores.add(batch, right.numpy())
        now = time.monotonic()
        clock.seconds, before = clock.seconds + now - before, now
        if clock.step % _LOG_STEPS == 0:
            spent = f"{clock.seconds / 60:.1f}/{args.minutes:g} min"
            print(f"step {clock.step} {spent} loss {loss:.3f} {scores}", flush=True)
        if clock.seconds - looked > 60 * args.look_minutes:
            looked = clock.seconds
            trainer.save(args.out)
            accuracy = held_out_accuracy(trainer.weights, layout, args.seed, 48)
            print("held out:", " ".join(f"{task} {share:.3f}" for task, share in accuracy.items()), flush=True)


def _split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden matrices, and everything else."""
    outer = ("embed_tokens", "lm_head", "patch_conv", "helping_heads")
    named = list(model.named_parameters())
    hidden: list[Tensor] = [
        weight for name, weight in named if weight.dim() == 2 and not any(part in name for part in outer)
    ]
    ids = {id(weight) for weight in hidden}
    return hidden, [weight for _, weight in named if id(weight) not in ids]


def _compile_layers(model: TrainablePixtral) -> None:
    for layer in (*model.vision_tower.transformer.layers, *model.language_model.model.layers):
        layer.compile(dynamic=True)


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Train by the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90.0, help="time to train, resumed parts included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tekken", type=Path, default=Path("models/demo/tekken.json"))
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--ramp", type=int, default=1500, help="steps until pictures have their full difficulty")
    parser.add_argument("--look-minutes", type=float, default=4.0, help="between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-cpu", type=int, default=None, help="core for the process that draws")
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    signal.signal(signal.SIGTERM, _stop)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
