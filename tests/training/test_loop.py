"""The loop learns, repeats itself byte for byte, and goes on from any position."""

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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hubmerge.errors import CheckpointError, OutOfMemory, TrainingDiverged, UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead
from hubmerge.models.loading import open_model
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches
from hubmerge.training.events import Moment, Position
from hubmerge.training.fit import make_fit
from hubmerge.training.inputs import Watch
from tests.training.worlds import MINI, curve, fit, learner, ran, running, spec, weights


def test_thirty_steps_help(training: Split, validation: Split) -> None:
    asked = spec(steps=30, batch=32, warmup_steps=5, push_every="30")
    before, after = curve(ran(asked, training, validation)[1])
    assert after.accuracy > before.accuracy + 0.05
    assert (before.step, before.loss, before.lr) == (0, None, 0.0)
    assert (after.step, after.count, after.lr) == (30, 100, 5e-4)


@pytest.mark.parametrize(
    "asked",
    [{}, {"augment": True}, {"accumulate": 2}, {"tune": "lora", "lr": 2e-3}],
    ids=str,
)  # fmt: skip
def test_a_run_repeats_itself(training: Split, validation: Split, asked: Any) -> None:
    one, moments = ran(spec(steps=3, **asked), training, validation)
    torch.rand(7)
    two, again = ran(spec(steps=3, **asked), training, validation)
    assert (one, curve(moments)) == (two, curve(again))
    assert ran(spec(steps=3, seed=1, **asked), training, validation)[0] != one


REPEAT = """
from hashlib import sha256
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from tests.training.worlds import ran, spec
splits = [load_split(find_task("mini-mnist"), name) for name in ("train", "validation")]
print(sha256(ran(spec(steps=2, push_every="2"), *splits)[0]).hexdigest())
"""


def test_another_process_repeats_it(training: Split, validation: Split) -> None:
    held, _ = ran(spec(steps=2, push_every="2"), training, validation)
    said = subprocess.run(
        [sys.executable, "-c", REPEAT],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True,
    )  # fmt: skip
    assert said.stdout.decode().strip() == sha256(held).hexdigest()


def test_accumulating_is_the_same_step_up_to_rounding(training: Split, validation: Split) -> None:
    _, one = ran(spec(steps=3, push_every="1"), training, validation)
    _, two = ran(spec(steps=3, push_every="1", accumulate=4), training, validation)
    told = [[point.loss for point in curve(moments)[1:]] for moments in (one, two)]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_moments_come_at_the_pushed_steps_with_their_weights(
    training: Split, validation: Split
) -> None:
    seen = []
    trained = fit(spec(push_every="1,3"), validation)
    for moment in running(trained, training, validation):
        seen.append((moment.step, moment.pushed, weights(trained)))
    assert [(step, pushed) for step, pushed, _ in seen] == [
        (0, False), (1, True), (3, True), (4, True)
    ]  # fmt: skip
    for step, _, held in seen[1:3]:
        alone = fit(spec(push_every="1,3"), validation)
        for moment in running(alone, training, validation):
            if moment.step == step:
                break
        assert weights(alone) == held
    assert len({held for *_, held in seen}) == 4


def test_updates_are_plain_adamw(training: Split, validation: Split) -> None:
    asked = spec(steps=3, warmup_steps=2, clip=0.5, weight_decay=0.3, push_every="1")
    ours = fit(asked, validation)
    points = curve(list(running(ours, training, validation)))[1:]
    theirs: Any = learner(asked, validation)
    named = list(theirs.network.parameters())
    optimizer = torch.optim.AdamW(named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    losses = []
    batches = Batches(theirs, training, asked).of(range(1, 4))
    for share, (batch,) in zip([0.5, 1.0, 1.0], batches, strict=True):
        optimizer.param_groups[0]["lr"] = 5e-4 * share
        optimizer.zero_grad()
        loss = cross_entropy(theirs.network(batch["image"]), batch["label"])
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named, 0.5)
        optimizer.step()
    for (name, our), their in zip(ours.network.named_parameters(), named, strict=True):
        # The gradient of a key's bias is zero but for rounding, which Adam makes as large as any.
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(our, their, atol=2e-6, rtol=1e-5)
    assert [point.lr for point in points] == [2.5e-4, 5e-4, 5e-4]
    assert [point.loss for point in points] == pytest.approx(losses, abs=1e-5)


