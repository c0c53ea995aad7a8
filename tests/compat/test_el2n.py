"""Scores of examples compared with open_clip and torch, used as in their documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch

import hubmerge
from hubmerge.evaluation import Examples
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.models.loading import load_model
from hubmerge.predictions import read_predictions
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task

MINI = Path(hubmerge.__file__).parent / "mini" / "base"


def test_el2n_loss_and_margin_equal_plain_torch() -> None:
    split = load_split(find_task("mini-mnist"), "validation").select(range(100))
    model = load_model(MINI)
    learner = make_learner(model, split.task, initial_head(model, split.task, split.classes), False)
    batches = Examples(learner.for_evaluation, split).batches_of(range(100), learner.collate)
    ours = read_predictions(learner, learner.network, batches, torch.device("cpu"))

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{MINI}")
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(MINI / "bpe.txt.gz"), context_length=20)
    clip.eval()
    texts = [split.task.spec.templates[0].format(name) for name in split.classes]
    images = torch.stack([preprocess(row["image"]) for row in split.rows])
    labels = torch.tensor(split.labels().tolist())
    with torch.no_grad():
        words = clip.encode_text(tokenizer(texts), normalize=True)
        logits = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ words.T
    off = logits.softmax(-1) - torch.nn.functional.one_hot(labels, len(texts))
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    ranked = logits.clone()
    ranked[torch.arange(100), labels] = -torch.inf
    margin = logits[torch.arange(100), labels] - ranked.max(-1).values

    assert len(split.task.spec.templates) == 1
    np.testing.assert_allclose(ours.el2n, off.norm(dim=-1), atol=2e-5)
    np.testing.assert_allclose(ours.loss, loss, atol=2e-4)
    np.testing.assert_allclose(ours.margin, margin, atol=2e-4)
    assert ours.predicted.tolist() == logits.argmax(-1).tolist()
