"""Heads of labels compared with the libraries' own results, and trained heads on disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertModel, CLIPModel

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.learners.heads import head_path, label_head, load_head, new_head, save_head
from hubmerge.models.loading import load_model
from hubmerge.tasks.heads import zero_shot_head
from tests.learners.builders import CLASSES, batch_of, load_learner, task

Folders = dict[str, Path]
TEMPLATES = ("a photo of the {}.", "the digit {}")


def test_the_label_head_of_a_clip_is_its_zero_shot_head(folders: Folders) -> None:
    model = load_model(folders["clip"], "image")
    head = label_head(model, task("image", templates=TEMPLATES), CLASSES)
    expected = zero_shot_head(model.encode_text, model.scale(), CLASSES, TEMPLATES)
    assert torch.equal(head.weight, expected)


@torch.no_grad()
def test_clip_logits_match_transformers(folders: Folders) -> None:
    model, learner = load_learner(folders["clip"], "image")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    batch = batch_of(learner, (Image.fromarray(pixels), 0))
    prompts = [f"a photo of a {name}." for name in CLASSES]
    reference = CLIPModel.from_pretrained(folders["clip"]).eval()
    tokens = model.tokenizer(prompts, padding=True, return_tensors="pt")
    output = reference(**tokens, pixel_values=batch["image"])
    logits = learner.network(batch["image"])
    torch.testing.assert_close(logits, output.logits_per_image, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_label_head_of_a_text_encoder_by_hand(folders: Folders) -> None:
    model: Any = load_model(folders["bert"], "text")
    body = BertModel.from_pretrained(folders["bert"]).eval()

    def embedded(prompt: str) -> Tensor:
        ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        return normalize(body(ids).last_hidden_state[0].mean(dim=0), dim=-1)

    embeddings = [
        sum(embedded(template.replace("{}", name)) for template in TEMPLATES) for name in CLASSES
    ]
    expected = 20 * normalize(torch.stack(embeddings), dim=-1)
    head = label_head(model, task("text", templates=TEMPLATES), CLASSES)
    torch.testing.assert_close(head.weight, expected, atol=1e-5, rtol=1e-5)
    assert not head.weight.requires_grad


NAMES = ("bad", "fair", "good", "fine", "best")


def random_head(width: int = 5, classes: int = 3) -> nn.Linear:
    head = new_head(width, classes)
    with torch.no_grad():
        for number, weight in enumerate(head.parameters()):
            weight.normal_(generator=torch.Generator().manual_seed(number))
    return head


def test_a_trained_head_is_saved_and_loaded(tmp_path: Path) -> None:
    head = random_head()
    save_head(head, tmp_path, task("text"), NAMES[:3])
    assert [file.name for file in tmp_path.iterdir()] == ["head-small.safetensors"]
    loaded = load_head(tmp_path, task("text"), 5, NAMES[:3])
    assert all(torch.equal(w, loaded.state_dict()[n]) for n, w in head.state_dict().items())
    content = head_path(tmp_path, task("text")).read_bytes()
    save_head(loaded, tmp_path, task("text"), NAMES[:3])
    assert head_path(tmp_path, task("text")).read_bytes() == content


def test_every_task_has_its_own_head_file(tmp_path: Path) -> None:
    save_head(random_head(), tmp_path, task("text", name="one"), NAMES[:3])
    save_head(new_head(5, 2), tmp_path, task("text", name="two"), NAMES[:2])
    assert load_head(tmp_path, task("text", name="one"), 5, NAMES[:3]).weight.any()
    assert not load_head(tmp_path, task("text", name="two"), 5, NAMES[:2]).weight.any()


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trained head for task small") as refused:
        load_head(tmp_path, task("text"), 5, NAMES[:3])
    assert "an expert that was trained on the task" in refused.value.hint


@pytest.mark.parametrize(("width", "classes"), [(5, 4), (4, 3), (3, 5)])
def test_a_head_of_another_shape_is_refused(tmp_path: Path, width: int, classes: int) -> None:
    save_head(random_head(), tmp_path, task("text"), NAMES[:3])
    with pytest.raises(CheckpointError, match=f"not a head of {classes} classes over {width} feat"):
        load_head(tmp_path, task("text"), width, NAMES[:classes])


def test_a_head_for_other_classes_is_refused(tmp_path: Path) -> None:
    """As many classes in another order would answer wrongly and say nothing."""
    save_head(random_head(), tmp_path, task("text"), NAMES[:3])
    with pytest.raises(CheckpointError, match="is a head for other classes"):
        load_head(tmp_path, task("text"), 5, NAMES[2::-1])


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weight": [1.0]}))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def with_more_behind(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"#!/bin/sh")


def with_another_tensor(file: Path) -> None:
    save_file({**load_file(file), "more": torch.zeros(1)}, file)


def without_bias(file: Path) -> None:
    save_file({"weight": load_file(file)["weight"]}, file)


@pytest.mark.parametrize(
    "spoil", [pickled, cut_short, with_more_behind, with_another_tensor, without_bias]
)
def test_a_file_that_is_no_head_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    save_head(random_head(), tmp_path, task("text"), NAMES[:3])
    spoil(head_path(tmp_path, task("text")))
    with pytest.raises(CheckpointError, match=r"head-small\.safetensors"):
        load_head(tmp_path, task("text"), 5, NAMES[:3])
