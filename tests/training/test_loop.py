"""The training loop: the loss falls, runs repeat byte for byte and resume from any position."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hubmerge.errors import CheckpointError, OutOfMemory, TrainingDiverged, UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead
from hubmerge.models.loading import load_model
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches
from hubmerge.training.events import CheckpointEvent
from hubmerge.training.fit import make_fit
from hubmerge.training.inputs import TrainingCallbacks
from hubmerge.training.position import Position
from tests.training.builders import (
    MINI,
    curve,
    iterate_training,
    make_learner_of,
    make_spec,
    make_tiny_fit,
    run_training,
    weight_bytes,
)


def test_thirty_steps_improve_accuracy(training: Split, long_validation: Split) -> None:
    spec = make_spec(steps=30, batch=32, warmup_steps=5, push_every="30")
    before, after = curve(run_training(spec, training, long_validation)[1])
    assert after.accuracy > before.accuracy + 0.05
    assert (before.step, before.loss, before.lr) == (0, None, 0.0)
    assert (after.step, after.count, after.lr) == (30, 100, 5e-4)


@pytest.mark.parametrize(
    "settings",
    [{"augment": True}, {"tune": "lora", "lr": 2e-3},
     *(pytest.param(settings, marks=pytest.mark.slow) for settings in ({}, {"accumulate": 2}))],
    ids=str,
)  # fmt: skip
def test_a_run_repeats(training: Split, validation: Split, settings: Any) -> None:
    weights, events = run_training(make_spec(steps=3, **settings), training, validation)
    torch.rand(7)
    same_weights, same_events = run_training(make_spec(steps=3, **settings), training, validation)
    assert (weights, curve(events)) == (same_weights, curve(same_events))
    assert run_training(make_spec(steps=3, seed=1, **settings), training, validation)[0] != weights


def test_accumulation_changes_only_rounding(training: Split, validation: Split) -> None:
    _, single = run_training(make_spec(steps=3, push_every="1"), training, validation)
    _, accumulated = run_training(
        make_spec(steps=3, push_every="1", accumulate=4), training, validation
    )
    losses = [[point.loss for point in curve(events)[1:]] for events in (single, accumulated)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_events_come_at_pushed_steps_with_their_weights(training: Split, validation: Split) -> None:
    seen = []
    fit = make_tiny_fit(make_spec(push_every="1,3"), validation)
    for event in iterate_training(fit, training, validation):
        seen.append((event.step, event.pushed, weight_bytes(fit)))
    assert [(step, pushed) for step, pushed, _ in seen] == [
        (0, False), (1, True), (3, True), (4, True)
    ]  # fmt: skip
    for step, _, weights in seen[1:3]:
        other_fit = make_tiny_fit(make_spec(push_every="1,3"), validation)
        for event in iterate_training(other_fit, training, validation):
            if event.step == step:
                break
        assert weight_bytes(other_fit) == weights
    assert len({weights for *_, weights in seen}) == 4


def test_updates_are_plain_adamw(training: Split, validation: Split) -> None:
    spec = make_spec(steps=3, warmup_steps=2, clip=0.5, weight_decay=0.3, push_every="1")
    fit = make_tiny_fit(spec, validation)
    points = curve(list(iterate_training(fit, training, validation)))[1:]
    reference: Any = make_learner_of(spec, validation)
    parameters = list(reference.network.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    losses = []
    batches = Batches(reference, training, spec).for_steps(range(1, 4))
    for factor, (batch,) in zip([0.5, 1.0, 1.0], batches, strict=True):
        optimizer.param_groups[0]["lr"] = 5e-4 * factor
        optimizer.zero_grad()
        loss = cross_entropy(reference.network(batch["image"]), batch["label"])
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    for (name, ours), expected in zip(fit.network.named_parameters(), parameters, strict=True):
        # The gradient of a key's bias is only rounding error, which Adam scales up.
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
    assert [point.lr for point in points] == [2.5e-4, 5e-4, 5e-4]
    assert [point.loss for point in points] == pytest.approx(losses, abs=1e-5)


def test_loss_is_the_mean_since_the_last_point(training: Split, validation: Split) -> None:
    points = curve(run_training(make_spec(push_every="1"), training, validation)[1])[1:]
    two, four = curve(run_training(make_spec(push_every="2"), training, validation)[1])[1:]
    losses = [point.loss or 0.0 for point in points]
    assert two.loss == pytest.approx((losses[0] + losses[1]) / 2)
    assert four.loss == pytest.approx((losses[2] + losses[3]) / 2)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_only_the_tuned_weights_change(training: Split, validation: Split, tune: str) -> None:
    fit = make_tiny_fit(make_spec(tune=tune, steps=2), validation)
    before = {name: weight.clone() for name, weight in fit.network.state_dict().items()}
    list(iterate_training(fit, training, validation))
    changed = {n for n, w in fit.network.state_dict().items() if not torch.equal(w, before[n])}
    expected = {n for n in before if n.startswith("encoder.")}
    if tune == "lora":
        expected = {n for n in expected if "lora_" in n}
    assert changed == expected


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"anneal": "branch", "push_every": "2^k"}, marks=pytest.mark.slow),
     pytest.param({"tune": "lora"}, marks=pytest.mark.slow),
     {"early_stop": "noise", "evaluate_every": 2, "push_every": "5"}],
    ids=str,
)  # fmt: skip
def test_a_run_resumes_from_any_position(training: Split, validation: Split, settings: Any) -> None:
    spec = make_spec(**{"steps": 6, "push_every": "3", **settings})
    positions: list[Position] = []
    callbacks = TrainingCallbacks(save_position=lambda step, position: positions.append(position()))
    weights, events = run_training(spec, training, validation, callbacks=callbacks)
    assert len(positions) >= 5
    for start in positions:
        resumed_weights, resumed_events = run_training(spec, training, validation, start=start)
        assert resumed_weights == weights
        curves = [event.curve for event in events if event.step > start.step]
        resumed_curves = [event.curve for event in resumed_events if event.step > start.step]
        assert resumed_curves[-len(curves) :] == curves


def test_a_branch_is_the_trunk_annealed(training: Split, validation: Split) -> None:
    """Step 8 by hand: six constant steps, then two with falling rate."""
    spec = make_spec(steps=8, anneal="branch", cooldown=0.25, push_every="8", warmup=0.0)
    branched = make_tiny_fit(spec, validation)
    results = []
    for event in iterate_training(branched, training, validation):
        results.append((event.curve[-1].lr, weight_bytes(branched)))
    by_hand = make_tiny_fit(spec, validation)
    rates = [5e-4] * 6 + [5e-4 * 2 / 3, 5e-4 / 3]
    batches = Batches(by_hand.learner, training, spec).for_steps(range(1, 9))
    for step, (rate, micro_batches) in enumerate(zip(rates, batches, strict=True), start=1):
        by_hand.update(step, micro_batches, rate)
    assert results[-1] == (rates[-1], weight_bytes(by_hand))


def test_branches_do_not_change_the_trunk(training: Split, validation: Split) -> None:
    """A pushed step does not depend on other pushed steps."""
    settings = {"steps": 8, "anneal": "branch", "warmup": 0.0}
    _, few = run_training(make_spec(push_every="8", **settings), training, validation)
    _, many = run_training(make_spec(push_every="1", **settings), training, validation)
    assert few[-1].curve[-1].accuracy == many[-1].curve[-1].accuracy
    assert few[-1].step == many[-1].step == 8


def test_early_stopping_ends_at_a_pushed_step(training: Split, validation: Split) -> None:
    spec = make_spec(steps=400, lr=1e-9, early_stop="plateau", warmup_steps=2, push_every="8,400",
                 patience=1, min_lr=0.3)  # fmt: skip
    _, events = run_training(spec, training, validation)
    # At this rate nothing changes: 5 stays the best, 10 and 15 halve the rate.
    assert [(m.step, m.pushed, m.stopped) for m in events] == [
        (0, False, False), (5, False, False), (8, True, False), (10, False, False), (15, True, True)
    ]  # fmt: skip
    assert [point.lr for point in curve(events)[1:]] == [1e-9, 1e-9, 1e-9, 5e-10]


@pytest.mark.slow
def test_stopping_does_not_depend_on_pushed_steps(training: Split, validation: Split) -> None:
    settings = {"steps": 60, "early_stop": "noise", "patience": 3, "lr": 1e-9}
    few = run_training(make_spec(push_every="60", **settings), training, validation)[1]
    many = run_training(make_spec(push_every="1", **settings), training, validation)[1]
    assert few[-1].step == many[-1].step < 60


class FailingEncoder(nn.Module):
    """Works for `good_calls` calls in training; then the loss, gradient or next prediction is NaN.

    With `failure` "memory" it runs out of memory instead.
    """

    def __init__(self, failure: str, good_calls: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.failure, self.calls_left = failure, good_calls

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))[:, :2] * self.scale
        self.calls_left -= self.training
        if self.failure == "prediction":
            fails = not self.training and self.calls_left == 0
        else:
            fails = self.calls_left < 0
        if not fails:
            return features
        if self.failure == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")
        if self.failure != "gradient":
            return features * torch.nan
        return features + torch.sqrt(self.scale * 0)  # zero, but its gradient is NaN


def failing(failure: str, good_calls: int, encoder: nn.Module | None = None) -> ImageLearner:
    """A minimal learner that can be trained."""
    head = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    network = Classifier(encoder or FailingEncoder(failure, good_calls), LabelHead(10 * head))
    return ImageLearner(network, load_model(MINI).transform(augment=False))


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
def test_nan_never_reaches_the_weights(training: Split, validation: Split, quantity: str) -> None:
    fit = make_tiny_fit(
        make_spec(push_every="1", lr=0.01), validation, failing(quantity, good_calls=2)
    )
    events = iterate_training(fit, training, validation)
    weights = [weight_bytes(fit) for _ in range(3) if next(events)]
    with pytest.raises(TrainingDiverged, match=f"The {quantity} is not finite at step 3"):
        next(events)
    assert weights[1] != weights[2] == weight_bytes(fit)


def test_nan_in_validation_names_the_step(training: Split, validation: Split) -> None:
    fit = make_tiny_fit(make_spec(push_every="1"), validation, failing("prediction", good_calls=2))
    with pytest.raises(TrainingDiverged, match="The model's predictions are not finite at step 2"):
        assert [event.step for event in iterate_training(fit, training, validation)] == [0, 1]


def test_a_base_with_nan_is_a_checkpoint_error(training: Split, validation: Split) -> None:
    fit = make_tiny_fit(make_spec(), validation, failing("prediction", good_calls=0))
    with pytest.raises(CheckpointError, match="predictions are not finite"):
        next(iterate_training(fit, training, validation))


def test_an_exploding_loss_raises(training: Split, validation: Split) -> None:
    spec = make_spec(steps=20, push_every="20", lr=30.0, clip=1e6, warmup=0.0, weight_decay=0.0)
    network = Classifier(FailingEncoder("loss", good_calls=99), nn.Linear(2, 10))
    learner = ImageLearner(network, load_model(MINI).transform(augment=False))
    fit = make_tiny_fit(spec, validation, learner)
    with pytest.raises(TrainingDiverged, match=r"exploded: above .* up to step 11, "):
        list(iterate_training(fit, training, validation))


def test_out_of_memory_suggests_smaller_batches(training: Split, validation: Split) -> None:
    fit = make_tiny_fit(make_spec(accumulate=2), validation, failing("memory", good_calls=2))
    with pytest.raises(OutOfMemory, match="step 2 with 4 examples at a time") as error:
        list(iterate_training(fit, training, validation))
    assert "--accumulate 4" in error.value.hint


def test_dropout_depends_on_the_step_only(training: Split, validation: Split) -> None:
    """It does not depend on what the consumer draws between events."""

    def run(draws: int) -> bytes:
        encoder = nn.Sequential(FailingEncoder("loss", 9), nn.Dropout(0.5))
        fit = make_tiny_fit(make_spec(push_every="1", lr=0.01), validation, failing("", 0, encoder))
        for _ in iterate_training(fit, training, validation):
            torch.rand(draws)
        return weight_bytes(fit)

    assert run(0) == run(3)


def test_a_batch_must_split_evenly() -> None:
    three: Any = SimpleNamespace(num_processes=3, distributed_type="MULTI_CPU")
    with pytest.raises(UsageError, match="does not split evenly over 3 processes") as refused:
        make_fit(failing("loss", 1), make_spec(batch=8), three)
    assert "--batch 9" in refused.value.hint


def test_progress_and_metrics_are_reported_at_every_step(
    training: Split, validation: Split
) -> None:
    progress: list[tuple[str, int, int]] = []
    logged: list[tuple[int, Sequence[str]]] = []
    callbacks = TrainingCallbacks(
        progress=lambda *call: progress.append(call),
        log_metrics=lambda metrics, step: logged.append((step, sorted(metrics))),
    )
    events: list[CheckpointEvent] = run_training(
        make_spec(steps=2, push_every="2"), training, validation, callbacks=callbacks
    )[1]
    assert [(step, total) for _, step, total in progress] == [(1, 2), (2, 2)]
    for part in ("loss ", "lr ", "val ", "steps/s"):
        assert all(part in text for text, _, _ in progress)
    assert logged == [
        (0, ["validation_accuracy"]), (1, ["loss", "lr"]), (2, ["loss", "lr"]),
        (2, ["validation_accuracy"]),
    ]  # fmt: skip
    assert len(events) == 2


def test_validation_has_no_augmentation(training: Split, validation: Split) -> None:
    specs = [make_spec(augment=augment, steps=1) for augment in (True, False)]
    curves = [curve(run_training(spec, training, validation)[1]) for spec in specs]
    accuracies = [points[0].accuracy for points in curves]
    assert accuracies[0] == accuracies[1]


def test_an_illegal_memory_access_is_not_out_of_memory(training: Split, validation: Split) -> None:
    class Faulty(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().forward(images.mean(dim=(2, 3))[:, :2])

    fit = make_tiny_fit(make_spec(), validation, failing("", 0, Faulty(2, 2)))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(iterate_training(fit, training, validation))
