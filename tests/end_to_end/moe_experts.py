"""LoRA experts for end-to-end tests of mixtures of experts."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.end_to_end.conftest import run_hubmerge

FEW_STEPS = (
    "--steps", "4", "--push-every", "2,4", "--lr", "5e-3", "--schedule", "constant",
    "--warmup-steps", "1", "--batch", "16", "--max-examples", "96",
)  # fmt: skip
LORA = ("--tune", "lora", "--rank", "2")
MNIST, HEBREW = "loras/mnist@step4", "loras/hebrew@step2"
SHORT_TRAINING = ("--lr", "1e-3", "--batch", "16", "--max-examples", "64", "--augment")
MOE_ARGUMENTS = (MNIST, HEBREW, "--train-steps", "4", "--push-every", "2,4", *SHORT_TRAINING)


def train_expert(task: object, to: str, *more: object, base: object = "hubmerge/tiny-clip") -> None:
    """Train one expert for a few steps and publish it."""
    result = run_hubmerge("train", "--base", base, "--task", task, "--to", to, *FEW_STEPS, *more)
    assert result.code == 0, result.err


def train_loras() -> None:
    """Publish loras/mnist of rank 2 and loras/hebrew of rank 3, at steps 2 and 4."""
    train_expert("mini-mnist", "loras/mnist", *LORA)
    train_expert("mini-hebrew", "loras/hebrew", "--tune", "lora", "--rank", "3")


def read_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def change_tensors(file: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of a file, or remove those that are None."""
    state = {**load_file(file), **tensors}
    kept = {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}
    file.unlink()  # other names may be hard links to it
    save_file(kept, file)
