"""The loop learns, repeats itself byte for byte, and stops before NaN reaches a weight."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hubmerge.errors import CheckpointError, TrainingDiverged, UsageError
from hubmerge.evaluation import Examples, classifier
from hubmerge.models.preprocess import Transform
from hubmerge.models.vision_text import open_model
from hubmerge.tasks.data import Split
from hubmerge.training.examples import training_batches
from hubmerge.training.loop import train
from tests.training.worlds import MINI, running, spec, trained, weights


def test_thirty_steps_help(training: Split, validation: Split) -> None:
    asked = spec(steps=30, batch=32, warmup_steps=5, push_every="30")
    _, (before, after) = trained(asked, training, validation)
    assert after.accuracy > before.accuracy + 0.05
    assert (before.step, before.loss, before.lr) == (0, None, 0.0)
    assert (after.step, after.count, after.lr) == (30, 100, 5e-4)


@pytest.mark.parametrize("augment", [False, True])
def test_a_run_repeats_itself(training: Split, validation: Split, augment: bool) -> None:
    asked = spec(augment=augment, steps=3)
    one, curve = trained(asked, training, validation)
    torch.rand(7)
    two, again = trained(asked, training, validation)
    assert (weights(one), curve) == (weights(two), again)
    other, _ = trained(spec(augment=augment, steps=3, seed=1), training, validation)
    assert weights(other) != weights(one)


REPEAT = """
from hashlib import sha256
from hubmerge.tasks.data import load_split
from hubmerge.tasks.task import find_task
from tests.training.worlds import spec, trained, weights
splits = [load_split(find_task("mini-mnist"), name) for name in ("train", "validation")]
print(sha256(weights(trained(spec(steps=2, push_every="2"), *splits)[0])).hexdigest())
"""


def test_another_process_repeats_it(training: Split, validation: Split) -> None:
    model, _ = trained(spec(steps=2, push_every="2"), training, validation)
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run(
        [sys.executable, "-c", REPEAT],
        cwd=root, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True,
    )  # fmt: skip
    assert said.stdout.decode().strip() == sha256(weights(model)).hexdigest()


def test_points_come_at_the_pushed_steps_with_their_weights(
    training: Split, validation: Split
) -> None:
    model, seen = open_model(MINI), []
    for point in running(model, spec(steps=4, push_every="1,3"), training, validation):
        seen.append((point.step, weights(model)))
    assert [step for step, _ in seen] == [0, 1, 3, 4]
    for step, held in seen[1:3]:
        alone = open_model(MINI)
        for point in running(alone, spec(steps=4, push_every="1,3"), training, validation):
            if point.step == step:
                break
        assert weights(alone) == held
    assert len({held for _, held in seen}) == 4


def test_updates_are_plain_adamw(training: Split, validation: Split) -> None:
    asked = spec(steps=3, warmup_steps=2, clip=0.5, weight_decay=0.3)
    ours, (_, *points) = trained(asked, training, validation)
    theirs = open_model(MINI)
    network = classifier(theirs, training)
    named = list(theirs.encoder.parameters())
    optimizer = torch.optim.AdamW(named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    losses = []
    batches = training_batches(theirs, training, asked)
    for share, (images, labels) in zip([0.5, 1.0, 1.0], batches, strict=True):
        optimizer.param_groups[0]["lr"] = 5e-4 * share
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named, 0.5)
        optimizer.step()
    for (name, our), their in zip(ours.encoder.named_parameters(), named, strict=True):
        # The gradient of a key's bias is zero but for rounding, which Adam makes as large as any.
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(our, their, atol=2e-6, rtol=1e-5)
    assert [point.lr for point in points] == [2.5e-4, 5e-4, 5e-4]
    assert [point.loss for point in points] == pytest.approx(losses, abs=1e-5)


def test_loss_is_the_mean_since_the_last_point(training: Split, validation: Split) -> None:
    _, (_, *every) = trained(spec(push_every="1"), training, validation)
    _, (_, two, four) = trained(spec(push_every="2"), training, validation)
    each = [point.loss or 0.0 for point in every]
    assert two.loss == pytest.approx((each[0] + each[1]) / 2)
    assert four.loss == pytest.approx((each[2] + each[3]) / 2)


def test_only_the_image_encoder_is_trained(training: Split, validation: Split) -> None:
    model: Any = open_model(MINI)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    list(running(model, spec(), training, validation))
    moved = {
        name
        for name, weight in model.model.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    assert moved == {name for name in before if name.startswith("visual.")}


class Fragile(nn.Module):
    """Sound for `sound` calls in training; then the loss, a slope or the next answer is NaN."""

    def __init__(self, what: str, sound: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.what, self.left = what, sound

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))[:, :2] * self.scale
        self.left -= self.training
        late = not self.training and self.left == 0 if self.what == "answer" else self.left < 0
        if not late:
            return features
        if self.what != "gradient":
            return features * torch.nan
        return features + torch.sqrt(self.scale * 0)  # zero, with an infinite slope times zero


class FragileModel:
    """The least that can be trained."""

    layout = "none"
    preprocess = PreprocessCfg(size=(28, 28))

    def __init__(self, what: str, sound: int) -> None:
        self.encoder = Fragile(what, sound)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return torch.randn(
            len(prompts), 2, generator=torch.Generator().manual_seed(len(prompts[0]))
        )

    def scale(self) -> float:
        return 10.0

    def transform(self, augment: bool) -> Transform:
        return open_model(MINI).transform(augment)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_never_reaches_the_weights(training: Split, validation: Split, what: str) -> None:
    model = FragileModel(what, sound=2)
    points = running(model, spec(push_every="1", lr=0.01), training, validation)
    held = [weights(model) for _ in range(3) if next(points)]
    with pytest.raises(TrainingDiverged, match=f"The {what} is no longer a number at step 3"):
        next(points)
    assert held[1] != held[2] == weights(model)


def test_nan_in_validation_names_the_step(training: Split, validation: Split) -> None:
    points = running(FragileModel("answer", sound=2), spec(push_every="1"), training, validation)
    with pytest.raises(
        TrainingDiverged, match="The model's answer is no longer a number at step 2"
    ):
        assert [point.step for point in points] == [0, 1]


def test_a_base_of_nan_is_no_training_that_diverged(training: Split, validation: Split) -> None:
    model = FragileModel("answer", sound=0)
    with pytest.raises(CheckpointError, match="logits are not numbers"):
        next(running(model, spec(), training, validation))


def test_dropout_belongs_to_its_step(training: Split, validation: Split) -> None:
    """Whatever the consumer draws while it holds a point."""

    def run(draws: int) -> bytes:
        model: Any = FragileModel("loss", sound=9)
        model.encoder = nn.Sequential(model.encoder, nn.Dropout(0.5))
        for _ in running(model, spec(push_every="1", lr=0.01), training, validation):
            torch.rand(draws)
        return weights(model)

    assert run(0) == run(3)


def test_one_process_only(training: Split, validation: Split) -> None:
    many: Any = SimpleNamespace(num_processes=2)
    with pytest.raises(UsageError, match="one process"):
        next(train(open_model(MINI), spec(), training, validation, many, lambda *_: None))


def test_progress_is_told_at_every_step(training: Split, validation: Split) -> None:
    from accelerate import Accelerator

    told: list[tuple[str, int, int]] = []
    asked = spec(steps=3, push_every="3")
    list(
        train(
            open_model(MINI), asked, training, validation, Accelerator(cpu=True),
            lambda *said: told.append(said),
        )
    )  # fmt: skip
    assert [(step, total) for _, step, total in told] == [(1, 3), (2, 3), (3, 3)]
    assert all(said.startswith("loss ") for said, _, _ in told)


def test_validation_is_measured_without_augmentation(training: Split, validation: Split) -> None:
    _, curve = trained(spec(augment=True, steps=1), training, validation)
    _, plain = trained(spec(augment=False, steps=1), training, validation)
    assert curve[0].accuracy == plain[0].accuracy
    assert len(Examples(open_model(MINI).transform(False), validation).split) == 100
