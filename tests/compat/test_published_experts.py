"""hubmerge publish --base of checkpoints that `merge` opens with an option."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.command_line import run_command
from tests.compat.test_class_heads import TEXT, save_expert

pytestmark = pytest.mark.usefixtures("running_hub")
TASK = {
    "name": "cola", "kind": "text", "head": "trained", "classes": ["no", "yes"],
    "data": {"path": "cola.csv"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A masked language model, and steps/checkpoint-8 of a classifier that was made from it."""
    torch.manual_seed(0)
    base = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
    base.save_pretrained(tmp_path / "base")
    expert = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
    save_expert(expert, base, tmp_path / "steps" / "checkpoint-8")
    rows = [f"w{n},{TASK['classes'][n % 2]}" for n in range(30)]
    (tmp_path / "cola.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "cola.yaml").write_text(json.dumps(TASK))
    return tmp_path


def publish(folder: Path) -> tuple[int, str]:
    words = ["--to", "me/cola", "--base", folder / "base", "--task", folder / "cola.yaml"]
    done = run_command("publish", folder / "steps", *words, "--dry-run")
    return done.exit_code, done.stderr


def test_a_classifier_over_a_language_model(folder: Path) -> None:
    assert publish(folder) == (0, "")


def test_a_larger_vocabulary(folder: Path) -> None:
    file = folder / "steps" / "checkpoint-8" / "model.safetensors"
    tensors = load_file(file)
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = torch.cat([tensors[name], torch.zeros(2, 32)])
    save_file(tensors, file, {"format": "pt"})
    assert publish(folder) == (0, "")


def test_an_own_output_head_over_a_tied_one(folder: Path) -> None:
    shutil.rmtree(folder / "steps" / "checkpoint-8")
    tied = transformers.BertForMaskedLM.from_pretrained(folder / "base")
    tied.save_pretrained(folder / "steps" / "checkpoint-8")
    file = folder / "steps" / "checkpoint-8" / "model.safetensors"
    tensors = load_file(file)
    tensors["cls.predictions.decoder.weight"] = torch.randn(64, 32)
    save_file(tensors, file, {"format": "pt"})
    assert publish(folder) == (0, "")


def test_another_model_is_refused(folder: Path) -> None:
    other = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT | {"hidden_size": 16}))
    shutil.rmtree(folder / "steps" / "checkpoint-8")
    other.save_pretrained(folder / "steps" / "checkpoint-8")
    code, error = publish(folder)
    assert code == 1
    assert "checkpoint-8" in error
