"""LoRA experts in the world of the journeys, and what is done with mixtures of them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.journey.conftest import Command, command

ask: Command = command

FEW = (
    "--steps", "4", "--push-every", "2,4", "--lr", "5e-3", "--schedule", "constant",
    "--warmup-steps", "1", "--batch", "16", "--max-examples", "96",
)  # fmt: skip
LORA = ("--tune", "lora", "--rank", "2")
MNIST, HEBREW = "loras/mnist@step4", "loras/hebrew@step2"
SHORT = ("--lr", "1e-3", "--batch", "16", "--max-examples", "64", "--augment")
MIXED = (MNIST, HEBREW, "--train-steps", "4", "--push-every", "2,4", *SHORT)


def train(task: object, to: str, *more: object, base: object = "hubmerge/tiny-clip") -> None:
    """Train one expert for a few steps and publish it."""
    said = ask("train", "--base", base, "--task", task, "--to", to, *FEW, *more)
    assert said.code == 0, said.err


def train_loras() -> None:
    """loras/mnist of rank 2 and loras/hebrew of rank 3, at steps 2 and 4."""
    train("mini-mnist", "loras/mnist", *LORA)
    train("mini-hebrew", "loras/hebrew", "--tune", "lora", "--rank", "3")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def changed(file: Path, **tensors: Tensor | None) -> None:
    """Put other tensors into a file, or take out those that are None."""
    state = {**load_file(file), **tensors}
    kept = {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}
    file.unlink()  # it may be linked to from elsewhere
    save_file(kept, file)