def test_loss_is_the_mean_since_the_last_point(training: Split, validation: Split) -> None:
    every = curve(ran(spec(push_every="1"), training, validation)[1])[1:]
    two, four = curve(ran(spec(push_every="2"), training, validation)[1])[1:]
    each = [point.loss or 0.0 for point in every]
    assert two.loss == pytest.approx((each[0] + each[1]) / 2)
    assert four.loss == pytest.approx((each[2] + each[3]) / 2)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_only_what_is_tuned_is_trained(training: Split, validation: Split, tune: str) -> None:
    trained = fit(spec(tune=tune, steps=2), validation)
    before = {name: weight.clone() for name, weight in trained.network.state_dict().items()}
    list(running(trained, training, validation))
    moved = {n for n, w in trained.network.state_dict().items() if not torch.equal(w, before[n])}
    expected = {n for n in before if n.startswith("encoder.")}
    if tune == "lora":
        expected = {n for n in expected if "lora_" in n}
    assert moved == expected


@pytest.mark.parametrize(
    "asked",
    [{}, {"anneal": "branch", "push_every": "2^k"}, {"tune": "lora"},
     {"early_stop": "noise", "evaluate_every": 2, "push_every": "3"}],
    ids=str,
)  # fmt: skip
def test_a_run_goes_on_from_any_position(training: Split, validation: Split, asked: Any) -> None:
    said = spec(**{"steps": 8, "push_every": "4", **asked})
    kept: list[Position] = []
    watch = Watch(keep=lambda step, position: kept.append(position()))
    whole, moments = ran(said, training, validation, watch=watch)
    assert len(kept) >= 5
    for start in kept:
        ended, rest = ran(said, training, validation, start=start)
        assert ended == whole
        ahead = [m.curve for m in moments if m.step > start.step]
        assert [m.curve for m in rest if m.step > start.step][-len(ahead) :] == ahead


def test_a_branch_is_the_trunk_annealed(training: Split, validation: Split) -> None:
    """Step 8 by hand: six constant steps, then two that fall to zero."""
    asked = spec(steps=8, anneal="branch", cooldown=0.25, push_every="8", warmup=0.0)
    branched = fit(asked, validation)
    held = []
    for moment in running(branched, training, validation):
        held.append((moment.curve[-1].lr, weights(branched)))
    by_hand = fit(asked, validation)
    rates = [5e-4] * 6 + [5e-4 * 2 / 3, 5e-4 / 3]
    batches = Batches(by_hand.learner, training, asked).of(range(1, 9))
    for step, (rate, micros) in enumerate(zip(rates, batches, strict=True), start=1):
        by_hand.update(step, micros, rate)
    assert held[-1] == (rates[-1], weights(by_hand))


def test_branches_leave_the_trunk_as_it_was(training: Split, validation: Split) -> None:
    """A pushed step is the same whichever others are pushed."""
    asked = {"steps": 8, "anneal": "branch", "warmup": 0.0}
    _, few = ran(spec(push_every="8", **asked), training, validation)
    _, many = ran(spec(push_every="1", **asked), training, validation)
    assert few[-1].curve[-1].accuracy == many[-1].curve[-1].accuracy
    assert few[-1].step == many[-1].step == 8


def test_early_stopping_ends_at_a_pushed_step(training: Split, validation: Split) -> None:
    asked = spec(steps=400, lr=1e-9, early_stop="plateau", warmup_steps=2, push_every="8,400",
                 patience=1, min_lr=0.3)  # fmt: skip
    _, moments = ran(asked, training, validation)
    # Nothing moves at such a rate: 5 is the best, 10 halves the rate, 15 quarters it.
    assert [(m.step, m.pushed, m.stopped) for m in moments] == [
        (0, False, False), (5, False, False), (8, True, False), (10, False, False), (15, True, True)
    ]  # fmt: skip
    assert [point.lr for point in curve(moments)[1:]] == [1e-9, 1e-9, 1e-9, 5e-10]


def test_stopping_does_not_hang_on_what_is_pushed(training: Split, validation: Split) -> None:
    asked = {"steps": 60, "early_stop": "noise", "patience": 3, "lr": 1e-9}
    one = ran(spec(push_every="60", **asked), training, validation)[1]
    two = ran(spec(push_every="1", **asked), training, validation)[1]
    assert one[-1].step == two[-1].step < 60


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
        if self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")
        if self.what != "gradient":
            return features * torch.nan
        return features + torch.sqrt(self.scale * 0)  # zero, with an infinite slope times zero


