"""--extract-rank of full experts as people publish them: other names, a head, no manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.hub.client import Hub
from hubmerge.opening.extracted_adapters import extract_adapters
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref
from hubmerge.refs import parse_ref
from tests.compat.test_class_heads import TEXT, save_expert

RANK = 4


def opened(folder: Path) -> OpenedModel:
    unused: Any = Hub("http://127.0.0.1:9", lambda: None, folder, "no Hub")
    return open_ref(unused, parse_ref(f"./{folder.name}" if folder.is_dir() else str(folder)))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A masked language model, and a classifier that was made from it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
    base.save_pretrained("base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(59))]
    tokenizer = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    tokenizer.save_pretrained("base")
    config = transformers.BertConfig(**TEXT, num_labels=3)
    save_expert(transformers.BertForSequenceClassification(config), base, tmp_path / "expert")
    return tmp_path


def test_a_classifier_gives_the_adapter_of_its_body(models: Path) -> None:
    (adapter,), notes = extract_adapters(
        [opened(models / "expert")], opened(models / "base"), RANK, models / "extracted"
    )
    assert any("has a head of its own" in note for note in notes)
    ours, theirs = (load_file(models / name / "model.safetensors") for name in ("base", "expert"))
    factors = load_file(adapter.folder / "adapter_model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query"
    change = theirs[f"{name}.weight"] - ours[f"{name}.weight"]
    u, s, v = torch.linalg.svd(change)
    best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
    pair = [factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA"]
    torch.testing.assert_close(pair[0] @ pair[1], best, atol=1e-5, rtol=1e-4)


def test_other_names_give_the_same_adapter(models: Path) -> None:
    shutil.copytree(models / "expert", models / "wrapped")
    tensors = load_file(models / "expert" / "model.safetensors")
    renamed = {f"module.{name}": values for name, values in tensors.items()}
    save_file(renamed, models / "wrapped" / "model.safetensors", {"format": "pt"})
    weights = []
    for name in ("expert", "wrapped"):
        (adapter,), _ = extract_adapters(
            [opened(models / name)], opened(models / "base"), RANK, models / "extracted"
        )
        weights.append((adapter.folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_missing_tensor_is_refused_before_anything_is_written(models: Path) -> None:
    tensors = load_file(models / "expert" / "model.safetensors")
    del tensors["bert.encoder.layer.0.attention.self.query.weight"]
    save_file(tensors, models / "expert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"query\.weight"):
        extract_adapters(
            [opened(models / "expert")], opened(models / "base"), RANK, models / "extracted"
        )
    assert not (models / "extracted").exists()