def fragile(what: str, sound: int, encoder: nn.Module | None = None) -> ImageLearner:
    """The least that can be trained."""
    head = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    network = Classifier(encoder or Fragile(what, sound), LabelHead(10 * head))
    return ImageLearner(network, open_model(MINI).transform(augment=False))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_never_reaches_the_weights(training: Split, validation: Split, what: str) -> None:
    trained = fit(spec(push_every="1", lr=0.01), validation, fragile(what, sound=2))
    moments = running(trained, training, validation)
    held = [weights(trained) for _ in range(3) if next(moments)]
    with pytest.raises(TrainingDiverged, match=f"The {what} is no longer a number at step 3"):
        next(moments)
    assert held[1] != held[2] == weights(trained)


def test_nan_in_validation_names_the_step(training: Split, validation: Split) -> None:
    trained = fit(spec(push_every="1"), validation, fragile("answer", sound=2))
    with pytest.raises(TrainingDiverged, match="The model's answer is no number at step 2"):
        assert [m.step for m in running(trained, training, validation)] == [0, 1]


def test_a_base_of_nan_is_no_training_that_diverged(training: Split, validation: Split) -> None:
    trained = fit(spec(), validation, fragile("answer", sound=0))
    with pytest.raises(CheckpointError, match="answers are not numbers"):
        next(running(trained, training, validation))


def test_a_loss_that_explodes_is_told(training: Split, validation: Split) -> None:
    asked = spec(steps=400, push_every="400", lr=30.0, clip=1e6, warmup=0.0, weight_decay=0.0)
    with pytest.raises(TrainingDiverged, match=r"explodes: above .* by step|no longer a number"):
        ran(asked, training, validation)


def test_out_of_memory_says_what_fits(training: Split, validation: Split) -> None:
    trained = fit(spec(accumulate=2), validation, fragile("memory", sound=2))
    with pytest.raises(OutOfMemory, match="step 2 with 4 examples at a time") as error:
        list(running(trained, training, validation))
    assert "--accumulate 4" in error.value.hint


def test_dropout_belongs_to_its_step(training: Split, validation: Split) -> None:
    """Whatever the consumer draws while it holds a moment."""

    def run(draws: int) -> bytes:
        encoder = nn.Sequential(Fragile("loss", 9), nn.Dropout(0.5))
        trained = fit(spec(push_every="1", lr=0.01), validation, fragile("", 0, encoder))
        for _ in running(trained, training, validation):
            torch.rand(draws)
        return weights(trained)

    assert run(0) == run(3)


def test_a_batch_must_split_evenly() -> None:
    three: Any = SimpleNamespace(num_processes=3, distributed_type="MULTI_CPU")
    with pytest.raises(UsageError, match="does not split evenly over 3 processes") as refused:
        make_fit(fragile("loss", 1), spec(batch=8), three)
    assert "--batch 9" in refused.value.hint


def test_progress_and_trackers_are_told_at_every_step(training: Split, validation: Split) -> None:
    told: list[tuple[str, int, int]] = []
    tracked: list[tuple[int, Sequence[str]]] = []
    watch = Watch(
        progress=lambda *said: told.append(said),
        track=lambda said, step: tracked.append((step, sorted(said))),
    )
    moments: list[Moment] = ran(spec(steps=2, push_every="2"), training, validation, watch=watch)[1]
    assert [(step, total) for _, step, total in told] == [(1, 2), (2, 2)]
    for part in ("loss ", "lr ", "val ", "steps/s"):
        assert all(part in said for said, _, _ in told)
    assert tracked == [
        (0, ["validation_accuracy"]), (1, ["loss", "lr"]), (2, ["loss", "lr"]),
        (2, ["validation_accuracy"]),
    ]  # fmt: skip
    assert len(moments) == 2


def test_validation_is_measured_without_augmentation(training: Split, validation: Split) -> None:
    begun = [
        curve(ran(spec(augment=augment, steps=1), training, validation)[1])[0].accuracy
        for augment in (True, False)
    ]
    assert begun[0] == begun[1]


def test_an_illegal_memory_access_is_no_lack_of_memory(training: Split, validation: Split) -> None:
    class Faulty(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().forward(images.mean(dim=(2, 3))[:, :2])

    trained = fit(spec(), validation, fragile("", 0, Faulty(2, 2)))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(running(trained, training, validation))
